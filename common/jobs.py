"""Run a function over clips: progress, status records, retry and resume.

    jobs -> an executor (see `common.executors`) -> (job, outcome) as each finishes -> the journal -> a summary

The function is called with a job's arguments, writes the job's output atomically and returns an Outcome. An exception
fails that clip only, except a UserError, which ends the run.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.files import lock, make_folder, remove
from common.journal import Journal, journal_files, last_settings, stamp_of
from common.local_executor import run_local
from common.outcome import CRASHED, ONLY_OK, Executor, Job, Outcome, Outcomes, StageError, Statuses
from common.shards import WHOLE, Shard, shard_path
from common.text import abbreviate

# After this many crashes in a row, the run ends: apparently no worker process can run.
MAX_CRASHES = 10

log = logging.getLogger(__name__)


def run(
    function: Callable[..., Outcome],
    jobs: list[Job],
    output: Path,
    settings: Mapping[str, Any],
    workers: int | None,
    statuses: Statuses = ONLY_OK,
    retry_failed: bool = False,
    overwrite: bool = False,
    execute: Executor = run_local,
    shard: Shard | None = None,
    merge: bool = False,
) -> dict[str, Outcome]:
    """Run the jobs that are not finished and return the outcome of every job by clip.

    A clip runs again if its inputs or the settings have changed, or if its output is missing. A failed clip leaves no
    output.

    Args:
        function: called with a job's arguments; must be importable by worker processes.
        jobs: one per clip.
        output: folder of the stage's outputs.
        settings: everything else that the outputs depend on; `stage` names the stage.
        workers: number of worker processes; None for as many as there is room for.
        statuses: meaning of the function's statuses.
        retry_failed: re-run the clips that failed in an earlier run.
        overwrite: start over.
        execute: the executor.
        shard: the shard that the jobs are.
        merge: run no job, but return the outcomes if all jobs are finished.

    Raises:
        StageError: the stage cannot continue, or not all jobs are finished for `merge`.
        OutputError: an output cannot be written.
    """
    path = journal_path(output)
    for folder in (output, path.parent):
        make_folder(folder)
    with lock(path, (shard or WHOLE).positions):
        journal = _open_journal(output, settings, overwrite, shard, {job.clip for job in jobs})
        stamps = {job.clip: [stamp_of(path) for path in job.inputs] for job in jobs}
        outcomes = {
            job.clip: _previous_outcome(job, journal.get(job.clip, stamps[job.clip]), statuses, retry_failed)
            for job in jobs
        }
        todo = [job for job in jobs if outcomes[job.clip] is None]
        if merge and todo:
            raise _unfinished(output, todo, len(jobs))
        finished = len(jobs) - len(todo)
        with (
            _progress(output.name, len(jobs), finished) as bar,
            closing(execute(function, todo, workers)) as results,
        ):
            for job, outcome in _stop_after_crashes(results):
                outcomes[job.clip] = outcome
                if outcome.status not in statuses.done:
                    remove(job.output)  # made by an earlier run from inputs that have changed since
                if statuses.failed(outcome.status):
                    log.warning("%s: %s: %s", job.clip, outcome.status, outcome.message)
                if outcome.status != CRASHED:  # crashed clips are always tried again
                    journal.add(job.clip, stamps[job.clip], asdict(outcome))
                bar.update()
    return {clip: outcome for clip, outcome in outcomes.items() if outcome}


def journal_path(output: Path, shard: Shard | None = None) -> Path:
    """Return the path of the journal of an output folder."""
    return shard_path(output.parent / "progress" / f"{output.name}.jsonl", shard)


def summarize(outcomes: Mapping[str, Outcome]) -> str:
    """Format a table: the number of clips per status with the sums of their counts."""
    clips = Counter(outcome.status for outcome in outcomes.values())
    columns = list(dict.fromkeys(name for outcome in outcomes.values() for name in outcome.counts))
    sums: dict[str, Counter] = {status: Counter() for status in clips}
    for outcome in outcomes.values():
        sums[outcome.status].update(outcome.counts)
    rows = [["status", "clips", *columns]]
    rows += [[status, str(clips[status]), *(str(sums[status][name]) for name in columns)] for status in sorted(clips)]
    return "\n".join(f"{row[0]:14}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows)


def _open_journal(
    output: Path, settings: Mapping[str, Any], overwrite: bool, shard: Shard | None, clips: set[str]
) -> Journal:
    for path in journal_files(journal_path(output)):
        owner = last_settings(path).get("stage")
        if owner and owner != settings.get("stage"):
            raise StageError(
                f"{output}: contains the outputs of {owner}. Choose another folder, or delete it and {path}"
            )
    journal = Journal(journal_path(output), settings, overwrite, _is_outcome, shard, clips)
    if journal.changed:
        log.info("settings changed since the last run (%s): re-running the clips", ", ".join(journal.changed))
    return journal


def _unfinished(output: Path, todo: list[Job], total: int) -> StageError:
    names = abbreviate([job.clip for job in todo])
    remedy = "Run their shards again with the same options, or run without --merge"
    return StageError(f"{output}: {len(todo)} of {total} clips have no valid record: {names}. {remedy}")


def _is_outcome(_clip: str, record: dict[str, Any]) -> bool:
    """Return whether a record is that of an Outcome."""
    types: dict[str, Any] = {"status": str, "message": str, "counts": dict, "seconds": (int, float)}
    return record.keys() == types.keys() and all(isinstance(record[key], types[key]) for key in types)


def _previous_outcome(
    job: Job, record: dict[str, Any] | None, statuses: Statuses, retry_failed: bool
) -> Outcome | None:
    """Return the recorded outcome of a job, or None if it has to run."""
    if record is None or (record["status"] in statuses.done and not job.output.exists()):
        return None
    outcome = Outcome(**record)
    return None if retry_failed and statuses.failed(outcome.status) else outcome


def _progress(name: str, total: int, finished: int) -> tqdm:
    """Return a progress bar that is shown on terminals only, and only if there is work left."""
    return tqdm(desc=name, total=total, initial=finished, unit="clip", disable=True if finished == total else None)


def _stop_after_crashes(results: Outcomes) -> Iterator[tuple[Job, Outcome]]:
    """Yield the results. Raises StageError after MAX_CRASHES crashes in a row."""
    crashes = 0
    for job, outcome in results:
        yield job, outcome
        crashes = crashes + 1 if outcome.status == CRASHED else 0
        if crashes == MAX_CRASHES:
            raise StageError(f"--workers: {crashes} worker processes died in a row. Use fewer if memory is short")
