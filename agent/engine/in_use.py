"""Pods that would lose their handler, or its program.

Invariant: reads only. A handler that a pod was made with is not taken away: the pod could neither
be stopped nor removed any more. The same holds for the program that runs its containers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator

from agent.engine.node import Runtime
from agent.errors import Refused
from agent.host.paths import HostRoot, is_below
from agent.observe import cri, process
from agent.observe.cri import Sandbox


def refusal(runtime: Runtime, going: tuple[str, ...], purpose: str) -> Refused | None:
    """Why these handlers may not go now. Raises Unreachable."""
    if not going:
        return None
    socket = runtime.socket
    pods = cri.sandboxes(socket.agent, socket.host)
    users = [_name(pod) for pod in pods if pod.handler in going]
    return _refusal(users, purpose, "pods use handlers that would go") if users else None


def toolkit_refusal(host: HostRoot, runtime: Runtime, names: tuple[str, ...]) -> Refused | None:
    """Why the programs in a directory (its host paths) may not go now. Raises Unreachable.

    Whatever is the default now: containerd keeps for each pod which program runs its containers,
    and CRI-O's monitors have it on their command lines.
    """
    socket = runtime.socket
    users = [
        _name(pod)
        for pod in cri.sandboxes(socket.agent, socket.host)
        if _is_run_by(cri.sandbox_info(socket.agent, socket.host, pod.id), names)
    ]
    users += _monitors(host, names)
    return _refusal(users, "revert", f"pods use programs in {names[0]}") if users else None


def _is_run_by(info: str, names: tuple[str, ...]) -> bool:
    """Does containerd (1.6 to 2.4) run a pod by a program in there? Its annotations, for example,
    may name any path."""
    try:
        found = json.loads(info or "{}")
        options = found.get("runtimeOptions")
    except (ValueError, AttributeError, RecursionError):
        return any(f"{name}/" in info for name in names)
    values = options.values() if isinstance(options, dict) else ()
    return any(isinstance(value, str) and is_below(value, *names) for value in values)


def _monitors(host: HostRoot, names: tuple[str, ...]) -> Iterator[str]:
    for pid, words in process.commands(host):
        is_monitor = os.path.basename(words[0]).startswith("conmon")
        if is_monitor and any(is_below(word, *names) for word in words[1:]):
            yield f"the container of {words[0]} with pid {pid}"


def _name(pod: Sandbox) -> str:
    return f"{pod.namespace}/{pod.name} ({pod.handler or 'default'})"


def _refusal(users: Iterable[str], purpose: str, why: str) -> Refused:
    names = sorted(users)
    shown = ", ".join(names[:20]) + (" and others" if len(names) > 20 else "")
    return Refused(
        f"cannot {purpose}: {why}: {shown}; they could no longer be stopped; delete them first"
    )
