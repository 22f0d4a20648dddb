"""Ray on this machine, as light as it goes."""

import socket
from typing import Any

from harness.cluster import OBJECT_STORE


def node(cpus: int = 2, **more: Any) -> dict[str, Any]:
    """Return the arguments of a node. Ports are given, as Ray waits but 15 s for its agents to tell theirs."""
    names = ("metrics_agent_port", "runtime_env_agent_port", "dashboard_agent_listen_port", "metrics_export_port")
    sockets = [socket.create_server(("", 0)) for _ in names]
    ports = {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
    for each in sockets:
        each.close()
    light = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    return {"num_cpus": cpus, "object_store_memory": OBJECT_STORE, **light, **ports, **more}
