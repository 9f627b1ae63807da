"""Join a Ray cluster, and what is reserved on it for each worker."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.text import shorten

GIB = 2**30
CONNECT_TIMEOUT = 10.0  # seconds
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Resources:
    """What is reserved for each worker.

    Attributes:
        cpus: number of CPU cores.
        gpus: number of GPUs; less than 1 for a share of one.
        memory: memory in GiB.
    """

    cpus: int = 1
    gpus: float = 0.0
    memory: float = 2.0

    def options(self) -> dict[str, Any]:
        """Return the options of an actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": int(self.memory * GIB)}

    def fit(self, node: Mapping[str, float]) -> int:
        """Return how many workers fit on a node, given its resources."""
        names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        return int(min(node.get(names[key], 0) / count for key, count in self.options().items() if count))

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus} CPU{gpus} and {self.memory:g} GiB of memory"


def connect(address: str) -> None:
    """Join a cluster. Raises UserError."""
    try:
        import ray
    except ImportError:
        remedy = "Run pip install -r requirements-cluster.txt on all nodes"
        raise UserError(f"--executor ray: Ray is not installed. {remedy}") from None
    if ray.is_initialized():
        return
    _check_reachable(address)
    # Workers find the code, which must be at the same path on all nodes, even if the installation does not know it.
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    try:
        ray.init(address, logging_level=logging.ERROR, runtime_env={"env_vars": variables})
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = shorten(str(error).strip().split("\n")[0])
        raise UserError(f"--ray-address {address}: {reason}. Start a cluster with ray start --head") from None


def _check_reachable(address: str) -> None:
    """Raise UserError if nothing listens at HOST:PORT, to which Ray itself would try to connect for many minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto" or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"--ray-address {address}: {reason}. Use the address that ray start --head prints") from None


def has_gpus() -> bool:
    """Return whether the cluster has GPUs."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def room_for(resources: Resources) -> int:
    """Return how many workers fit on the nodes that are alive."""
    import ray

    return sum(resources.fit(node["Resources"]) for node in ray.nodes() if node["Alive"])
