"""Finding the runtime of the node, and what of it the options name.

Invariant: reads only. Nobody but root decides who answers, and which program is run.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

from agent.cri import process
from agent.cri.client import Unimplemented
from agent.cri.process import Process
from agent.decide import DEFAULT_DIRS
from agent.errors import Refused, Unreachable
from agent.host import trust
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.runtimes import registry
from agent.runtimes.base import Endpoint, Runtime


def find_runtime(settings: Settings, host: HostRoot) -> Runtime:
    """The runtime of this node. Raises Unreachable where none answers, and says of which kind
    there is one where another was asked for; Refused where what answers is not what was asked for.
    """
    try:
        return _find(settings, host)
    except Unreachable as error:
        other = _of_other_kind(settings, host)
        if other is None:
            raise
        raise Unreachable(
            f"cannot use {settings.runtime} on this node: its runtime is {other.answer.name} "
            f"{other.version} at {other.socket.host}; give --runtime=auto (RUNTIME), or keep this "
            f"agent off such nodes ({error.message})",
            code=error.status_code,
        ) from error


def _of_other_kind(settings: Settings, host: HostRoot) -> Runtime | None:
    """What answers where runtimes of the other kinds are, if one kind was asked for."""
    if settings.runtime == "auto":
        return None
    for item in registry.REGISTERED:
        if item.kind != settings.runtime:
            with contextlib.suppress(Refused, Unreachable):
                return _find(replace(settings, runtime=item.kind, socket=None), host)
    return None


def _find(settings: Settings, host: HostRoot) -> Runtime:
    if settings.socket:
        return _runtime(settings, host, host.name(settings.socket))
    tried, failure = [], None
    for _, path in registry.sockets(settings.runtime):
        socket = host.locate(path)
        tried.append(path)
        if not os.path.lexists(socket.agent):
            continue
        try:
            return _runtime(settings, host, host.name(path))
        except Unreachable as error:
            failure = failure or error
    raise failure or Unreachable(
        f"cannot find a runtime: there is no socket at {', '.join(tried)}; start the runtime or "
        "give --socket"
    )


def _runtime(settings: Settings, host: HostRoot, given: str) -> Runtime:
    """What answers behind the socket of that host path: it decides which files are edited, so that
    nobody but root may decide who answers."""
    socket = trust.require(host, given, f"use the socket {given}", allow_sticky=True)
    name = socket.host
    process.peer(socket.agent, name)  # a plain file or a dead socket is told apart before gRPC
    try:
        answer = registry.ask(socket.agent, name)
    except Unimplemented as error:
        raise _explained(error, settings, host, socket) from error
    kind = registry.kind_of(answer.name)
    if kind is None:
        titles = [registry.adapter(item.kind).title for item in registry.REGISTERED]
        raise Unreachable(
            f"cannot work with {answer.name!r} behind {name}: it is neither {' nor '.join(titles)}"
        )
    if settings.runtime not in ("auto", kind):
        raise Refused(
            f"cannot use {name} for {settings.runtime}: {answer.name} answers there; give its own "
            "socket or --runtime=auto"
        )
    running = process.find(socket.agent, name, host, kind)
    return Runtime(Endpoint(kind, socket), running, answer)


def _explained(
    error: Unimplemented, settings: Settings, host: HostRoot, socket: HostPath
) -> Unimplemented:
    """A runtime that does not serve the CRI often says why in its own configuration."""
    for item in registry.REGISTERED:
        error = registry.adapter(item.kind).explained(error, settings, host, socket)
    return error


def given_drop_in(settings: Settings, host: HostRoot) -> HostPath | None:
    """The drop-in that the options name; None where they name none."""
    given, named = settings.drop_in_config, settings.drop_in_config_host_path
    if given and named:
        return host.resolve(given if host.is_host else named)
    return host.locate(given or named or "") if given or named else None


def executable(settings: Settings, host: HostRoot, running: Process | None) -> str | None:
    """Host path of the executable that a restart will run; None where it cannot be told.

    It is run by that path, for a dump and for a trial start. Raises Refused where somebody else
    than root could exchange it: then only root can change what the path stands for.
    """
    if settings.executable_path:
        found = host.name(settings.executable_path)
    elif running is not None and running.executable is not None:
        found = host.seen_by_host(running.executable)
    else:
        return None
    trust.require(host, found, f"run {found}")
    return found


def spec_directories(runtime: Runtime) -> tuple[str, ...]:
    """Where a spec of ours may lie: where the runtime looks, if it says so, or would by default."""
    seen = registry.adapter_of(runtime.answer).evidence(runtime.answer)[0].spec_dirs
    return (*(seen if isinstance(seen, tuple) else ()), *DEFAULT_DIRS)


def program(settings: Settings, host: HostRoot, runtime: Runtime) -> str | None:
    """The agent path of that executable, links followed inside the host root."""
    try:
        found = executable(settings, host, runtime.process)
        return host.resolve(found).agent if found else None
    except Refused:
        return None
