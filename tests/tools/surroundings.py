"""Make each test process independent of how it was started.

    left = surroundings.settle()

Whoever starts them has an umask, ignores signals (`nohup`, `&`), has variables that Python, git,
shells and the program under test read, a language, and a directory for temporary files. What the
tests start inherits all of that.
"""

from __future__ import annotations

import locale
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from pathlib import Path

from tests.tools import disk
from tests.tools.mounts import cover, mount_points, separate

# What finds programs, packages and their certificates on this machine, and what pytest says to its
# own processes.
_KEPT = re.compile(
    r"PATH|HOME|LD_LIBRARY_PATH|TMPDIR|XDG_C(ACHE|ONFIG)_HOME|APT_CONFIG"
    r"|(HTTPS?|FTP|ALL|NO)_PROXY|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE"
    r"|(PIP|PYTEST_XDIST|HYPOTHESIS|TOOLKIT_AGENT)_\w+|PYTEST_(CURRENT_TEST|VERSION)"
)
_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
# Under these a node of the tests has its own; and the name of a socket has 107 bytes at most.
_COVERED = ("/run", "/etc", "/opt", "/var/lib", "/usr/local", "/proc", "/sys", "/dev")
_LONGEST = 16
# A bad spec here kills a scripted runtime as it kills a real one.
_SPECS = ("/etc/cdi", "/run/cdi")
# What nodes of the tests have below their own root.
_PLACES = (
    *("/etc/cdi", "/etc/containerd", "/etc/crio", "/etc/nvidia-container-runtime"),
    *("/run/cdi", "/run/containerd", "/run/crio", "/run/k3s", "/run/nvidia", "/run/dbus"),
    *("/run/systemd", "/usr/local/nvidia", "/var/lib/toolkit-agent"),
)


def settle(ignored: Iterable[int] = ()) -> list[int]:
    """Make this process independent of how it was started. `ignored`: signals that its parent
    ignores. Returns the signals that this process now ignores; its children have their defaults.

    Raises RuntimeError where tests cannot run, with what to do.
    """
    if not __debug__:
        raise RuntimeError("cannot test without assertions: unset PYTHONOPTIMIZE")
    os.umask(0o022)  # files that others can write are refused
    disk.never_wait()
    _settle_environment(os.environ)
    _settle_directory()
    _hide()
    with suppress(locale.Error):  # files opened without an encoding are UTF-8
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    return _settle_signals(ignored)


def _settle_environment(environment: MutableMapping[str, str]) -> None:
    for name in list(environment):
        if not _KEPT.fullmatch(name.upper()):
            del environment[name]
    environment["LC_ALL"] = "C.UTF-8"
    folders = environment.get("PATH", os.defpath).split(":")
    # For root, too, some shells leave out those of the administrator.
    environment["PATH"] = ":".join([*folders, *(f for f in _FOLDERS if f not in folders)])


def _settle_directory() -> None:
    """Choose a directory for temporary files that all tests can use."""
    for name in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        path = os.path.realpath(name)
        covered = any(Path(path).is_relative_to(folder) for folder in _COVERED)
        if (
            len(os.fsencode(path)) <= _LONGEST
            and not covered
            and os.access(path, os.W_OK | os.X_OK)
        ):
            os.environ["TMPDIR"] = tempfile.tempdir = path
            return
    raise RuntimeError("cannot find a directory for temporary files: make /tmp writable")


def _hide() -> None:
    """Give these tests mounts of their own, in which this machine has no CDI specs, and no mount
    where the program under test would take it for the host's. Where that is not allowed, and where
    there is nothing to hide, all stays as it is."""
    specs = any(os.path.isdir(path) and os.listdir(path) for path in _SPECS)
    mounted = [
        point
        for point in mount_points()
        if any(Path(point).is_relative_to(place) for place in _PLACES)
    ]
    if not (specs or mounted) or os.geteuid() != 0 or not separate():
        return
    for point in reversed(mounted):  # a mount that is hidden by a later one counts, too
        subprocess.run(["umount", "-n", "-l", point], check=True)
    cover("/etc", set(os.listdir("/etc")) - {"cdi"}, copy=True)
    cover("/run", ())


def _settle_signals(ignored: Iterable[int]) -> list[int]:
    """Give each ignored signal an empty handler, which exec resets to the default. Python ignores
    SIGPIPE and SIGXFSZ itself, and subprocess restores them."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    own = {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or no exit code could be told
    found = {n for n in signal.valid_signals() - own if signal.getsignal(n) is signal.SIG_IGN}
    for number in found | set(ignored):
        signal.signal(number, lambda *_: None)
    return sorted(int(number) for number in found | set(ignored))
