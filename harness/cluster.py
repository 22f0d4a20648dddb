"""What of Ray is not scheduling: joining a cluster, and how many workers find their place on its nodes."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from harness.errors import VtbenchError
from harness.spec import Resources

OBJECT_STORE = 200 * 2**20  # bytes; records are small


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Join the Ray cluster at this address, or be one while the context lasts."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        _join(address)
    except SystemExit:  # how Ray takes a SIGTERM while it starts
        raise SystemExit(128 + signal.SIGTERM) from None
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    local = address == "local"
    alone: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE} if local else {}
    for last in (False, True) if local else (True,):  # under load: Ray waits but 15 s for its own processes
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **alone)
            return
        except Exception as error:  # of no type of its own where a node did not start in time
            ray.shutdown()
            if last:
                does = "starts" if local else f"at {address} can be joined"
                raise VtbenchError(f"--address: no Ray {does}: {str(error).splitlines()[0]}") from None


def options(resources: Resources) -> dict[str, Any]:
    """Return Ray's options of an actor that reserves this."""
    return {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "memory": resources.memory,
        "accelerator_type": resources.accelerator_type,
        "label_selector": resources.labels,
    }


def places(resources: Resources) -> int:
    """Return how many workers the nodes hold, busy ones too. Errors: VtbenchError when not even one: what is there."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    amounts = {"CPU": ("cpus", resources.cpus), "GPU": ("gpus", resources.gpus)}
    if resources.memory is not None:
        amounts["memory"] = "memory", resources.memory
    for name, (key, amount) in amounts.items():
        most = max((node["Resources"].get(name, 0) for node in nodes), default=0)
        if amount > most:
            where = "here" if len(nodes) < 2 else "on its largest node"
            asked, has = (f"{each / 2**30:.4g} GiB" if name == "memory" else f"{each:g}" for each in (amount, most))
            raise VtbenchError(f"resources.{key}: {asked} is not possible; Ray has {has} {where}")
    prefix = "accelerator_type:"
    types = {name.removeprefix(prefix) for node in nodes for name in node["Resources"] if name.startswith(prefix)}
    if resources.accelerator_type and resources.accelerator_type not in types:
        there = ", ".join(sorted(types)) or "none"
        raise VtbenchError(f"resources.accelerator_type: {resources.accelerator_type} is not there; Ray has {there}")
    for key, value in (resources.labels or {}).items():
        values = {node["Labels"][key] for node in nodes if key in node["Labels"]}
        if value not in values:
            there = ", ".join(f"{key}={each}" for each in sorted(values)) or f"no node with {key}"
            raise VtbenchError(f"resources.labels: {key}={value} is not there; Ray has {there}")
    fitting = [
        min(_times(name, node["Resources"].get(name, 0), amount) for name, (_, amount) in amounts.items() if amount)
        for node in nodes
        if (resources.labels or {}).items() <= node["Labels"].items()
        and (not resources.accelerator_type or prefix + resources.accelerator_type in node["Resources"])
    ]
    if not sum(fitting):
        raise VtbenchError("resources: each is there, but no node has all of them together")
    return sum(fitting)


def _times(name: str, there: float, amount: float) -> int:
    """Return how many times a node that has so much gives an amount; Ray takes a part of a GPU from one GPU."""
    if name == "GPU" and amount < 1:
        return int(there) * int(1 / amount + 1e-9)
    return int(there / amount + 1e-9)
