"""A mount namespace in which the paths that a runtime uses by itself are private.

Without it a containerd that is tested would write to /opt/containerd, listen on /run/nri, and,
where a shape names no paths, take the machine's /etc/containerd, /run/containerd and
/var/lib/containerd.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS

# Arguments: the node, and `default` where /etc/containerd is the node's.
_MOUNT = """
set -e
mount -t tmpfs layers "$1/layers"
# A layer takes the writes: new directories can be made there, the rest stays seen.
for path in /etc /opt /var/lib; do
    layer=$1/layers$path
    mkdir -p "$layer/new" "$layer/work"
    mount -t overlay overlay -o "lowerdir=$path,upperdir=$layer/new,workdir=$layer/work" "$path"
done
rm -rf /var/lib/toolkit-agent # what this machine has is not the node's
mkdir -p /etc/containerd /var/lib/containerd
if [ "$2" = default ]; then mount --bind "$1/etc/containerd" /etc/containerd; fi
# overlayfs cannot sit on the layers above; on memory it can, and nothing waits for a disk.
mount -t tmpfs root /var/lib/containerd
mount -t tmpfs root "$1/var/lib"
mount --bind "$1/run" /run
"""


class PrivateMounts:
    """A namespace from entering to leaving. `node` is a directory with `etc/containerd`, `run` and
    `var/lib`.

    Inside, /run is the node's, and with `default_config` /etc/containerd is too;
    /var/lib/containerd and the node's `var/lib` are memory.
    """

    def __init__(self, node: Path, *, default_config: bool) -> None:
        self.node = node
        self.default_config = default_config
        self._holder: subprocess.Popen[bytes] | None = None

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words that, before an argument list, run it inside; the pid is that of the program."""
        if self._holder is None:
            raise RuntimeError("the namespace is not open")
        return ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--")

    def __enter__(self) -> PrivateMounts:
        self._holder = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "--"),
                *("unshare", "--mount", "--propagation", "private", "--", "sleep", "infinity"),
            ]
        )
        try:
            self._wait_until_separate()
            self._mount()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
            self._holder = None

    def _wait_until_separate(self) -> None:
        assert self._holder is not None
        own = Path("/proc/self/ns/mnt").readlink()
        theirs = Path(f"/proc/{self._holder.pid}/ns/mnt")
        while theirs.readlink() == own:
            if self._holder.poll() is not None:
                raise PermissionError("unshare: no mount namespace can be made on this machine")
            time.sleep(0.002)

    def _mount(self) -> None:
        (self.node / "layers").mkdir()
        kind = "default" if self.default_config else "own"
        words = [*self.prefix, "sh", "-c", _MOUNT, "sh", str(self.node), kind]
        subprocess.run(words, check=True, capture_output=True, timeout=20)


def private_mounts(directory: Path) -> PrivateMounts:
    """A namespace for a daemon whose configuration names private paths; `directory` is made."""
    for name in ("etc/containerd", "run", "var/lib"):
        (directory / name).mkdir(parents=True)
    return PrivateMounts(directory, default_config=False)


def separate() -> bool:
    """Give this thread, and what it starts, mounts of its own; False where that is not allowed."""
    if ctypes.CDLL(None).unshare(_NEW_MOUNTS) != 0:
        return False
    mount("--make-rprivate", "/")
    return True


def mount(*words: str) -> None:
    """Mount something in the namespace of this process, and write that down nowhere."""
    subprocess.run(["mount", "-n", *words], check=True)


def mount_points() -> list[str]:
    """Where something is mounted, in the order of mounting."""
    lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    return [line.split(" ")[4].replace("\\040", " ") for line in lines]


def cover(path: str, names: Iterable[str], *, copy: bool = False) -> None:
    """Put memory over a directory in the namespace of this process, in which these of its names are
    seen; with `copy` they are copies, and no mounts. Names are resolved as before."""
    new = Path(tempfile.mkdtemp(prefix="cover-"))
    mount("-t", "tmpfs", "-o", "mode=755", "cover", str(new))
    if copy:
        subprocess.run(["cp", "-a", "--", *(f"{path}/{n}" for n in names), str(new)], check=True)
    else:
        for name in names:
            show(Path(path, name), new / name)
    resolver = Path("/etc/resolv.conf").resolve()
    if resolver.is_file() and resolver.is_relative_to(path):
        target = new / resolver.relative_to(path)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(resolver, target)
    mount("--move", str(new), path)
    new.rmdir()


def show(old: Path, new: Path) -> None:
    """Make an entry of a directory seen in another one; links and devices are made anew."""
    found = old.lstat()
    if stat.S_ISLNK(found.st_mode):
        new.symlink_to(old.readlink())
    elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        os.mknod(new, found.st_mode, found.st_rdev)
        new.chmod(stat.S_IMODE(found.st_mode))
    else:
        new.mkdir() if stat.S_ISDIR(found.st_mode) else new.touch()
        mount("--rbind", str(old), str(new))
