"""The CDI specs that the agent itself writes on the node.

Invariant: a spec is derived from the driver, so no journal keeps an original of it. It is written
in one step, and only where its bytes differ. The node needs one kind: that of the management spec,
or nvidia.com/gpu on WSL2 and on a Tegra. The node is not ready without that spec. Any other spec
that cannot be made is a warning. Modes of nvidia-container-runtime that inject devices without a
spec need none.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agent.cdi import emit
from agent.cdi.driver.driver import Driver
from agent.cdi.driver.known_gpus import KnownGpus
from agent.cdi.make import generate, gpu
from agent.cdi.make.generate import DesiredSpec
from agent.cdi.specs import crashes, provider, readers, spec_files
from agent.cdi.specs.provider import RuntimeView
from agent.cdi.specs.readers import Reader
from agent.cdi.specs.spec_ownership import Ownership, SpecStatus, file_name, is_named_by_kind
from agent.decide import MODES_WITHOUT_CDI
from agent.errors import AgentError, DriverDistrusted, Refused, reason
from agent.host import files, trust
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot
from agent.log import Log
from agent.options.device_classes import DEVICE_CLASSES
from agent.options.settings import Settings
from agent.status import Publisher


@dataclass(frozen=True)
class SpecProposal:
    """The specs as they should be, and the changes that make them so.

    `needed` is the kind without which the node is not ready, "" where there is none. `problem` is
    why its spec cannot be made; then `changes` only remove specs of devices that are gone.
    `directory` is where our specs go. `late` changes wait until the runtime is proven without
    them. `judged_paths` are the agent paths whose owners, modes and links decide what may be in the
    specs. `driver` is the driver that they describe.
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
        """Is this the file name of the needed spec?"""
        return bool(self.needed) and name == file_name(self.needed)


def propose(
    settings: Settings, host: HostRoot, gpus: KnownGpus, spec_dirs: tuple[str, ...],
    hook: str | None, reader: Reader, read: tuple[str, ...] = (), executable: str | None = None,
) -> SpecProposal | None:  # fmt: skip
    """The specs for a runtime that reads `spec_dirs` as `reader` does, with hooks by the program at
    the host path `hook`. None where no specs are asked for and none of ours is in the directories
    that are `read`. `executable` is the agent path of the runtime's program; it is examined where
    the provider of a kind depends on it.

    Never raises an AgentError, so that a plan for a node without a driver shows the rest as well.
    """
    if not settings.cdi_enabled or settings.cdi_output_dir is None:
        return _removal(settings, host, (*spec_dirs, *read))
    mode = generate.gpu_mode(settings, host, gpus.ask)
    proposer = _Proposer(settings, host, gpus, mode, hook)
    try:
        proposal = proposer.propose(spec_dirs, reader, executable)
    except AgentError as error:
        proposal = proposer.impossible(error)
    return _without_needed(proposal) if settings.mode in MODES_WITHOUT_CDI else proposal


def _without_needed(proposal: SpecProposal) -> SpecProposal:
    """The proposal for a node that can work without a spec: a missing spec is a warning."""
    proposal = replace(proposal, needed="")
    if proposal.problem is None:
        return proposal
    refusal = _refusal(proposal.problem)
    warnings = (text for text in proposal.warnings if text != refusal)
    return replace(proposal, problem=None, warnings=(proposal.problem.message, *warnings))


def _removal(settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]) -> SpecProposal | None:
    """The removal of the specs that we wrote under other options."""
    changes = []
    for path in written_by_us(settings, host, spec_dirs):
        with contextlib.suppress(Refused):
            changes.append(Change(path, files.read(path.agent, path.host), None))
    return SpecProposal((), tuple(changes), late=True) if changes else None


def _refusal(error: AgentError) -> str:
    return f"apply refuses: {error.message}"


@dataclass(frozen=True)
class _Proposer:
    """Makes the proposal of a node; `mode` is the mode of nvidia.com/gpu that fits the machine."""

    settings: Settings
    host: HostRoot
    gpus: KnownGpus
    mode: str
    hook: str | None

    @property
    def needed(self) -> str:
        """The kind that the node needs."""
        return self.settings.cdi_kind if self.mode == "nvml" else gpu.KIND

    def impossible(self, error: AgentError) -> SpecProposal:
        """The proposal where the needed spec cannot be made, and nothing changes."""
        status = SpecStatus(self.settings.cdi_kind, problem=error.message)
        return SpecProposal(
            (status,), (), (_refusal(error),), error, gpus=self.gpus, needed=self.needed
        )

    def propose(
        self, spec_dirs: tuple[str, ...], reader: Reader, executable: str | None
    ) -> SpecProposal:
        """The proposal. Raises AgentError."""
        settings, host = self.settings, self.host
        directory = _directory(settings, host, spec_dirs)
        places = tuple(dict.fromkeys((directory, *directories(settings, host, spec_dirs))))
        _refuse_writable(host, (settings.cdi_output_dir, *spec_dirs))
        crowded: list[str] = []
        entries = [
            item for place in places for item in spec_files.entries(host, place, crowded.append)
        ]
        view = RuntimeView(host, spec_files.directories(host, spec_dirs, reader), reader)
        fixed = settings.origins["cdi_output_dir"] != "default"
        own_place = view.number(directory.host) if fixed else len(view.dirs) - 1
        ownership = Ownership(host, directory, _names(settings), entries)
        ownership, view = self._with_providers(ownership, view, executable, own_place)
        # NVML is not asked where its answer would not be used.
        provided = frozenset(k for k in _kinds(settings) if ownership.provider(k) is not None)
        desired = generate.desired_specs(
            self.mode, settings, host, self.hook, self.gpus.ask, provided, view.reader
        )
        by_kind = {one.kind: one for one in desired if one.kind in _kinds(settings)}
        ownership = _with_places(ownership, view, by_kind, fixed=fixed)
        overridden = _overridden(settings, ownership, view, desired)
        texts = {spec.text.encode() for spec in desired if spec.text}
        warnings = (*crowded, *provider.unknown(view, texts), *overridden)
        return self._decided(ownership, desired, warnings)

    def _with_providers(
        self, ownership: Ownership, view: RuntimeView, executable: str | None, own_place: int
    ) -> tuple[Ownership, RuntimeView]:
        """The ownership with the providers of each kind; `own_place` as in `provider.providers`.
        Where they depend on what the runtime reads, and its version does not tell that, its
        executable is examined."""

        def with_providers(view: RuntimeView) -> Ownership:
            entries = ownership.foreign()
            found = {
                kind: provider.providers(view, kind, entries, own_place)
                for kind in _kinds(self.settings)
            }
            return replace(ownership, providers=found)

        first = with_providers(view)
        doubted = any(one.doubt for found in first.providers.values() for one in found)
        if not doubted or executable is None:
            return first, view
        view = replace(view, reader=readers.with_executable(view.reader, executable))
        return with_providers(view), view

    def _decided(
        self, ownership: Ownership, desired: Sequence[DesiredSpec], more: Sequence[str]
    ) -> SpecProposal:
        """The proposal for these desired specs; `more` are further warnings."""
        settings, kinds = self.settings, _kinds(self.settings)
        by_kind = {spec.kind: spec for spec in desired}
        management = by_kind.pop(settings.cdi_kind, None)
        found = [ownership.device_spec(kind, by_kind.get(kind)) for kind in kinds]
        if management is None:  # one may be left from a driver that had one
            found.append(ownership.device_spec(settings.cdi_kind, None))
        statuses = tuple(status for status, _ in found if status.writer or status.problem)
        changes = [change for _, change in found if change is not None]
        removals = (
            *ownership.leftovers(), *(change for change in changes if change.after is None),
        )  # fmt: skip
        own, change = None, None
        try:
            if management:
                own, change = ownership.management(management)
        except AgentError as error:
            failed, directory = self.impossible(error), ownership.directory
            if isinstance(error, DriverDistrusted):
                gone = ownership.removal(settings.cdi_kind)
                removals = (*removals, *((gone,) if gone else ()))
            return replace(
                failed, specs=(*failed.specs, *statuses), changes=removals, directory=directory
            )
        statuses = (own, *statuses) if own else statuses
        broken = (text for kind in kinds for text in ownership.warnings(kind))
        proposal = SpecProposal(
            statuses, removals, (*_warnings(desired, statuses), *broken, *more),
            directory=ownership.directory, gpus=self.gpus, needed=self.needed,
            judged_paths=tuple(dict.fromkeys(itertools.chain(*(s.judged_paths for s in desired)))),
            driver=next((spec.driver for spec in desired if spec.driver), None),
        )  # fmt: skip
        missing = by_kind[self.needed].problem if self.needed in by_kind else None
        if (problem := ownership.blocked(gpu.KIND) or missing) is not None:
            warnings = (text for text in proposal.warnings if text != problem.message)
            return replace(
                proposal, problem=problem, warnings=(*warnings, _refusal(problem)), judged_paths=()
            )
        new = (change, *(change for change in changes if change.after is not None))
        return replace(proposal, changes=(*removals, *(spec for spec in new if spec is not None)))


def _with_places(
    ownership: Ownership, view: RuntimeView, desired: Mapping[str, DesiredSpec], *, fixed: bool
) -> Ownership:
    """The ownership with the directory of our file for each kind that only unusable files of other
    writers describe. In that directory our file wins over theirs. `fixed` means that an option
    gives the directory."""
    last = [spec.path for spec in view.dirs if spec.path is not None][-1:]
    candidates = (ownership.directory, *(() if fixed else last))
    places = {}
    for kind, found in ownership.providers.items():
        spec = desired.get(kind)
        if not found or ownership.provider(kind) or spec is None or spec.text is None:
            continue
        text = spec.text.encode()
        places[kind] = next(
            (place for place in candidates if _wins(ownership, view, kind, place, text)), None
        )
    return replace(ownership, places=places)


def _wins(ownership: Ownership, view: RuntimeView, kind: str, place: HostPath, text: bytes) -> bool:
    """Would the runtime take the devices of a kind from a spec of ours in this directory?"""
    path, entries = place.child(file_name(kind)), ownership.foreign()
    if any(entry == path for entry, _ in entries):
        return False
    rivals = [(entry, data) for entry, data in entries if crashes.has_kind(data, kind)]
    return provider.wins(view, rivals, path, text)


def _overridden(
    settings: Settings, ownership: Ownership, view: RuntimeView, desired: Sequence[DesiredSpec]
) -> Iterator[str]:
    """A warning for each file of another writer that has the management spec's device and wins over
    our file."""
    kind, directory = settings.cdi_kind, ownership.directory
    text = next((spec.text for spec in desired if spec.kind == kind and spec.text), None)
    rivals = [
        path
        for path, data in ownership.foreign()
        if view.place(path) > view.number(directory.host) and crashes.has_kind(data, kind)
    ]
    if text is None or not rivals or _wins(ownership, view, kind, directory, text.encode()):
        return
    for path in rivals:
        yield f"{path} defines {kind} too, and wins over {directory}/{file_name(kind)}; remove it"


def _kinds(settings: Settings) -> tuple[str, ...]:
    """The kinds that may be ours besides that of the management spec."""
    known = (gpu.KIND, *(one.kind for one in DEVICE_CLASSES))
    return tuple(kind for kind in known if kind != settings.cdi_kind)


def _names(settings: Settings) -> tuple[str, ...]:
    return tuple(map(file_name, (settings.cdi_kind, *_kinds(settings))))


def _warnings(desired: Sequence[DesiredSpec], statuses: Iterable[SpecStatus]) -> tuple[str, ...]:
    """Warnings of specs, and problems. That a node has no GPU is no fault, so only the list of
    specs shows it; that a GPU is lost is a fault."""
    absent = {spec.problem.message for spec in desired if spec.problem and spec.is_absent}
    problems = (spec.problem for spec in statuses if spec.problem and spec.problem not in absent)
    return tuple(dict.fromkeys((*(text for spec in desired for text in spec.warnings), *problems)))


def _directory(settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]) -> HostPath:
    """The directory of our specs: that of the option, else the one that wins over all others. The
    runtime reads it. Raises Refused."""
    assert settings.cdi_output_dir is not None
    asked = host.locate(settings.cdi_output_dir)
    read = [host.locate(path) for path in spec_dirs]
    if asked.host in [path.host for path in read]:
        return asked
    if not read or settings.origins["cdi_output_dir"] != "default":
        raise Refused(
            f"cannot write CDI specs to {settings.cdi_output_dir}: the runtime reads "
            f"{', '.join(spec_dirs) or 'none'}; give one of these with --cdi-output-dir"
        )
    return read[-1]


def _refuse_writable(host: HostRoot, given: Iterable[str | None]) -> None:
    """Raise Refused where another user than root can write to a directory of specs, because the
    hooks of a spec run as root."""
    for name in dict.fromkeys(host.name(one) for one in given if one):
        trust.require(host, name, f"use the CDI directory {name}")


def write(
    settings: Settings, proposal: SpecProposal | None, publisher: Publisher,
    log: Log,
) -> tuple[str, ...]:  # fmt: skip
    """Make the changes. Returns the host paths of the files that were written or removed.

    Withdraws readiness and raises the proposal's problem, or Refused where the needed spec cannot
    be written."""
    if proposal is None:
        return ()
    if proposal.problem is not None:
        publisher.withdraw()
    if proposal.directory is not None:
        files.sweep(proposal.directory.agent, _names(settings))
    done = []
    for change in proposal.changes:
        path = change.path
        try:
            _make(change)
        except OSError as error:
            what = "write" if change.after else "remove"
            refused = Refused(f"cannot {what} {path}: {reason(error)}")
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


def _make(change: Change) -> None:
    if change.after is None:
        files.remove(change.path.agent)
        return
    files.make_directories(os.path.dirname(change.path.agent))
    files.write(change.path.agent, change.after)


def directories(
    settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]
) -> tuple[HostPath, ...]:
    """The directories of specs of a runtime that reads `spec_dirs`, and that of our specs."""
    asked = settings.cdi_output_dir
    found = []
    for name in (*spec_dirs, *((asked,) if asked else ())):
        with contextlib.suppress(AgentError):  # a path that leads nowhere has no specs
            found.append(host.locate(name))
    return tuple(dict.fromkeys(found))


def written_by_us(
    settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]
) -> tuple[HostPath, ...]:
    """Every spec that we wrote."""
    names = _names(settings)
    return tuple(
        path
        for place in directories(settings, host, spec_dirs)
        for path, data in spec_files.entries(host, place)
        if emit.is_ours(data) and (path.name in names or is_named_by_kind(path.name, data))
    )


def has_needed(settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...], needed: str) -> bool:
    """Is our spec of the `needed` kind in a directory that a runtime with `spec_dirs` reads?"""

    def is_ours(path: HostPath) -> bool:
        try:
            found = files.read(path.agent)
        except Refused:
            return False  # a link or a directory is no spec of ours
        return found is not None and emit.is_ours(found.data)

    places = directories(settings, host, spec_dirs)
    return any(is_ours(place.child(file_name(needed))) for place in places)


def foreign_spec_with(
    settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...], names: tuple[str, ...]
) -> HostPath | None:
    """A spec of another writer that names a file in a directory (its host paths are `names`)."""
    words = tuple(f"{name}/".encode() for name in names)
    for directory in directories(settings, host, spec_dirs):
        for path, data in spec_files.entries(host, directory):
            if any(word in data for word in words) and not emit.is_ours(data):
                return path
    return None


def remove(settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]) -> tuple[str, ...]:
    """Remove our specs from all directories. Specs of other writers stay. Returns the host paths of
    the removed files. Raises Refused."""
    for place in directories(settings, host, spec_dirs):
        files.sweep(place.agent, _names(settings))
    gone = written_by_us(settings, host, spec_dirs)
    for path in gone:
        try:
            files.remove(path.agent)
        except OSError as error:
            raise Refused(f"cannot remove {path}: {reason(error)}") from error
    return tuple(path.host for path in gone)
