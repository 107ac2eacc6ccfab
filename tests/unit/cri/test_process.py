"""The process behind a socket is found, from made-up texts of /proc and real private sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.cri import process
from agent.cri.process import config_argument, inspect, is_kind, peer_pid, start_time, unit_of
from agent.errors import Unreachable
from agent.host.paths import HostRoot

NAME = "/host/name.sock"


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/containerd.service\n", "containerd.service"),
        ("0::/../../system.slice/containerd.service\n", "containerd.service"),
        ("12:pids:/x.service\n1:name=systemd:/system.slice/c.service\n", "c.service"),
        ("1:name=systemd:/system.slice/c.service\n0::/\n", "c.service"),
        ("0::/system.slice/k3s.service/init\n", "k3s.service"),
        ("0::/docker/abc/system.slice/containerd.service\n", "containerd.service"),
        ("0::/system.slice/docker-ab.scope/system.slice/c.service\n", "c.service"),
        ("0::/system.slice/system-c.slice/c@1.service\n", "c@1.service"),
        ("0::/kubepods.slice/pod1.slice/cri-containerd-1.scope\n", None),
        ("4:memory:/system.slice/containerd.service\n", None),
        ("0::/user.slice/user-0.slice/session-1.scope\n", None),
        ("0::/system.slice/--force.service\n", None),
        ("0::/\n", None),
        ("garbage\n", None),
        ("", None),
    ],
)
def test_unit_is_the_innermost_service_of_any_cgroup_version(text: str, unit: str | None) -> None:
    """Version 1, version 2 and both at once; the innermost service owns the process."""
    assert unit_of(text) == unit


@pytest.mark.parametrize(
    ("words", "config"),
    [
        ("containerd", None),
        ("containerd -c /x", "/x"),
        ("containerd -c=/x", "/x"),
        ("containerd --config /x", "/x"),
        ("containerd --config=/x", "/x"),
        ("containerd -config /x", "/x"),
        ("containerd --c=/x", "/x"),
        ("containerd --log-level debug --config x/y.toml", "x/y.toml"),
        ("containerd -c /a -c /b", "/b"),
        ("containerd -c /a --config=/b", "/b"),
        ("containerd --config=/a=b", "/a=b"),
        ("containerd -c", None),
        ("containerd --config-path /x", None),
        ("/c -c", None),
    ],
)
def test_config_is_read_from_every_spelling_of_the_flag(words: str, config: str | None) -> None:
    """Every spelling that containerd takes; the last one wins (observed on 1.6.20 and 2.1.9)."""
    assert config_argument(tuple(words.split())) == config


class Proc:
    """A made-up /proc."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "self").mkdir(parents=True)

    def add(
        self,
        pid: int,
        command: str,
        cgroup: str = "0::/system.slice/containerd.service\n",
        exe: str = "/usr/bin/containerd",
        state: str = "S",
        comm: str = "x",
    ) -> None:
        """A process with start time 1000 + pid."""
        base = self.directory / str(pid)
        base.mkdir()
        rest = " ".join(["1"] * 18)
        (base / "stat").write_text(f"{pid} (a) b (c) {state} {rest} {1000 + pid} 0 0\n")
        (base / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
        (base / "cgroup").write_text(cgroup)
        (base / "comm").write_text(comm + "\n")
        (base / "exe").symlink_to(exe)
        (base / "cwd").symlink_to("/srv/work")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "host/proc")


def look(proc: Proc, pid: int) -> process.Process:
    """What is found of one process."""
    found = inspect(pid, str(proc.directory))
    assert found is not None
    return found


def test_odd_process_name_shifts_no_field(proc: Proc) -> None:
    """A name with spaces and brackets in it does not shift the fields."""
    proc.add(42, "/usr/bin/containerd -c /etc/x.toml")
    found = look(proc, 42)
    assert found.identity == (42, 1042)
    assert found.executable == "/usr/bin/containerd"
    assert found.config == "/etc/x.toml"
    assert found.unit == "containerd.service"


def test_relative_config_is_below_the_working_directory(proc: Proc) -> None:
    """As the process itself found it."""
    proc.add(42, "containerd --config=../etc/x.toml")
    assert look(proc, 42).config == "/srv/etc/x.toml"


def test_executable_that_was_replaced_keeps_its_name(proc: Proc) -> None:
    """After an upgrade of the package the restart runs the new one."""
    proc.add(42, "containerd", exe="/usr/bin/containerd (deleted)")
    assert look(proc, 42).executable == "/usr/bin/containerd"


@pytest.mark.parametrize("state", ["Z", "X"])
def test_dead_process_is_none(state: str, proc: Proc) -> None:
    """A zombie answers nobody."""
    proc.add(42, "containerd", state=state)
    assert inspect(42, str(proc.directory)) is None
    assert inspect(43, str(proc.directory)) is None


@pytest.mark.parametrize(
    ("command", "exe", "comm", "kind"),
    [
        ("/usr/bin/containerd", "/usr/bin/containerd", "containerd", True),
        ("/snap/containerd", "/snap/other", "x", True),
        ("x", "/lib64/ld.so", "containerd", True),
        ("socat", "/usr/bin/socat", "socat", False),
        ("sh /usr/bin/containerd", "/bin/sh", "sh", False),
    ],
)
def test_kind_is_told_by_executable_or_first_word(
    command: str, exe: str, comm: str, kind: bool, proc: Proc
) -> None:
    """Not by a word somewhere on the command line."""
    proc.add(42, command, exe=exe, comm=comm)
    assert is_kind(look(proc, 42), "containerd") is kind
    assert not is_kind(look(proc, 42), "crio")


def test_own_start_time_is_the_kernels() -> None:
    """Seconds since boot, as the system's clock tells them, to within a few."""
    found = start_time(os.getpid())
    assert found is not None
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    ticks = os.sysconf("SC_CLK_TCK")
    assert 0 < found / ticks <= uptime


def test_boot_id_is_the_kernels(tmp_path: Path) -> None:
    """Empty where it cannot be read."""
    assert len(process.boot_id()) == 36
    assert process.boot_id(str(tmp_path)) == ""


# --- sockets -----------------------------------------------------------------------------------


@contextmanager
def listening(path: Path, backlog: int = 5) -> Iterator[socket.socket]:
    """A socket that never accepts."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(backlog)
        yield server


LISTENER = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("listening", flush=True)
sys.stdin.read()
"""


def test_peer_is_who_listens(tmp_path: Path) -> None:
    """Another process, also one that does not accept yet; and what /proc says of it."""
    path = tmp_path / "s"
    argv = [sys.executable, "-c", LISTENER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert peer_pid(str(path), NAME) == child.pid
        found = process.find(str(path), NAME, HostRoot("/"), "containerd")
        assert found is not None
        assert found.identity == (child.pid, start_time(child.pid))
        assert found.command[1] == "-c"
        child.kill()
    with pytest.raises(Unreachable, match=rf"^cannot reach {NAME}: connection refused"):
        peer_pid(str(path), NAME)


def test_plain_file_is_no_socket(tmp_path: Path) -> None:
    """Told apart from a runtime that is down."""
    (tmp_path / "s").touch()
    with pytest.raises(Unreachable, match=rf"^cannot reach {NAME}: it is not a socket"):
        peer_pid(str(tmp_path / "s"), NAME)


@pytest.mark.parametrize("make", [Path.mkdir, lambda p: p.symlink_to("none"), lambda _: None])
def test_socket_without_a_listener_is_unreachable(make: object, tmp_path: Path) -> None:
    """A directory, a dangling link, nothing at all."""
    assert callable(make)
    make(tmp_path / "s")
    with pytest.raises(Unreachable, match=rf"^cannot reach {NAME}: ") as told:
        peer_pid(str(tmp_path / "s"), NAME)
    assert told.value.exit_code == 4


def test_full_queue_does_not_hang(tmp_path: Path) -> None:
    """A runtime that stopped accepting long ago."""
    with listening(tmp_path / "s", 0), socket.socket(socket.AF_UNIX) as first:
        first.connect(str(tmp_path / "s"))
        with pytest.raises(Unreachable, match=r"^cannot reach"):
            peer_pid(str(tmp_path / "s"), NAME, timeout=0.2)


def hidden(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> process.Process | None:
    """Look for the process where its pid is not shown to us."""
    monkeypatch.setattr(process, "peer_pid", lambda *_: 0)
    root = proc.directory.parent
    return process.find("/s", NAME, HostRoot(str(root)), "containerd")


def test_hidden_process_is_found_in_the_hosts_proc(
    proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of this kind that systemd runs."""
    proc.add(7, "/usr/bin/containerd")
    proc.add(8, "/usr/bin/socat", exe="/usr/bin/socat")
    proc.add(9, "/usr/bin/containerd", cgroup="0::/user.slice/x.scope\n")
    found = hidden(proc, monkeypatch)
    assert found is not None
    assert found.identity == (7, 1007)


def test_hidden_process_is_not_guessed(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that fit are none."""
    proc.add(7, "/usr/bin/containerd")
    proc.add(8, "/usr/bin/containerd", cgroup="0::/system.slice/other.service\n")
    assert hidden(proc, monkeypatch) is None


def test_shims_are_not_taken_for_the_runtime(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """They live on in the service's cgroup, one for each pod, and their name begins alike."""
    proc.add(7, "/usr/bin/containerd")
    shim = "/usr/bin/containerd-shim-runc-v2"
    for pid in (8, 9):
        proc.add(pid, f"{shim} -id 1", exe=shim, comm="containerd-shim")
    found = hidden(proc, monkeypatch)
    assert found is not None
    assert found.pid == 7


def test_socket_with_a_long_name_is_reached(tmp_path: Path) -> None:
    """A host root can make a path longer than an address may be."""
    directory = tmp_path / ("d" * 60) / ("e" * 60)
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        fd = os.open(directory, os.O_PATH)
        server.bind(f"/proc/self/fd/{fd}/s")
        os.close(fd)
        server.listen()
        assert process.peer_pid(str(directory / "s"), "s") == os.getpid()
