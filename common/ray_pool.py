"""Hand items to workers on a Ray cluster, and survive the loss of workers and nodes.

    items -> a queue (an actor) -> workers (actors, one or more per node) -> (item, result) as each finishes

A worker takes the next item from the queue whenever it has room. When a worker or its node dies, the items that it has
not finished go back to the queue.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.cores import limit_threads
from common.errors import UserError
from common.ray_cluster import Resources, room_for
from common.text import plural, shorten

# An item whose worker dies this often is given up, as it may be the reason. As many workers in a row may fail to start.
MAX_ATTEMPTS = 3
# Seconds between looks at the cluster.
POLL_INTERVAL = 2.0
# Seconds that the first worker waits for others, and after which the lack of a worker is logged.
PATIENCE = 30.0
# Seconds after the time limit of an item, which its worker enforces, until the worker is killed.
GRACE = 60.0

log = logging.getLogger(__name__)


class Worker(Protocol):
    """What runs in an actor."""

    def describe(self) -> Mapping[str, Any]:
        """Return what the results depend on besides the items."""

    def run(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield one result per item, in order. A UserError ends the run."""


class Pool:
    """Workers on the cluster. They start when they are needed, also on nodes that join later.

    Args:
        make_worker: makes a worker, in its actor.
        resources: what is reserved for each worker.
        workers: number of workers; None for as many as fit on the nodes.
        clip_timeout: time limit of an item in seconds.

    Attributes:
        expected: the description that workers must have; None accepts that of the first one.
    """

    def __init__(
        self, make_worker: Callable[[], Worker], resources: Resources, workers: int | None, clip_timeout: float
    ):
        self.resources, self.workers, self.clip_timeout = resources, workers, clip_timeout
        self.expected: Mapping[str, Any] | None = None
        self._make_worker = make_worker
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue: Any = ray.remote(_Queue).options(num_cpus=0, scheduling_strategy=here).remote()
        self._starting: dict[Any, _Member] = {}
        self._running: dict[Any, _Member] = {}
        self._idle: list[_Member] = []
        self._numbers = count()
        self._rejected = self._failed_starts = 0
        self._last_worker: float | None = time.monotonic()
        self._items: dict[int, Any] = {}
        self._attempts: Counter[int] = Counter()
        self._queue_has_items = False

    def describe(self, is_known: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """Return the description that workers must have: one that `is_known` among those of the first, or the first.

        Raises:
            UserError: no worker can start.
        """
        deadline = float("inf")
        while not self._idle or (self._starting and time.monotonic() < deadline):
            self._start_workers()
            for ref in self._wait():
                self._admit(ref)
            if any(is_known(member.description) for member in self._idle):
                break
            if self._idle:
                deadline = min(deadline, time.monotonic() + PATIENCE)
        found = [member.description for member in self._idle]
        self.expected = next(filter(is_known, found), found[0])
        started, self._idle = self._idle, []
        for member in started:
            self._accept(member)
        return self.expected

    def run(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the index of each item and its result as it finishes, in any order; None for an item that is given up.

        Raises:
            UserError: of a worker; or no worker can start.
        """
        self._items = dict(enumerate(items))
        self._attempts.clear()
        while self._items:
            self._start_workers()
            self._start_idle()
            for ref in self._wait():
                if ref in self._starting:
                    self._admit(ref)
                    continue
                for index, result in self._receive(ref):
                    del self._items[index]
                    yield index, result

    def close(self) -> None:
        """Stop the workers."""
        for member in (*self._starting.values(), *self._running.values(), *self._idle):
            ray.kill(member.actor)
        ray.kill(self._queue)

    def _start_workers(self) -> None:
        """Start workers where there is room, but not more than there are items, and kill those that do not respond."""
        members = len(self._starting) + len(self._running) + len(self._idle)
        room = self.workers or room_for(self.resources) - self._rejected
        if not members and room <= 0:
            reason = "have other package versions, see above" if self._rejected else f"lack {self.resources}"
            raise UserError(
                f"--executor ray: all nodes {reason}. Fix that, or lower what a worker needs (--ray-memory)"
            )
        for _ in range(members, min(room, len(self._items) or room)):
            member = _Member(_start_actor(self._make_worker, self.resources), next(self._numbers))
            self._starting[member.actor.describe.remote()] = member
        for member in self._running.values():
            if time.monotonic() - member.last_sign > self.clip_timeout + GRACE:
                log.warning("%s: a worker does not respond", member.host)
                ray.kill(member.actor)

    def _wait(self) -> list[Any]:
        """Return what has been answered, or nothing after a while."""
        if self._running or self._idle:
            self._last_worker = time.monotonic()
        elif self._last_worker and time.monotonic() - self._last_worker > PATIENCE:
            log.info("waiting for a place on the cluster with %s", self.resources)
            self._last_worker = None
        pending = [*self._starting, *self._running]
        if not pending:
            time.sleep(POLL_INTERVAL)
            return []
        return ray.wait(pending, timeout=POLL_INTERVAL)[0]

    def _admit(self, ref: Any) -> None:
        """Use a worker that has started. Raises UserError if several in a row cannot start."""
        member = self._starting.pop(ref)
        try:
            member.host, member.description = ray.get(ref)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts == MAX_ATTEMPTS:
                raise UserError(f"--executor ray: workers cannot start: {_first_line(error)}") from None
            return
        self._failed_starts = 0
        self._accept(member)

    def _accept(self, member: _Member) -> None:
        """Use a worker, unless results would differ."""
        if self.expected in (None, member.description):
            self._idle.append(member)
            return
        assert self.expected is not None
        others = [key for key, value in self.expected.items() if member.description.get(key) != value]
        log.warning("%s: not used, because it differs from other nodes (%s)", member.host, ", ".join(others))
        self._rejected += 1
        ray.kill(member.actor)

    def _start_idle(self) -> None:
        """Let idle workers take items, if there are any in the queue."""
        if not self._idle:
            return
        if not self._running:  # at first; and if an item was lost on its way to a worker that died
            ray.get(self._queue.clear.remote())
            self._fill(self._items)
        while self._queue_has_items and self._idle:
            member = self._idle.pop()
            member.last_sign = time.monotonic()
            stream = member.actor.run.options(num_returns="streaming").remote(self._queue, member.number)
            self._running[stream] = member

    def _fill(self, indices: Iterable[int]) -> None:
        ray.get(self._queue.put.remote([(index, self._items[index]) for index in indices]))
        self._queue_has_items = True

    def _receive(self, stream: Any) -> Iterator[tuple[int, Any]]:
        """Yield the next result of a worker, or what is given up because it has died."""
        member = self._running[stream]
        try:
            index, result = ray.get(next(stream))
        except StopIteration:
            self._idle.append(self._running.pop(stream))
            self._queue_has_items = False
        except RayTaskError as error:
            raise _cause(error) from None
        except RayError as error:
            del self._running[stream]
            ray.kill(member.actor)
            yield from self._return_items(member, _first_line(error))
        else:
            member.last_sign = time.monotonic()
            if index in self._items:  # not if its worker seemed to be dead and another one was faster
                yield index, result

    def _return_items(self, member: _Member, reason: str) -> Iterator[tuple[int, None]]:
        """Return the items of a worker that has died to the queue. Yield those that are given up."""
        taken = [index for index in ray.get(self._queue.taken_by.remote(member.number)) if index in self._items]
        self._attempts.update(taken)
        again = [index for index in taken if self._attempts[index] < MAX_ATTEMPTS]
        log.warning("%s: a worker died (%s); running %s again", member.host, reason, plural(len(again), "clip"))
        self._fill(again)
        yield from ((index, None) for index in taken if index not in again)


@dataclass
class _Member:
    """A worker.

    Attributes:
        actor: the actor.
        number: its name in the queue.
        host: name of its node.
        description: what its results depend on.
        last_sign: time of its last sign of life.
    """

    actor: Any
    number: int
    host: str = ""
    description: Mapping[str, Any] = field(default_factory=dict)
    last_sign: float = 0.0


class _Queue:
    """The items that no worker has taken, and who has taken which (an actor)."""

    def __init__(self) -> None:
        self.items: deque[tuple[int, Any]] = deque()
        self.taken: dict[int, list[int]] = defaultdict(list)

    def clear(self) -> None:
        """Remove the items that no worker has taken."""
        self.items.clear()

    def put(self, items: Iterable[tuple[int, Any]]) -> None:
        """Append items with their indices."""
        self.items.extend(items)

    def take(self, worker: int) -> tuple[int, Any] | None:
        """Return the next item and its index; None if there is none now."""
        if not self.items:
            return None
        self.taken[worker].append(self.items[0][0])
        return self.items.popleft()

    def taken_by(self, worker: int) -> list[int]:
        """Return the indices of the items that a worker has taken."""
        return self.taken.pop(worker, [])


class _Actor:
    """A worker on a node.

    Args:
        make_worker: makes the worker.
        cpus: number of its CPU cores.
    """

    def __init__(self, make_worker: Callable[[], Worker], cpus: int):
        limit_threads(cpus)
        self.make_worker = make_worker

    def describe(self) -> tuple[str, Mapping[str, Any]]:
        """Make the worker. Return the name of the node and the worker's description."""
        with _portable_errors():
            self.worker = self.make_worker()
            return socket.gethostname(), self.worker.describe()

    def run(self, queue: Any, number: int) -> Iterator[tuple[int, Any]]:
        """Take items until there are none. Yield the index of each and its result."""
        indices: deque[int] = deque()

        def items() -> Iterator[Any]:
            while entry := ray.get(queue.take.remote(number)):
                indices.append(entry[0])
                yield entry[1]

        with _portable_errors():
            for result in self.worker.run(items()):
                yield indices.popleft(), result


@contextmanager
def _portable_errors() -> Iterator[None]:
    """Raise UserErrors as instances of that class, because those of some subclasses cannot be pickled."""
    try:
        yield
    except UserError as error:
        raise UserError(*error.args) from None


def _start_actor(make_worker: Callable[[], Worker], resources: Resources) -> Any:
    options = resources.options()
    return ray.remote(_Actor).options(scheduling_strategy="SPREAD", **options).remote(make_worker, resources.cpus)


def _cause(error: RayTaskError) -> BaseException:
    """Return the error that a worker has raised."""
    return error.cause if isinstance(error.cause, UserError) else error


def _first_line(error: RayError) -> str:
    return shorten(str(error).strip().split("\n")[0])
