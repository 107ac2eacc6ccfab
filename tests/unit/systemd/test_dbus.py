"""Questions and orders to systemd over D-Bus, on a bus that answers from a table."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from agent.host.paths import HostRoot
from agent.runtimes import restart
from agent.systemd import dbus, reach, units
from agent.systemd.dbus import BusError, NoBus, OverBus
from agent.systemd.units import Command, SystemdError, Ties, Timer, Unit
from tests.doubles.systemd.bus import Bus, properties

UNIT = "containerd.service"


def over(fake: Bus) -> OverBus:
    """systemd behind it, with a clock that only sleeping moves."""
    now = [0.0]
    return OverBus(fake, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))


BUSY = properties(ActiveState="deactivating", SubState="stop-sigterm", Job=(7, "/job"))
FAILED = properties(ActiveState="failed", SubState="failed")


def test_unit_has_its_invocation_and_ties() -> None:
    """The number of an invocation, and what a restart carries along."""
    told = properties(RequiredBy=["a.service"], BoundBy=["b.service"], ConsistsOf=["c.service"])
    found = over(Bus(told)).unit(UNIT)
    assert found == Unit(
        *(UNIT, "loaded", "active", "running", ""),
        7,
        False,
        ("a.service", "b.service", "c.service"),
    )
    assert over(Bus(properties(InvocationID=b""))).unit(UNIT).invocation is None
    assert str(over(Bus(FAILED)).unit(UNIT)) == f"{UNIT} is failed, failed, exit-code"


def test_restart_has_a_fresh_limit_and_waits_for_the_job() -> None:
    """Never a reload."""
    fake = Bus(BUSY, BUSY, properties())
    over(fake).restart(UNIT)
    assert fake.calls == [("ResetFailedUnit", UNIT), ("RestartUnit", UNIT, "replace")]
    assert len(fake.looks) == 1


def test_unit_that_was_never_loaded_has_no_limit_to_reset() -> None:
    """That it has none is no failure."""
    error = BusError("org.freedesktop.systemd1.NoSuchUnit", "not loaded")
    over(Bus(ResetFailedUnit=error)).restart(UNIT)


@pytest.mark.parametrize(
    ("fake", "told"),
    [
        (Bus(FAILED), f"{UNIT} is failed, failed, exit-code after its restart"),
        (Bus(BUSY), "is not done with containerd.service after 3 s: .* deactivating"),
        (Bus(RestartUnit=BusError("x.UnitMasked", "Unit is masked.")), "Unit is masked"),
        (Bus(RestartUnit=NoBus("it hung up")), "it hung up"),
    ],
    ids=["failed", "late", "refused", "hung up"],
)
def test_restart_that_fails_says_why(fake: Bus, told: str) -> None:
    """In systemd's own words."""
    with pytest.raises(SystemdError, match=told):
        over(fake).restart(UNIT, 3.0)


def test_bus_lost_during_a_restart_is_no_failure() -> None:
    """What became of it is seen by the runtime: it is not taken for a failure."""
    over(Bus(BUSY, NoBus("it hung up"))).restart(UNIT)


def test_timer_is_made_with_its_service() -> None:
    """Both are made by one call; commands are lists, each with its own say on failing."""
    fake = Bus()
    commands = (Command(("/bin/a", "b c")), Command(("/bin/d",), may_fail=True))
    over(fake).start_timer(Timer("t", 9, commands, "text"))
    ((member, name, mode, when, ((second, what),)),) = fake.calls
    assert (member, name, mode, second) == ("StartTransientUnit", "t.timer", "fail", "t.service")
    assert dict(when)["OnActiveSec"] == ("t", 9_000_000)
    assert dict(what)["ExecStart"] == (
        "a(sasb)",
        [("/bin/a", ["/bin/a", "b c"], False), ("/bin/d", ["/bin/d"], True)],
    )


def test_stopping_a_missing_unit_succeeds() -> None:
    """It is stopped; another refusal is told."""
    over(Bus(StopUnit=BusError("org.freedesktop.systemd1.NoSuchUnit", "none"))).stop("t.timer")
    with pytest.raises(SystemdError, match="denied"):
        over(Bus(StopUnit=BusError("org.freedesktop.DBus.Error.AccessDenied", "denied"))).stop("t")


@pytest.mark.parametrize(
    ("active", "busy", "given_up"),
    [
        ("failed", False, True),
        ("inactive", False, True),
        ("inactive", True, False),
        ("activating", False, False),  # waits for its next automatic restart
        ("active", False, False),
    ],
)
def test_unit_with_a_used_up_limit_is_given_up(active: str, busy: bool, given_up: bool) -> None:
    """Nothing runs, and nothing will."""
    assert Unit(UNIT, "loaded", active, busy=busy).given_up is given_up


def test_running_dependents_are_restarted_once_each() -> None:
    """Those that run, in turn, and each once."""
    table = {
        "a": Unit("a", "loaded", "active", carries=("b", "root")),
        "b": Unit("b", "loaded", "inactive", carries=("c",)),
        "d": Unit("d", "loaded", "reloading", carries=("a", "e")),
        "e": Unit("e", "loaded", "active"),
    }

    class Table(OverBus):
        def unit(self, name: str) -> Unit:
            return table[name]

    root = Unit("root", "loaded", "active", carries=("a", "d"))
    assert units.units_restarted_with(Table(Bus()), root) == ("a", "d", "e")


def test_bound_units_stay_dead_after_a_signal() -> None:
    """Those that are bound to it and run, with what needs these; not what only needs it itself
    (observed on systemd 252)."""
    running = {"docker": True, "shipyard": True, "idle": False, "kubelet": True, "part": True}
    table = {
        "root": Ties(("docker", "idle"), ("docker", "idle", "kubelet", "part")),
        "docker": Ties((), ("shipyard", "root")),
        "shipyard": Ties((), ("docker",)),
    }

    class Table(OverBus):
        def unit(self, name: str) -> Unit:
            return Unit(name, "loaded", "active" if running[name] else "inactive")

        def ties(self, name: str) -> Ties:
            return table[name]

    assert units.units_left_stopped(Table(Bus()), "root") == ("docker", "shipyard")
    assert [units.stays_stopped(Ties(restart=word)) for word in ("always", "on-success", "")] == [
        False, False, False,
    ]  # fmt: skip
    assert units.stays_stopped(Ties(restart="no"))
    assert units.stays_stopped(Ties(restart="on-failure"))


def test_dead_units_are_started_once() -> None:
    """What is down for good is started once, and what does not come up is named."""
    started: list[str] = []
    now = [0.0]

    class Slow(OverBus):
        def unit(self, name: str) -> Unit:
            if name == "up" or (name == "helped" and name in started):
                return Unit(name, "loaded", "active")
            return Unit(name, "loaded", "activating" if name == "late" else "failed")

        def start(self, name: str) -> None:
            started.append(name)

    found = restart.still_down(
        Slow(Bus()), ("up", "helped", "late", "broken"),
        clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s),
    )  # fmt: skip
    assert found == ("late", "broken")
    assert started == ["helped", "broken"]


def test_unreachable_systemd_is_reported_with_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way is named with its reason: no socket, no systemctl."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "run").mkdir()
    with pytest.raises(SystemdError) as told:
        reach.reach(HostRoot(str(tmp_path)), UNIT)
    assert "D-Bus at /run/dbus/system_bus_socket: no such file" in str(told.value)
    assert "D-Bus at /run/systemd/private: no such file" in str(told.value)
    assert "systemctl: " in str(told.value)


@pytest.mark.parametrize("said", [b"", b"REJECTED EXTERNAL\r\n", b"OK 1234\r\n"])
def test_socket_that_is_no_systemd_is_reported(said: bytes, tmp_path: Path) -> None:
    """It hangs up at once, does not let us in, or hangs up afterwards."""
    path = tmp_path / "run/systemd/private"
    path.parent.mkdir(parents=True)

    def serve() -> None:
        client, _ = server.accept()
        with client:
            client.recv(1024)
            client.sendall(said)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(NoBus):
            dbus.opener(HostRoot(str(tmp_path)), dbus.PRIVATE)()
        thread.join()
