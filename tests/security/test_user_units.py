"""A process of a user's is not taken for the node's runtime, nor his unit for the system's.

The attacker is an ordinary user. His own manager (user@UID.service) lets him make cgroups, with any
names, and he can call a program containerd, listen on a socket, and keep others from looking into
his process. We would read his configuration, and restart a unit of the name that he chose.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.cri import process
from agent.cri.process import unit_of
from agent.errors import Unreachable
from agent.host.paths import HostRoot

USER = 1234
OWN = f"/user.slice/user-{USER}.slice/user@{USER}.service"
_BESIDE = """
import ctypes, os, socket, sys, time
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
if sys.argv[1]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1]); server.listen(); print(flush=True); time.sleep(60)
ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE
print(flush=True); time.sleep(60)
"""


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")


@pytest.mark.parametrize(
    "path",
    [
        f"{OWN}/app.slice/containerd.service",
        f"{OWN}/containerd.service",
        f"{OWN}/system.slice/containerd.service",
        f"{OWN}/init.scope/../../system.slice/containerd.service",
        f"/../..{OWN}/app.slice/containerd.service",
        "/user.slice/user-0.slice/user@0.service/app.slice/containerd.service",
        f"/user.slice/user-{USER}.slice/session-1.scope/containerd.service",
        f"/user@{USER}.service/system.slice/containerd.service",
        f"/user-{USER}.slice/containerd.service",
    ],
)
@pytest.mark.parametrize("line", ["0::{}\n", "1:name=systemd:{}\n", "4:cpu:/\n1:name=systemd:{}\n"])
def test_unit_of_a_users_manager_is_no_unit(path: str, line: str) -> None:
    """Whatever it is called below, and by whichever version of cgroups."""
    assert unit_of(line.format(path)) is None


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/containerd.service", "containerd.service"),
        # A service that a subtree was given to names what is in it.
        ("/system.slice/job.service/system.slice/containerd.service", "job.service"),
        ("/system.slice/job.service/containerd.service", "job.service"),
    ],
)
def test_unit_of_the_system_is_the_first_service_on_the_way(path: str, unit: str) -> None:
    """The first service on the way is systemd's, and not what somebody made below it."""
    assert unit_of(f"0::{path}\n") == unit


@contextmanager
def user_process(socket: Path | None) -> Iterator[int]:
    """One that listens, or lets nobody look into it."""
    argv = [sys.executable, "-c", _BESIDE, str(socket or ""), str(USER)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd="/") as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield child.pid
        finally:
            child.kill()


@needs_root
def test_socket_of_a_user_is_refused(place: Path) -> None:
    """He listens: it is refused, whose process it is being told, and asked nothing."""
    place.chmod(0o755)
    (place / "his").mkdir()
    os.chown(place / "his", USER, USER)
    socket = place / "his/s"
    with user_process(socket):
        for ask in (
            lambda: process.peer_pid(str(socket), "/s"),
            lambda: process.find(str(socket), "/s", HostRoot("/"), "containerd"),
        ):
            with pytest.raises(Unreachable, match=rf"^cannot use /s: .* user {USER}") as told:
                ask()
            assert told.value.exit_code == 4


def looked_for(host: Path, monkeypatch: pytest.MonkeyPatch) -> process.Process | None:
    """The runtime's process, where its pid is not shown to us."""
    monkeypatch.setattr(process, "peer_pid", lambda *_: 0)
    return process.find("/s", "/s", HostRoot(str(host)), "containerd")


def add(host: Path, pid: int, uids: str, cgroup: str) -> None:
    """A containerd in a made-up /proc."""
    base = host / f"proc/{pid}"
    base.mkdir(parents=True)
    (base / "stat").write_text(f"{pid} (containerd) S {'1 ' * 18}{1000 + pid} 0 0\n")
    (base / "status").write_text(f"Name:\tcontainerd\nUid:\t{uids}\nGid:\t0\t0\t0\t0\n")
    (base / "cmdline").write_bytes(b"/usr/bin/containerd\0-c\0/home/user/config.toml\0")
    (base / "cgroup").write_text(f"0::{cgroup}\n")
    (base / "comm").write_text("containerd\n")
    (base / "exe").symlink_to("/usr/bin/containerd")


@pytest.mark.parametrize(
    ("uids", "cgroup"),
    [
        ("1234\t1234\t1234\t1234", "/system.slice/containerd.service"),
        ("1234\t0\t0\t0", "/system.slice/containerd.service"),  # a program that is setuid root
        ("1234\t1234\t1234\t1234", f"{OWN}/app.slice/containerd.service"),
        ("0\t0\t0\t0", "/user.slice/user-0.slice/user@0.service/app.slice/containerd.service"),
    ],
)
def test_hidden_process_of_a_user_is_not_the_runtime(
    uids: str, cgroup: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He starts a containerd of the same program: neither is it taken for the runtime, nor is the
    runtime unknown because there are two."""
    (tmp_path / "proc/self").mkdir(parents=True)
    add(tmp_path, 8, uids, cgroup)
    assert looked_for(tmp_path, monkeypatch) is None
    add(tmp_path, 7, "0\t0\t0\t0", "/system.slice/containerd.service")
    found = looked_for(tmp_path, monkeypatch)
    assert found is not None
    assert (found.pid, found.unit) == (7, "containerd.service")


@needs_root
def test_undumpable_process_counts_as_its_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory in /proc belongs to root then, and its links cannot be read by others. It is
    the user's all the same."""
    with user_process(None) as pid:
        monkeypatch.setattr(process, "peer_pid", lambda *_: pid)
        with pytest.raises(Unreachable, match=rf"user {USER}"):
            process.find("/s", "/s", HostRoot("/"), "containerd")
