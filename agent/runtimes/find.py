"""Find the runtime of the node, its executable and its directories.

Invariant: reads only. A socket, and a program that is run, count only if nobody but root can
replace them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace

from agent.cri import process
from agent.cri.client import Answer, Unimplemented
from agent.cri.process import Process
from agent.decide import DEFAULT_DIRS
from agent.errors import Refused, Unreachable
from agent.host import trust
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.runtimes import registry
from agent.runtimes.base import Endpoint, Runtime
from agent.toolkit import programs

_VERSION = re.compile(r"(?<![\w.])v?(\d+\.\d+\.\d+[\w.+~-]*)")


def find_runtime(settings: Settings, host: HostRoot) -> Runtime:
    """The runtime of this node.

    Raises Unreachable if no runtime answers; if one of another kind than --runtime answers, the
    error names it. Raises Refused if --socket leads to a runtime of another kind than --runtime.
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
    """A runtime of another kind than --runtime that answers, None if there is none."""
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
    """The runtime behind the socket at the host path `given`. Raises Refused if anybody but root
    can replace the socket, because the answer decides which files are edited."""
    socket = trust.require(host, given, f"use the socket {given}", allow_sticky=True)
    name = socket.host
    process.peer_pid(socket.agent, name)  # its errors say more than those of gRPC
    try:
        answer = registry.ask(socket.agent, name)
    except Unimplemented as error:
        for item in registry.REGISTERED:
            error = registry.adapter(item.kind).explained(error, settings, host, socket)
        raise error
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


def sockets(settings: Settings, host: HostRoot) -> Iterator[Endpoint]:
    """The CRI sockets that exist on this node, whether or not a runtime answers: that of --socket,
    then the usual ones."""
    given = [*registry.sockets("auto")]
    if settings.socket:
        kind = "" if settings.runtime == "auto" else settings.runtime
        given.insert(0, (kind, settings.socket))
    for kind, path in given:
        with contextlib.suppress(Refused):
            socket = host.resolve(host.name(path))
            if os.path.lexists(socket.agent):
                yield Endpoint(kind, socket)


def silent_runtime(settings: Settings, host: HostRoot) -> tuple[Runtime, str] | None:
    """An installed runtime that does not answer, and the host path of its executable; None if no
    runtime is installed. The answer in `Runtime` has only the version that the executable prints,
    which is enough to load the configuration files."""
    for item in registry.REGISTERED:
        if settings.runtime not in ("auto", item.kind):
            continue
        socket = host.locate(settings.socket or item.sockets[0])
        running = None
        with contextlib.suppress(Unreachable):
            running = process.find(socket.agent, socket.host, host, item.kind)
        if running is not None and not process.is_kind(running, item.kind):
            continue
        with contextlib.suppress(Refused):
            program = _program_of(settings, host, running, item.kind)
            if program and (version := executable_version(host, program)):
                answer = Answer(item.cri_name, version, False, None, ())
                return Runtime(Endpoint(item.kind, socket), running, answer), program
    return None


def _program_of(
    settings: Settings, host: HostRoot, running: Process | None, kind: str
) -> str | None:
    """The host path of a runtime's executable: that of the process, else the first program with the
    name of the kind. None if there is none. Raises Refused."""
    if path := executable(settings, host, running):
        return path if os.path.basename(path).startswith(kind) else None
    names = (f"{above}/{kind}" for above in programs.DIRECTORIES)
    path = next((name for name in names if programs.runs(host, name)), None)
    if path:
        trust.require(host, path, f"run {path}")
    return path


def executable_version(host: HostRoot, program: str) -> str | None:
    """The version that the executable at a host path prints, None if it prints none. The executable
    is run, so the caller has to check first that only root can replace it."""
    from agent.runtimes import command  # needed only where the runtime does not answer

    done = command.run(host, [program, "--version"], timeout=10)
    match = _VERSION.search(done.out.decode("utf-8", "replace")) if done.code == 0 else None
    return match[1] if match else None


def given_drop_in(settings: Settings, host: HostRoot) -> HostPath | None:
    """The drop-in that --drop-in-config names, None without that option. Raises Refused."""
    given, named = settings.drop_in_config, settings.drop_in_config_host_path
    if given and named:
        return host.resolve(given if host.is_host else named)
    return host.locate(given or named or "") if given or named else None


def executable(settings: Settings, host: HostRoot, running: Process | None) -> str | None:
    """The host path of the executable that a restart will run, None if it is not known.

    Dumps and trial starts run the file at this path. Raises Refused if anybody but root can replace
    that file.
    """
    if settings.executable_path:
        path = host.name(settings.executable_path)
    elif running is not None and running.executable is not None:
        path = host.seen_by_host(running.executable)
    else:
        return None
    trust.require(host, path, f"run {path}")
    return path


def spec_directories(runtime: Runtime) -> tuple[str, ...]:
    """The directories that may have CDI specs of ours: those that the runtime shows, then the
    default ones."""
    shown = registry.adapter_of(runtime.answer).evidence(runtime.answer)[0].spec_dirs
    return (*(shown or ()), *DEFAULT_DIRS)


def program(settings: Settings, host: HostRoot, runtime: Runtime) -> str | None:
    """The agent path of the runtime's executable, with links followed inside the host root. None if
    it is not known or not trusted."""
    try:
        path = executable(settings, host, runtime.process)
        return host.resolve(path).agent if path else None
    except Refused:
        return None
