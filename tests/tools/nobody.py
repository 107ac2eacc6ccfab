"""Run a program as a user with no rights at all, wherever the checkout lies.

    subprocess.run([*as_nobody(tmp_path), sys.executable, "-c", ""])

A checkout below a directory that is its owner's alone, as root's home may be, is out of reach for
others. The words make a mount namespace in which the way is open: such a directory is memory there,
and holds nothing but what is needed, under the same names.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from tests.tools.runtimes import ROOT

NOBODY = 65534

# Arguments, each list with -- behind it: what is needed, which directories are closed, what is
# needed again, and the command. Covering /sys for a moment harms nobody.
_OPEN = """
set -e
mount -t tmpfs tmpfs /sys
while [ "$1" != -- ]; do
    mkdir -p "/sys$1"
    mount --rbind "$1" "/sys$1"
    shift
done
shift
while [ "$1" != -- ]; do
    mount -t tmpfs -o mode=755 tmpfs "$1"
    shift
done
shift
while [ "$1" != -- ]; do
    mkdir -p "$1"
    mount --rbind "/sys$1" "$1"
    shift
done
shift
umount -l /sys
exec "$@"
"""


def as_nobody(*also: Path) -> list[str]:
    """Words that run what follows them; it can reach Python, the checkout and what is in `also`.

    It needs root. By way of another program: root's rights still count for what setpriv starts.
    The test is skipped where the files themselves are their owner's alone (umask 077).
    """
    for path in (ROOT / "agent/__init__.py", Path(sys.prefix) / "pyvenv.cfg"):
        if path.is_file() and not path.stat().st_mode & stat.S_IROTH:
            pytest.skip(f"others may not read {path}: chmod -R o+rX {ROOT}")
    ways = {ROOT, Path(sys.prefix), Path(sys.base_prefix), *also}
    shut = {path: above for path in sorted(ways) if (above := _closed(path))}
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--", "env")
    if not shut:
        return [*user]
    needed, closed = [*map(str, shut), "--"], [*sorted(map(str, set(shut.values()))), "--"]
    namespace = ("unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _OPEN, "sh")
    return [*namespace, *needed, *closed, *needed, *user]


def _closed(path: Path) -> Path | None:
    """The outermost directory on the way to a path that others may not pass."""
    above = reversed(path.parents)
    return next((p for p in above if not p.stat().st_mode & stat.S_IXOTH), None)
