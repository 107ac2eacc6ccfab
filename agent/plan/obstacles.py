"""The obstacles to the writes of a change, found before the first write.

Invariant: reads only. Every file and directory that a change writes is examined first. So a refused
change leaves nothing behind: no toolkit, no spec and no state directory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agent import status
from agent.cdi.specs import own_specs
from agent.errors import AgentError, Refused, SpecUnwritable, reason
from agent.host import files, writable
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot
from agent.host.writable import Need
from agent.options.settings import Settings
from agent.plan.context import Context
from agent.state.store import Store, hint
from agent.toolkit import install, programs

_RECORDS = 1 << 14  # bytes; a journal or a memory without the originals
_READ_ONLY = os.strerror(errno.EROFS).lower()
# Flatcar's unit names a file in /usr, by this variable (NVIDIA/gpu-operator#673).
_ELSEWHERE = (
    ", or have the runtime's unit load a file elsewhere (--config, CONTAINERD_CONFIG); with "
    "--no-runtime-config the agent changes no file of the runtime"
)
_STATE = ("journal.json", "memory.json", "failed.json")


@dataclass(frozen=True)
class _Demand:
    """A file that has to be writable. `action` is the action that needs the file, for the message
    of the error. `remedy` returns the end of that message for a reason."""

    need: Need
    action: str
    remedy: Callable[[str], str] = lambda _: ""
    error: type[Refused] = Refused

    def refusal(self, why: str) -> AgentError:
        """The error that the file is not writable for this reason."""
        return self.error(f"cannot {self.action}: {why}{self.remedy(why)}")


def change_refusal(
    ctx: Context, changes: tuple[Change, ...], *, transaction: bool,
    spec: own_specs.SpecProposal | None = None, toolkit: install.ToolkitProposal | None = None,
) -> AgentError | None:  # fmt: skip
    """The error of the first obstacle to these changes, to the status files, the spec and the
    toolkit; None if none is known.

    `transaction` means that the runtime's files change or that it restarts, which needs a journal.
    """
    publisher = ctx.publisher
    try:
        publisher.require()
    except Refused as error:
        return error
    demands = [*_configuration(changes)]
    if transaction:
        demands += _state(ctx.store, changes)
    demands += (
        _Demand(
            Need(publisher.path(name), (1024,)), f"write the status file in {publisher.directory}"
        )
        for name in (status.TWIN, status.READY, status.ERROR)
    )
    demands += _toolkit(toolkit)
    # Any other spec that cannot be written is only a warning.
    demands += (
        _Demand(
            Need(change.path.agent, (len(change.after.data),)), f"write {change.path}",
            error=SpecUnwritable,
        )
        for change in (spec.changes if spec else ())
        if change.after is not None and spec is not None and spec.is_needed(change.path.name)
    )  # fmt: skip
    return _first(ctx.host, demands) or _place_refusal(ctx.host, changes)


def removal_refusal(host: HostRoot, paths: Iterable[HostPath]) -> AgentError | None:
    """The error if one of these files cannot be removed, None if all can."""
    return _first(host, [_Demand(Need(path.agent), f"remove {path}") for path in paths])


def toolkit_removal_refusal(settings: Settings, host: HostRoot) -> AgentError | None:
    """The error if the toolkit that we installed cannot be removed, None if it can."""
    if not install.installed_paths(settings, host):
        return None
    directory = programs.directory(settings, host)
    places = (directory.agent, os.path.dirname(directory.agent))
    needs = (Need(os.path.join(place, "old")) for place in places)
    return _first(host, [_Demand(need, f"remove {directory}") for need in needs])


def _first(host: HostRoot, demands: list[_Demand]) -> AgentError | None:
    """The error of the first demand that is not met, None if all are."""
    points = host.mount_points
    for demand in demands:
        try:
            writable.require(demand.need, points)
        except OSError as error:
            return demand.refusal(reason(error))
    full = writable.first_without_space(demand.need for demand in demands)
    if full is None:
        return None
    unmet = next(demand for demand in demands if demand.need is full)
    return unmet.refusal(reason(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))


def _configuration(changes: tuple[Change, ...]) -> Iterator[_Demand]:
    """The space for each file, and for the copy of its original beside it."""
    for change in changes:
        states = (change.after, None if change.outside else change.before)
        need = Need(change.path.agent, tuple(len(state.data) for state in states if state))
        existed = change.before is not None
        remedy = _elsewhere if existed else (lambda _: "")
        yield _Demand(need, f"write {change.path}", remedy)


def _elsewhere(why: str) -> str:
    return _ELSEWHERE if _READ_ONLY in why else ""


def _state(store: Store, changes: tuple[Change, ...]) -> Iterator[_Demand]:
    for name in _STATE:
        path = store.path(name)
        yield _Demand(Need(path, (_RECORDS,)), f"write {path}", hint)
    kept = tuple(len(change.before.data) for change in changes if change.before)
    originals = store.path("originals")
    need = Need(os.path.join(originals, "0" * 64), kept or (0,))
    yield _Demand(need, f"write {originals}", hint)


def _toolkit(toolkit: install.ToolkitProposal | None) -> Iterator[_Demand]:
    """The space for the toolkit's new directory, which is built beside the old one."""
    if toolkit is None or not toolkit.difference:
        return
    directory = toolkit.found.directory
    action = f"install the toolkit in {directory}"
    above = os.path.dirname(directory.agent)
    yield _Demand(Need(os.path.join(above, "new"), install.new_file_sizes(toolkit)), action)
    if os.path.lexists(directory.agent):
        yield _Demand(Need(os.path.join(directory.agent, "new")), action)


def _place_refusal(host: HostRoot, changes: tuple[Change, ...]) -> AgentError | None:
    """The error for a file that has to appear complete in its directory, if the file system offers
    no way to do that."""
    for change in changes:
        if change.outside is None or change.after is None:
            continue
        above = writable.nearest_existing(os.path.dirname(change.path.agent))
        outside = writable.nearest_existing(change.outside.agent)
        mount, outside_mount = (host.mount(HostPath(path, path)) for path in (above, outside))
        if mount != outside_mount and not files.has_nameless_files(above):
            return Refused(
                f"cannot write {change.path} in one step: its file system has no files without a "
                f"name, and {change.outside} is on another mount; mount {change.outside} as a whole"
            )
    return None
