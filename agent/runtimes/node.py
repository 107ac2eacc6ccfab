"""One look at the node: what runs, what it says, and which files it loads.

Invariant: reads only. Everything later works on this one object, so that a decision and the edit
that follows from it speak of the same moment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from agent.cri import process
from agent.cri.client import Answer, Unimplemented
from agent.cri.process import Process
from agent.decide import (
    DEFAULT_DIRS,
    Decision,
    Evidence,
    PodNeeds,
    Question,
    Switch,
    Unseen,
    decide,
)
from agent.errors import Refused, Unreachable
from agent.host import trusted
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.runtimes import command
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd import load
from agent.runtimes.containerd.generations import GENERATIONS, Generation, generation
from agent.runtimes.crio import answer as crio
from agent.runtimes.crio import merge as crio_rules
from agent.runtimes.versions import parse_version
from agent.toml.edit import Data

SOCKETS = {
    "containerd": ("/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"),
    "crio": ("/run/crio/crio.sock",),
}
_KINDS = {"containerd": "containerd", "cri-o": "crio"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a runtime listens; there also while it is down. `kind` is containerd or crio, `unit`
    the systemd unit that runs it, where we have to do with that."""

    kind: str
    socket: HostPath
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime that answers: its process (None where it cannot be seen) and its words."""

    endpoint: Endpoint
    process: Process | None
    answer: Answer

    @property
    def kind(self) -> str:
        """containerd or crio."""
        return self.endpoint.kind

    @property
    def socket(self) -> HostPath:
        """Its CRI socket."""
        return self.endpoint.socket

    @property
    def version(self) -> str:
        """As the runtime spells it."""
        return self.answer.version


@dataclass(frozen=True, slots=True)
class Node:
    """A containerd with its configuration. `files` starts with the root file, there or not."""

    runtime: Runtime
    gen: Generation
    files: tuple[ConfigFile, ...]
    executable: str | None
    drop_in: HostPath

    @property
    def root(self) -> ConfigFile:
        """The root file."""
        return self.files[0]


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
    for kind in SOCKETS.keys() - {settings.runtime}:
        with contextlib.suppress(Refused, Unreachable):
            return _find(replace(settings, runtime=kind, socket=None), host)
    return None


def _find(settings: Settings, host: HostRoot) -> Runtime:
    if settings.socket:
        return _runtime(settings, host, host.name(settings.socket))
    kinds = SOCKETS if settings.runtime == "auto" else {settings.runtime: SOCKETS[settings.runtime]}
    tried, failure = [], None
    for path in (path for paths in kinds.values() for path in paths):
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
    socket = trusted.require(host, given, f"use the socket {given}", sticky_is_fine=True)
    name = socket.host
    process.peer(socket.agent, name)  # a plain file or a dead socket is told apart before gRPC
    try:
        answer = crio.ask(socket.agent, name)
    except Unimplemented as error:
        raise _explained(error, settings, host, socket) from error
    kind = _KINDS.get(answer.name)
    if kind is None:
        raise Unreachable(
            f"cannot work with {answer.name!r} behind {name}: it is neither containerd nor CRI-O"
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
    """A containerd that does not serve the CRI often says why in its own configuration."""
    try:
        running = process.find(socket.agent, socket.host, host, "containerd")
        name = root_name(settings, host, running)
        files: tuple[ConfigFile, ...] = (load.load_file(host, name),)
        with contextlib.suppress(Refused):  # its version is not known, and imports hardly differ
            files = load.load(host, GENERATIONS[-1], name)
    except (Refused, Unreachable):
        return error
    for file in files:
        entry = load.disabled_cri(file)
        if entry is not None:
            return Unimplemented(
                f"{error.message.partition(';')[0]}: disabled_plugins in {file.path} names "
                f"{entry!r}; take it out and restart containerd"
            )
    return error


def with_config(
    settings: Settings, host: HostRoot, runtime: Runtime, overlay: load.Overlay | None = None
) -> Node:
    """The node of a containerd that was found. Raises Refused."""
    version = parse_version(runtime.version)
    if version is None:
        raise Refused(f"cannot work with containerd {runtime.version!r}: it is no version number")
    gen = generation(version)
    root = root_name(settings, host, runtime.process)
    files = load.load(host, gen, root, overlay or {})
    return Node(
        runtime=runtime,
        gen=gen,
        files=files,
        executable=executable(settings, host, runtime.process),
        drop_in=drop_in(settings, host, root),
    )


def root_name(settings: Settings, host: HostRoot, running: Process | None) -> str:
    """Host name of the root file: what the process was started with, or the option.

    Raises Refused where the two disagree: the running containerd would never read our edit.
    """
    loaded = None
    if running is not None:
        loaded = host.seen_by_host(running.config or load.DEFAULT_ROOT)
    if not settings.config:
        return loaded or load.DEFAULT_ROOT
    asked = host.name(settings.config)
    if loaded and host.resolve(asked) != host.resolve(loaded):
        raise Refused(
            f"cannot use {asked}: the running containerd loads {loaded}; leave --config out or "
            "give that file"
        )
    return asked


def register(settings: Settings, host: HostRoot) -> None:
    """Learn from the options what is mounted where; a journal or a memory is read only after."""
    for path in (settings.config, settings.drop_in_config, settings.socket):
        if path:
            host.name(path)
    given, named = settings.drop_in_config, settings.drop_in_config_host_path
    if given and named:
        host.add_view(os.path.dirname(given), os.path.dirname(named))


def drop_in(settings: Settings, host: HostRoot, root: str) -> HostPath:
    """Our drop-in: as asked for, else conf.d/99-nvidia.toml beside the root file."""
    if settings.drop_in_config or settings.drop_in_config_host_path:
        return given_drop_in(settings, host)
    return host.resolve(os.path.join(os.path.dirname(root), "conf.d", "99-nvidia.toml"))


def given_drop_in(settings: Settings, host: HostRoot) -> HostPath:
    """The drop-in that the options name."""
    given, named = settings.drop_in_config, settings.drop_in_config_host_path
    if given and named:
        return host.resolve(given if host.is_host else named)
    return host.locate(given or named or "")


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
    trusted.require(host, found, f"run {found}")
    return found


def program(settings: Settings, host: HostRoot, runtime: Runtime) -> str | None:
    """The agent path of that executable, links followed inside the host root."""
    try:
        found = executable(settings, host, runtime.process)
        return host.resolve(found).agent if found else None
    except Refused:
        return None


def evidence(node: Node | None, runtime: Runtime, host: HostRoot) -> tuple[Evidence, ...]:
    """What is seen of CDI, best source first; the dump only where Status shows nothing."""
    if runtime.kind == "crio":
        return tuple(_crio_evidence(runtime.answer))
    found = _evidence("cri-status", runtime.answer.config, "enableCDI", "cdiSpecDirs")
    if found.seen or node is None or node.executable is None:
        return (found,)
    path = node.root.name if node.root.state is not None else None
    dump = command.config_dump(host, node.executable, path)
    return found, _dump_evidence(dump.data)


def spec_directories(runtime: Runtime, host: HostRoot) -> tuple[str, ...]:
    """Where a spec of ours may lie: where the runtime looks, if it says so, or would by default."""
    seen = evidence(None, runtime, host)[0].spec_dirs
    return (*(seen if isinstance(seen, tuple) else ()), *DEFAULT_DIRS)


def _crio_evidence(answer: Answer) -> Iterator[Evidence]:
    """CRI-O has no switch. Its Status shows its settings from 1.33 on, its effective configuration
    those of every version: without spec directories where it knows no CDI."""
    sources = [("cri-status", crio_rules.shown(answer.config, None))]
    if answer.dump is not None:
        sources.append(("config-dump", crio_rules.shown(None, answer.dump)))
    for source, said in sources:
        dirs = _strings((said or {}).get("cdi_spec_dirs"))
        yield Evidence(source, Switch.UNSEEN, Unseen.UNSEEN if dirs is None else dirs)


def _dump_evidence(data: Data | None) -> Evidence:
    said = (data or {}).get("plugins")
    plugins = said if isinstance(said, dict) else {}
    for name in ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri"):
        if isinstance(section := plugins.get(name), dict) and "containerd" in section:
            return _evidence("config-dump", section, "enable_cdi", "cdi_spec_dirs")
    return Evidence("config-dump")


def _evidence(source: str, data: object, switch: str, dirs: str) -> Evidence:
    if not isinstance(data, dict) or "containerd" not in data:
        return Evidence(source)
    return Evidence(source, _switch(data, switch), _strings(data.get(dirs)))


def _switch(data: Mapping[str, object], key: str) -> Switch:
    if key not in data:
        return Switch.ABSENT
    for value, switch in ((True, Switch.TRUE), (False, Switch.FALSE), (None, Switch.NULL)):
        if data[key] is value:
            return switch
    return Switch.UNSEEN


def _strings(value: object) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list) else None


def judge(
    settings: Settings, runtime: Runtime, seen: tuple[Evidence, ...], *,
    enabled_by_agent: bool, may_enable: bool, needs: PodNeeds | None = None,
) -> Decision:  # fmt: skip
    """The decision for this runtime under these settings; `needs` is what running pods keep."""
    return decide(
        Question(
            cdi=settings.cdi_enabled,
            runtime=runtime.answer.name,
            version=runtime.version,
            evidence=seen,
            may_enable=may_enable,
            enabled_by_agent=enabled_by_agent,
            forced={"true": True, "false": False}.get(settings.native_cdi),
            set_as_default=settings.set_as_default,
            default_negotiable=settings.default_is_negotiable,
            mode=settings.mode,
            strategy=settings.device_list_strategy,
            prefixes=settings.annotation_prefixes,
            kubelet=settings.kubelet_version,
            crio_mode=settings.crio_config_mode,
            needs=needs,
        )
    )
