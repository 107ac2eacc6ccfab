"""Pods that would lose their handler.

Invariant: reads only. A handler that a pod was made with is not taken away: the pod could neither
be stopped nor removed any more.
"""

from __future__ import annotations

from agent.engine.node import Runtime
from agent.errors import Refused
from agent.observe import cri


def refusal(runtime: Runtime, going: tuple[str, ...], purpose: str) -> Refused | None:
    """Why these handlers may not go now. Raises Unreachable."""
    if not going:
        return None
    socket = runtime.socket
    users = [
        f"{pod.namespace}/{pod.name} ({pod.handler})"
        for pod in cri.sandboxes(socket.agent, socket.host)
        if pod.handler in going
    ]
    if not users:
        return None
    shown = ", ".join(sorted(users)[:20]) + (" and others" if len(users) > 20 else "")
    return Refused(
        f"cannot {purpose}: pods use handlers that would go: {shown}; they could no longer be "
        "stopped; delete them first"
    )
