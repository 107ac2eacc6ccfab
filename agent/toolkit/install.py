"""The toolkit's directory on the host, as the decision wants it.

Invariant: like a spec it is derived and in no journal; how it gets there, whole at any moment, is
`toolkit.place`'s business. It is there before a runtime is told of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

from agent.cdi.driver import driver
from agent.cdi.driver.root import DriverRoot
from agent.decide import DEFAULT_DIRS, Decision
from agent.errors import AgentError, NoToolkit, Refused, reason
from agent.host import files, trees, trust
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot
from agent.log import Log
from agent.options.settings import Settings
from agent.toolkit import config, origin, place, programs, tree
from agent.toolkit.origin import Origin
from agent.toolkit.programs import Binary
from agent.toolkit.tree import Difference, Tree

_VOLATILE = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True)
class Found:
    """Where the toolkit is to be, and what it is taken from. Where nothing can be written, it is
    what is there already."""

    directory: HostPath
    origin: Origin
    writable: bool = True

    def path(self, name: str) -> str | None:
        """Host path of a program, as it will be; None where there will be none."""
        if not self.writable and self.origin.kind == "host":
            return f"{self.origin.place}/{name}" if name in self.origin.programs else None
        return tree.paths(self.origin, self.directory.host).get(name)


@dataclass(frozen=True, slots=True)
class Proposed:
    """The directory as it should be. `config` is the change of config.toml, None where it is so
    already; `problem` is why nothing can be installed."""

    found: Found
    tree: Tree
    difference: Difference
    config: Change | None = None
    warnings: tuple[str, ...] = ()
    problem: AgentError | None = None

    @property
    def right(self) -> bool:
        """Nothing to write, and nothing in the way."""
        return self.problem is None and not self.difference


def look(settings: Settings, host: HostRoot) -> Found:
    """The toolkit that is to be used. Raises NoToolkit or Refused."""
    directory = programs.directory(settings, host)
    found = origin.find(settings, host, directory)
    return Found(directory, found, trees.is_writable(os.path.dirname(directory.agent)))


def binaries(settings: Settings, found: Found) -> tuple[tuple[Binary, ...], tuple[str, ...]]:
    """Handlers whose binary there is, and warnings for those left out. Raises NoToolkit."""
    name = settings.runtime_name
    main = "nvidia" if name in ("nvidia-cdi", "nvidia-legacy") else name
    available, warnings = [], []
    for handler, base in zip((main, "nvidia-cdi", "nvidia-legacy"), programs.RUNTIMES, strict=True):
        path = found.path(base)
        if path:
            available.append(Binary(handler, path))
        elif handler in (main, name):
            raise NoToolkit(
                f"cannot register handler {handler}: there is no {base} in {found.origin.place}"
            )
        else:
            warnings.append(f"handler {handler} is left out: there is no {base} on the host")
    return tuple(available), tuple(warnings)


def cdi_hook(settings: Settings, host: HostRoot, found: Found | None) -> str | None:
    """Host path of nvidia-cdi-hook, as it will be."""
    own = found.path(programs.CDI_HOOK) if found else None
    return own or programs.find(settings, host, programs.CDI_HOOK)


def propose(
    settings: Settings, host: HostRoot, found: Found, decision: Decision, runtimes: tuple[str, ...],
    root: DriverRoot | None,
) -> Proposed:  # fmt: skip
    """The directory for a decision; `runtimes` are what the toolkit calls in turn, `root` is where
    the driver is."""
    text = config.render(_config(settings, host, found, decision, runtimes, root))
    wanted = tree.wanted(found.origin, found.directory.host, runtimes, text)
    try:
        _refuse(settings, host, found.directory, decision)
        different = tree.difference(found.directory.agent, wanted)
        told = _warnings(found, decision)
        if different and not found.writable:
            return Proposed(found, wanted, Difference(), None, (*told, _as_it_is(found, decision)))
        return Proposed(found, wanted, different, _change(found.directory, text), told)
    except AgentError as error:
        refused = (f"apply refuses: {error.message}",)
        return Proposed(found, wanted, Difference(), None, refused, error)


def _as_it_is(found: Found, decision: Decision) -> str:
    """What it means that nothing can be written. Raises Refused where the toolkit is to come from
    packages; one that is there already may do as it is."""
    if found.origin.kind == "packages":
        raise Refused(
            f"cannot install the toolkit in {found.directory}: it cannot be written; mount it "
            "writable, or give another directory with --toolkit-install-dir"
        )
    text = (
        f"the toolkit in {found.origin.place} is used as it is, with a config.toml that is not "
        f"ours: {found.directory} cannot be written"
    )
    if decision.native or decision.annotation_prefix is None:
        return text
    return (
        f"{text}; containers get devices only if that one has mode {decision.mode} and answers "
        f"{decision.annotation_prefix}"
    )


def _change(directory: HostPath, text: bytes) -> Change | None:
    path = HostPath(f"{directory.agent}/{tree.CONFIG}", f"{directory.host}/{tree.CONFIG}")
    try:
        before = files.read(path.agent, path.host)
    except Refused:
        before = None  # a link or a directory: it is replaced
    after = files.new_state(text)
    same = before is not None and before.data == after.data
    return None if same else Change(path, before, after)


def _warnings(found: Found, decision: Decision) -> tuple[str, ...]:
    """What containers would miss that are not made by CDI."""
    needed = (programs.RUNTIME_HOOK, programs.CLI)
    missing = [name for name in needed if name not in found.origin.programs]
    if found.origin.kind == "packages":  # those of the host are wherever its loader looks
        missing += [name for name in origin.LIBRARIES if name not in found.origin.libraries]
    if decision.mode not in ("auto", "legacy", "hook") or not missing:
        return ()
    names = ", ".join(missing)
    return (f"{found.origin.place} has no {names}: without CDI no container gets a GPU",)


def require(host: HostRoot, name: str, purpose: str) -> None:
    """See that a toolkit's directory, at a host path, is root's alone, and the one above it: what
    is beside it takes its place. Raises Refused."""
    path = trust.require(host, name, purpose)
    trust.require(host, os.path.dirname(path.host), purpose)


def require_removable(settings: Settings, host: HostRoot, moved: Iterable[str]) -> None:
    """The same of the current directory, and of those that were `moved` (host paths), before any of
    them is tidied and removed. Raises Refused."""
    name = programs.spelled(settings, host)
    there = os.path.isdir(os.path.dirname(programs.directory(settings, host).agent))
    for directory in (*((name,) if there else ()), *moved):
        require(host, directory, f"remove the toolkit in {directory}")


def _refuse(settings: Settings, host: HostRoot, directory: HostPath, decision: Decision) -> None:
    """What makes a directory unfit for programs of root's, which the node may depend on."""
    if not host.is_host and not host.on_mount(directory):
        raise Refused(
            f"cannot install the toolkit in {directory}: it is not on a mount of the host; mount "
            "it, or give another directory with --toolkit-install-dir"
        )
    require(host, programs.spelled(settings, host), f"install the toolkit in {directory}")
    mount = host.mount(directory)
    if mount is not None and mount.point == directory.agent:
        raise Refused(
            f"cannot install the toolkit in {directory}: it is a mount point, whose place no new "
            "directory can take; mount the directory above it"
        )
    if mount is None or not (decision.is_default or decision.hook):
        return
    what = None
    if mount.kind in _VOLATILE:
        what = f"it is on {mount.kind}, and empty after a reboot"
    elif "noexec" in mount.options.split(","):
        what = "no program can be run there (noexec)"
    if what:
        # CRI-O does not even start with a hook whose program is missing.
        why = "its OCI hook is for all" if decision.hook else "nvidia is the default runtime"
        raise Refused(
            f"cannot install the toolkit in {directory}: {what}, but every container of this node "
            f"would need it ({why}); give another directory with --toolkit-install-dir"
        )


def _config(
    settings: Settings, host: HostRoot, found: Found, decision: Decision, runtimes: tuple[str, ...],
    root: DriverRoot | None,
) -> config.Config:  # fmt: skip
    driver_root = root.host_path if root else settings.driver_root or driver.HOST_DRIVER
    real = root is not None and root.take("/sbin/ldconfig.real") is not None
    ldconfig = os.path.join(driver_root, "sbin/ldconfig" + (".real" if real else ""))
    names = (programs.CLI, programs.CTK, programs.RUNTIME_HOOK)
    return config.Config(
        mode="auto" if decision.hook else decision.mode,
        # Without CDI the runtime's own default; native CDI on CRI-O has to answer none at all.
        prefixes=decision.prefixes if decision.native else decision.prefixes or ("cdi.k8s.io/",),
        default_kind=settings.cdi_default_kind,
        spec_dirs=decision.spec_dirs or DEFAULT_DIRS,
        runtimes=runtimes,
        driver_root=driver_root,
        ldconfig=ldconfig,
        programs={name: found.path(name) or name for name in names},
        accept_envvar=accepts_variables(settings) or decision.variables,
        accept_mounts=settings.accept_mounts,
        skip_mode_detection=settings.hook_skip_mode_detection,
        debug=settings.runtime_debug,
        log_level=settings.runtime_log_level,
        cli_debug=settings.cli_debug,
        user="root:video" if _is_suse(host) else "",
        features=settings.opt_in_features or (),
    )


def accepts_variables(settings: Settings) -> bool:
    """May an unprivileged container ask for GPUs by environment variable, by these options?"""
    given = settings.accept_envvar
    return not settings.cdi_enabled if given is None else given


def _is_suse(host: HostRoot) -> bool:
    """There the device nodes are of group video."""
    try:
        found = files.read(host.resolve("/etc/os-release").agent)
    except Refused:
        return False
    lines = found.data.decode("utf-8", "replace").splitlines() if found else []
    return any(line.startswith(("ID=", "ID_LIKE=")) and "suse" in line for line in lines)


def sizes(proposed: Proposed) -> tuple[int, ...]:
    """Bytes of the files that `write` makes; copies that stay are not made again."""
    made = []
    for name in proposed.difference.write:
        entry = proposed.tree.get(name)
        if isinstance(entry, tree.Copy):
            with contextlib.suppress(OSError):
                made.append(os.stat(entry.source, follow_symlinks=False).st_size)
        elif isinstance(entry, tree.Text):
            made.append(len(entry.data))
    return tuple(made)


def write(proposed: Proposed | None, log: Log) -> tuple[str, ...]:
    """Bring the directory to what was proposed; gives its host path if it was not.

    Raises the proposal's problem, or Refused where the disk does not play along; the directory is
    what it was then.
    """
    if proposed is None:
        return ()
    if proposed.problem is not None:
        raise proposed.problem
    directory, different = proposed.found.directory, proposed.difference
    try:
        place.tidy(directory.agent)
        if not different:
            return ()
        place.put(directory.agent, proposed.tree)
    except OSError as error:
        # What is read has its whole name in the error, what is written only its last part.
        named = str(error.filename)
        where = f"{named}: " if named in _sources(proposed.tree) else ""
        raise Refused(
            f"cannot install the toolkit in {directory}: {where}{reason(error)}"
        ) from error
    log.info("toolkit installed", directory=directory.host, source=proposed.found.origin.place)
    return (directory.host,)


def _sources(wanted: Tree) -> tuple[str, ...]:
    return tuple(entry.source for entry in wanted.values() if isinstance(entry, tree.Copy))


def installed(settings: Settings, host: HostRoot) -> tuple[str, ...]:
    """Host paths of the toolkit's directory, without links and as it was given; none where it is
    not of our making. Raises Refused."""
    directory = programs.directory(settings, host)
    if tree.listed(directory.agent) is None:
        return ()
    return tuple(dict.fromkeys((directory.host, programs.spelled(settings, host))))


def left(settings: Settings, host: HostRoot, directories: tuple[str, ...]) -> tuple[str, ...]:
    """Host paths of programs that will be there after `remove`, below each of what `installed`
    gave. Raises Refused."""
    names = place.left(programs.directory(settings, host).agent)
    return tuple(f"{above}/{name}" for above in directories for name in names)


def remove(settings: Settings, host: HostRoot) -> tuple[str, ...]:
    """Take away what we installed; what was there before comes back. Gives host paths.

    Raises Refused.
    """
    directory = programs.directory(settings, host)
    try:
        return (directory.host,) if place.remove(directory.agent) else ()
    except OSError as error:
        raise Refused(f"cannot remove {directory}: {reason(error)}") from error


def remove_from(host: HostRoot, name: str) -> bool:
    """The same for a directory (its host path) that is not the current one. Was there anything?
    Raises Refused."""
    directory = host.resolve(name)
    try:
        return place.remove(directory.agent)
    except OSError as error:
        raise Refused(f"cannot remove {directory}: {reason(error)}") from error


def watched(settings: Settings, host: HostRoot) -> tuple[str, ...]:
    """Agent paths of what is installed; without them the node is not as it should be."""
    try:
        live = programs.directory(settings, host).agent
        known = tree.listed(live)
    except Refused:
        return ()
    names = (*known.names, tree.LIST) if known else ()
    return (live, *(f"{live}/{name}" for name in names))
