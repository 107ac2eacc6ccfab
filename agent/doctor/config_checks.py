"""Checks of the runtime's files: whether it starts on them, and whether they are in force.

Invariant: reads only.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.doctor.check import Check, Found, Severity, split
from agent.doctor.node import Node, NotSeen
from agent.errors import reason
from agent.host import writable
from agent.runtimes.desired_state import is_sandbox
from agent.toolkit import programs


def _refused(node: Node) -> Iterator[Found]:
    if not node.refused:
        return
    if not node.is_root and "permission denied" in node.refused:
        raise NotSeen(node.refused.partition(";")[0])
    text, remedy = split(node.refused)
    yield Found("fault", text.removeprefix("cannot use the configuration: "), remedy=remedy)


def _deadly(node: Node) -> Iterator[Found]:
    for defect in node.configured.defects():
        if defect.deadly:
            evidence = f"root file: {node.configured.root.name}"
            yield Found("fault", defect.text, (evidence,), defect.remedy)


def _default_missing(node: Node) -> Iterator[Found]:
    default, handlers = node.effective.default, node.effective.runtimes
    if default not in handlers:
        text = f"the default runtime is {default}, and there is no such handler"
        known = ", ".join(sorted(handlers)) or "none"
        yield Found("fault", text, (f"handlers: {known}", f"files: {', '.join(node.loaded)}"))


def _dormant(node: Node) -> Iterator[Found]:
    if node.dormant:
        text = f"the runtime would not come back from a restart: {node.dormant}"
        if not node.unloaded:
            yield Found("warning", text)
            return
        evidence = f"{node.unloaded} was changed after the runtime was started"
        yield Found("fault", text, (evidence,), f"repair {node.unloaded} before any restart")


def _hazard(node: Node) -> Iterator[Found]:
    hazard = node.configured.restart_hazard(node.configured.files)
    if hazard and node.effective.default in node.effective.runtimes:
        text, remedy = split(hazard.later)
        yield Found("fault", text, remedy=remedy)


def _unloaded(node: Node) -> Iterator[Found]:
    if node.unloaded and not node.dormant:
        text = f"{node.unloaded} was changed after the runtime was started, and is not what runs"
        yield Found("warning", text)


def _reloaded(node: Node) -> Iterator[Found]:
    """A runtime that has only reloaded a file shows its handlers, and pods get what it had at its
    start."""
    running, memory = node.runtime.process, node.report.memory
    if not node.configured.adapter.shows_reloaded or running is None:
        return
    if memory.proven == (node.ctx.boot_id, *running.identity):
        return
    for file in node.changed_files():
        if any(True for _ in node.configured.own_keys(file.data, switch=False)):
            text = f"{file.path.host} was changed after the runtime was started"
            yield Found("warning", f"{text}, which may only have reloaded it")
            return


def _nvidia_default(node: Node) -> Iterator[Found]:
    if node.nvidia_default and node.native:
        text = "is the default runtime, although the runtime injects CDI devices"
        yield Found("warning", f"{node.effective.default} {text}")


def _isolation(node: Node) -> Iterator[Found]:
    if node.toolkit.config.variables and node.native:
        default = node.nvidia_default
        pods = "any image" if default else "any pod of NVIDIA's handlers"
        key = "accept-nvidia-visible-devices-envvar-when-unprivileged"
        yield Found(
            "warning" if default else "info",
            f"{pods} with NVIDIA_VISIBLE_DEVICES=all gets every GPU",
            (f"{node.toolkit.path} does not have {key} = false",),
        )


def _hooks(node: Node) -> Iterator[Found]:
    native = node.native
    for path, program in node.configured.hook_programs({}):
        text = f"the OCI hook {path.host} runs {program}"
        if programs.runs(node.host, program) is None:
            yield Found("fault", f"{text}, which is not there")
        elif "nvidia" in program and native:
            yield Found("warning", f"{text} beside native CDI")


def _sandbox(node: Node) -> Iterator[Found]:
    for name, table in node.effective.runtimes.items():
        if is_sandbox(table) and name.startswith("nvidia"):
            yield Found("warning", f"handler {name} is a sandbox, and not NVIDIA's runtime")


def _rendered(node: Node) -> Iterator[Found]:
    for path, program, source in node.configured.rendered():
        text = f"{program} writes {path} anew at each start"
        severity: Severity = "warning" if node.nvidia_handlers else "info"
        yield Found(severity, text, remedy=f"put settings into {source}")


def _locked(node: Node) -> Iterator[Found]:
    root = node.configured.root
    try:
        if node.is_root:
            writable.require(writable.Need(root.path.agent))
    except OSError as error:
        yield Found("warning", f"{root.name} cannot be written: {reason(error).partition(';')[0]}")


LOADING = (
    Check(
        "config-refused", "The runtime's files can be read",
        "A runtime does not start on files that it cannot read, and nothing can be edited.",
        "repair the file that is named; the running runtime still uses what it loaded", _refused,
    ),
    Check(
        "config-deadly", "The runtime serves the CRI on its files",
        "The node is NotReady after the next start of the runtime.",
        "repair the file that is named, then restart the runtime", _deadly,
    ),
    Check(
        "config-default", "The default runtime is a handler",
        "The runtime does not serve the CRI, or creates no pod without a runtime class.",
        "add that handler, or name one that is there as the default", _default_missing,
    ),
    Check(
        "config-dormant", "The runtime would come back from a restart",
        "The node works until something restarts the runtime.",
        "repair what the reason names before any restart", _dormant,
    ),
    Check(
        "spec-crash", "No file ends the runtime at its start",
        "The runtime ends as soon as it reads the file, at each start again.",
        "repair or remove the file", _hazard,
    ),
)  # fmt: skip

IN_FORCE = (
    Check(
        "config-unloaded", "What is on disk is what runs",
        "A restart changes more than it seems.",
        "restart the runtime at a time of your choice, or take the change back", _unloaded,
    ),
    Check(
        "config-reloaded", "The runtime was started on its handlers",
        "The runtime shows new handlers after a reload, and pods are still run by the old ones.",
        "restart the runtime: a reload is not enough", _reloaded,
    ),
    Check(
        "default-nvidia", "NVIDIA's runtime is the default only where it is needed",
        "All pods depend on NVIDIA's runtime, and any image can ask it for GPUs.",
        "`toolkit-agent apply` takes the default back", _nvidia_default,
    ),
    Check(
        "isolation", "Only who was given a GPU can use it",
        "A container takes GPUs of others, and the scheduler does not know it.",
        "`toolkit-agent apply`, or set that key to false", _isolation,
    ),
    Check(
        "hook-foreign", "No OCI hook injects beside CDI",
        "The hook is run for every container: it injects GPUs twice, or containers fail.",
        "remove the file of the hook, or install its program", _hooks,
    ),
    Check(
        "handler-sandbox", "A handler called nvidia is NVIDIA's",
        "The agent leaves such a handler alone, and pods of the class get no GPU by it.",
        "rename the sandbox, or give another --runtime-name", _sandbox,
    ),
    Check(
        "config-rendered", "No other program writes the files",
        "What is edited there is gone with the next start of that program.",
        "put settings into the place that the program makes the file from", _rendered,
    ),
    Check(
        "host-readonly", "The files can be written",
        "`apply` refuses, and the node cannot be configured.",
        "make the file system writable, or have the runtime load another file (--config); with "
        "--no-runtime-config nothing of it is changed", _locked,
    ),
)  # fmt: skip
