"""Checks of the runtime's files: whether the runtime starts on them, and whether they are in force.

Invariant: reads only.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.doctor.check import Check, Severity, Symptom, split
from agent.doctor.node import Node, NotSeen
from agent.errors import reason
from agent.host import writable
from agent.runtimes.desired_state import is_sandbox
from agent.toolkit import programs


def _refused(node: Node) -> Iterator[Symptom]:
    if not node.refused:
        return
    if not node.is_root and "permission denied" in node.refused:
        raise NotSeen(node.refused.partition(";")[0])
    text, remedy = split(node.refused)
    yield Symptom("fault", text.removeprefix("cannot use the configuration: "), remedy=remedy)


def _deadly(node: Node) -> Iterator[Symptom]:
    for defect in node.configured.defects():
        if defect.deadly:
            evidence = f"root file: {node.configured.root.name}"
            yield Symptom("fault", defect.text, (evidence,), defect.remedy)


def _default_missing(node: Node) -> Iterator[Symptom]:
    default, handlers = node.effective.default, node.effective.runtimes
    if default not in handlers:
        text = f"the default runtime is {default}, and there is no such handler"
        known = ", ".join(sorted(handlers)) or "none"
        yield Symptom("fault", text, (f"handlers: {known}", f"files: {', '.join(node.loaded)}"))


def _dormant(node: Node) -> Iterator[Symptom]:
    if node.dormant:
        text = f"the runtime would not come back from a restart: {node.dormant}"
        if not node.unloaded:
            yield Symptom("warning", text)
            return
        evidence = f"{node.unloaded} was changed after the runtime was started"
        yield Symptom("fault", text, (evidence,), f"repair {node.unloaded} before any restart")


def _hazard(node: Node) -> Iterator[Symptom]:
    hazard = node.configured.restart_hazard(node.configured.files)
    if hazard and node.effective.default in node.effective.runtimes:
        text, remedy = split(hazard.later)
        yield Symptom("fault", text, remedy=remedy)


def _unloaded(node: Node) -> Iterator[Symptom]:
    if node.unloaded and not node.dormant:
        text = f"{node.unloaded} was changed after the runtime was started, and is not in force"
        yield Symptom("warning", text)


def _reloaded(node: Node) -> Iterator[Symptom]:
    """CRI-O after a reload: it shows the handlers of the files, but pods get those of its start."""
    running, memory = node.runtime.process, node.report.memory
    if not node.configured.adapter.shows_reloaded or running is None:
        return
    if memory.proven == (node.ctx.boot_id, *running.identity):
        return
    for file in node.changed_files():
        if any(True for _ in node.configured.own_keys(file.data, switch=False)):
            text = f"{file.path.host} was changed after the runtime was started"
            yield Symptom("warning", f"{text}, which may only have reloaded it")
            return


def _nvidia_default(node: Node) -> Iterator[Symptom]:
    if node.nvidia_default and node.native:
        text = "is the default runtime, although the runtime injects CDI devices"
        yield Symptom("warning", f"{node.effective.default} {text}")


def _isolation(node: Node) -> Iterator[Symptom]:
    if node.toolkit.config.variables and node.native:
        default = node.nvidia_default
        pods = "any image" if default else "any pod of NVIDIA's handlers"
        key = "accept-nvidia-visible-devices-envvar-when-unprivileged"
        yield Symptom(
            "warning" if default else "info",
            f"{pods} with NVIDIA_VISIBLE_DEVICES=all gets every GPU",
            (f"{node.toolkit.path} does not have {key} = false",),
        )


def _hooks(node: Node) -> Iterator[Symptom]:
    native = node.native
    for path, program in node.configured.hook_programs({}):
        text = f"the OCI hook {path.host} runs {program}"
        if programs.runs(node.host, program) is None:
            yield Symptom("fault", f"{text}, which is not there")
        elif "nvidia" in program and native:
            yield Symptom("warning", f"{text} beside native CDI")


def _sandbox(node: Node) -> Iterator[Symptom]:
    for name, table in node.effective.runtimes.items():
        if is_sandbox(table) and name.startswith("nvidia"):
            yield Symptom("warning", f"handler {name} is a sandbox, and not NVIDIA's runtime")


def _rendered(node: Node) -> Iterator[Symptom]:
    for path, program, source in node.configured.rendered():
        text = f"{program} writes {path} again at each start"
        severity: Severity = "warning" if node.nvidia_handlers else "info"
        yield Symptom(severity, text, remedy=f"put settings into {source}")


def _locked(node: Node) -> Iterator[Symptom]:
    root = node.configured.root
    try:
        if node.is_root:
            writable.require(writable.Need(root.path.agent))
    except OSError as error:
        yield Symptom(
            "warning", f"{root.name} cannot be written: {reason(error).partition(';')[0]}"
        )


LOADING = (
    Check(
        "config-refused", "The runtime's files can be read",
        "A runtime does not start on files that it cannot read, and nothing can be edited.",
        "repair the named file; the running runtime still uses the settings that it loaded",
        _refused,
    ),
    Check(
        "config-deadly", "The runtime serves the CRI on its files",
        "The node is NotReady after the next start of the runtime.",
        "repair the named file, then restart the runtime", _deadly,
    ),
    Check(
        "config-default", "The default runtime is a handler",
        "The runtime does not serve the CRI, or creates no pod without a runtime class.",
        "add that handler, or make an existing one the default", _default_missing,
    ),
    Check(
        "config-dormant", "The runtime would come back from a restart",
        "The node works until something restarts the runtime.",
        "repair the named cause before any restart", _dormant,
    ),
    Check(
        "spec-crash", "No file stops the runtime at its start",
        "The runtime ends when it reads the file, at every start.",
        "repair or remove the file", _hazard,
    ),
)  # fmt: skip

IN_FORCE = (
    Check(
        "config-unloaded", "The runtime uses the files on disk",
        "The next restart also puts these changes in force.",
        "restart the runtime at a time of your choice, or undo the change", _unloaded,
    ),
    Check(
        "config-reloaded", "The runtime was started on its handlers",
        "The runtime shows new handlers after a reload, and pods are still run by the old ones.",
        "restart the runtime: a reload is not enough", _reloaded,
    ),
    Check(
        "default-nvidia", "NVIDIA's runtime is the default only where it is needed",
        "All pods depend on NVIDIA's runtime, and any image can ask it for GPUs.",
        "`toolkit-agent apply` restores the default", _nvidia_default,
    ),
    Check(
        "isolation", "Containers get only the GPUs that are allocated to them",
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
        "Edits of the file are lost when that program starts again.",
        "edit the source from which the program makes the file", _rendered,
    ),
    Check(
        "host-readonly", "The files can be written",
        "`apply` refuses, and the node cannot be configured.",
        "make the file system writable, or have the runtime load another file (--config); "
        "--no-runtime-config leaves it unchanged", _locked,
    ),
)  # fmt: skip
