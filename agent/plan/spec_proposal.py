"""The CDI specs of ours as they should be.

Invariant: reads only. The node needs one kind: that of the management spec, or nvidia.com/gpu on
WSL2 and on a Tegra. Without a spec of this kind the node is not ready. Any other spec that cannot
be made is a warning. In the modes of nvidia-container-runtime that inject devices without a spec,
the node needs no kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from agent.cdi.driver.known_gpus import KnownGpus
from agent.cdi.make import generate
from agent.cdi.make.generate import DesiredSpec
from agent.cdi.specs import crashes, own_specs, provider, readers, spec_files
from agent.cdi.specs.own_specs import SpecProposal, file_name
from agent.cdi.specs.provider import RuntimeView, usable
from agent.cdi.specs.readers import Reader
from agent.cdi.specs.spec_ownership import Ownership, SpecStatus, foreign
from agent.decide import MODES_WITHOUT_CDI
from agent.errors import AgentError, Refused
from agent.host import trust
from agent.host.paths import HostPath, HostRoot
from agent.options.device_classes import GPU_KIND
from agent.options.settings import Settings


def propose(
    settings: Settings, host: HostRoot, gpus: KnownGpus, spec_dirs: tuple[str, ...],
    hook: str | None, reader: Reader, executable: str | None = None,
) -> SpecProposal:  # fmt: skip
    """The proposal of specs for a runtime that reads the directories `spec_dirs` by the rules of
    `reader`.

    `hook` is the host path of the program for hooks. `executable` is the agent path of the
    runtime's program, which is examined if its version does not show which specs it reads.

    Never raises an AgentError: the error is the `problem` of the proposal, so that a plan for a
    node without a driver shows the rest too.
    """
    mode = generate.gpu_mode(settings, host, gpus.ask)
    needed = settings.cdi_kind if mode == "nvml" else GPU_KIND
    try:
        view = RuntimeView(host, spec_files.directories(host, spec_dirs, reader), reader)
        proposal = _proposal(settings, view, gpus, spec_dirs, mode, needed, hook, executable)
    except AgentError as error:
        status = SpecStatus(settings.cdi_kind, problem=error.message)
        proposal = SpecProposal((status,), problem=error, gpus=gpus)
    problem, warnings = proposal.problem, proposal.warnings
    if settings.mode in MODES_WITHOUT_CDI:  # the node can work without a spec
        needed, problem = "", None
        warnings = (*((proposal.problem.message,) if proposal.problem else ()), *warnings)
    return replace(proposal, needed=needed, problem=problem, warnings=warnings)


def _proposal(
    settings: Settings, view: RuntimeView, gpus: KnownGpus, spec_dirs: tuple[str, ...],
    mode: str, needed: str, hook: str | None, executable: str | None,
) -> SpecProposal:  # fmt: skip
    """The proposal. `mode` is the mode for nvidia.com/gpu on this machine; the others are as in
    `propose`. Raises AgentError."""
    host, kinds, names = view.host, own_specs.kinds(settings), own_specs.names(settings)
    directory = _directory(settings, host, spec_dirs)
    _refuse_writable(host, (settings.cdi_output_dir, *spec_dirs))
    crowded: list[str] = []
    entries = [
        item
        for place in dict.fromkeys((directory, *own_specs.directories(settings, host, spec_dirs)))
        for item in spec_files.entries(host, place, crowded)
    ]
    others = foreign(entries, names)
    fixed = settings.origins["cdi_output_dir"] != "default"
    own_place = view.number(directory.host) if fixed else len(view.dirs) - 1
    providers = {kind: provider.providers(view, kind, others, own_place) for kind in kinds}
    if executable and any(one.doubt for found in providers.values() for one in found):
        # The version of the runtime does not show which specs it reads.
        view = replace(view, reader=readers.with_executable(view.reader, executable))
        providers = {kind: provider.providers(view, kind, others, own_place) for kind in kinds}
    # NVML is not asked if its answer would not be used.
    provided = frozenset(kind for kind, found in providers.items() if usable(found))
    desired = generate.desired_specs(mode, settings, host, hook, gpus.ask, provided, view.reader)
    texts = {spec.kind: spec.text.encode() for spec in desired if spec.text}
    last = [spec.path for spec in view.dirs if spec.path is not None][-1:]
    candidates = (directory, *(() if fixed else last))
    places = {
        kind: next(
            (place for place in candidates if _wins(view, others, kind, place, texts[kind])), None
        )
        for kind, found in providers.items() if found and not usable(found) and kind in texts
    }  # fmt: skip
    ownership = Ownership(host, directory, names, entries, providers, places)
    management = texts.get(settings.cdi_kind)
    warnings = (
        *(text for kind in kinds for text in ownership.warnings(kind)),
        *crowded,
        *provider.unknown_kind_warnings(view, texts.values()),
        *(_override_warnings(settings, view, others, directory, management) if management else ()),
    )
    return _with_ownership(settings, ownership, desired, gpus, needed, warnings)


def _with_ownership(
    settings: Settings, ownership: Ownership, desired: Sequence[DesiredSpec], gpus: KnownGpus,
    needed: str, more_warnings: Sequence[str],
) -> SpecProposal:  # fmt: skip
    """The proposal for these desired specs: which of them are ours to write, and the changes."""
    by_kind = {spec.kind: spec for spec in desired}
    management = by_kind.pop(settings.cdi_kind, None)
    problem: AgentError | None = None
    if management is None:  # an earlier driver may have left a management spec
        results = [ownership.device_spec(settings.cdi_kind, None)]
    else:
        problem = management.problem
        try:
            results = [ownership.management(management)]
        except AgentError as error:
            problem = error
            results = [(SpecStatus(settings.cdi_kind, problem=error.message), None)]
    kinds = own_specs.kinds(settings)
    results += (ownership.device_spec(kind, by_kind.get(kind)) for kind in kinds)
    statuses = tuple(status for status, _ in results if status.writer or status.problem)
    changes = [change for _, change in results if change is not None]
    removals = (*ownership.leftovers(), *(change for change in changes if change.after is None))
    missing = by_kind[needed].problem if needed in by_kind else None
    problem = problem or ownership.blocked(GPU_KIND) or missing
    error_text = problem.message if problem else None
    warnings = (*_warnings(desired, statuses), *more_warnings)
    judged_paths = itertools.chain.from_iterable(spec.judged_paths for spec in desired)
    return SpecProposal(
        statuses,
        removals if problem else (*removals, *(one for one in changes if one.after is not None)),
        tuple(text for text in warnings if text != error_text),
        problem,
        ownership.directory,
        gpus,
        judged_paths=() if problem else tuple(dict.fromkeys(judged_paths)),
        driver=next((spec.driver for spec in desired if spec.driver), None),
    )


def _wins(
    view: RuntimeView, others: Sequence[tuple[HostPath, bytes]], kind: str, place: HostPath,
    text: bytes,
) -> bool:  # fmt: skip
    """Would the runtime take the devices of `kind` from our spec with this text in the directory
    `place`, although the files of other writers (`others`) exist?"""
    path = place.child(file_name(kind))
    if any(entry == path for entry, _ in others):
        return False
    rivals = [(entry, data) for entry, data in others if crashes.has_kind(data, kind)]
    return provider.wins(view, rivals, path, text)


def _override_warnings(
    settings: Settings, view: RuntimeView, others: Sequence[tuple[HostPath, bytes]],
    directory: HostPath, text: bytes,
) -> Iterator[str]:  # fmt: skip
    """A warning for each file of another writer that defines the device of the management spec and
    wins over our file. `text` is the content of our file."""
    kind, own_place = settings.cdi_kind, view.number(directory.host)
    rivals = [
        path
        for path, data in others
        if view.place(path) > own_place and crashes.has_kind(data, kind)
    ]
    if rivals and not _wins(view, others, kind, directory, text):
        for path in rivals:
            ours = f"{directory}/{file_name(kind)}"
            yield f"{path} defines {kind} too, and wins over {ours}; remove it"


def _warnings(desired: Sequence[DesiredSpec], statuses: Iterable[SpecStatus]) -> tuple[str, ...]:
    """The warnings and problems of specs. A device class that the node does not have is no fault,
    so its problem is left out here and only in the list of specs. A lost GPU is a fault."""
    absent = {spec.problem.message for spec in desired if spec.problem and spec.is_absent}
    problems = (spec.problem for spec in statuses if spec.problem and spec.problem not in absent)
    return tuple(dict.fromkeys((*(text for spec in desired for text in spec.warnings), *problems)))


def _directory(settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]) -> HostPath:
    """The directory of our specs: that of --cdi-output-dir, else the one that wins over all others.
    Raises Refused if the runtime does not read it."""
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
    """Raise Refused if another user than root can write to a directory of specs, because the
    hooks of a spec run as root."""
    for name in dict.fromkeys(host.name(one) for one in given if one):
        trust.require(host, name, f"use the CDI directory {name}")
