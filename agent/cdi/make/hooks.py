"""Hooks: calls of NVIDIA's program on the host, which prepare a container before it starts.

Invariant: a disabled hook is not made. No hook is made if the program is not on the host, because
then no container would start. Names, arguments and their order are those of nvidia-cdi-hook
(v1.20); nvidia-ctk of an older toolkit has the same commands below `hook`.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent.cdi.driver import loader
from agent.cdi.driver.root import DriverRoot
from agent.cdi.model import Hook
from agent.host.paths import HostRoot
from agent.options.settings import Settings
from agent.toolkit import programs

# Hooks that are made only if an option enables them.
_OPTIONAL = ("chmod",)
# Directories of device nodes that an old crun creates for root only (containers/crun#1047).
_CLOSED = ("/dev/dri", "/dev/nvidia-caps")
# Links that are not named by a soname: (library, target or None for the library itself, link).
_LINKS = (
    ("libcuda.so.*.*", "libcuda.so.1", "libcuda.so"),
    ("libGLX_nvidia.so.*.*", None, "libGLX_indirect.so.0"),
    ("libnvidia-opticalflow.so.*.*", "libnvidia-opticalflow.so.1", "libnvidia-opticalflow.so"),
)


@dataclass(frozen=True)
class Hooks:
    """The hooks that may be made. `path` is the program on the host; None if there is none, or if
    another user than root can change it (`distrust` says how).

    `enabled` wins over `disabled`. `ldconfig` is the program that writes the loader's cache; "" if
    the hook searches it. `judged_paths` are the agent paths whose owners, modes and links decided
    about the program.
    """

    path: str | None
    disabled: tuple[str, ...] = ()
    enabled: tuple[str, ...] = ()
    ldconfig: str = ""
    distrust: str | None = None
    judged_paths: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """A warning if hooks are enabled and cannot be made; else ()."""
        if self.path or ("all" in self.disabled and not self.enabled):
            return ()
        why = self.distrust or "there is no nvidia-cdi-hook on the host"
        text = (
            f"the CDI spec has no hooks: {why}; programs in containers find the driver's libraries "
            "by LD_LIBRARY_PATH only"
        )
        return (text,)

    def make(self, name: str, *args: str) -> tuple[Hook, ...]:
        """The hook with this name and these arguments; () if it is disabled or has no program."""
        off = {*self.disabled, *_OPTIONAL}
        is_off = name not in self.enabled and (name in off or "all" in off)
        if self.path is None or is_off:
            return ()
        base = os.path.basename(self.path)
        words = (base, *(("hook",) if base == "nvidia-ctk" else ()), name, *args)
        return (Hook("createContainer", self.path, words, ("NVIDIA_CTK_DEBUG=false",)),)

    def symlinks(self, links: Sequence[str]) -> tuple[Hook, ...]:
        """The hook that creates these links, each given as `TARGET::LINK`; () without links."""
        words = (word for link in links for word in ("--link", link))
        return self.make("create-symlinks", *words) if links else ()

    def libraries(
        self, root: DriverRoot, version: str, libraries: Sequence[str]
    ) -> tuple[Hook, ...]:
        """The hooks by which a container finds libraries of the driver's `version`, in the order in
        which they must run: links, then a newer compat library of the image, then the loader's
        cache."""
        return (
            *self.library_links(root, libraries),
            *self.make("enable-cuda-compat", f"--host-driver-version={version}"),
            *self.ldcache(libraries),
        )

    def library_links(self, root: DriverRoot, libraries: Sequence[str]) -> tuple[Hook, ...]:
        """The hook that creates the links by which programs find these libraries."""
        return self.symlinks(_links(root, libraries))

    def ldcache(self, files: Iterable[str]) -> tuple[Hook, ...]:
        """The hook that adds directories to the loader's cache: those of `files` that have
        libraries."""
        found = dict.fromkeys(os.path.dirname(path) for path in files if _is_library(path))
        folders = (word for folder in found for word in ("--folder", folder))
        ldconfig = ("--ldconfig-path", self.ldconfig) if self.ldconfig else ()
        return self.make("update-ldcache", *ldconfig, *folders) if found else ()

    def chmod_directories(self, nodes: Iterable[str]) -> tuple[Hook, ...]:
        """The hook that makes the directories of these device nodes accessible to everybody."""
        found = dict.fromkeys(
            above for node in nodes if (above := os.path.dirname(node)) in _CLOSED
        )
        words = (word for folder in found for word in ("--path", folder))
        return self.make("chmod", "--mode", "755", *words) if found else ()


def find_hooks(settings: Settings, host: HostRoot, path: str | None) -> Hooks:
    """The hooks that options allow, with the program at the host path `path`."""
    why, judged_paths = programs.judged(host, path)
    return Hooks(
        None if why else path, settings.disabled_hooks, settings.enabled_hooks,
        settings.ldconfig_path or "", why, judged_paths,
    )  # fmt: skip


def _is_library(path: str) -> bool:
    name = os.path.basename(path)
    return fnmatch.fnmatchcase(name, "lib?*.so*") and name.rpartition(".so")[2][:1] in ("", ".")


def _links(root: DriverRoot, libraries: Sequence[str]) -> tuple[str, ...]:
    """`TARGET::LINK` for every link by which programs find the libraries. Mounts do not bring
    links."""
    found: list[str] = []
    for path in libraries:
        directory, name = os.path.split(path)
        found += (
            f"{target or name}::{directory}/{link}"
            for pattern, target, link in _LINKS
            if fnmatch.fnmatchcase(name, pattern)
        )
        if fnmatch.fnmatchcase(name, "*.*.*"):
            found += _soname_links(root, directory, name)
    return tuple(dict.fromkeys(found))


def _soname_links(root: DriverRoot, directory: str, name: str) -> list[str]:
    """The links named by the soname and by the plain name, as far as the driver root has them."""
    soname = loader.soname(root.agent_path(f"{directory}/{name}"))
    if soname is None:
        return []
    soname = soname or name
    found = []
    if soname != name and root.is_link(f"{directory}/{soname}"):
        found.append(f"{name}::{directory}/{soname}")
    stem, version, _ = soname.rpartition(".so.")
    plain = f"{stem}.so"
    if version and root.is_link(f"{directory}/{plain}"):
        found.append(f"{soname}::{directory}/{plain}")
    return found
