"""The CDI specs that the agent itself writes, as files of the node.

Invariant: a spec is derived from the driver and never an original of anybody's: it is written
whole or not at all, only where its bytes differ, and is in no journal. One spec is needed: that of
management, on WSL2 and a Tegra nvidia.com/gpu. Where it should be there and cannot be made, it
takes readiness with it; another one is a warning. Modes of nvidia-container-runtime that inject
devices without a spec need none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agent.cdi import emit
from agent.cdi.driver import platform
from agent.cdi.make import generate, gpu, others
from agent.cdi.make.generate import Wanted
from agent.cdi.specs import foreign, installed, provider, readers
from agent.cdi.specs.provider import Readings
from agent.cdi.specs.readers import Reader
from agent.cdi.specs.spec_ownership import Site, Spec, file_name, is_named_by_kind
from agent.errors import AgentError, DriverDistrusted, Refused, reason
from agent.host import files, trust
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.plan.context import Context
from agent.plan.known_gpus import Gpus

# Modes of nvidia-container-runtime that find out by themselves what a container gets.
_WITHOUT_SPECS = ("legacy", "csv", "jit-cdi")


@dataclass(frozen=True, slots=True)
class Proposed:
    """Specs as they should be, and the changes that make them so. `problem` is why there cannot be
    the one that is needed: then changes only take away what describes nothing any more. `directory`
    is where ours go; `needed` is the name of the file without which the node is not ready, "" where
    there is none; `late`: changes have to wait until the runtime is proven without them; `way`:
    agent paths whose owners, modes and links decide what may be in the specs."""

    specs: tuple[Spec, ...]
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()
    problem: AgentError | None = None
    directory: HostPath | None = None
    gpus: Gpus | None = None
    needed: str = ""
    late: bool = False
    way: tuple[str, ...] = ()


def propose(
    ctx: Context, spec_dirs: tuple[str, ...], hook: str | None, reader: Reader,
    read: tuple[str, ...] = (), executable: str | None = None,
) -> Proposed | None:  # fmt: skip
    """The specs for a runtime that reads `spec_dirs` as `reader`, with hooks by the program at the
    host path `hook`; None where none are wanted and none of ours is in a directory that is `read`.
    `executable` (an agent path) is the runtime's, and is asked where it depends on it who describes
    a kind.

    Never raises: a person who looks at a node without a driver wants to see the rest as well.
    """
    if not ctx.settings.cdi_enabled or ctx.settings.cdi_output_dir is None:
        return _none(ctx, (*spec_dirs, *read))
    try:
        found = _propose(ctx, spec_dirs, hook, reader, executable)
    except AgentError as error:
        found = _impossible(ctx.settings, error)
    return _tolerated(found) if ctx.settings.mode in _WITHOUT_SPECS else found


def _tolerated(found: Proposed) -> Proposed:
    """Without a spec the node can work all the same: that there is none is a warning."""
    found = replace(found, needed="")
    if found.problem is None:
        return found
    refusal = _refusal(found.problem)
    warnings = (text for text in found.warnings if text != refusal)
    return replace(found, problem=None, warnings=(found.problem.message, *warnings))


def _none(ctx: Context, spec_dirs: tuple[str, ...]) -> Proposed | None:
    """No specs: those that we wrote under other options go."""
    gone = []
    for path in ours(ctx, spec_dirs):
        with contextlib.suppress(Refused):
            gone.append(Change(path, files.read(path.agent, path.host), None))
    return Proposed((), tuple(gone), late=True) if gone else None


def _impossible(settings: Settings, error: AgentError) -> Proposed:
    refused = (_refusal(error),)
    return Proposed((Spec(settings.cdi_kind, problem=error.message),), (), refused, error)


def _refusal(error: AgentError) -> str:
    return f"apply refuses: {error.message}"


def _propose(
    ctx: Context, spec_dirs: tuple[str, ...], hook: str | None, reader: Reader,
    executable: str | None,
) -> Proposed:  # fmt: skip
    settings, host = ctx.settings, ctx.host
    directory = _directory(settings, host, spec_dirs)
    places = tuple(dict.fromkeys((directory, *directories(ctx, spec_dirs))))
    _refuse_writable(host, (settings.cdi_output_dir, *spec_dirs))
    crowded: list[str] = []
    there = [entry for place in places for entry in foreign.entries(host, place, crowded.append)]
    gpus, kinds = Gpus(ctx), _kinds(settings)
    dirs = installed.directories(host, spec_dirs, reader)
    readings = Readings(host, dirs, reader)
    fixed = settings.origins["cdi_output_dir"] != "default"
    ours = readings.place(_file(directory, "x")) if fixed else len(dirs) - 1
    site, readings = _judged(
        Site(host, directory, _names(ctx), there), readings, kinds, executable, ours
    )
    # NVML is not asked where the answer is of no use.
    theirs = frozenset(kind for kind in kinds if site.provider(kind) is not None)
    reader = readings.reader
    made = generate.wanted(settings, host, hook, gpus.ask, theirs, reader)
    by_kind = {one.kind: one for one in made if one.kind in kinds}
    site = _placed(site, readings, by_kind, fixed=fixed)
    told = (*crowded, *provider.unknown(readings), *_beaten(settings, site, readings, made))
    return replace(_proposed(settings, site, made, told), gpus=gpus)


def _proposed(
    settings: Settings, site: Site, made: Sequence[Wanted], crowded: Sequence[str]
) -> Proposed:
    """What becomes of the specs that were `made`; `crowded` are warnings of directories and of
    files in them."""
    kinds = _kinds(settings)
    by_kind = {one.kind: one for one in made}
    management = by_kind.pop(settings.cdi_kind, None)
    needed = settings.cdi_kind if management else gpu.KIND
    found = [site.other(kind, by_kind.get(kind)) for kind in kinds]
    if management is None:  # one from when there was a driver of that kind
        found.append(site.other(settings.cdi_kind, None))
    shown = tuple(spec for spec, _ in found if spec.writer or spec.problem)
    changes = [change for _, change in found if change is not None]
    stale = (
        *site.leftovers(),
        *(change for change in changes if change.after is None),
    )
    try:
        own, change = site.management(management) if management else (None, None)
    except AgentError as error:
        none = _impossible(settings, error)
        if isinstance(error, DriverDistrusted) and (gone := site.removal(settings.cdi_kind)):
            stale = (*stale, gone)
        return Proposed((*none.specs, *shown), stale, none.warnings, error, site.directory)
    shown = (own, *shown) if own else shown
    told = tuple(text for kind in kinds for text in site.warnings(kind))
    warnings = (*_warnings(made, shown), *told, *crowded)
    missing = by_kind[gpu.KIND].problem if needed in by_kind else None
    if (problem := site.blocked(gpu.KIND) or missing) is not None:
        warnings = (*(text for text in warnings if text != problem.message), _refusal(problem))
        return Proposed(shown, stale, warnings, problem, site.directory)
    new = (change, *(change for change in changes if change.after is not None))
    return Proposed(
        shown,
        (*stale, *(change for change in new if change is not None)),
        warnings,
        directory=site.directory,
        needed=file_name(needed),
        way=tuple(dict.fromkeys(path for one in made for path in one.way)),
    )


def _judged(
    site: Site, readings: Readings, kinds: tuple[str, ...], executable: str | None, ours: int
) -> tuple[Site, Readings]:
    """The site with who describes which kind; `ours` as of `provider.providers`. Where that
    depends on what the runtime reads, and nobody knows that of its version, its executable is
    asked."""

    def look(by: Readings) -> Site:
        there = site.foreign()
        found = {kind: provider.providers(by, kind, there, ours) for kind in kinds}
        return replace(site, providers=found)

    first = look(readings)
    doubted = any(one.doubt for found in first.providers.values() for one in found)
    if not doubted or executable is None:
        return first, readings
    readings = replace(readings, reader=readers.sharpened(readings.reader, executable))
    return look(readings), readings


def _placed(site: Site, readings: Readings, wanted: Mapping[str, Wanted], *, fixed: bool) -> Site:
    """The site with where a kind of ours goes that nobody else provides, although files of others
    describe it: where the runtime takes all its devices from ours. `fixed`: somebody said where."""
    last = [one.path for one in readings.dirs if one.path is not None][-1:]
    places = (site.directory, *(() if fixed else last))
    placed = {}
    for kind, found in site.providers.items():
        one = wanted.get(kind)
        if not found or site.provider(kind) or one is None or one.text is None:
            continue
        text = one.text.encode()
        placed[kind] = next(
            (place for place in places if _wins(site, readings, (kind, place), text)), None
        )
    return replace(site, placed=placed)


def _wins(site: Site, readings: Readings, where: tuple[str, HostPath], text: bytes) -> bool:
    """Would a spec of ours of a kind count in a directory?"""
    kind, place = where
    path = _file(place, file_name(kind))
    there = [entry for entry in site.foreign() if foreign.has_kind(entry[1], kind)]
    taken = any(entry[0] == path for entry in site.foreign())
    return not taken and provider.wins(readings, there, path, text)


def _beaten(
    settings: Settings, site: Site, readings: Readings, made: Sequence[Wanted]
) -> Iterator[str]:
    """That a file of somebody else's has the management spec's device, of which the runtime then
    takes nothing from ours."""
    kind = settings.cdi_kind
    text = next((one.text for one in made if one.kind == kind and one.text), None)
    if text is None or _wins(site, readings, (kind, site.directory), text.encode()):
        return
    for path, data in site.foreign():
        if foreign.has_kind(data, kind) and readings.place(path) > readings.place(
            _file(site.directory, path.name)
        ):
            yield (
                f"{path} defines {kind} too, and wins over {site.directory}/{file_name(kind)}; "
                "remove it"
            )


def _file(above: HostPath, name: str) -> HostPath:
    return HostPath(os.path.join(above.agent, name), os.path.join(above.host, name))


def _kinds(settings: Settings) -> tuple[str, ...]:
    """What may be ours besides the management spec."""
    known = (gpu.KIND, *(which.kind for which in others.CLASSES.values()))
    return tuple(kind for kind in known if kind != settings.cdi_kind)


def _warnings(made: Iterable[Wanted], shown: Iterable[Spec]) -> tuple[str, ...]:
    """That there is no GPU is no fault, and shown with the specs only; that one is lost is."""
    made = tuple(made)
    none = {one.problem.message for one in made if one.problem and generate.is_absent(one.problem)}
    problems = (spec.problem for spec in shown if spec.problem and spec.problem not in none)
    return tuple(dict.fromkeys((*(text for one in made for text in one.warnings), *problems)))


def _directory(settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]) -> HostPath:
    """A directory that the runtime reads: as asked for, else the one that wins over the others."""
    assert settings.cdi_output_dir is not None
    wanted = host.locate(settings.cdi_output_dir)
    read = [host.locate(path) for path in spec_dirs]
    if wanted.host in [path.host for path in read]:
        return wanted
    if not read or settings.origins["cdi_output_dir"] != "default":
        raise Refused(
            f"cannot write CDI specs to {settings.cdi_output_dir}: the runtime reads "
            f"{', '.join(spec_dirs) or 'none'}; give one of these with --cdi-output-dir"
        )
    return read[-1]


def _refuse_writable(host: HostRoot, given: Iterable[str | None]) -> None:
    """Whoever can write where the runtime looks for specs can have any program run as root."""
    for name in dict.fromkeys(host.name(one) for one in given if one):
        trust.require(host, name, f"use the CDI directory {name}")


def write(ctx: Context, proposed: Proposed | None) -> tuple[str, ...]:
    """Make the changes; returns host paths of what was written or removed.

    Raises NoDriver, or Refused where no runtime would read the spec that is needed or the disk
    does not play along; then nothing is ready any more.
    """
    if proposed is None:
        return ()
    if proposed.problem is not None:
        ctx.publisher.withdraw()
    if proposed.directory is not None:
        files.sweep(proposed.directory.agent, _names(ctx))
    done = [path for change in proposed.changes for path in _make(ctx, change, proposed.needed)]
    if proposed.problem is not None:
        raise proposed.problem
    if proposed.gpus is not None:
        proposed.gpus.keep()
    return tuple(done)


def _make(ctx: Context, change: Change, needed: str) -> tuple[str, ...]:
    """One change. Raises Refused where it is the file `needed` that cannot be written."""
    path = change.path
    try:
        if change.after is None:
            files.remove(path.agent)
        else:
            files.make_directories(os.path.dirname(path.agent))
            files.write(path.agent, change.after)
    except OSError as error:
        what = "write" if change.after else "remove"
        refused = Refused(f"cannot {what} {path}: {reason(error)}")
        if change.after is None or path.name != needed:
            ctx.log.warning("spec not changed", error=refused.message)
            return ()
        ctx.publisher.withdraw()
        raise refused from error
    ctx.log.info("spec written" if change.after else "spec removed", path=path.host)
    return (path.host,)


def _names(ctx: Context) -> tuple[str, ...]:
    return tuple(map(file_name, (ctx.settings.cdi_kind, *_kinds(ctx.settings))))


def directories(ctx: Context, spec_dirs: tuple[str, ...]) -> tuple[HostPath, ...]:
    """Where a runtime that reads `spec_dirs` looks for specs, and where ours may lie."""
    asked = ctx.settings.cdi_output_dir
    found = []
    for name in (*spec_dirs, *((asked,) if asked else ())):
        with contextlib.suppress(AgentError):  # what leads nowhere holds nothing
            found.append(ctx.host.locate(name))
    return tuple(dict.fromkeys(found))


def present(ctx: Context, spec_dirs: tuple[str, ...]) -> bool:
    """Is a spec that we wrote there?"""
    return bool(ours(ctx, spec_dirs))


def ours(ctx: Context, spec_dirs: tuple[str, ...]) -> tuple[HostPath, ...]:
    """Every spec that we wrote."""
    names = _names(ctx)
    return tuple(
        path
        for place in directories(ctx, spec_dirs)
        for path, data in foreign.entries(ctx.host, place)
        if emit.is_ours(data) and (path.name in names or is_named_by_kind(path.name, data))
    )


def has_needed(ctx: Context, spec_dirs: tuple[str, ...]) -> bool:
    """Is the spec of ours that a node needs where a runtime that reads `spec_dirs` looks?"""
    other = platform.wsl(ctx.host) or platform.tegra(ctx.host)
    name = file_name(gpu.KIND if other else ctx.settings.cdi_kind)
    places = directories(ctx, spec_dirs)
    return any(_is_ours(os.path.join(place.agent, name)) for place in places)


def _is_ours(agent: str) -> bool:
    try:
        found = files.read(agent)
    except Refused:
        return False  # a link or a directory is nobody's spec
    return found is not None and emit.is_ours(found.data)


def naming(ctx: Context, spec_dirs: tuple[str, ...], names: tuple[str, ...]) -> HostPath | None:
    """A spec of somebody else's that names anything in a directory (its host paths)."""
    words = tuple(f"{name}/".encode() for name in names)
    for found in directories(ctx, spec_dirs):
        for path, data in foreign.entries(ctx.host, found):
            if any(word in data for word in words) and not emit.is_ours(data):
                return path
    return None


def remove(ctx: Context, spec_dirs: tuple[str, ...]) -> tuple[str, ...]:
    """Take our specs away, wherever they may be; those that somebody else wrote stay.

    Returns host paths. Raises Refused.
    """
    for place in directories(ctx, spec_dirs):
        files.sweep(place.agent, _names(ctx))
    gone = ours(ctx, spec_dirs)
    for path in gone:
        try:
            files.remove(path.agent)
        except OSError as error:
            raise Refused(f"cannot remove {path}: {reason(error)}") from error
    return tuple(path.host for path in gone)
