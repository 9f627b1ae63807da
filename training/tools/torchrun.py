"""torchrun, except that an error that only the user can fix ends training on all nodes.

    python training/tools/torchrun.py [options of torchrun] SCRIPT [arguments of the script]

If a process fails, torchrun restarts all of them, up to --max-restarts times per node. After an exit status of 2
(invalid usage, wrong configuration, disk full, loss not finite), they would only fail again. Where torchrun prints a
traceback of its own, this prints one line.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from torch.distributed import run
from torch.distributed.elastic.agent.server import WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.api import RunResult
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError
from torch.distributed.launcher import api

from common import cli

# Exit status after an error that a restart may fix.
FAILED = 1

log = logging.getLogger(__name__)


class Agent(LocalElasticAgent):
    """Start, watch and restart the processes of one node."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            if exit_status(result) == cli.CANNOT_CONTINUE:
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                log.warning("a process failed; restarting (%d restarts left)", self._remaining_restarts - 1)
        elif result.state is WorkerState.HEALTHY and worker_group.spec.rdzv_handler.is_closed():
            raise RendezvousClosedError  # otherwise this node's processes would wait for those of the other node
        return result


def exit_status(result: RunResult | ChildFailedError) -> int:
    """Return the exit status of a node with failed processes."""
    statuses = {failure.exitcode for failure in result.failures.values()}
    return cli.CANNOT_CONTINUE if cli.CANNOT_CONTINUE in statuses else FAILED


def main() -> None:
    """Run torchrun with its command line, and exit with one line instead of a traceback."""
    logging.basicConfig(format="%(message)s")
    api.LocalElasticAgent = Agent  # type: ignore[misc]
    try:
        run.run(run.parse_args(sys.argv[1:]))
    except ChildFailedError as error:  # the process has printed its error
        sys.exit(exit_status(error))
    except RendezvousClosedError:
        log.error("error: training has stopped on another node. See its messages")
        sys.exit(FAILED)
    except RendezvousError as error:
        log.error("error: MASTER_ADDR: the nodes cannot reach each other (%s). Start all of them again", error)
        sys.exit(FAILED)
    except SignalException as error:
        sys.exit(128 + signal.Signals(error.sigval))


if __name__ == "__main__":
    main()
