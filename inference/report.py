"""Write a self-contained HTML page about the results of a run.

    python -m inference.report details.jsonl --output report.html [--test-dir VIDEOS]

makes the page from a file that predict_folder.py wrote with --details. It needs the videos for pictures only: those in
--test-dir whose SHA-256 is still the same.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common import cli
from common.errors import UserError
from common.files import atomic_write, file_facts
from common.object_store import File
from common.text import MAX_NAME, plural, printable, shorten
from inference.colors import score_color
from inference.people import counted, mean_score
from inference.report_pictures import VideoPictures, make_pictures
from inference.report_plot import lines_of, marker_definitions, plot
from inference.schema import read_details
from preprocessing.limits import Limits

if TYPE_CHECKING:
    from inference.explain import Explainer

# Arguments of predict_folder.py for the fields of Limits.
LIMIT_ARGUMENTS = ("max_pixels", "decoder_memory", "timeout", "clip_timeout")
FOLDER = Path(__file__).resolve().parent
STATUSES = {"ok": "scored", "no_face": "no face", "unreadable": "unreadable", "too_large": "too large"}
VERDICTS = {"likely_fake": "likely fake", "inconclusive": "inconclusive", "likely_real": "likely real"}
REMEDIES = {
    "unreadable": "Check the file in a video player, copy or download it again, and run the same command.",
    "too_large": "If you trust the file, raise the limit that the message names, and run the same command.",
}
# How Python represents bytes of file names that are not UTF-8.
_SURROGATES = re.compile("[\udc80-\udcff]")
# Characters of a page: pictures that would make it larger are left out.
MAX_PAGE = 28 * 10**6
# With more videos than this, their sections are closed when the page opens.
MAX_OPEN = 10


def write_report(
    path: str | Path,
    header: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    videos: Mapping[str, File] | None = None,
    explainer: Explainer | None = None,
    limits: Limits | None = None,
) -> None:
    """Write the page.

    Args:
        path: HTML file.
        header: header of --details.
        records: records of --details.
        videos: file by file name, for pictures; None for a page without.
        explainer: makes heat maps; None for none.
        limits: what decoding a video may take; None for the default limits.

    Raises:
        OutputError: the page cannot be written.
        DeviceError: the device of the explainer fails.
    """
    pictures: dict[str, VideoPictures] = {}
    if videos:
        rest = max(MAX_PAGE - len(render(header, records, {})), 0)
        pictures = make_pictures(records, videos, header["method"]["frames"], limits, explainer, rest)
    atomic_write(Path(path), render(header, records, pictures))


def render(
    header: Mapping[str, Any], records: Sequence[Mapping[str, Any]], pictures: Mapping[str, VideoPictures]
) -> str:
    """Return the page. `pictures`: by file name; videos that are left out have none."""
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "name": lambda text: shorten(_shown(text), MAX_NAME),
        "text": _shown,
        "score": lambda value: f"{value:.3f}",
        "color": lambda value: "rgb({}, {}, {})".format(*score_color(value)),
        "mean": mean_score,
        "plural": plural,
    }
    videos = [_view(number, record, header, pictures) for number, record in enumerate(records)]
    return environment.get_template("report.html.j2").render(
        header=header,
        videos=videos,
        failures=[video for video in videos if video["record"]["status"] in REMEDIES],
        counts=_counts(records, header),
        command=_command(header["arguments"]),
        markers=marker_definitions(),
        statuses=STATUSES,
        verdicts=VERDICTS,
        remedies=REMEDIES,
        explained=any(face.heat for found in pictures.values() for face in found.faces),
        max_open=MAX_OPEN,
        style=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _view(
    number: int, record: Mapping[str, Any], header: Mapping[str, Any], pictures: Mapping[str, VideoPictures]
) -> dict[str, Any]:
    """Return what the page shows of a video."""
    seen_long = counted(record["people"])
    seen_briefly = [person for person in record["people"] if person not in seen_long]
    people = [sorted(group, key=lambda person: -person["score"]) for group in (seen_long, seen_briefly)]
    return {
        "id": f"video{number}",
        "result": _result(record, header),
        # Messages of failures begin with the path, which would only repeat the name.
        "message": record["message"].rpartition(f"{record['filename']}: ")[2],
        "people": [*people[0], *people[1]],
        "counted": len(seen_long),
        "record": record,
        "pictures": pictures.get(record["filename"], VideoPictures()),
        "plot": plot(record, header["bands"]) if record["faces"] else "",
        "lines": lines_of(record) if record["faces"] else [],
    }


def _result(record: Mapping[str, Any], header: Mapping[str, Any]) -> str:
    """Return the verdict of a video, or its status if it has none."""
    verdict = record["verdict"] if header["bands"] else None
    return VERDICTS[verdict] if verdict else STATUSES[record["status"]]


def _counts(records: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> str:
    """Format the number of videos per verdict and status."""
    counts = Counter(_result(record, header) for record in records)
    names = [name for name in (*VERDICTS.values(), *STATUSES.values()) if counts[name]]
    return f"{plural(len(records), 'video')}: " + ", ".join(f"{counts[name]} {name}" for name in names)


def _command(arguments: Mapping[str, Any]) -> str:
    """Return the command line that repeats the run, or the call if it was made from Python."""
    if "output" not in arguments:
        return f"inference.predict({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    words = ["python", "predict_folder.py"]
    for key, value in arguments.items():
        if key in ("shard", "merge"):  # a whole run gives the same result
            continue
        option = f"--{key.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        elif value is not None and value is not False:
            words += [f"{option}={value}"] if str(value).startswith("-") else [option, str(value)]
    return " ".join(map(_quote, words))


def _quote(word: str) -> str:
    """Quote a word for Bash. What cannot be shown is written as an escape that Bash understands."""
    if _shown(word) == word:
        return shlex.quote(word)
    escapes = {"\\": "\\\\", "'": "\\'"}
    escapes |= {letter: f"\\u{ord(letter):04x}" for letter in word if _shown(letter) != letter}
    escapes |= {letter: _shown(letter) for letter in _SURROGATES.findall(word)}
    return "$'" + "".join(escapes.get(letter, letter) for letter in word) + "'"


def _shown(text: Any) -> str:
    """Escape what must not or cannot be shown: control characters, marks of text direction, bytes that are no text."""
    printed = _SURROGATES.sub(lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", printable(str(text)))
    return printed.encode("utf-8", errors="backslashreplace").decode()


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("details", type=Path, help="file written by predict_folder.py --details")
    parser.add_argument("--output", type=Path, required=True, metavar="HTML", help="page to write")
    parser.add_argument(
        "--test-dir",
        type=Path,
        metavar="VIDEOS",
        help="folder of the videos, or one video, for pictures (default: that of the run, if it still exists)",
    )
    parser.add_argument("--explain", action="store_true", help="add heat maps: where networks see signs of a fake")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the page. Return the exit status."""
    from inference.submission import check_outputs

    header, records = read_details(args.details)
    videos = _find_videos(args.test_dir, header["arguments"])
    check_outputs([args.output], {**videos, "": args.details})
    explainer = make_explainer(header, "auto") if args.explain else None
    write_report(args.output, header, records, videos, explainer, _limits(header["arguments"]))
    return cli.OK


def make_explainer(header: Mapping[str, Any], device: str) -> Explainer:
    """Load the networks of a run for heat maps. Raises UserError if a checkpoint is missing or another one."""
    from inference.explain import Explainer

    for model in header["models"]:
        if file_facts(Path(model["file"]))[1] != model["sha256"]:
            raise UserError(f"--explain: {model['file']} is missing or not the checkpoint of the run. Put it there")
    return Explainer([model["file"] for model in header["models"]], device)


def _find_videos(folder: Path | None, arguments: Mapping[str, Any]) -> Mapping[str, File]:
    """Return the videos in a folder, by default that of the run, where there may be none. Raises UsageError."""
    from inference.submission import UsageError, find_videos

    if folder:
        return find_videos(folder).videos
    given = arguments.get("test_dir")
    try:
        return find_videos(Path(given)).videos if isinstance(given, str) and given else {}
    except (UsageError, ValueError):  # a null character
        return {}


def _limits(arguments: Mapping[str, Any]) -> Limits:
    """Return the limits that a run had, as far as its arguments tell."""
    values = {name: arguments.get(key) for name, key in zip(Limits._fields, LIMIT_ARGUMENTS, strict=True)}
    return Limits(**{name: value for name, value in values.items() if type(value) is int and value > 0})


if __name__ == "__main__":
    cli.main(main, get_args_parser())
