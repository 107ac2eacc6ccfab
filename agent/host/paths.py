"""Where a path lies: as the agent sees it, and what it is called on the host.

Three names for one thing (DESIGN section 4):

- host root: the directory in which the agent sees the host's `/`; `/` itself outside a container.
- host path: the name on the host; goes into imports, the status file and everything we write.
- agent path: the name under which the agent opens it; below the host root, or on a mount of its
  own, such as gpu-operator's `/runtime/config-dir`.

Invariant: links are followed inside the host root only, as the host itself would follow them;
a path that leads out of it is refused before it is opened. What comes out has no link in it, and
whoever opens it follows none (`agent.host.safe`): one that appears later leads nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from agent.errors import Refused, UsageError, reason
from agent.host import budget

MAX_LINKS = 40  # as the kernel
_PATH_MAX = 4096  # as the kernel

# What these lead to depends on a process, and may have no name at all.
MAGIC = re.compile(r"/proc/[0-9]+/.")
_CONTROL = re.compile("[\x00-\x1f\x7f]")

# Mounts that a container or a machine has for itself. A path below one of these says nothing about
# the host unless the very same directory is seen below the host root.
_STANDARD = frozenset(
    "/bin /boot /dev /dev/shm /etc /home /lib /media /mnt /opt /proc /root /run /run/lock /sbin "
    "/srv /sys /tmp /usr /usr/local /var /var/lib /var/log /var/run /var/tmp".split()
)


@dataclass(frozen=True, slots=True)
class HostPath:
    """One place, under both of its names. `agent` is what is opened, `host` what is written."""

    agent: str
    host: str

    def __str__(self) -> str:
        return self.host

    @property
    def name(self) -> str:
        return os.path.basename(self.host)


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo: where `root` of device `device` is mounted, which options the mount has,
    and what kind of file system it is."""

    point: str
    device: str
    root: str
    options: str = ""
    kind: str = ""


def parse_mountinfo(lines: Iterable[str]) -> tuple[Mount, ...]:
    """Mounts in the order of /proc/self/mountinfo (later ones hide earlier ones; proc(5))."""
    mounts = []
    for line in lines:
        fields = line.split(" ")
        if len(fields) > 5:
            kind = line.partition(" - ")[2].partition(" ")[0]
            point, root = _unescape(fields[4]), _unescape(fields[3])
            mounts.append(Mount(point, fields[2], root, fields[5], kind))
    return tuple(mounts)


def _unescape(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def is_below(path: str, *directories: str) -> bool:
    """Is a path one of the directories itself or something in one, by name?"""
    return any(path == one or path.startswith(one.rstrip("/") + "/") for one in directories)


def _rebase(path: str, old: str, new: str) -> str:
    rest = path[len(old.rstrip("/")) :].lstrip("/")
    return os.path.join(new, rest) if rest else new


class HostRoot:
    """The host as the agent sees it: its root, and directories that are mounted elsewhere too.

    `views` are (agent directory, host directory) pairs; they win over the host root, because a
    container may have the root read-only and the one directory writable.
    """

    def __init__(self, root: str, mounts: Iterable[Mount] = ()) -> None:
        self._spelled = os.path.abspath(root)
        self.root = os.path.realpath(root)
        if not os.path.isdir(self.root):
            raise UsageError(f"cannot use host root {root}: it is not a directory")
        if not _same(root, self.root):  # by its name one gets elsewhere, as from /proc/1/root
            raise UsageError(
                f"cannot use host root {root}: it leads into a process; mount the host's / and "
                "give that"
            )
        self._mounts = tuple(mounts)
        self._views: list[tuple[str, str]] = []

    @property
    def is_host(self) -> bool:
        """True where the agent runs on the host itself, not in a container."""
        return self.root == "/"

    @property
    def proc(self) -> str:
        """The host's /proc; a hostPath mount of `/` brings it along, also without hostPID."""
        candidate = os.path.join(self.root, "proc")
        return candidate if os.path.exists(os.path.join(candidate, "self")) else "/proc"

    def locate(self, given: str) -> HostPath:
        """The place that an option names. Links in it are resolved; it need not exist.

        Raises Refused where it leads out of the host root.
        """
        return self.resolve(self.name(given))

    def name(self, given: str) -> str:
        """The host's name of what an option names; links in it stay as they are.

        A place on a mount that cannot be found below the host root keeps the name that we see.
        """
        path = os.path.normpath(given) if ".." not in given.split("/") else given
        if self.is_host:
            return path
        for root in (self.root, self._spelled):
            if is_below(path, root):
                return _rebase(path, root, "/")
        found = self._own_mount(path)
        if found is None:
            return path
        mount, rest = found
        host = self._name_on_host(mount)
        if host is None and mount.point in _STANDARD:
            return path
        if host is None:
            self._remember(mount.point, mount.point)
        else:
            self.add_view(mount.point, host)
        return os.path.join(host or mount.point, rest) if rest else host or mount.point

    def seen_by_host(self, path: str) -> str:
        """The host's name of a path in /proc, which shows a chrooted process as we see it."""
        inside = not self.is_host and is_below(path, self.root)
        return _rebase(path, self.root, "/") if inside else path

    def add_view(self, agent: str, host: str) -> None:
        """Remember that the host's directory `host` is `agent` to us; so it is by the name that it
        has without links (/usr/local/nvidia is /var/usrlocal/nvidia where /usr is read-only)."""
        self._remember(agent, host)
        if not self.is_host:
            with contextlib.suppress(Refused):
                self._remember(agent, self.resolve(host).host)

    def _remember(self, agent: str, host: str) -> None:
        view = (os.path.realpath(agent), host)
        if not self.is_host and view not in self._views:
            self._views.append(view)

    def on_mount(self, path: HostPath) -> bool:
        """Does this place lie on the host rather than in the container's own file system?"""
        return (
            self.is_host
            or is_below(path.agent, self.root)
            or self._own_mount(path.agent) is not None
        )

    @property
    def mount_points(self) -> frozenset[str]:
        """Agent paths on which something is mounted."""
        return frozenset(mount.point for mount in self._mounts)

    def mount(self, path: HostPath) -> Mount | None:
        """The mount on which a place lies, there or not; None where that is not known."""
        found = [mount for mount in self._mounts if is_below(path.agent, mount.point)]
        # Of equal points the last one counts, which hides the others: max takes the first it meets.
        return max(reversed(found), key=lambda mount: len(mount.point), default=None)

    def has_view_below(self, host: str) -> bool:
        """Does a mount of our own show something below a host path?"""
        return any(is_below(view, host) and view != host for _, view in self._views)

    def agent_path(self, host: str) -> str:
        """The name under which we open a host path; links are not looked at."""
        for agent, directory in sorted(self._views, key=lambda view: -len(view[1])):
            if is_below(host, directory):
                return _rebase(host, directory, agent)
        return host if self.is_host else self.root + host

    def resolve(self, host: str) -> HostPath:
        """Follow every link of a host path, inside the host root.

        The last parts may be missing, but not behind a link: a dangling link is refused, and so
        are the links of /proc that lead into a process.
        """
        refuse_odd(host)
        found = self._follow(host, host, [])
        return HostPath(self.agent_path(found), found)

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

    def _own_mount(self, path: str) -> tuple[Mount, str] | None:
        """The mount that holds a path, and the rest of the path below it; None for the root and
        for a mount that holds the host root itself.

        Looked for by names from the inside out: a link below the mount is the host's business.
        """
        points = {mount.point: mount for mount in self._mounts if mount.point != "/"}
        above, rest = path, ""
        while above != "/":
            mount = points.get(os.path.realpath(above))
            if mount is not None and not is_below(self.root, mount.point):
                return mount, rest
            above, _, name = above.rpartition("/")
            rest = os.path.join(name, rest) if rest else name
            above = above or "/"
        return None

    def _name_on_host(self, mount: Mount) -> str | None:
        """The host's name of a mounted directory: equal device and inode below the host root.

        Candidates come from mounts of the same device below the host root, and from the same
        name there; what counts is the comparison. Where the host itself has the directory under two
        names, that of its own mount comes before the one that leads through the whole disk.
        """
        candidates = [mount.point]
        for other in sorted(self._mounts, key=lambda other: -len(other.root)):
            if other.device == mount.device and is_below(other.point, self.root):
                inside = _rebase(other.point, self.root, "/")
                if is_below(mount.root, other.root):
                    candidates.append(_rebase(mount.root, other.root, inside))
        for candidate in candidates:
            if _same(mount.point, self.root + candidate):
                return candidate
        return None


def refuse_odd(path: str) -> None:
    """Refuse a path that has a control character in it, or is longer than any path can be."""
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


def open_host_root(given: str | None) -> HostRoot:
    """The host root as asked for, else `/host` where something is mounted there, else `/`."""
    root = given or ("/host" if os.path.ismount("/host") else "/")
    try:
        mounts = parse_mountinfo(budget.lines("/proc/self/mountinfo", budget.MOUNTS))
    except OSError:
        mounts = ()
    except budget.OverBudget as error:
        raise Refused(
            f"cannot read /proc/self/mountinfo: {error}; unmount what is left over"
        ) from error
    return HostRoot(root, mounts)
