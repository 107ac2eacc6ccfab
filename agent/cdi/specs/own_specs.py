"""The specs of ours on the node: their names, their mark, and the changes of them.

Invariant: a spec is derived from the driver, so no journal keeps its original. A spec is written in
one step, and only if its bytes differ.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cdi.specs import spec_files
from agent.errors import AgentError, Refused, reason
from agent.host import files
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot
from agent.log import Log
from agent.options.device_classes import DEVICE_CLASSES, GPU_KIND
from agent.options.settings import Settings
from agent.status import Publisher

if TYPE_CHECKING:
    from agent.cdi.driver.driver import Driver
    from agent.cdi.driver.known_gpus import KnownGpus
    from agent.cdi.specs.spec_ownership import SpecStatus

MARK = "# Written by toolkit-agent; changes are overwritten."


@dataclass(frozen=True)
class SpecProposal:
    """The desired specs, and the changes that lead to them.

    `needed`: the kind without which the node is not ready, "" if it needs none.
    `problem`: the error that the needed spec cannot be made; then `changes` only remove specs of
    devices that are gone.
    `directory`: the directory of our specs.
    `gpus`: the GPUs, with the last answer of NVML.
    `late`: are the changes made only after the proof of the runtime?
    `judged_paths`: the agent paths whose owners, modes and links decide what may be in the specs.
    `driver`: the driver that the specs describe.
    """

    specs: tuple[SpecStatus, ...]
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()
    problem: AgentError | None = None
    directory: HostPath | None = None
    gpus: KnownGpus | None = None
    needed: str = ""
    late: bool = False
    judged_paths: tuple[str, ...] = ()
    driver: Driver | None = None

    def is_needed(self, name: str) -> bool:
        """Is `name` the file name of the needed spec?"""
        return bool(self.needed) and name == file_name(self.needed)


def file_name(kind: str) -> str:
    """The name of our spec file of a kind, such as `management.nvidia.com-gpu.yaml`. NVIDIA's
    installer uses the same name, so that one file replaces the other; two files with the same
    device would cancel each other."""
    return kind.replace("/", "-") + ".yaml"


def is_named_by_kind(name: str, data: bytes) -> bool:
    """Has a file with this content the name that `file_name` gives for its kind? A copy of our file
    under another name is not ours."""
    from agent.cdi.specs import read  # slow to load; not each node has a spec

    return any(name == file_name(kind) for kind in read.kinds(data))


def is_ours(data: bytes) -> bool:
    """Does this content of a file have our mark?"""
    return MARK.encode() in data[:200]


def kinds(settings: Settings) -> tuple[str, ...]:
    """The kinds that may be ours besides that of the management spec."""
    known = (GPU_KIND, *(one.kind for one in DEVICE_CLASSES))
    return tuple(kind for kind in known if kind != settings.cdi_kind)


def names(settings: Settings) -> tuple[str, ...]:
    """The file names of all specs that may be ours."""
    return tuple(map(file_name, (settings.cdi_kind, *kinds(settings))))


def removal(settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]) -> SpecProposal | None:
    """The removal of the specs that we wrote under other options, None if there are none."""
    changes = []
    for path in written_by_us(settings, host, spec_dirs):
        with contextlib.suppress(Refused):
            changes.append(Change(path, files.read(path.agent, path.host), None))
    return SpecProposal((), tuple(changes), late=True) if changes else None


def write(
    settings: Settings, proposal: SpecProposal | None, publisher: Publisher, log: Log
) -> tuple[str, ...]:
    """Make the changes of a proposal, and return the host paths of the files that were written or
    removed.

    Withdraws readiness and raises the proposal's problem, or Refused if the needed spec cannot be
    written. If another spec cannot be written, a warning is logged."""
    if proposal is None:
        return ()
    if proposal.problem is not None:
        publisher.withdraw()
    if proposal.directory is not None:
        files.sweep(proposal.directory.agent, names(settings))
    done = []
    for change in proposal.changes:
        path = change.path
        try:
            _write_change(change)
        except OSError as error:
            verb = "write" if change.after else "remove"
            refused = Refused(f"cannot {verb} {path}: {reason(error)}")
            if change.after is None or not proposal.is_needed(path.name):
                log.warning("spec not changed", error=refused.message)
                continue
            publisher.withdraw()
            raise refused from error
        log.info("spec written" if change.after else "spec removed", path=path.host)
        done.append(path.host)
    if proposal.problem is not None:
        raise proposal.problem
    if proposal.gpus is not None:
        proposal.gpus.keep()
    return tuple(done)


def _write_change(change: Change) -> None:
    if change.after is None:
        files.remove(change.path.agent)
        return
    files.make_directories(os.path.dirname(change.path.agent))
    files.write(change.path.agent, change.after)


def directories(
    settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]
) -> tuple[HostPath, ...]:
    """The directories that can have specs: `spec_dirs`, which a runtime reads, and that of our
    specs (--cdi-output-dir)."""
    asked = settings.cdi_output_dir
    paths = []
    for name in (*spec_dirs, *((asked,) if asked else ())):
        with contextlib.suppress(AgentError):  # a path that leads nowhere has no specs
            paths.append(host.locate(name))
    return tuple(dict.fromkeys(paths))


def written_by_us(
    settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]
) -> tuple[HostPath, ...]:
    """Every spec of ours in the directories of `directories`."""
    ours = names(settings)
    return tuple(
        path
        for place in directories(settings, host, spec_dirs)
        for path, data in spec_files.entries(host, place)
        if is_ours(data) and (path.name in ours or is_named_by_kind(path.name, data))
    )


def has_needed(settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...], needed: str) -> bool:
    """Is our spec of the kind `needed` in one of the directories of `directories`? Reads no other
    file, because a directory may have more specs than the agent reads."""
    places = directories(settings, host, spec_dirs)
    return any(_is_own_spec(place.child(file_name(needed))) for place in places)


def _is_own_spec(path: HostPath) -> bool:
    try:
        found = files.read(path.agent)
    except Refused:
        return False  # a link or a directory is no spec of ours
    return found is not None and is_ours(found.data)


def foreign_spec_with(
    settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...], names: tuple[str, ...]
) -> HostPath | None:
    """A spec of another writer that names a file in a certain directory, None if there is none.
    `names` are all host paths of that directory."""
    words = tuple(f"{name}/".encode() for name in names)
    for directory in directories(settings, host, spec_dirs):
        for path, data in spec_files.entries(host, directory):
            if any(word in data for word in words) and not is_ours(data):
                return path
    return None


def remove(settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]) -> tuple[str, ...]:
    """Remove our specs from all directories, and return their host paths. Specs of other writers
    stay. Raises Refused."""
    for place in directories(settings, host, spec_dirs):
        files.sweep(place.agent, names(settings))
    paths = written_by_us(settings, host, spec_dirs)
    for path in paths:
        try:
            files.remove(path.agent)
        except OSError as error:
            raise Refused(f"cannot remove {path}: {reason(error)}") from error
    return tuple(path.host for path in paths)
