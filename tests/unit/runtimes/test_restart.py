"""A restart acts on the process and unit that were checked, or on nothing."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cri.process import Process, is_service_name, start_time
from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.runtimes import restart
from agent.runtimes.restart import RestartFailed
from agent.systemd import dbus
from tests.tools.waiting import SOON

HOST = HostRoot("/")
PROCESS = Process(
    4000000, 1, "/usr/bin/containerd", None, "containerd.service", ("containerd",), "/proc"
)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A real process that does nothing."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def as_process(child: subprocess.Popen[bytes], proc: str = "/proc") -> Process:
    """What is known of a child."""
    start = start_time(child.pid)
    assert start is not None
    return replace(PROCESS, pid=child.pid, start=start, proc=proc)


SHOW = (
    "show --property=LoadState,ActiveState,SubState,Result,InvocationID,Job,"
    "RequiredBy,BoundBy,ConsistsOf"
)
FAKE = """#!/bin/sh
echo "$SYSTEMCTL_FORCE_BUS $@" >> {directory}/calls
[ ! -f {directory}/$1 ] || . {directory}/$1
"""


class Systemctl:
    """A `systemctl` first on PATH that notes how it was called, after the forced bus if any."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        program = directory / "bin/systemctl"
        program.parent.mkdir()
        program.write_text(FAKE.format(directory=directory))
        program.chmod(0o755)

    def answers(self, verb: str, code: int, message: str, unless: str = "none") -> None:
        """Let a verb end so, except with this value of SYSTEMCTL_FORCE_BUS."""
        text = (
            f"[ \"$SYSTEMCTL_FORCE_BUS\" = {unless} ] || {{ echo '{message}' >&2; exit {code}; }}\n"
        )
        (self.directory / verb).write_text(text)

    def calls(self) -> list[str]:
        """Each call's words."""
        return (self.directory / "calls").read_text().splitlines()


@pytest.fixture(autouse=True)
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    """No test reaches this machine's systemd."""
    fake = Systemctl(tmp_path)
    for name in ("SYSTEM_BUS", "PRIVATE"):
        monkeypatch.setattr(dbus, name, str(tmp_path / name))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return fake


@pytest.mark.parametrize("process", [None, PROCESS])
def test_mode_none_touches_no_process(process: Process | None) -> None:
    """It needs to see no process either."""
    way = restart.choose("none", process, HOST, "containerd")
    assert way.kind == "none"
    way.act(process)


@pytest.mark.parametrize("mode", ["auto", "systemd"])
def test_unit_of_the_process_is_restarted(mode: str) -> None:
    """auto and systemd name the unit that owns the process behind the socket."""
    way = restart.choose(mode, PROCESS, HOST, "containerd")
    assert (way.kind, way.target) == ("systemd", "containerd.service")


def test_process_without_a_unit_is_refused() -> None:
    """With what can be given instead."""
    with pytest.raises(Refused, match=r"^cannot restart containerd: no systemd unit.*signal"):
        restart.choose("auto", replace(PROCESS, unit=None), HOST, "containerd")


def test_systemd_that_was_asked_for_has_a_unit() -> None:
    """The one with the runtime's name, as upstream restarts it."""
    way = restart.choose("systemd", replace(PROCESS, unit=None), HOST, "containerd")
    assert (way.kind, way.target) == ("systemd", "containerd.service")


@pytest.mark.parametrize("mode", ["auto", "signal"])
def test_process_that_cannot_be_seen_is_refused(mode: str) -> None:
    """A pid namespace hides it: hostPID, its unit by name, or somebody else restarts."""
    with pytest.raises(Refused, match=r"^cannot restart containerd: .*hostPID.*=systemd .*none"):
        restart.choose(mode, None, HOST, "containerd")


@pytest.mark.parametrize("mode", ["auto", "systemd", "signal"])
def test_process_of_another_kind_is_refused(mode: str) -> None:
    """A proxy behind the socket is not the runtime."""
    other = replace(PROCESS, executable="/usr/bin/socat", command=("socat",))
    with pytest.raises(Refused, match=r"^cannot restart containerd: .*/usr/bin/socat"):
        restart.choose(mode, other, HOST, "containerd")


def test_signal_to_crio_is_refused() -> None:
    """It ends cleanly, and systemd leaves it dead."""
    crio = replace(PROCESS, executable="/usr/bin/crio", command=("crio",))
    with pytest.raises(Refused, match=r"^cannot restart crio by a signal"):
        restart.choose("signal", crio, HOST, "crio")
    assert restart.choose("auto", crio, HOST, "crio").kind == "systemd"


@pytest.mark.parametrize("pid", [0, 1])
def test_signal_to_no_pid_is_refused(pid: int) -> None:
    """0 is our own group, 1 is the machine."""
    with pytest.raises(Refused, match="run with hostPID"):
        restart.choose("signal", replace(PROCESS, pid=pid), HOST, "containerd")


def test_signal_to_a_pid_of_another_namespace_is_refused() -> None:
    """A number from the host's /proc is somebody else's here."""
    with pytest.raises(Refused, match="run with hostPID"):
        restart.choose("signal", replace(PROCESS, proc="/host/proc"), HOST, "containerd")


def test_signal_ends_the_process(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM, to the pid that was checked."""
    process = as_process(child)
    way = restart.choose("signal", process, HOST, "containerd")
    assert (way.kind, way.target) == ("signal", f"pid {child.pid}")
    way.act(process)
    assert child.wait(SOON) == -signal.SIGTERM


def test_reused_pid_gets_no_signal(child: subprocess.Popen[bytes]) -> None:
    """Another start time is another process."""
    process = replace(as_process(child), start=1)
    restart.choose("signal", process, HOST, "containerd").act(process)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.1)


def test_pid_that_another_proc_vouches_for_gets_no_signal(
    child: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """The host's /proc speaks of the host's numbers: our process of that number is a stranger."""
    (tmp_path / str(child.pid)).mkdir()
    stat = Path(f"/proc/{child.pid}/stat").read_text().split()
    stat[21] = "7"
    (tmp_path / str(child.pid) / "stat").write_text(" ".join(stat))
    process = replace(as_process(child), start=7, proc=str(tmp_path))
    way = restart.resume("signal", f"pid {child.pid}", HOST)
    assert way is not None
    way.act(process)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.1)


def test_signal_to_the_dead_is_no_failure(child: subprocess.Popen[bytes]) -> None:
    """Whatever supervises it is starting it again."""
    process = as_process(child)
    child.kill()
    child.wait()
    restart.choose("signal", process, HOST, "containerd").act(process)
    restart.choose("signal", process, HOST, "containerd").act(None)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("containerd.service", True),
        ("k3s-agent.service", True),
        ("snap.microk8s.daemon-containerd.service", True),
        ("containerd@1.service", True),
        (r"a\x2db.service", True),
        ("-H.service", False),
        ("--force.service", False),
        ("a b.service", False),
        ("a/b.service", False),
        ("a.service\n", False),
        ("a;b.service", False),
        ("*.service", False),
        ("a.scope", False),
        ("init.scope", False),
        (".service", False),
        ("", False),
    ],
)
def test_only_service_names_reach_systemctl(name: str, valid: bool) -> None:
    """Only a service's name may go onto systemctl's command line: no option, no glob, no path."""
    assert is_service_name(name) is valid


def test_journal_with_an_odd_target_is_nobodys_business() -> None:
    """What was stored is checked again before anything is run."""
    assert restart.resume("systemd", "--force", HOST) is None
    assert restart.resume("none", "nobody", HOST) is None
    assert restart.resume("systemd", "containerd.service", HOST) is not None


def test_running_unit_is_restarted_with_a_fresh_start_limit(systemctl: Systemctl) -> None:
    """One that is used up makes systemd stop a healthy service and not start it again. No
    daemon-reload: that would apply somebody's half-done edit."""
    restart.choose("systemd", PROCESS, HOST, "containerd").act(PROCESS)
    assert systemctl.calls() == [
        f" {SHOW} containerd.service",
        " reset-failed containerd.service",
        " restart containerd.service",
    ]


def test_refusal_of_systemd_is_told(systemctl: Systemctl) -> None:
    """In its own first words."""
    systemctl.answers("restart", 1, "Failed to restart: Unit is masked.\nSee status.")
    with pytest.raises(RestartFailed, match=r"restart containerd\.service: Failed .* masked\.$"):
        restart.choose("systemd", PROCESS, HOST, "containerd").act(PROCESS)


def test_systemd_that_hangs_up_is_reached_over_the_bus(systemctl: Systemctl) -> None:
    """From another pid namespace its private socket ends with ENODATA (observed)."""
    systemctl.answers("show", 1, "Failed to connect to system scope bus", unless="1")
    restart.choose("systemd", PROCESS, HOST, "containerd").act(PROCESS)
    assert systemctl.calls()[-1] == "1 restart containerd.service"


def test_systemd_that_cannot_be_reached_is_refused_beforehand(systemctl: Systemctl) -> None:
    """With the first reason, and with what can be given instead."""
    systemctl.answers("show", 1, "Failed to connect to bus: Host is down")
    with pytest.raises(
        Refused, match=r"^cannot restart containerd\.service: .*Host is down.*=none"
    ):
        restart.choose("auto", PROCESS, HOST, "containerd")
    assert not any("restart" in call for call in systemctl.calls())


def test_host_without_systemctl_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a crash, and nothing written yet."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="no such file"):
        restart.choose("systemd", PROCESS, HOST, "containerd")


def test_journal_s_unit_that_cannot_be_reached_fails_when_acted_on(systemctl: Systemctl) -> None:
    """The files are undone first, whatever systemd says."""
    systemctl.answers("show", 1, "Failed to connect to bus: Host is down")
    way = restart.resume("systemd", "containerd.service", HOST)
    assert way is not None
    with pytest.raises(RestartFailed, match="Host is down"):
        way.act(None)


@pytest.mark.parametrize(
    ("unit", "shown", "refused"),
    [
        (None, "LoadState=loaded\nActiveState=active", None),
        (None, "LoadState=not-found\nActiveState=inactive", "LoadState is not-found"),
        (None, "LoadState=loaded\nActiveState=inactive", "ActiveState is inactive"),
        ("containerd.service", "LoadState=loaded\nActiveState=reloading", None),
        ("containerd.service", "LoadState=masked\nActiveState=active", "LoadState is masked"),
    ],
)
def test_unit_that_systemd_would_not_restart_is_refused(
    unit: str | None, shown: str, refused: str | None, systemctl: Systemctl
) -> None:
    """Nor one that would start a second runtime beside the one that answers."""
    (systemctl.directory / "show").write_text(f"echo '{shown}'\n")
    process = replace(PROCESS, unit=unit)
    if refused is None:
        assert restart.choose("systemd", process, HOST, "containerd").kind == "systemd"
    else:
        with pytest.raises(Refused, match=rf"^cannot restart containerd\.service: .*{refused}"):
            restart.choose("systemd", process, HOST, "containerd")


def test_invisible_process_is_restarted_by_its_unit_name(systemctl: Systemctl) -> None:
    """Only when asked for, and only one that runs."""
    assert restart.choose("systemd", None, HOST, "containerd").target == "containerd.service"
    (systemctl.directory / "show").write_text("echo 'ActiveState=inactive'\n")
    with pytest.raises(Refused, match="ActiveState is inactive"):
        restart.choose("systemd", None, HOST, "containerd")
