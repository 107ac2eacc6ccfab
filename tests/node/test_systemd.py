"""Restarts by a real systemd, as an agent in a container of the node asks for them."""

from __future__ import annotations

import json

import pytest

from tests.conformance import checks
from tests.node.conftest import Boot
from tests.node.systemd_node import SERVICE, SystemdNode, when_candidate

pytestmark = pytest.mark.timeout(600)  # the first test makes the system, once

PARTS = {
    "along-a.service": "[Unit]\nBindsTo=containerd.service\n",
    "along-b.service": "[Unit]\nPartOf=along-a.service\n",
    "aside.service": "[Unit]\nWants=containerd.service\n",
}
SLEEPS = "[Service]\nExecStart=/bin/sleep infinity\n"


def failed(result: object, code: int, *words: str) -> None:
    """Check how the program ended and that it says these words on stderr."""
    assert getattr(result, "returncode", None) == code, result
    assert not [word for word in words if word not in getattr(result, "stderr", "")], result


@pytest.mark.parametrize("host_pid", [True, False])
def test_restart_by_systemd_is_proven_and_reverted(boot: Boot, host_pid: bool) -> None:
    """Applied, proven and reverted, also where the pod has a pid namespace of its own."""
    node = boot()
    before, first = node.config, node.show(SERVICE)["InvocationID"]
    for name, text in PARTS.items():
        node.add_unit(name, text + SLEEPS)
    plan = node.agent("plan", "-o", "json", host_pid=host_pid)
    assert plan.returncode == 1, plan
    assert json.loads(plan.stdout)["restart"] | {"because": []} == {
        "needed": True,
        "kind": "systemd",
        "target": SERVICE,
        "along": ["along-a.service", "along-b.service"],
        "because": [],
    }
    asides = [node.show(name)["InvocationID"] for name in PARTS]
    result = node.agent("apply", host_pid=host_pid)
    checks.done(result)
    assert "switch on the host set" in result.stderr
    assert "nvidia" in node.answer().runtimes
    second = node.show(SERVICE)["InvocationID"]
    assert second != first
    now = [node.show(name)["InvocationID"] for name in PARTS]
    assert [a != b for a, b in zip(asides, now, strict=True)] == [True, True, False]
    assert node.strays() == []

    checks.done(node.agent("apply", host_pid=host_pid))
    assert node.show(SERVICE)["InvocationID"] == second, "a node that is right is let alone"
    checks.done(node.agent("revert", host_pid=host_pid))
    assert node.config == before
    assert "nvidia" not in node.answer().runtimes
    assert node.strays() == []


# The units of a node with Docker beside the kubelet (docker/for-linux#678, amazon-eks-ami#1846,
# kata-containers#12765), and one that needs Docker.
DEPENDENT = {
    "docker.service": "[Unit]\nBindsTo=containerd.service\nAfter=containerd.service\n"
    f"{SLEEPS}Restart=always\n",
    "kubelet.service": "[Unit]\nRequires=containerd.service\nAfter=containerd.service\n"
    f"{SLEEPS}Restart=always\nRestartSec=2\n",
    "nydus-snapshotter.service": f"[Unit]\nBefore=containerd.service\n{SLEEPS}",
    "shipyard.service": f"[Unit]\nRequires=docker.service\nAfter=docker.service\n{SLEEPS}",
}


def _states(node: SystemdNode) -> dict[str, str]:
    return {name: node.show(name)["ActiveState"] for name in (SERVICE, *DEPENDENT)}


def test_dependent_units_are_back_after_a_restart(boot: Boot) -> None:
    """A restart takes them along and they are back; a signal would leave some of them dead, which
    is refused beforehand, with their names."""
    node = boot("Restart=always")
    for name, text in DEPENDENT.items():
        node.add_unit(name, text)
    running = _states(node)
    assert set(running.values()) == {"active"}
    along = ["docker.service", "kubelet.service", "shipyard.service"]
    plan = json.loads(node.agent("plan", "-o", "json").stdout)
    assert plan["restart"]["along"] == along
    assert "with it    docker.service, kubelet.service" in node.agent("plan").stdout
    result = node.agent("apply")
    checks.done(result)
    assert all(name in result.stderr for name in along), "apply names them too"
    assert _states(node) == running

    before, started = node.config, node.show(SERVICE)["InvocationID"]
    signal = ("--restart-mode=signal", "--set-as-default=true")
    for command in ("plan", "apply"):
        told = "docker.service, shipyard.service would be stopped with containerd.service"
        result = node.agent(command, *signal)
        if command == "plan":
            checks.foresees(result, told)
        else:
            failed(result, 3, "by a signal", told)
    failed(node.agent("revert", "--restart-mode=signal"), 3, "docker.service")
    assert node.config == before
    assert node.show(SERVICE)["InvocationID"] == started
    assert _states(node) == running

    node.run("systemctl", "stop", "docker.service", "shipyard.service")
    result = node.agent("apply", *signal)
    checks.done(result)
    assert "kubelet.service" in result.stderr
    assert node.show("kubelet.service")["ActiveState"] == "active"


def test_signal_is_refused_where_the_unit_stays_dead(boot: Boot) -> None:
    """systemd does not start a unit again that ended cleanly, unless its policy says so."""
    node = boot("Restart=on-failure")
    started = node.show(SERVICE)["InvocationID"]
    failed(node.agent("apply", "--restart-mode=signal"), 3, "Restart=on-failure")
    assert node.show(SERVICE)["InvocationID"] == started


def test_unit_that_does_not_come_back_is_reported(boot: Boot) -> None:
    """It starts once only: said in the log and in the outcome, which is not called proven."""
    node = boot()
    once = "/bin/sh -c 'mkdir /run/nvidia-once && exec sleep infinity'"
    node.add_unit(
        "docker.service",
        f"[Unit]\nBindsTo=containerd.service\n[Service]\nExecStart={once}\n",
    )
    result = node.agent("apply")
    checks.done(result)
    assert "docker.service ran before the restart and does not run now" in result.stdout
    assert "docker.service ran before the restart" in result.stderr
    assert "Proven" not in result.stdout
    node.run("rm", "-rf", "/run/nvidia-once")


def test_invisible_process_is_proven_by_its_unit(boot: Boot) -> None:
    """No hostPID and no /proc of the host: the unit by its name, and its InvocationID as proof."""
    node = boot()
    failed(node.agent("apply", host_pid=False, hidden=True), 3, "--restart-mode=systemd")
    result = node.agent("apply", "--restart-mode=systemd", host_pid=False, hidden=True)
    checks.done(result)
    assert "nvidia" in node.answer().runtimes
    assert node.strays() == []


@pytest.mark.parametrize(
    "lines",
    [
        "Restart=on-failure",
        "[Unit]\nStartLimitBurst=2\nStartLimitIntervalSec=1h",
    ],
    ids=["on-failure", "start-limit"],
)
def test_unit_that_systemd_would_leave_dead_is_restarted(boot: Boot, lines: str) -> None:
    """A clean stop that nothing follows by itself; a start limit that is used up."""
    node = boot(lines)
    node.run("systemctl", "restart", SERVICE)
    checks.done(node.agent("apply"))
    assert "nvidia" in node.answer().runtimes
    checks.done(node.agent("revert"))
    assert "nvidia" not in node.answer().runtimes


LATE = (
    "Type=exec\nRestart=no\nExecStart=\nExecStart=/bin/sh -c 'if grep -q nvidia-container-runtime "
    "/etc/containerd/config.toml; then sleep 0.5; exit 1; fi; exec /usr/bin/containerd'"
)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (when_candidate("exit 1"), f"{SERVICE} is activating, auto-restart, exit-code"),
        (LATE, f"systemd has given up: {SERVICE} is failed, failed, exit-code"),
    ],
    ids=["at once", "late"],
)
def test_runtime_that_dies_on_the_new_configuration_gets_the_old_one(
    boot: Boot, lines: str, told: str
) -> None:
    """Exit 5, the old bytes, and the unit active on them; nobody waits for a unit given up."""
    node = boot(lines)
    before = node.config
    result = node.agent("apply", "--enable-cdi-in-runtime=false", "--proof-timeout=100")
    failed(result, 5, told, "the old configuration is back and proven")
    assert node.config == before
    assert node.show(SERVICE)["ActiveState"] == "active"
    assert "nvidia" not in node.answer().runtimes
    assert node.strays() == []


def _lose_the_agent(node: SystemdNode) -> None:
    """The candidate stops the runtime, and the agent with it; the node comes back by itself."""
    before = node.config
    result = node.agent("apply", "--enable-cdi-in-runtime=false", "--proof-timeout=1")
    assert result.returncode == -9, result
    assert node.config != before
    assert node.show(SERVICE)["ActiveState"] != "active"
    (timer,) = (line.split()[0] for line in node.strays() if ".timer" in line)

    node.until(lambda: node.show(SERVICE)["ActiveState"] == "active")
    node.until(lambda: node.show(timer)["LoadState"] == "not-found")
    assert node.config == before
    assert "nvidia" not in node.answer().runtimes
    started = node.show(SERVICE)["InvocationID"]

    result = node.agent("apply", "--enable-cdi-in-runtime=false", "--proof-timeout=1")
    failed(result, 3, "failed before", "the timer on the host")
    assert node.config == before
    assert node.strays() == []
    assert node.show(SERVICE)["InvocationID"] == started, "it is on its old files already"


KILLS = when_candidate("kill -9 $(cat /run/agent.pid); exit 1")


def test_timer_on_the_host_undoes_for_a_gone_agent(boot: Boot) -> None:
    """The timer on the host undoes for it."""
    _lose_the_agent(boot(KILLS))


WAYS = """
import sys
from agent.host.paths import HostRoot
from agent.systemd import reach
from agent.systemd.units import Command, Timer
way = list(reach.candidates(HostRoot("/mnt")))[int(sys.argv[1])][1]
first = way.unit("containerd.service")
way.restart("containerd.service")
second = way.unit("containerd.service")
assert (first.load, first.active, first.busy) == ("loaded", "active", False), first
assert None is not first.invocation != second.invocation
assert way.unit("not-there.service").load == "not-found"
touch = lambda name: Command(("/usr/bin/touch", name))
lost = Command(("/usr/bin/mv", "-T", "/run/no", "/run/none"))
way.start_timer(Timer("t-one", 1, (Command(lost.argv, True), touch("/run/one")), "text"))
way.start_timer(Timer("t-two", 1, (lost, touch("/run/two")), "text"))
way.start_timer(Timer("t-three", 1, (touch("/run/three"),), "text"))
for name in ("t-three.timer", "t-three.service", "not-there.timer"):
    way.stop(name)
"""


@pytest.mark.parametrize("number", range(4))
def test_ways_to_systemd_behave_alike(boot: Boot, number: int) -> None:
    """The system bus, systemd's own socket, and its programs, with and without a forced bus."""
    node = boot()
    result = node.python("-c", WAYS, str(number))
    checks.done(result)
    node.until(lambda: node.path("run/one").exists())
    node.until(lambda: "t-two" not in node.run("systemctl", "list-timers", "--all"))
    assert not node.path("run/two").exists(), "nothing follows a command that must not fail"
    assert not node.path("run/three").exists(), "what was stopped does not run"


@pytest.mark.long
def test_restart_works_on_a_newer_containerd(boot: Boot, new_tools: object) -> None:
    """containerd 2.1 under a newer systemd."""
    node = boot("", new_tools)
    before = node.config
    checks.done(node.agent("apply"))
    assert "nvidia" in node.answer().runtimes
    checks.done(node.agent("revert"))
    assert "nvidia" not in node.answer().runtimes
    assert node.config == before
    assert node.strays() == []


@pytest.mark.long
def test_runtime_kept_down_by_a_garbled_drop_in_is_started_again(
    boot: Boot, new_tools: object
) -> None:
    """systemd has given it up; what we wrote last is put back, and the unit is started once."""
    node = boot("Restart=always\nRestartSec=10ms", new_tools)
    checks.done(node.agent("apply"))
    written = node.config
    drop_in = node.path("etc/containerd/conf.d/99-nvidia.toml")
    drop_in.write_bytes(drop_in.read_bytes() + b"x = [\n")
    node.run("sh", "-c", "systemctl restart containerd; true")
    node.until(lambda: node.show(SERVICE)["ActiveState"] == "failed")
    result = node.agent("apply")
    checks.done(result)
    assert "is rewritten" in result.stderr
    assert node.config == written
    assert node.show(SERVICE)["ActiveState"] == "active"
    assert "nvidia" in node.answer().runtimes


@pytest.mark.long
def test_timer_works_on_a_newer_containerd(boot: Boot, new_tools: object) -> None:
    """The switch there too."""
    _lose_the_agent(boot(KILLS, new_tools))
