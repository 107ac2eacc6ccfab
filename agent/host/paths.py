"""Host paths and agent paths: the name of a file on the host, and the path by which we open it.

- The host root is the directory at which the agent sees the host's `/`; outside a container it is
  `/` itself.
- A host path is the name on the host. Imports, the status file and every file that we write have
  host paths.
- An agent path is the path by which the agent opens the same file. It is below the host root, or on
  a mount of the agent's container, such as gpu-operator's `/runtime/config-dir`.

Invariant: links are followed inside the host root only, as the host would follow them. A path that
leads out of the host root is refused before it is opened. A resolved path has no link in it, and it
is opened without following any (`agent.host.nofollow`), so that a link made later has no effect.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from agent.errors import Refused, UsageError, reason
from agent.host import budget

MAX_LINKS = 40  # links in one path; the kernel's limit
_PATH_MAX = 4096  # bytes; the kernel's limit

# Links whose target depends on a process and may have no name.
MAGIC = re.compile(r"/proc/[0-9]+/.")
_CONTROL = re.compile("[\x00-\x1f\x7f]")

# Mounts that a container usually has for itself. A path below one of these is a path of the
# container, unless the same directory is found below the host root.
_STANDARD = frozenset(
    "/bin /boot /dev /dev/shm /etc /home /lib /media /mnt /opt /proc /root /run /run/lock /sbin "
    "/srv /sys /tmp /usr /usr/local /var /var/lib /var/log /var/run /var/tmp".split()
)


@dataclass(frozen=True)
class HostPath:
    """The agent path and the host path of one file: `agent` is opened, `host` is written and
    shown."""

    agent: str
    host: str

    def __str__(self) -> str:
        return self.host

    @property
    def name(self) -> str:
        return os.path.basename(self.host)

    def child(self, name: str) -> HostPath:
        """The path of the entry `name` in this directory."""
        return HostPath(os.path.join(self.agent, name), os.path.join(self.host, name))


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo: the directory `root` of the file system on `device` is mounted at
    `point`. `kind` is the type of the file system."""

    point: str
    device: str
    root: str
    options: str = ""
    kind: str = ""


def parse_mountinfo(lines: Iterable[str]) -> tuple[Mount, ...]:
    """The mounts in lines of /proc/self/mountinfo, in their order. A later mount hides an earlier
    one at the same point (proc(5))."""
    mounts = []
    for line in lines:
        fields = line.split(" ")
        if len(fields) > 5:
            kind = line.partition(" - ")[2].partition(" ")[0]
            point, root = _unescape(fields[4]), _unescape(fields[3])
            mounts.append(Mount(point, fields[2], root, fields[5], kind))
    return tuple(mounts)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def is_below(path: str, *directories: str) -> bool:
    """Is a path one of the directories, or below one of them? Only names are compared."""
    return any(path == one or path.startswith(one.rstrip("/") + "/") for one in directories)


def _normal(path: str) -> str:
    """The path without `.` and double slashes. A path with `..` is not changed, because `..` after
    a link leads to another directory."""
    return path if ".." in path.split("/") else os.path.normpath(path)


def _rebase(path: str, old: str, new: str) -> str:
    rest = path[len(old.rstrip("/")) :].lstrip("/")
    return os.path.join(new, rest) if rest else new


@dataclass(frozen=True)
class HostRoot:
    """The files of the host: the directory at which the agent sees them, and the agent's mounts.

    `spelled` is that directory as it was given, `root` is the same path without links. `mounts` are
    the agent's mounts. `views` are pairs of an agent directory and the host directory that it
    shows, the longest host directory first. A view wins over the host root, because a container can
    see the root read-only and one directory of it writable. `open_host_root` finds the views once.
    """

    spelled: str
    mounts: tuple[Mount, ...] = ()
    views: tuple[tuple[str, str], ...] = ()
    root: str = field(init=False)

    def __post_init__(self) -> None:
        given, root = self.spelled, os.path.realpath(self.spelled)
        if not os.path.isdir(root):
            raise UsageError(f"cannot use host root {given}: it is not a directory")
        if not _same(given, root):  # a magic link, such as /proc/1/root: the name leads elsewhere
            raise UsageError(
                f"cannot use host root {given}: it leads into a process; mount the host's / and "
                "give that"
            )
        for name, value in (("spelled", os.path.abspath(given)), ("root", root)):
            object.__setattr__(self, name, value)

    @property
    def is_host(self) -> bool:
        """Does the agent run on the host itself, not in a container?"""
        return self.root == "/"

    @property
    def proc(self) -> str:
        """The agent path of the host's /proc. A hostPath mount of `/` includes it, also without
        hostPID."""
        candidate = os.path.join(self.root, "proc")
        return candidate if os.path.exists(os.path.join(candidate, "self")) else "/proc"

    def proc_path(self, name: str) -> str:
        """The agent path of a name in the host's /proc, else in our own, whose kernel is the
        same."""
        shown = self.agent_path(f"/proc/{name}")
        return shown if os.path.exists(shown) else os.path.join(self.proc, name)

    def locate(self, given: str) -> HostPath:
        """The path of an option (`given`), with its links followed. The file need not exist. Raises
        Refused if the path leads out of the host root."""
        return self.with_mounts_of(given).resolve(self.name(given))

    def name(self, given: str) -> str:
        """The host path of the path of an option (`given`), without following links. On a mount
        that cannot be found below the host root, the path is returned unchanged."""
        path = _normal(given)
        if self.is_host:
            return path
        for root in (self.root, self.spelled):
            if is_below(path, root):
                return _rebase(path, root, "/")
        view, rest = self._view_of(path)
        return os.path.join(view[1], rest) if view and rest else view[1] if view else path

    def seen_by_host(self, path: str) -> str:
        """The host path of a path that /proc shows. For a process in a chroot, /proc shows agent
        paths."""
        inside = not self.is_host and is_below(path, self.root)
        return _rebase(path, self.root, "/") if inside else path

    def with_mounts_of(self, *given: str) -> HostRoot:
        """The same host root, with a view for each mount of the agent's container that holds one of
        these paths. If the mounted directory is not found on the host, the mount point is taken for
        its host path."""
        host = self
        for path in map(_normal, given):
            if not (self.is_host or is_below(path, self.root, self.spelled)):
                view, _ = self._view_of(path)
                host = host.with_view(*view) if view else host
        return host

    def with_view(self, agent: str, host: str) -> HostRoot:
        """The same host root, in which the agent's directory `agent` shows the host's directory
        `host`, both by that path and by its path without links (/usr/local/nvidia is
        /var/usrlocal/nvidia if /usr is read-only)."""
        if self.is_host:
            return self
        with_path = self._with((os.path.realpath(agent), host))
        try:
            return with_path._with((os.path.realpath(agent), with_path.resolve(host).host))
        except Refused:
            return with_path

    def _with(self, view: tuple[str, str]) -> HostRoot:
        if view in self.views:
            return self
        return replace(self, views=tuple(sorted((*self.views, view), key=lambda v: -len(v[1]))))

    def _view_of(self, path: str) -> tuple[tuple[str, str] | None, str]:
        """The view for the mount of the agent's container that holds a path (mount point and host
        path), and the rest of the path. None if the mount is not one of the host's directories."""
        mount, rest = self._own_mount(path)
        if mount is None:
            return None, ""
        host = self._name_on_host(mount)
        if host is None and mount.point in _STANDARD:
            return None, ""
        return (mount.point, host or mount.point), rest

    def is_on_host(self, path: HostPath) -> bool:
        """Is a file on the host, not in the container's own file system?"""
        return (
            self.is_host
            or is_below(path.agent, self.root)
            or self._own_mount(path.agent)[0] is not None
        )

    @property
    def mount_points(self) -> frozenset[str]:
        """The agent paths of all mount points."""
        return frozenset(mount.point for mount in self.mounts)

    def mount(self, path: HostPath) -> Mount | None:
        """The mount that holds a file, which need not exist; None if it is not known."""
        mounts = [mount for mount in self.mounts if is_below(path.agent, mount.point)]
        # The last mount at a point hides the others; `max` returns the first of equal items.
        return max(reversed(mounts), key=lambda mount: len(mount.point), default=None)

    def has_view_below(self, host: str) -> bool:
        """Does a view show a directory below a host path?"""
        return any(is_below(view, host) and view != host for _, view in self.views)

    def agent_path(self, host: str) -> str:
        """The agent path of a host path, without following links."""
        for agent, directory in self.views:
            if is_below(host, directory):
                return _rebase(host, directory, agent)
        return host if self.is_host else self.root + host

    def resolve(self, host: str) -> HostPath:
        """Follow every link of a host path, inside the host root. The last parts need not exist.

        Raises Refused for a path that leads out of the host root, a dangling link, and a link of
        /proc that leads into a process.
        """
        refuse_odd(host)
        path = self._follow(host, host, [])
        return HostPath(self.agent_path(path), path)

    def _follow(self, path: str, asked: str, links: list[str]) -> str:
        done = "/"
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if part == "..":
                if done == "/" and not self.is_host:
                    raise Refused(
                        f"cannot follow {asked}: it leads out of the host root; name it without "
                        "'..'"
                    )
                done = os.path.dirname(done)
                continue
            here = os.path.join(done, part)
            target = self._readlink(here, asked)
            if target is None:
                done = here
                continue
            if MAGIC.match(here):
                raise Refused(
                    f"cannot follow {asked}: {here} leads into a process; name the file itself"
                )
            links.append(here)
            if len(links) > MAX_LINKS:
                raise Refused(f"cannot follow {asked}: too many links; look at {here}")
            done = self._follow(os.path.join(done, target), asked, links)
            if not os.path.lexists(self.agent_path(done)):
                raise Refused(
                    f"cannot follow {asked}: the link {here} is dangling, {done} is missing; "
                    "restore it or remove the link"
                )
        return done

    def _readlink(self, here: str, asked: str) -> str | None:
        try:
            return os.readlink(self.agent_path(here))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return None
            if error.errno == errno.ENOTDIR:
                above = os.path.dirname(here)
                raise Refused(f"cannot follow {asked}: {above} is not a directory") from error
            raise Refused(f"cannot follow {asked}: {here}: {reason(error)}") from error

    def _own_mount(self, path: str) -> tuple[Mount | None, str]:
        """The mount that holds a path, and the rest of the path below the mount; None for the
        container's root, and for a mount that holds the host root.

        The path is shortened from its end until a mount is found, so that `resolve` follows links
        below the mount as the host would.
        """
        points = {mount.point: mount for mount in self.mounts if mount.point != "/"}
        above, rest = path, ""
        while above != "/":
            mount = points.get(os.path.realpath(above))
            if mount is not None and not is_below(self.root, mount.point):
                return mount, rest
            above, _, name = above.rpartition("/")
            rest = os.path.join(name, rest) if rest else name
            above = above or "/"
        return None, ""

    def _name_on_host(self, mount: Mount) -> str | None:
        """The host path of a mounted directory, None if it is not found. It is the first candidate
        with the same device and inode.

        Candidates are the mount point below the host root, and the directory's path on each mount
        of the same device there. If the host has the directory under two paths, the one on its own
        mount comes before the one on a mount of the whole disk.
        """
        candidates = [mount.point]
        for other in sorted(self.mounts, key=lambda other: -len(other.root)):
            if other.device == mount.device and is_below(other.point, self.root):
                inside = _rebase(other.point, self.root, "/")
                if is_below(mount.root, other.root):
                    candidates.append(_rebase(mount.root, other.root, inside))
        for candidate in candidates:
            if _same(mount.point, self.root + candidate):
                return candidate
        return None


def refuse_odd(path: str) -> None:
    """Raise Refused for a path with a control character, or one that is longer than the kernel
    allows."""
    if _CONTROL.search(path):
        raise Refused(
            f"cannot use the path {path!r}: it has a line break or another control character in "
            "it; give the file another name"
        )
    if len(os.fsencode(path)) >= _PATH_MAX:
        raise Refused(
            f"cannot use the path {path[:100]}...: file name too long ({len(path)} characters); "
            "use a shorter path"
        )


def _same(one: str, other: str) -> bool:
    try:
        first, second = os.stat(one), os.stat(other, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(second.st_mode) and os.path.samestat(first, second)


def open_host_root(root: str | None, paths: Iterable[str] = ()) -> HostRoot:
    """Open the host root: `root`, else `/host` if that is a mount point, else `/`.

    `paths` are those of the options and the defaults; a view is made for each mount that holds one.
    Raises UsageError if the root cannot be used; Refused if the mounts cannot be read.
    """
    try:
        mounts = parse_mountinfo(budget.lines("/proc/self/mountinfo", budget.MOUNTS))
    except OSError:
        mounts = ()
    except budget.OverBudget as error:
        raise Refused(
            f"cannot read /proc/self/mountinfo: {error}; unmount what is left over"
        ) from error
    directory = root or ("/host" if os.path.ismount("/host") else "/")
    return HostRoot(directory, mounts).with_mounts_of(*paths)
