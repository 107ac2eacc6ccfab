"""The CDI spec that the agent itself writes, as one file of the node.

Invariant: a spec is derived from the driver and never an original of anybody's: it is written
whole or not at all, only where its bytes differ, and is in no journal. A spec that should be there
and cannot be made takes readiness with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from agent.cdi import emit, foreign, generate
from agent.data import dataclass
from agent.engine.context import Context
from agent.engine.plan import Change
from agent.errors import AgentError, Refused, reason
from agent.host import files
from agent.host.paths import HostPath, HostRoot
from agent.settings import Settings


@dataclass(frozen=True, slots=True)
class Proposed:
    """The management spec as it should be. `change` is None where the file is so already;
    `problem` is why there can be none, and then there is no `path` either."""

    path: HostPath | None = None
    change: Change | None = None
    warnings: tuple[str, ...] = ()
    problem: AgentError | None = None


def propose(ctx: Context, spec_dirs: tuple[str, ...], hook: str | None) -> Proposed | None:
    """The management spec for a runtime that reads `spec_dirs`, with hooks by the program at the
    host path `hook`; None where none is wanted.

    Never raises: a person who looks at a node without a driver wants to see the rest as well.
    """
    if not ctx.settings.cdi_enabled or ctx.settings.cdi_output_dir is None:
        return None
    try:
        return _propose(ctx, spec_dirs, hook)
    except AgentError as error:
        return Proposed(warnings=(f"apply refuses: {error.message}",), problem=error)


def _propose(ctx: Context, spec_dirs: tuple[str, ...], hook: str | None) -> Proposed:
    settings, host = ctx.settings, ctx.host
    directory = _directory(settings, host, spec_dirs)
    _refuse_writable([directory, *_directories(ctx, spec_dirs)])
    text, warnings = generate.management(settings, host, hook=hook)
    path = _join(host, directory, file_name(settings.cdi_kind))
    _refuse_twins(host, directory, path, settings.cdi_kind)
    before = files.read(path.agent, path.host)
    after = files.new_state(text.encode())
    same = before is not None and (before.data, before.mode) == (after.data, after.mode)
    return Proposed(path, None if same else Change(path, before, after), warnings)


def file_name(kind: str) -> str:
    """`management.nvidia.com-gpu.yaml`: NVIDIA's installer has the same name, so that one file
    takes the place of the other; two with one device would cancel each other."""
    return kind.replace("/", "-") + ".yaml"


def _directory(settings: Settings, host: HostRoot, spec_dirs: tuple[str, ...]) -> HostPath:
    """A directory that the runtime reads: as asked for, else the one that wins over the others."""
    assert settings.cdi_output_dir is not None
    wanted = _locate(host, settings.cdi_output_dir)
    read = [_locate(host, path) for path in spec_dirs]
    if wanted.host in [path.host for path in read]:
        return wanted
    if not read or settings.origins["cdi_output_dir"] != "default":
        raise Refused(
            f"cannot write CDI specs to {settings.cdi_output_dir}: the runtime reads "
            f"{', '.join(spec_dirs) or 'none'}; give one of these with --cdi-output-dir"
        )
    return read[-1]


def _locate(host: HostRoot, given: str) -> HostPath:
    """A directory under both names. One that is mounted for us is opened there, also where the
    host knows it by a link, as `/var/run`."""
    name = host.name(given)
    real, mounted = host.resolve(name), host.agent_path(name)
    direct = host.is_viewed(name) and os.path.realpath(mounted) == mounted
    return HostPath(mounted, real.host) if direct else real


def _join(host: HostRoot, directory: HostPath, name: str) -> HostPath:
    if os.path.islink(os.path.join(directory.agent, name)):
        return host.resolve(os.path.join(directory.host, name))
    return HostPath(os.path.join(directory.agent, name), os.path.join(directory.host, name))


def _refuse_writable(directories: Iterable[HostPath]) -> None:
    """Whoever can write where the runtime looks for specs can have any program run as root."""
    for directory in dict.fromkeys(directories):
        try:
            why = files.distrust_directory(directory.agent)
        except OSError as error:
            raise Refused(f"cannot read {directory}: {reason(error)}") from error
        if why:
            raise Refused(f"cannot use the CDI directory {directory}: it {why}")


def _refuse_twins(host: HostRoot, directory: HostPath, ours: HostPath, kind: str) -> None:
    """Two files of one directory with one device make it unresolvable (CDI pkg/cdi/cache.go)."""
    for path, data in foreign.entries(host, directory):
        if path.name != ours.name and foreign.has_kind(data, kind):
            raise Refused(
                f"cannot write {ours}: {path} defines {kind} too, and two files with one device "
                "cancel each other; remove it, or give another --cdi-kind"
            )


def write(ctx: Context, proposed: Proposed | None) -> tuple[str, ...]:
    """Put the spec in its place if it is not there; returns host paths of what was written.

    Raises NoDriver, or Refused where no runtime would read it or the disk does not play along;
    then nothing is ready any more.
    """
    if proposed is not None and proposed.problem is not None:
        ctx.publisher.withdraw()
        raise proposed.problem
    if proposed is not None and proposed.path is not None:
        files.sweep(os.path.dirname(proposed.path.agent), (os.path.basename(proposed.path.agent),))
    if proposed is None or proposed.change is None:
        return ()
    change = proposed.change
    assert change.after is not None
    try:
        files.make_directories(os.path.dirname(change.path.agent))
        files.write(change.path.agent, change.after)
    except OSError as error:
        ctx.publisher.withdraw()
        raise Refused(f"cannot write {change.path}: {reason(error)}") from error
    ctx.log("spec written", path=change.path.host)
    return (change.path.host,)


def paths(ctx: Context, spec_dirs: tuple[str, ...]) -> tuple[str, ...]:
    """Agent paths under which our spec may lie, for a runtime that reads `spec_dirs`."""
    name = file_name(ctx.settings.cdi_kind)
    found = _directories(ctx, spec_dirs)
    return tuple(os.path.join(directory.agent, name) for directory in found)


def _directories(ctx: Context, spec_dirs: tuple[str, ...]) -> tuple[HostPath, ...]:
    asked = ctx.settings.cdi_output_dir
    found = []
    for name in (*spec_dirs, *((asked,) if asked else ())):
        with contextlib.suppress(AgentError):  # what leads nowhere holds nothing
            found.append(_locate(ctx.host, name))
    return tuple(dict.fromkeys(found))


def present(ctx: Context, spec_dirs: tuple[str, ...]) -> bool:
    """Is a spec that we wrote there?"""
    return any(_is_ours(path) for path in paths(ctx, spec_dirs))


def _is_ours(agent: str) -> bool:
    try:
        found = files.read(agent)
    except Refused:
        return False  # a link or a directory is nobody's spec
    return found is not None and emit.is_ours(found.data)


def naming(ctx: Context, spec_dirs: tuple[str, ...], directory: str) -> HostPath | None:
    """A spec of somebody else's that names anything in a directory (a host path)."""
    word = f"{directory}/".encode()
    for found in _directories(ctx, spec_dirs):
        for path, data in foreign.entries(ctx.host, found):
            if word in data and not emit.is_ours(data):
                return path
    return None


def remove(ctx: Context, spec_dirs: tuple[str, ...]) -> tuple[str, ...]:
    """Take our spec away, wherever it may be; one that somebody else wrote stays.

    Returns host paths. Raises Refused.
    """
    gone = []
    name = file_name(ctx.settings.cdi_kind)
    for path in _directories(ctx, spec_dirs):
        agent = os.path.join(path.agent, name)
        files.sweep(path.agent, (name,))
        if not _is_ours(agent):
            continue
        try:
            files.remove(agent)
        except OSError as error:
            raise Refused(f"cannot remove {path}/{name}: {reason(error)}") from error
        gone.append(os.path.join(path.host, name))
    return tuple(gone)
