"""The toolkit's directory on the host for a decision.

Invariant: the directory is derived from its origin and the decision, so no journal keeps an
original of it. `toolkit.place` replaces it in one step. It is complete before a runtime's
configuration names it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from agent.cdi.driver import driver
from agent.cdi.driver.root import DriverRoot
from agent.decide import Decision
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


@dataclass(frozen=True)
class Toolkit:
    """The toolkit's directory, and the origin of its files. If the directory is not `writable`, the
    toolkit stays unchanged."""

    directory: HostPath
    origin: Origin
    writable: bool = True

    def path(self, name: str) -> str | None:
        """Host path of a program after the installation; None if the toolkit does not have it."""
        if name not in self.origin.programs:
            return None
        is_wrapped = self.writable and name.startswith(programs.RUNTIME)
        stays = self.origin.kind == "host" and not is_wrapped
        return f"{self.origin.place if stays else self.directory.host}/{name}"


@dataclass(frozen=True)
class ToolkitProposal:
    """The desired directory, and how it differs from the present one. `config` is the change of
    config.toml, None if there is none. `problem` says why nothing can be installed."""

    found: Toolkit
    tree: Tree
    difference: Difference
    config: Change | None = None
    warnings: tuple[str, ...] = ()
    problem: AgentError | None = None

    @property
    def is_installed(self) -> bool:
        """Is the desired directory in place, and usable?"""
        return self.problem is None and not self.difference


def find_toolkit(settings: Settings, host: HostRoot) -> Toolkit:
    """The toolkit to use. Raises NoToolkit or Refused."""
    directory = programs.directory(settings, host)
    found = origin.find(settings, host, directory)
    return Toolkit(directory, found, trees.is_writable(os.path.dirname(directory.agent)))


def binaries(settings: Settings, toolkit: Toolkit) -> tuple[tuple[Binary, ...], tuple[str, ...]]:
    """The handlers whose binary exists, and a warning for each other one. Raises NoToolkit if the
    binary of the main handler is missing."""
    name = settings.runtime_name
    main = "nvidia" if name in ("nvidia-cdi", "nvidia-legacy") else name
    available, warnings = [], []
    for handler, base in zip((main, "nvidia-cdi", "nvidia-legacy"), programs.RUNTIMES, strict=True):
        path = toolkit.path(base)
        if path:
            available.append(Binary(handler, path))
        elif handler in (main, name):
            raise NoToolkit(
                f"cannot register handler {handler}: there is no {base} in {toolkit.origin.place}"
            )
        else:
            warnings.append(f"handler {handler} is left out: there is no {base} on the host")
    return tuple(available), tuple(warnings)


def cdi_hook(settings: Settings, host: HostRoot, toolkit: Toolkit | None) -> str | None:
    """Host path of nvidia-cdi-hook after the installation; None if there is none. Raises
    Refused."""
    own = toolkit.path(programs.CDI_HOOK) if toolkit else None
    return own or programs.find(settings, host, programs.CDI_HOOK)


def propose(
    settings: Settings, host: HostRoot, toolkit: Toolkit, decision: Decision,
    runtimes: tuple[str, ...], root: DriverRoot | None,
) -> ToolkitProposal:  # fmt: skip
    """The desired directory for a decision. `runtimes` are the low-level runtimes in the order in
    which the toolkit tries them; `root` is the driver root. An AgentError becomes the proposal's
    problem."""
    text = _config(settings, host, toolkit, decision, runtimes, root)
    desired = tree.build(toolkit.origin, toolkit.directory.host, runtimes, text)
    unchanged = ToolkitProposal(toolkit, desired, Difference())
    try:
        _require_usable(settings, host, toolkit.directory, decision)
        difference = tree.difference(toolkit.directory.agent, desired)
        warnings = _warnings(toolkit, decision)
        if difference and not toolkit.writable:
            return replace(unchanged, warnings=(*warnings, _unwritable_warning(toolkit, decision)))
        path = toolkit.directory.child(config.CONFIG)
        before = None
        with contextlib.suppress(Refused):  # a link or a directory is replaced
            before = files.read(path.agent, path.host)
        after = files.new_state(text)
        same = before is not None and before.data == after.data
        change = None if same else Change(path, before, after)
        return ToolkitProposal(toolkit, desired, difference, change, warnings)
    except AgentError as error:
        return replace(unchanged, problem=error)


def _unwritable_warning(toolkit: Toolkit, decision: Decision) -> str:
    """The warning that the present toolkit is used, because its directory cannot be written. Raises
    Refused if the toolkit would have to be installed from packages."""
    if toolkit.origin.kind == "packages":
        raise Refused(
            f"cannot install the toolkit in {toolkit.directory}: it cannot be written; mount it "
            "writable, or give another directory with --toolkit-install-dir"
        )
    text = (
        f"the toolkit in {toolkit.origin.place} is used as it is, with a foreign config.toml: "
        f"{toolkit.directory} cannot be written"
    )
    if decision.native or decision.annotation_prefix is None:
        return text
    return (
        f"{text}; containers get devices only if that file has mode {decision.mode} and the prefix "
        f"{decision.annotation_prefix}"
    )


def _warnings(toolkit: Toolkit, decision: Decision) -> tuple[str, ...]:
    """A warning if files are missing that inject GPUs without CDI."""
    needed = (programs.RUNTIME_HOOK, programs.CLI)
    missing = [name for name in needed if name not in toolkit.origin.programs]
    if toolkit.origin.kind == "packages":  # libraries of the host may be in any directory
        missing += [name for name in origin.LIBRARIES if name not in toolkit.origin.libraries]
    if decision.mode not in ("auto", "legacy", "hook") or not missing:
        return ()
    names = ", ".join(missing)
    return (f"{toolkit.origin.place} has no {names}: without CDI no container gets a GPU",)


def require_trusted(host: HostRoot, name: str, purpose: str) -> None:
    """Raise Refused if another user than root can write to a toolkit's directory (its host path) or
    to its parent, in which the new directory is made."""
    path = trust.require(host, name, purpose)
    trust.require(host, os.path.dirname(path.host), purpose)


def require_removable(settings: Settings, host: HostRoot, moved: Iterable[str]) -> None:
    """As `require_trusted`, for the current directory and for the former ones (`moved`, host
    paths), before any of them is removed."""
    name = programs.directory_name(settings, host)
    exists = os.path.isdir(os.path.dirname(programs.directory(settings, host).agent))
    for directory in (*((name,) if exists else ()), *moved):
        require_trusted(host, directory, f"remove the toolkit in {directory}")


def _require_usable(
    settings: Settings, host: HostRoot, directory: HostPath, decision: Decision
) -> None:
    """Raise Refused if a directory cannot hold programs that run as root, or loses them at a reboot
    although every container needs them."""
    if not host.is_host and not host.is_on_host(directory):
        raise Refused(
            f"cannot install the toolkit in {directory}: it is not on a mount of the host; mount "
            "it, or give another directory with --toolkit-install-dir"
        )
    require_trusted(
        host, programs.directory_name(settings, host), f"install the toolkit in {directory}"
    )
    mount = host.mount(directory)
    if mount is not None and mount.point == directory.agent:
        raise Refused(
            f"cannot install the toolkit in {directory}: it is a mount point, which no new "
            "directory can replace; mount the directory above it"
        )
    if mount is None or not (decision.is_default or decision.hook):
        return
    fault = None
    if mount.kind in _VOLATILE:
        fault = f"it is on {mount.kind}, and empty after a reboot"
    elif "noexec" in mount.options.split(","):
        fault = "no program can be run there (noexec)"
    if fault:
        # CRI-O does not even start with a hook whose program is missing.
        why = "its OCI hook is for all" if decision.hook else "nvidia is the default runtime"
        raise Refused(
            f"cannot install the toolkit in {directory}: {fault}, but every container of this node "
            f"would need it ({why}); give another directory with --toolkit-install-dir"
        )


def _config(
    settings: Settings, host: HostRoot, toolkit: Toolkit, decision: Decision,
    runtimes: tuple[str, ...], root: DriverRoot | None,
) -> bytes:  # fmt: skip
    driver_root = root.host_path if root else settings.driver_root or driver.HOST_DRIVER
    real = root is not None and root.trusted_file("/sbin/ldconfig.real") is not None
    ldconfig = os.path.join(driver_root, "sbin/ldconfig" + (".real" if real else ""))
    names = (programs.CLI, programs.CTK, programs.RUNTIME_HOOK)
    paths = {name: toolkit.path(name) or name for name in names}
    user = "root:video" if _is_suse(host) else ""
    return config.render(
        config.data(settings, decision, runtimes, paths, driver_root, ldconfig, user)
    )


def _is_suse(host: HostRoot) -> bool:
    """Is the host a SUSE? Its device nodes belong to the group `video`."""
    try:
        found = files.read(host.resolve("/etc/os-release").agent)
    except Refused:
        return False
    lines = found.data.decode("utf-8", "replace").splitlines() if found else []
    return any(line.startswith(("ID=", "ID_LIKE=")) and "suse" in line for line in lines)


def new_file_sizes(proposal: ToolkitProposal) -> tuple[int, ...]:
    """Sizes in bytes of the files that `write` makes, for the check of free space. Unchanged files
    are not made again."""
    made = []
    for name in proposal.difference.write:
        entry = proposal.tree.get(name)
        if isinstance(entry, tree.Copy):
            with contextlib.suppress(OSError):
                made.append(os.stat(entry.source, follow_symlinks=False).st_size)
        elif isinstance(entry, tree.Text):
            made.append(len(entry.data))
    return tuple(made)


def write(proposal: ToolkitProposal | None, log: Log) -> tuple[str, ...]:
    """Carry out a proposal. Returns the directory's host path if anything was changed.

    Raises the proposal's problem, or Refused after an OSError; then the directory is unchanged.
    """
    if proposal is None:
        return ()
    if proposal.problem is not None:
        raise proposal.problem
    directory, different = proposal.found.directory, proposal.difference
    try:
        place.tidy(directory.agent)
        if not different:
            return ()
        place.put(directory.agent, proposal.tree)
    except OSError as error:
        # An error of reading has the path of the source, which is named, too.
        copies = (entry for entry in proposal.tree.values() if isinstance(entry, tree.Copy))
        is_read = error.filename in [entry.source for entry in copies]
        where = f"{error.filename}: " if is_read else ""
        raise Refused(
            f"cannot install the toolkit in {directory}: {where}{reason(error)}"
        ) from error
    log.info("toolkit installed", directory=directory.host, source=proposal.found.origin.place)
    return (directory.host,)


def installed_paths(settings: Settings, host: HostRoot) -> tuple[str, ...]:
    """Host paths of the toolkit's directory, without links and as the option gives it; () if it was
    not installed by us. Raises Refused."""
    directory = programs.directory(settings, host)
    if tree.read_list(directory.agent) is None:
        return ()
    return tuple(dict.fromkeys((directory.host, programs.directory_name(settings, host))))


def paths_after_removal(
    settings: Settings, host: HostRoot, directories: tuple[str, ...]
) -> tuple[str, ...]:
    """Host paths of the files that `remove` would leave in these `directories`, the result of
    `installed_paths`. Raises Refused."""
    names = place.names_after_removal(programs.directory(settings, host).agent)
    return tuple(f"{above}/{name}" for above in directories for name in names)


def remove(settings: Settings, host: HostRoot) -> tuple[str, ...]:
    """Remove the files that we installed, and restore the former directory. Returns the directory's
    host path if anything was removed. Raises Refused."""
    directory = programs.directory(settings, host)
    return (directory.host,) if _remove(directory) else ()


def remove_from(host: HostRoot, name: str) -> bool:
    """As `remove`, for a directory (its host path) that is no longer the current one. Returns
    whether anything was removed."""
    return _remove(host.resolve(name))


def _remove(directory: HostPath) -> bool:
    try:
        return place.remove(directory.agent)
    except OSError as error:
        raise Refused(f"cannot remove {directory}: {reason(error)}") from error


def watch_paths(settings: Settings, host: HostRoot) -> tuple[str, ...]:
    """Agent paths of the installed files."""
    try:
        live = programs.directory(settings, host).agent
        known = tree.read_list(live)
    except Refused:
        return ()
    names = (*known.names, tree.LIST) if known else ()
    return (live, *(f"{live}/{name}" for name in names))
