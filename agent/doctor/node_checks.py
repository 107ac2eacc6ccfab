"""Checks of the driver, of the machine, and of what this agent and others did to the node.

Invariant: pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.doctor.check import Check, Found, Severity
from agent.doctor.facts import Facts
from agent.doctor.runtime_checks import split
from agent.status import NOT_PUBLISHED


def _driver(facts: Facts) -> Iterator[Found]:
    driver = facts.driver.get()
    if not driver.problem:
        return
    text, remedy = split(driver.problem)
    remedy = remedy.partition(";")[0]
    text = text.removeprefix("cannot make a CDI spec: ")
    if driver.platform:
        remedy = f"{driver.platform} needs specs of its own kind (`cdi generate --mode`)"
        yield Found("warning", text, remedy=remedy)
    elif driver.gpus:
        yield Found("fault", text, (f"{driver.gpus} NVIDIA GPUs on the PCI bus",), remedy)
    else:
        yield Found("info", text, ("no NVIDIA GPU on the PCI bus",), remedy)


def _module(facts: Facts) -> Iterator[Found]:
    driver = facts.driver.get()
    if driver.platform:
        return
    if driver.other:
        text = f"another driver holds the GPUs: {driver.other}"
        yield Found("fault" if driver.other == "nouveau" else "info", text)
    elif driver.gpus and driver.library and not driver.module:
        yield Found("fault", f"driver {driver.library} is installed, and its module is not loaded")


def _mismatch(facts: Facts) -> Iterator[Found]:
    driver = facts.driver.get()
    if driver.module and driver.library and driver.module != driver.library:
        text = f"the module is of driver {driver.module}, and the libraries are {driver.library}"
        yield Found("fault", text)


def _nodes(facts: Facts) -> Iterator[Found]:
    driver = facts.driver.get()
    if driver.missing_nodes:
        yield Found("fault", f"missing device nodes: {', '.join(driver.missing_nodes)}")


def _failed(facts: Facts) -> Iterator[Found]:
    agent = facts.agent.get()
    if agent.failed:
        yield Found("fault", f"the last change failed and was undone: {agent.failed}")
    elif agent.error:
        yield Found("warning", f"the last run of the agent failed: {agent.error}")


def _unfinished(facts: Facts) -> Iterator[Found]:
    agent = facts.agent.get()
    if agent.unfinished:
        yield Found("fault", f"a change is not finished: {agent.unfinished}")


def _refuses(facts: Facts) -> Iterator[Found]:
    agent = facts.agent.get()
    known = facts.refused or facts.down is not None
    if agent.problem and not known:
        text, remedy = split(agent.problem)
        if agent.managed and not agent.code:
            yield Found("fault", text, remedy=remedy)
        else:
            yield Found("info", f"apply would refuse: {text}", remedy=remedy)


def _drift(facts: Facts) -> Iterator[Found]:
    agent = facts.agent.get()
    if agent.managed and agent.drift:
        first, *rest = agent.drift
        runs = any(item.startswith("running runtime:") for item in agent.drift)
        severity: Severity = "fault" if runs or agent.specs_gone else "warning"
        yield Found(severity, f"the node drifted: {first}", tuple(rest[:5]))


def _stale(facts: Facts) -> Iterator[Found]:
    agent = facts.agent.get()
    if agent.not_published and not agent.not_published.endswith(NOT_PUBLISHED):
        text, remedy = split(agent.not_published)
        yield Found("fault" if agent.managed else "warning", text, remedy=remedy)
    elif agent.barrier:
        text, remedy = split(agent.barrier)
        yield Found("fault", text, remedy=remedy)


def _unpublished(facts: Facts) -> Iterator[Found]:
    agent = facts.agent.get()
    if agent.managed and agent.not_published.endswith(NOT_PUBLISHED):
        text = "the agent changed this node, and no decision is published"
        yield Found("fault", text, (agent.not_published,))
    elif not agent.managed:
        yield Found("info", "this node was never configured by toolkit-agent")


def _left(facts: Facts) -> Iterator[Found]:
    for path, what, remedy in facts.agent.get().left:
        yield Found("warning", f"{path} ({what}) is left over: another toolkit took over",
                    remedy=f"`{remedy}`")  # fmt: skip


def _installer(facts: Facts) -> Iterator[Found]:
    if not facts.machine.installers:
        return
    managed = facts.agent.value is not None and facts.agent.value.managed
    text = f"another installer is at work: {', '.join(facts.machine.installers)}"
    yield Found("fault" if managed else "info", text)


def _label(facts: Facts) -> Iterator[Found]:
    toolkit = facts.toolkit.get()
    if facts.machine.enforcing and not toolkit.labelled:
        text = "SELinux is enforcing, and programs of the toolkit have no label"
        yield Found("fault", text, (f"beside {toolkit.config}",))


CHECKS = (
    Check(
        "agent-unfinished", "No change is half done",
        "The node is between two states.",
        "`toolkit-agent apply` finishes or undoes it; with --restart-mode=none restart the runtime",
        _unfinished,
    ),
    Check(
        "agent-failed", "The last change did not fail",
        "The node works as before the change, and is not configured.",
        "look in the runtime's log, correct the cause, then `toolkit-agent apply --retry`", _failed,
    ),
    Check(
        "driver-module", "NVIDIA's module drives the GPUs",
        "Without the module no container gets a GPU.",
        "load it (`nvidia-modprobe -u`); nouveau: block it, and start the node again", _module,
    ),
    Check(
        "driver-mismatch", "Module and libraries of the driver have one version",
        'Every GPU program fails with "Driver/library version mismatch".',
        "unload and load the module, or start the node again", _mismatch,
    ),
    Check(
        "driver", "There is a driver",
        "No CDI spec can be made, and no container gets a GPU.",
        "install NVIDIA's driver, or give --driver-root", _driver,
    ),
    Check(
        "driver-nodes", "The driver's device nodes are there",
        "Containers with a GPU are not created.",
        "`toolkit-agent apply` makes them, and `nvidia-modprobe -u -c=0` too", _nodes,
    ),
    Check(
        "agent-refuses", "Nothing prevents `apply`",
        "The agent leaves the node as it is.",
        "do what the error says", _refuses,
    ),
    Check(
        "status-stale", "The status file is valid",
        "Device plugins that wait for it do not start, or use an outdated decision.",
        "`toolkit-agent apply` writes it anew", _stale,
    ),
    Check(
        "status-missing", "The decision is published",
        "Device plugins that wait for it do not start.",
        "`toolkit-agent apply`", _unpublished,
    ),
    Check(
        "agent-drift", "The node is as the agent left it",
        "Somebody changed files or the runtime since.",
        "`toolkit-agent apply` makes it so again (`plan` shows what it would do)", _drift,
    ),
    Check(
        "installer", "One installer configures the node",
        "Two installers overwrite each other's files, and restart the runtime in turn.",
        "remove the other toolkit's DaemonSet (gpu-operator: toolkit.enabled=false)", _installer,
    ),
    Check(
        "left-over", "Another toolkit left nothing of ours",
        "Files that nothing uses can contradict the other toolkit's.",
        "`toolkit-agent revert --keep-edits --toolkit`", _left,
    ),
    Check(
        "selinux", "The toolkit's programs have a label of SELinux",
        "SELinux keeps the runtime from running them, or containers from reading them.",
        "restorecon -R on the toolkit's directory", _label,
    ),
)  # fmt: skip
