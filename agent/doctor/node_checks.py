"""Checks of the driver, of the machine, and of changes by this agent and by other tools.

Invariant: reads only.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

from agent import status
from agent.doctor.check import Check, Severity, Symptom, split
from agent.doctor.node import Node
from agent.doctor.surroundings import text
from agent.errors import NoDriver, NoToolkit, Refused
from agent.host import budget, trust

_ENFORCE = "/sys/fs/selinux/enforce"


def _driver(node: Node) -> Iterator[Symptom]:
    driver = node.driver
    if not driver.problem:
        return
    words, remedy = split(driver.problem)
    remedy = remedy.partition(";")[0]
    words = words.removeprefix("cannot make a CDI spec: ")
    if driver.platform:
        remedy = f"{driver.platform} needs specs of its own kind (`cdi generate --mode`)"
        yield Symptom("warning", words, remedy=remedy)
    elif driver.gpus:
        yield Symptom("fault", words, (f"{driver.gpus} NVIDIA GPUs on the PCI bus",), remedy)
    else:
        yield Symptom("info", words, ("no NVIDIA GPU on the PCI bus",), remedy)


def _module(node: Node) -> Iterator[Symptom]:
    driver = node.driver
    if driver.platform:
        return
    if driver.other:
        words = f"another driver holds the GPUs: {driver.other}"
        yield Symptom("fault" if driver.other == "nouveau" else "info", words)
    elif driver.gpus and driver.library and not driver.module:
        yield Symptom(
            "fault", f"driver {driver.library} is installed, and its module is not loaded"
        )


def _mismatch(node: Node) -> Iterator[Symptom]:
    module, library = node.driver.module, node.driver.library
    if module and library and module != library:
        yield Symptom(
            "fault", f"the kernel module has version {module}, and the libraries {library}"
        )


def _nodes(node: Node) -> Iterator[Symptom]:
    if missing := ", ".join(node.driver.missing_nodes):
        yield Symptom("fault", f"missing device nodes: {missing}")


def _failed(node: Node) -> Iterator[Symptom]:
    failed, error = node.report.failed, node.report.error
    if failed:
        yield Symptom("fault", f"the last change failed and was undone: {failed}")
    elif error:
        yield Symptom("warning", f"the last run of the agent failed: {error}")


def _unfinished(node: Node) -> Iterator[Symptom]:
    if node.report.unfinished:
        yield Symptom("fault", f"a change is not finished: {node.report.unfinished}")


def _refuses(node: Node) -> Iterator[Symptom]:
    problem = node.report.problem
    if problem is None or node.refused or node.error:  # other checks report these
        return
    words, remedy = split(problem.message)
    if node.managed and not isinstance(problem, NoToolkit | NoDriver):
        yield Symptom("fault", words, remedy=remedy)
    else:
        yield Symptom("info", f"apply would refuse: {words}", remedy=remedy)


def _drift(node: Node) -> Iterator[Symptom]:
    report = node.report
    if node.managed and report.drift:
        first, *rest = report.drift
        runs = any(item.startswith("running runtime:") for item in report.drift)
        gone = any(not spec.file for spec in report.specs)
        severity: Severity = "fault" if runs or gone else "warning"
        yield Symptom(severity, f"the node drifted: {first}", tuple(rest[:5]))


def _stale(node: Node) -> Iterator[Symptom]:
    problem = node.report.not_published or ""
    if problem and not problem.endswith(status.NOT_PUBLISHED):
        words, remedy = split(problem)
        yield Symptom("fault" if node.managed else "warning", words, remedy=remedy)
    elif node.report.published and (barrier := _barrier(node)):
        words, remedy = split(barrier)
        yield Symptom("fault", words, remedy=remedy)


def _barrier(node: Node) -> str:
    """The problem of the file `toolkit-ready`, while its twin is right; "" if there is none."""
    directory = node.ctx.publisher.directory
    path, twin = (os.path.join(directory, name) for name in (status.READY, status.TWIN))
    read = functools.partial(
        trust.read_file, node.host, limit=budget.STATUS_FILE.size, allow_sticky=True, links=False
    )
    try:
        found, expected = read(path)[1], read(twin)[1]
    except (Refused, OSError) as error:
        return str(error)
    if found is None:
        return f"cannot read {path}: it is not there, although {status.TWIN} is"
    same = expected is not None and found.data == expected.data
    return "" if same else f"{path} differs from {status.TWIN}"


def _unpublished(node: Node) -> Iterator[Symptom]:
    problem = node.report.not_published or ""
    if node.managed and problem.endswith(status.NOT_PUBLISHED):
        words = "the agent changed this node, and no decision is published"
        yield Symptom("fault", words, (problem,))
    elif not node.managed:
        yield Symptom("info", "this node was never configured by toolkit-agent")


def _left_over(node: Node) -> Iterator[Symptom]:
    for item in node.report.left_over_files:
        words = f"{item.path} ({item.what}) is left over: another toolkit took over"
        yield Symptom("warning", words, remedy=f"`{item.remedy}`")


def _installer(node: Node) -> Iterator[Symptom]:
    if found := ", ".join(node.installers.values()):
        words = f"another installer is running: {found}"
        yield Symptom("fault" if node.managed else "info", words)


def _label(node: Node) -> Iterator[Symptom]:
    toolkit = node.toolkit
    if text(node.host, _ENFORCE, 256) == "1":
        named = (path for name in node.nvidia_handlers for path in node.programs(name))
        if not all(_has_label(node, path) for path in named if path.startswith("/")):
            words = "SELinux is enforcing, and programs of the toolkit have no label"
            yield Symptom("fault", words, (f"beside {toolkit.path}",))


def _has_label(node: Node, path: str) -> bool:
    """Has a program an SELinux label? A missing program counts as labelled."""
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
        "correct the cause (see the runtime's log), then `toolkit-agent apply --retry`", _failed,
    ),
    Check(
        "driver-module", "NVIDIA's module drives the GPUs",
        "Without the module no container gets a GPU.",
        "load it (`nvidia-modprobe -u`); blacklist nouveau, and reboot the node", _module,
    ),
    Check(
        "driver-mismatch", "Module and libraries of the driver have one version",
        'Every GPU program fails with "Driver/library version mismatch".',
        "reload the module, or reboot the node", _mismatch,
    ),
    Check(
        "driver", "There is a driver",
        "No CDI spec can be made, and no container gets a GPU.",
        "install NVIDIA's driver, or give --driver-root", _driver,
    ),
    Check(
        "driver-nodes", "The driver's device nodes exist",
        "Containers with a GPU are not created.",
        "run `toolkit-agent apply` or `nvidia-modprobe -u -c=0`", _nodes,
    ),
    Check(
        "agent-refuses", "Nothing prevents `apply`",
        "The agent does not change the node.",
        "follow the remedy in the error", _refuses,
    ),
    Check(
        "status-stale", "The status file is valid",
        "Device plugins that wait for it do not start, or use an outdated decision.",
        "`toolkit-agent apply` writes it again", _stale,
    ),
    Check(
        "status-missing", "The decision is published",
        "Device plugins that wait for it do not start.",
        "`toolkit-agent apply`", _unpublished,
    ),
    Check(
        "agent-drift", "The node is as the agent left it",
        "Files or the runtime have changed since the last `apply`.",
        "`toolkit-agent apply` restores that state (`plan` shows the changes)", _drift,
    ),
    Check(
        "installer", "One installer configures the node",
        "Two installers overwrite each other's files, and restart the runtime in turn.",
        "remove the other toolkit's DaemonSet (gpu-operator: toolkit.enabled=false)", _installer,
    ),
    Check(
        "left-over", "No unused file of this agent is left after another toolkit took over",
        "Unused files can contradict the other toolkit's files.",
        "`toolkit-agent revert --keep-edits --toolkit`", _left_over,
    ),
    Check(
        "selinux", "The toolkit's programs have an SELinux label",
        "SELinux keeps the runtime from running them, or containers from reading them.",
        "restorecon -R on the toolkit's directory", _label,
    ),
)  # fmt: skip
