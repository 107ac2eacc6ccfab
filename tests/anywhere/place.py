"""A machine that has everything in the way of the tests, and a command that is run on it.

    python -m tests.anywhere.place [--without NAME,NAME...] COMMAND...

Each part of it is a function of `PARTS`. As root the machine has files, devices and processes as
well, in mount and pid namespaces of their own: nothing of the real one is touched, and all of it
goes with the command. Without root it has what any user can give a command.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.tools.mounts import cover, mount, show

COMMAND = (sys.executable, "-m", "tests.anywhere.place")
_NAMESPACES = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
_INSIDE = "--inside"
_TOOLKIT = "/usr/local/nvidia/toolkit"
_SPEC = """\
cdiVersion: 0.6.0
kind: {kind}
devices: [{{name: a, containerEdits: {{env: [FROM=machine]}}}}]
"""
_SPECS = {
    "nvidia.yaml": _SPEC.format(kind="nvidia.com/gpu"),
    "management.nvidia.com-gpu.yaml": _SPEC.format(kind="management.nvidia.com/gpu"),
    "vendor.yaml": _SPEC.format(kind="vendor.example/both"),
    "same.yaml": _SPEC.format(kind="vendor.example/both"),
    "broken.yaml": "{",
    "deadly.yaml": _SPEC.format(kind="v/gpu"),  # containerd before 2.4 ends when it reads it
    "wrong.json": '{"cdiVersion": "99.0.0", "kind": "nvidia.com/gpu", "devices": []}',
}
# What a program of the tests would read if it were told no other place.
_FILES = {
    "/etc/containerd/config.toml": "version = 99\n",
    "/etc/containerd/conf.d/99-nvidia.toml": "version = 99\n",
    "/etc/crio/crio.conf": "[crio",
    "/etc/crio/crio.conf.d/99-nvidia.conf": "[crio",
    "/etc/nvidia-container-runtime/config.toml": "[",
    "/etc/containers/containers.conf": "[",
    "/etc/containers/storage.conf": "[",
    "/etc/containers/registries.conf": "[",
    "/etc/containers/policy.json": "{",
    "/etc/systemd/system/containerd.service.d/nvidia.conf": "[Service]\nExecStart=\n",
    "/run/nvidia/validations/toolkit-ready": "somebody's\n",
    "/run/nvidia/toolkit/toolkit.pid": "1\n",
    "/run/systemd/system/containerd.service": "[Service]\nExecStart=/bin/false\n",
    f"{_TOOLKIT}/.config/nvidia-container-runtime/config.toml": "[",
}
_BROKEN = (
    *("nvidia-container-runtime", "nvidia-container-runtime-hook", "nvidia-ctk", "nvidia-cdi-hook"),
    *("nvidia-container-cli", "containerd", "crio", "runc", "crun", "conmon", "nvidia-smi"),
)
_OTHERS = {"cdi", "containerd", "crio", "nvidia", "nvidia-container-runtime", "containers"}
_SOCKETS = ("/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/nvidia/toolkit.sock")
_SERVERS: list[socket.socket] = []
_PROCESSES = (
    (f"{_TOOLKIT}/nvidia-container-runtime", "run"),
    ("/usr/bin/conmon", "--api-version", "1", "-r", f"{_TOOLKIT}/nvidia-container-runtime"),
    ("/usr/bin/conmon", "--cid", "podman", "--runtime", "/usr/bin/crun"),
    ("/usr/bin/containerd", "-c", "/etc/containerd/config.toml"),
    ("/usr/bin/crio", "--config-dir", "/etc/crio/crio.conf.d"),
    ("/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io"),
)


@dataclass(frozen=True)
class Place:
    """What the command gets, besides what the machine has; `folder` is a private one."""

    folder: Path
    environment: dict[str, str]


def files(place: Place) -> None:
    """Somebody's specs, broken ones too, and configuration where programs look for it."""
    cover("/etc", set(os.listdir("/etc")) - _OTHERS, copy=True)
    cover("/usr/local", set(os.listdir("/usr/local")) - _OTHERS)
    cover("/run", ())
    for directory in ("/etc/cdi", "/run/cdi"):
        for name, text in _SPECS.items():
            _write(f"{directory}/{name}", text)
        os.mkfifo(f"{directory}/pipe.json")  # whoever reads it waits for ever
    for path, text in _FILES.items():
        _write(path, text)
    for name in _BROKEN:
        _write(f"{_TOOLKIT}/{name}", "#!/bin/sh\nexit 99\n", 0o755)
    for path in _SOCKETS:
        _listen(path)


def mounts(place: Place) -> None:
    """A container's mounts, with places that the program takes for the host's."""
    for path in ("/run/containerd", "/run/cdi", "/run/nvidia", "/usr/local/nvidia"):
        mount("--bind", path, path)


def programs(place: Place) -> None:
    """Programs that fail, found before the real ones."""
    directory = place.folder / "bin"
    for name in _BROKEN:
        _write(f"{directory}/{name}", "#!/bin/sh\nexit 99\n", 0o755)
    place.environment["PATH"] = f"{directory}:{place.environment['PATH']}"


def processes(place: Place) -> None:
    """Runtimes, monitors, shims and NVIDIA's programs run."""
    code = ["-c", "import signal; signal.pause()"]
    for name, *words in _PROCESSES:
        subprocess.Popen([name, *code, *words], executable=sys.executable)


def gpu(place: Place) -> None:
    """The kernel has NVIDIA's driver."""
    old = place.folder / "dev"
    old.mkdir()
    mount("--rbind", "/dev", str(old))
    mount("-t", "tmpfs", "-o", "mode=755", "dev", "/dev")
    for entry in old.iterdir():
        show(entry, Path("/dev", entry.name))
    for name, minor in (("nvidia0", 0), ("nvidia1", 1), ("nvidiactl", 255)):
        os.mknod(f"/dev/{name}", 0o666 | stat.S_IFCHR, os.makedev(195, minor))
    if os.path.isdir("/proc/driver"):
        mount("-t", "tmpfs", "-o", "mode=755", "driver", "/proc/driver")
        _write("/proc/driver/nvidia/version", "NVRM version: somebody's 999.99\n")
        _write("/proc/driver/nvidia/params", "DeviceFileMode: 438\n")
        _write("/proc/driver/nvidia/gpus/0000:01:00.0/information", "Device Minor: 0\n")


def environment(place: Place) -> None:
    """Variables that the program, Python, shells, git and others read."""
    from agent.options.table import OPTIONS

    place.environment.update({name: "somebody's" for option in OPTIONS for name in option.env})
    checkout = place.folder / "checkout"
    for package in ("agent", "tests"):
        _write(f"{checkout}/{package}/__init__.py", "raise RuntimeError('not this one')\n")
    place.environment.update(
        {
            "PYTHONPATH": str(checkout),
            "PYTHONWARNINGS": "error",
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONUNBUFFERED": "1",
            "PYTEST_ADDOPTS": "--tb=short",
            "PYTHONHASHSEED": "7",
            "COLUMNS": "20",
            "LINES": "5",
            "NO_COLOR": "1",
            "FORCE_COLOR": "1",
            "TERM": "unknown",
            "TZ": "Pacific/Kiritimati",
            "USER": "somebody",
            "LOGNAME": "somebody",
            "BASH_ENV": "/nonexistent",
            "ENV": "/nonexistent",
            "CDPATH": "/",
            "POSIXLY_CORRECT": "1",
            "GREP_OPTIONS": "-v",
            "GIT_DIR": "/nonexistent",
            "GIT_INDEX_FILE": "/nonexistent",
            "SOURCE_DATE_EPOCH": "0",
            "NOTIFY_SOCKET": "/nonexistent",
            "LISTEN_FDS": "1",
            "INVOCATION_ID": "0",
            "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent",
            "KUBECONFIG": "/nonexistent",
            "XDG_CONFIG_HOME": "/nonexistent",
            "XDG_RUNTIME_DIR": "/nonexistent",
            "CONTAINER_CONFIG": "/nonexistent",
            "STEPS_CLOCK": "1",
            "STEPS_BOOT_ID": "1",
            "SCRIPTED_MODULES": "/nonexistent",
            "GRPC_VERBOSITY": "DEBUG",
            "LD_LIBRARY_PATH": "/nonexistent",
        }
    )


def locale(place: Place) -> None:
    """A language that the machine does not have."""
    place.environment.pop("LANG", None)
    place.environment.update({"LC_ALL": "de_DE.ISO-8859-1", "LANGUAGE": "de"})


def home(place: Place) -> None:
    """No home directory."""
    place.environment["HOME"] = "/nonexistent"


def tmpdir(place: Place) -> None:
    """A long name, as root of another file system."""
    folder = place.folder / ("long" * 25)
    folder.mkdir(mode=0o777)
    folder.chmod(0o1777)
    if os.geteuid() == 0:
        mount("-t", "tmpfs", "-o", "mode=1777", "tmp", str(folder))
    place.environment["TMPDIR"] = str(folder)


def signals(place: Place) -> None:
    """What `nohup COMMAND &` ignores, and more."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})


def limits(place: Place) -> None:
    """At most 1024 open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), min(hard, 1024)))


def umask(place: Place) -> None:
    """New files are private to their owner."""
    os.umask(0o077)


def stdin(place: Place) -> None:
    """Standard input is closed."""
    with suppress(OSError):
        os.close(0)


PARTS: tuple[Callable[[Place], None], ...] = (
    *(programs, environment, locale, home, tmpdir),
    *(signals, limits, umask, stdin),
)
PARTS_OF_ROOT: tuple[Callable[[Place], None], ...] = (files, mounts, processes, gpu)


def _write(path: str, text: str, mode: int = 0o644) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(path):
        os.unlink(path)
    Path(path).write_text(text, "utf-8")
    os.chmod(path, mode)


def _listen(path: str) -> None:
    """A socket that takes connections, and never answers."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    _SERVERS.append(server)


def _run(words: list[str], parts: list[Callable[[Place], None]], folder: Path) -> int:
    """Make the place, run the command in it and give its exit code. What ends meanwhile and has no
    other parent is waited for, since inside of a pid namespace nobody else would."""
    place = Place(folder, dict(os.environ))
    for part in PARTS_OF_ROOT:
        if part in parts:
            part(place)
    child = os.fork()
    if child == 0:
        for part in PARTS:
            if part in parts:
                part(place)
        os.execvpe(words[0], words, place.environment)  # noqa: S606
    while True:
        pid, code = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(code)


def main(words: list[str]) -> int:
    """Run a command; gives its exit code."""
    without: set[str] = set()
    if words[0] == "--without":
        without, words = set(words[1].split(",")), words[2:]
    parts = [part for part in (*PARTS, *PARTS_OF_ROOT) if part.__name__ not in without]
    if words[0] == _INSIDE:
        mount("-t", "proc", "proc", "/proc")
        return _run(words[2:], parts, Path(words[1]))
    with tempfile.TemporaryDirectory(prefix="place-") as name:
        Path(name).chmod(0o711)
        if os.geteuid() != 0:
            return _run(words, [part for part in parts if part in PARTS], Path(name))
        own = [*COMMAND, "--without", ",".join(without), _INSIDE, name]
        return subprocess.run([*_NAMESPACES, "--", *own, *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
