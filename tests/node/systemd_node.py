"""A machine of its own: systemd as PID 1, containerd as its service, an agent in a container of it.

    node = SystemdNode(tools).start()
    with node.lent("Restart=no"):
        node.agent("apply")
        node.show("containerd.service")["ActiveState"]
    node.stop()

It boots once for many tests: each has it with its own lines in containerd's unit, and what a test
changes is put back when it ends.

Invariant: all that it writes is in a folder of its own, its mounts are in namespaces of their own,
and when it is stopped it is gone with every process of it.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.conformance import cri
from tests.tools.node_tools import NodeTools
from tests.tools.runtimes import ROOT
from tests.tools.waiting import SOON

CGROUPS = Path("/sys/fs/cgroup")
STATE = "var/lib/toolkit-agent"
SERVICE = "containerd.service"

_PROGRAMS = ("nvidia-container-runtime", "nvidia-container-runtime.cdi", "nvidia-cdi-hook")
# The mounts are this shell's alone. /run is empty, for nspawn keeps its notes there.
_BOOT = """
set -e
for folder in $CGROUPS; do echo $$ >"$folder/cgroup.procs"; done
unset CGROUPS
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount -t tmpfs tmpfs /run
shift 2
exec setsid "$@"
"""
# As a pod with the host's root at /mnt, read-only but for what our DaemonSet mounts writable: its
# own mounts, its own /proc, the machine's programs.
_POD = """
set -e
umount -l /outer/run
mount --rbind / /outer/mnt
umount -l /outer/mnt/outer
mount -o remount,bind,ro /outer/mnt
for folder in /etc/containerd /var/lib/toolkit-agent; do
    mkdir -p "$folder"
    mount --bind "$folder" "/outer/mnt$folder"
done
{hidden}
mount -t proc proc /outer/proc
echo $$ >/run/agent.pid
exec chroot /outer env -i -C "$@"
"""
_HIDDEN = "mount -t tmpfs tmpfs /outer/mnt/proc"


# What is in these directories is as it was when the node booted, once a test has ended: what the
# agent and the tests write, and the units that systemd was told of.
_RESTORED = ("etc/containerd", "etc/systemd/system", "usr/local", STATE)
_UNITS = ("run/systemd/transient", "run/systemd/system")
_PUBLISHED = ("nvidia", "cdi")  # in /run


@dataclass(frozen=True)
class _Booted:
    """A node as it booted: the files in those directories, and the names in /run."""

    files: dict[str, dict[str, bytes | None]]
    run: frozenset[str]


class SystemdNode:
    """One system, booted from `start` to `stop`."""

    def __init__(self, tools: NodeTools) -> None:
        self.tools = tools
        self.directory = Path(tempfile.mkdtemp(prefix="node-"))
        self.name = f"node-{secrets.token_hex(4)}"  # a name of a machine has no underscore
        self.log = self.directory / "nspawn.log"
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("upper", "work", "root"):
            (self.directory / name).mkdir(mode=0o755)
        self._prepare(self.directory / "upper")
        self._booted: _Booted | None = None

    def start(self) -> Self:
        """Boot it, until its runtime answers."""
        try:
            self._boot()
        except BaseException:
            self.stop()
            raise
        return self

    @staticmethod
    def _prepare(upper: Path) -> None:
        toolkit = upper / "usr/local/nvidia/toolkit"
        toolkit.mkdir(parents=True)
        for name in _PROGRAMS:
            (toolkit / name).write_text("#!/bin/sh\nexit 0\n")
            (toolkit / name).chmod(0o755)
        units = upper / "etc/systemd/system"
        (units / f"{SERVICE}.d").mkdir(parents=True)
        (units / f"{SERVICE}.d/test.conf").write_text(_dropin(""))

    def _boot(self) -> None:
        words = [
            *(str(self.tools.nspawn), "-D", str(self.directory / "root"), "-b", "-M", self.name),
            *("--register=no", "--keep-unit", "--console=pipe", "--capability=all"),
            "--link-journal=no",  # a machine without an id cannot, and nobody reads it there
            "--system-call-filter=@keyring bpf perf_event_open @raw-io kcmp ptrace",
            "--bind-ro=/:/outer",
        ]
        script = ["sh", "-c", _BOOT, "sh", str(self.tools.tree), str(self.directory), *words]
        environment = {
            "PATH": os.defpath + ":/usr/sbin:/sbin",
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1",
            "CGROUPS": " ".join(map(str, self._make_cgroups())),
            **self.tools.environment,
        }
        if self.tools.unified or self._cgroups_are_unified():
            environment["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "1"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "-m", "--propagation", "private", *script],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._until(self._find_init, "no PID 1")
        self._until(lambda: self.show(SERVICE)["ActiveState"] == "active", "no containerd")
        assert cri.wait(self.socket, 20.0) is not None
        self.run("systemctl", "is-system-running", "--wait")  # what else starts writes to /run
        self._booted = self._look()

    @contextmanager
    def lent(self, lines: str = "") -> Iterator[None]:
        """For one test: containerd starts for the first time, as far as its unit knows, with
        `lines` in that. An AssertionError at the end where the node is not as it booted."""
        if lines:
            self.path(f"etc/systemd/system/{SERVICE}.d/test.conf").write_text(_dropin(lines))
            self.run("systemctl", "daemon-reload")
        self.run("systemctl", "reset-failed", SERVICE)
        self.run("systemctl", "restart", SERVICE)
        self._until(lambda: self.show(SERVICE)["ActiveState"] == "active", "no containerd")
        assert "nvidia" not in self.answer().runtimes
        try:
            yield
        finally:
            self._put_back()

    def _put_back(self) -> None:
        """Undo what a test did, and check that nothing is left of it."""
        assert self._booted is not None
        units = set(self._files("etc/systemd/system")) - set(
            self._booted.files["etc/systemd/system"]
        )
        if units:
            self.run("systemctl", "stop", *units)
        self.run("systemctl", "stop", SERVICE)
        for name in _RESTORED:
            self._restore(name)
        for path in self.path("run").iterdir():
            if path.name in self._booted.run:
                continue
            if path.is_file():
                path.unlink()
            elif path.name in _PUBLISHED:
                shutil.rmtree(path)
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "reset-failed")
        # systemd forgets transient units in its own time.
        with suppress(AssertionError):
            self._until(lambda: not self._left(), "it is not as it booted")
        assert self._left() == [], self.told()
        listed = self.run("systemctl", "list-units", "--all", "--plain", "--no-legend")
        assert [line for line in listed.splitlines() if "toolkit-agent" in line] == []

    def _restore(self, name: str) -> None:
        """Bring one directory back to what was in it."""
        assert self._booted is not None
        before, folder = self._booted.files[name], self.path(name)
        now = self._files(name)
        for path, data in before.items():
            if now.get(path) != data and data is not None:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
        for path in sorted(set(now) - set(before), reverse=True):
            if now[path] is None:
                (folder / path).rmdir()
            else:
                (folder / path).unlink()

    def _left(self) -> list[str]:
        """What is not as it booted."""
        assert self._booted is not None
        now = self._look()
        changed = [f"/run/{name}" for name in sorted(now.run ^ self._booted.run)]
        for name, files in now.files.items():
            pairs = files.items() ^ self._booted.files[name].items()
            changed += sorted({f"/{name}/{path}" for path, _ in pairs})
        return changed

    def _look(self) -> _Booted:
        files = {name: self._files(name) for name in (*_RESTORED, *_UNITS)}
        return _Booted(files, frozenset(path.name for path in self.path("run").iterdir()))

    def _files(self, name: str) -> dict[str, bytes | None]:
        """What is in a directory, by its path in there; None for a directory."""
        folder = self.path(name)
        found = sorted(folder.rglob("*"))
        return {str(p.relative_to(folder)): _bytes(p) for p in found}

    def _cgroups_are_unified(self) -> bool:
        return (CGROUPS / "cgroup.controllers").exists()

    def _cgroups(self) -> list[Path]:
        if self._cgroups_are_unified():
            return [CGROUPS / self.name]
        own = dict(
            line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()
        )
        folders = [path for path in CGROUPS.iterdir() if (path / "cgroup.procs").exists()]
        return [
            path / own.get("memory", "/")[1:] / self.name
            if path.name == "memory"
            else path / self.name
            for path in folders
        ]

    def _make_cgroups(self) -> list[Path]:
        """One of its own in each hierarchy, or all nodes of a machine share one."""
        made = self._cgroups()
        for path in made:
            path.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (path / name).exists() and path.parent.joinpath(name).exists():
                    (path / name).write_text(path.parent.joinpath(name).read_text())
        return made

    def _find_init(self) -> bool:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found = children.read_text().split()
        self.pid = int(found[0]) if found else 0
        return bool(found) and self.path("run/systemd/private").exists()

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until something holds."""
        self._until(true, "it never held")

    def _until(self, true: Callable[[], bool], otherwise: str) -> None:
        end, pause = time.monotonic() + SOON, 0.05
        while time.monotonic() < end:
            with suppress(OSError, KeyError):
                if true():
                    return
            assert self._process is not None
            if self._process.poll() is not None:
                break
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)  # to ask is work too, and some waits take 20 seconds
        raise AssertionError(f"{otherwise}: {self.log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        """End it, with all that it wrote."""
        if self._process is not None:
            if self.pid:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)  # and with it all that is in the node
            self._process.kill()
            self._process.wait()
        for path in self._cgroups():
            _remove_cgroup(path)
        shutil.rmtree(self.directory, ignore_errors=True)

    def path(self, name: str) -> Path:
        """A file of the node."""
        return Path(f"/proc/{self.pid}/root") / name

    @property
    def socket(self) -> Path:
        """The CRI socket, as seen from outside."""
        return self.path("run/containerd/containerd.sock")

    @property
    def config(self) -> dict[str, bytes | None]:
        """The bytes of every file of the configuration; None for a directory."""
        return self._files("etc/containerd")

    def strays(self) -> list[str]:
        """What only a change in progress needs: copies beside files, guards, units."""
        found = [str(path) for path in self.path("etc/containerd").rglob(".*~")]
        found += [str(path) for path in self.path(STATE).glob("switch-*")]
        found += [str(path) for path in self.path(STATE).glob("journal.json")]
        listed = self.run("systemctl", "list-units", "--all", "--plain", "--no-legend")
        return found + [line for line in listed.splitlines() if "toolkit-agent" in line]

    def answer(self) -> cri.Answer:
        """What the runtime says now."""
        found = cri.wait(self.socket, 20.0)
        assert found is not None
        return found

    def run(self, *argv: str) -> str:
        """Run a program of the node in it; what it prints, whatever it ends with."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "--"]
        done = subprocess.run(
            [*enter, *argv], capture_output=True, text=True, timeout=60, check=False,
            stdin=subprocess.DEVNULL, env={"PATH": os.defpath},
        )  # fmt: skip
        return done.stdout + done.stderr

    def show(self, unit: str) -> dict[str, str]:
        """The properties of a unit."""
        lines = self.run("systemctl", "show", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def add_unit(self, name: str, text: str) -> None:
        """A unit that runs."""
        self.path(f"etc/systemd/system/{name}").write_text(text)
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "start", name)

    def agent(
        self, command: str, *options: str, host_pid: bool = True, hidden: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run the program under test in a container of the node. `hidden`: it does not even see
        the host's /proc below the host root."""
        given = ["--host-root=/mnt", "--cdi-output-dir=", *options]
        return self.python("-m", "agent", command, *given, host_pid=host_pid, hidden=hidden)

    def python(
        self, *argv: str, host_pid: bool = True, hidden: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run the tests' Python in a container of the node; /run/agent.pid has its pid there."""
        pod = ["unshare", "-m", *([] if host_pid else ["-p", "--fork"])]
        script = _POD.format(hidden=_HIDDEN if hidden else "")
        # Wide, so that each sentence is on one line.
        environment = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "COLUMNS=1000"]
        environment.append("PYTHONDONTWRITEBYTECODE=1")
        inside = [*pod, "sh", "-c", script, "sh", str(ROOT), *environment, sys.executable, *argv]
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-p", "-C", "--", *inside],
            capture_output=True, text=True, timeout=110, check=False,
            stdin=subprocess.DEVNULL, env={"PATH": os.defpath + ":/usr/sbin:/sbin"},
        )  # fmt: skip

    def told(self) -> str:
        """For a failed check: the node's own log."""
        return self.run("journalctl", "--no-pager", "-n", "40")


def _dropin(lines: str) -> str:
    # What the first would do cannot be done here, and a line for it in the log helps nobody.
    return f"[Service]\nExecStartPre=\n{lines}\n"


def _bytes(path: Path) -> bytes | None:
    if path.is_symlink():
        return os.fsencode(path.readlink())
    return path.read_bytes() if path.is_file() else None


def _remove_cgroup(path: Path, timeout: float = 5.0) -> None:
    """A cgroup with those in it; what was killed in it goes a moment later."""
    end = time.monotonic() + timeout
    while path.exists() and time.monotonic() < end:
        for folder in [*sorted(path.rglob("*/"), reverse=True), path]:
            with suppress(OSError):
                folder.rmdir()
        time.sleep(0.01)


def when_candidate(commands: str) -> str:
    """Lines of a unit: what happens before a start on a configuration with our handlers."""
    grep = "grep -rqs --include=*.toml nvidia-container-runtime /etc/containerd"
    test = f"if {grep}; then {commands}; fi"
    return f"ExecStartPre=/bin/sh -c {shlex.quote(test)}".replace("$", "$$")
