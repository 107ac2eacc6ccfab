"""The repair of files that we made and that somebody garbled.

A runtime does not start on a drop-in that is not TOML, and no plan can be made with such a file.
The file has no settings of anybody else, so the repair writes the content of our last write.

Invariant: only a file that the memory knows as made by us is written. A file that can be parsed and
has settings is edited, not garbled. It is left alone here; `plan` and `revert` handle it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass

from agent.errors import AgentError, Refused, Unreachable, reason
from agent.host import files, trust
from agent.host.files import Change, FileState
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.plan.context import Context
from agent.runtimes import find, key_ownership, registry
from agent.runtimes.config_file import ConfigFile, check_shape, is_hook
from agent.state.store import Memory, Original
from agent.toml import dialect, document
from agent.toml.dialect import GO_TOML_2

_PAUSE = 0.1  # seconds between two questions to the runtime


@dataclass(frozen=True)
class Garbled:
    """A file of ours that no runtime can use. `fault` is the reason. `repair` restores the content
    of our last write, or removes the file if that content is not known. The `before` of the repair
    is None if a directory or a link is in place of the file."""

    fault: str
    repair: Change


def find_garbled(settings: Settings, host: HostRoot, memory: Memory) -> tuple[Garbled, ...]:
    """Every file that we made and that no runtime can use. Reads only."""
    garbled = []
    for name, original in sorted(memory.files.items()):
        if original.digest is not None or original.written is None or is_hook(name):
            continue
        path = HostPath(host.agent_path(name), name)
        now, fault = _fault(settings, host, path, original)
        if fault is not None:
            data = document.encoded(original.text or "")
            is_known = files.digest(data) == original.written
            written = FileState(data, original.mode, original.uid, original.gid)
            garbled.append(Garbled(fault, Change(path, now, written if is_known else None)))
    return tuple(garbled)


def _fault(
    settings: Settings, host: HostRoot, path: HostPath, original: Original
) -> tuple[FileState | None, str | None]:
    """The present file, and the reason why no runtime can use it; None if one can."""
    now = None
    try:
        link = os.path.islink(path.agent)
        real = host.resolve(path.host) if link else path
        now = files.read(real.agent, path.host)
        if now is None:
            return None, "it is a link that leads nowhere" if link else None
        if why := trust.distrust(now):
            return now, f"it {why}"
        if now.digest == original.written:
            return now, None
        data = document.parse(now.data, path.host)
        odd = dialect.first_rejected(document.decoded(now.data, path.host), GO_TOML_2)
        if odd is not None and key_ownership.is_ours_alone(original, now):
            return now, odd.words
        file = ConfigFile(path.host, path, now, data)
        for kind in registry.present(host, settings):
            check_shape(file, registry.adapter(kind).shape)
    except Refused as error:
        return now, error.message.partition(": ")[2] or error.message
    empty = not document.without_empty(data).keys() - {"version"}
    return now, "nothing is in it any more" if empty else None


def repair(ctx: Context, memory: Memory) -> tuple[str, ...]:
    """Repair every garbled file, and return their host paths. Raises Refused."""
    garbled = find_garbled(ctx.settings, ctx.host, memory)
    for item in garbled:
        path = item.repair.path
        trust.require(ctx.host, os.path.dirname(path.host), f"write {path}", allow_sticky=True)
        try:
            _put(path.agent, item.repair.after)
        except OSError as error:
            raise Refused(
                f"cannot rewrite {path}: {reason(error)}; somebody garbled it ({item.fault}), so "
                "repair or remove it"
            ) from error
        ctx.log.warning("garbled file is rewritten", path=path.host, why=item.fault)
    return tuple(item.repair.path.host for item in garbled)


def _put(agent: str, state: FileState | None) -> None:
    """Replace the file at an agent path in one step; None removes it. Raises OSError or Refused."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(agent).st_mode):
            files.remove_empty_directory(agent)
    if state is None:
        files.remove(agent)
        return
    directory, name = os.path.split(agent)
    transient = f".{name}.toolkit-agent-new~"
    outside = os.path.join(os.path.dirname(directory), transient)
    fresh = not os.path.lexists(agent)
    files.place(agent, state, fresh=fresh, transient=transient, outside=outside)


def revive(ctx: Context, error: Unreachable) -> None:
    """Wait until a runtime answers that was down because of a garbled file, for the proof timeout
    at most. A unit that systemd has given up is started once; a runtime without a unit is started
    by its own supervisor. Raises `error` if the runtime stays down."""
    if ctx.settings.restart_mode in ("auto", "systemd"):
        _start(ctx)
    end = ctx.clock() + ctx.settings.proof_timeout
    while True:
        try:
            find.find_runtime(ctx.settings, ctx.host)
        except Unreachable:
            if ctx.clock() >= end:
                raise error from None
        except AgentError:
            return
        else:
            return
        ctx.sleep(_PAUSE)


def _start(ctx: Context) -> None:
    from agent.systemd.units import SystemdError  # needed only where a runtime is down

    for kind in dict.fromkeys(kind for kind, _ in registry.sockets(ctx.settings.runtime)):
        name = f"{kind}.service"
        try:
            systemd, unit = ctx.reach(ctx.host, name)
            if unit.load == "loaded" and (unit.given_up or unit.active == "activating"):
                systemd.restart(name)
                ctx.log.info("runtime started", unit=name)
        except SystemdError as failure:
            ctx.log.warning("runtime not started", unit=name, reason=str(failure))
