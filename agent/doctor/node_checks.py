"""Checks of the driver, of the machine, and of what this agent and others did to the node.

Invariant: reads only.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

from agent import status
from agent.doctor.check import Check, Found, Severity, split
from agent.doctor.node import Node
from agent.doctor.surroundings import text
from agent.errors import NoDriver, NoToolkit, Refused
from agent.host import budget, trust

_ENFORCE = "/sys/fs/selinux/enforce"


def _driver(node: Node) -> Iterator[Found]:
    driver = node.driver
    if not driver.problem:
        return
    words, remedy = split(driver.problem)
    remedy = remedy.partition(";")[0]
    words = words.removeprefix("cannot make a CDI spec: ")
    if driver.platform:
        remedy = f"{driver.platform} needs specs of its own kind (`cdi generate --mode`)"
        yield Found("warning", words, remedy=remedy)
    elif driver.gpus:
        yield Found("fault", words, (f"{driver.gpus} NVIDIA GPUs on the PCI bus",), remedy)
    else:
        yield Found("info", words, ("no NVIDIA GPU on the PCI bus",), remedy)


def _module(node: Node) -> Iterator[Found]:
    driver = node.driver
    if driver.platform:
        return
    if driver.other:
        words = f"another driver holds the GPUs: {driver.other}"
        yield Found("fault" if driver.other == "nouveau" else "info", words)
    elif driver.gpus and driver.library and not driver.module:
        yield Found("fault", f"driver {driver.library} is installed, and its module is not loaded")


def _mismatch(node: Node) -> Iterator[Found]:
    module, library = node.driver.module, node.driver.library
    if module and library and module != library:
        yield Found("fault", f"the module is of driver {module}, and the libraries are {library}")


def _nodes(node: Node) -> Iterator[Found]:
    if missing := ", ".join(node.driver.missing_nodes):
        yield Found("fault", f"missing device nodes: {missing}")


def _failed(node: Node) -> Iterator[Found]:
    failed, error = node.report.failed, node.report.error
    if failed:
        yield Found("fault", f"the last change failed and was undone: {failed}")
    elif error:
        yield Found("warning", f"the last run of the agent failed: {error}")


def _unfinished(node: Node) -> Iterator[Found]:
    if node.report.unfinished:
        yield Found("fault", f"a change is not finished: {node.report.unfinished}")


def _refuses(node: Node) -> Iterator[Found]:
    problem = node.report.problem
    if problem is None or node.refused or node.error:  # other checks name it
        return
    words, remedy = split(problem.message)
    if node.managed and not isinstance(problem, NoToolkit | NoDriver):
        yield Found("fault", words, remedy=remedy)
    else:
        yield Found("info", f"apply would refuse: {words}", remedy=remedy)


def _drift(node: Node) -> Iterator[Found]:
    report = node.report
    if node.managed and report.drift:
        first, *rest = report.drift
        runs = any(item.startswith("running runtime:") for item in report.drift)
        gone = any(not spec.file for spec in report.specs)
        severity: Severity = "fault" if runs or gone else "warning"
        yield Found(severity, f"the node drifted: {first}", tuple(rest[:5]))


def _stale(node: Node) -> Iterator[Found]:
    problem = node.report.not_published or ""
    if problem and not problem.endswith(status.NOT_PUBLISHED):
        words, remedy = split(problem)
        yield Found("fault" if node.managed else "warning", words, remedy=remedy)
    elif node.report.published and (barrier := _barrier(node)):
        words, remedy = split(barrier)
        yield Found("fault", words, remedy=remedy)


def _barrier(node: Node) -> str:
    """What is wrong with the barrier, if its twin is right."""
    directory = node.ctx.publisher.directory
    path, twin = (os.path.join(directory, name) for name in (status.READY, status.TWIN))
    read = functools.partial(
        trust.read_file, node.host, limit=budget.STATUS_FILE.size, allow_sticky=True, links=False
    )
    try:
        found, right = read(path)[1], read(twin)[1]
    except (Refused, OSError) as error:
        return str(error)
    if found is None:
        return f"cannot read {path}: it is not there, although {status.TWIN} is"
    same = right is not None and found.data == right.data
    return "" if same else f"{path} does not say what {status.TWIN} says"


def _unpublished(node: Node) -> Iterator[Found]:
    problem = node.report.not_published or ""
    if node.managed and problem.endswith(status.NOT_PUBLISHED):
        words = "the agent changed this node, and no decision is published"
        yield Found("fault", words, (problem,))
    elif not node.managed:
        yield Found("info", "this node was never configured by toolkit-agent")


def _left(node: Node) -> Iterator[Found]:
    for item in node.report.left_over_files:
        words = f"{item.path} ({item.what}) is left over: another toolkit took over"
        yield Found("warning", words, remedy=f"`{item.remedy}`")


def _installer(node: Node) -> Iterator[Found]:
    if found := ", ".join(node.installers.values()):
        words = f"another installer is at work: {found}"
        yield Found("fault" if node.managed else "info", words)


def _label(node: Node) -> Iterator[Found]:
    toolkit = node.toolkit
    if text(node.host, _ENFORCE, 256) == "1":
        named = (path for name in node.nvidia_handlers for path in node.programs(name))
        if not all(_has_label(node, path) for path in named if path.startswith("/")):
            words = "SELinux is enforcing, and programs of the toolkit have no label"
            yield Found("fault", words, (f"beside {toolkit.path}",))


def _has_label(node: Node, path: str) -> bool:
    """Has a program a label of its own? One that is not there lacks none."""
    try:
        label = os.getxattr(node.host.resolve(path).agent, "security.selinux")
    except FileNotFoundError:
        return True
    except (OSError, Refused):
        return False
    return b"unlabeled_t" not in label


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
