"""Checks of the runtime's files: whether they load, who wins, and what their handlers name.

Invariant: pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.decide import MODES_WITHOUT_CDI
from agent.doctor.check import Check, Found, Severity
from agent.doctor.facts import MISSING, Facts, NotSeen
from agent.doctor.runtime_checks import split
from agent.toolkit.programs import is_nvidia

_MODES = ("auto", "cdi", *MODES_WITHOUT_CDI)  # that nvidia-container-runtime knows


def _refused(facts: Facts) -> Iterator[Found]:
    if not facts.refused:
        return
    if not facts.machine.root and "permission denied" in facts.refused:
        raise NotSeen(facts.refused.partition(";")[0])
    text, remedy = split(facts.refused)
    yield Found("fault", text.removeprefix("cannot use the configuration: "), remedy=remedy)


def _deadly(facts: Facts) -> Iterator[Found]:
    config = facts.config.get()
    for defect in config.defects:
        if defect.deadly:
            yield Found("fault", defect.text, (f"root file: {config.root}",), defect.remedy)


def _dormant(facts: Facts) -> Iterator[Found]:
    config = facts.config.get()
    if config.dormant:
        text = f"the runtime would not come back from a restart: {config.dormant}"
        if not config.unloaded:
            yield Found("warning", text)
            return
        evidence = f"{config.unloaded} was changed after the runtime was started"
        yield Found("fault", text, (evidence,), f"repair {config.unloaded} before any restart")


def _default_missing(facts: Facts) -> Iterator[Found]:
    config = facts.config.get()
    if config.default not in config.handlers:
        text = f"the default runtime is {config.default}, and there is no such handler"
        known = ", ".join(sorted(config.handlers)) or "none"
        yield Found("fault", text, (f"handlers: {known}", f"files: {', '.join(config.files)}"))


def _hazard(facts: Facts) -> Iterator[Found]:
    config = facts.config.get()
    if config.hazard and config.default in config.handlers:
        text, remedy = split(config.hazard[1])
        yield Found("fault", text, remedy=remedy)


def _binary(facts: Facts) -> Iterator[Found]:
    config = facts.config.get()
    for handler in config.handlers.values():
        for path, why in handler.missing:
            used = handler.nvidia or handler.name == config.default
            text = f"handler {handler.name} runs {why}: {path}"
            if why == MISSING:
                text = f"handler {handler.name} runs {path}, which is not there"
            yield Found("fault" if used else "warning", text)


def _program(facts: Facts) -> Iterator[Found]:
    for handler in facts.config.get().nvidia_handlers:
        if handler.programs and not any(map(is_nvidia, handler.programs)):
            named = " and ".join(handler.programs)
            yield Found("fault", f"handler {handler.name} runs {named}: not NVIDIA's runtime")
        elif not handler.programs:
            yield Found("fault", f"handler {handler.name} names no program, and runs ordinary pods")


def _defect(facts: Facts) -> Iterator[Found]:
    for defect in facts.config.get().defects:
        if not defect.deadly:
            yield Found("fault" if defect.harmful else "warning", defect.text,
                        remedy=defect.remedy)  # fmt: skip


def _cgroups(facts: Facts) -> Iterator[Found]:
    config, kubelet = facts.config.get(), facts.kubelet.get()
    if not kubelet.cgroups:
        return
    wrong = [
        item.name
        for item in config.handlers.values()
        if item.cgroups and item.cgroups != kubelet.cgroups
        and (item.nvidia or item.name == config.default)
    ]  # fmt: skip
    if wrong:
        names, driver = ", ".join(wrong), config.handlers[wrong[0]].cgroups
        text = f"the kubelet makes cgroups by {kubelet.cgroups}, and handler {names} by {driver}"
        evidence = [f"cgroupDriver in {kubelet.cgroups_source}"]
        asked = facts.runtime.get().tells_cgroups and config.default in wrong
        if asked:
            evidence.append("a kubelet of 1.31 or later asks the runtime instead of that setting")
        yield Found("warning" if asked else "fault", text, tuple(evidence))


def _stray(facts: Facts) -> Iterator[Found]:
    config = facts.config.get()
    managed = facts.agent.value is not None and facts.agent.value.managed
    for path, nvidia in config.strays:
        text = f"{path} is there, and the runtime does not load it"
        ours = managed and path == config.drop_in
        remedy = "`toolkit-agent apply` has it loaded again" if ours else ""
        if nvidia:
            evidence = f"the runtime loads: {', '.join(config.files) or 'no file'}"
            severity: Severity = "warning" if config.nvidia_handlers else "fault"
            yield Found(severity, text, (evidence,), remedy)
        else:
            yield Found("info", text)
    for path in config.aside if not config.nvidia_handlers else ():
        yield Found("warning", f"{path} is there, and the runtime does not load it")


def _lost(facts: Facts) -> Iterator[Found]:
    config = facts.config.get()
    for name, file, table in config.lost:
        evidence = (
            f"the runtime does not take [{table}] from it",
            *(d.text for d in config.defects),
        )
        yield Found(
            "warning" if config.nvidia_handlers else "fault",
            f"handler {name} in {file} has no effect", evidence[:2],
        )  # fmt: skip


def _handler_missing(facts: Facts) -> Iterator[Found]:
    config, runtime = facts.config.get(), facts.runtime.get()
    ours = {item.name for item in config.nvidia_handlers}
    if lacking := sorted(ours - set(runtime.handlers)):
        text = f"handler {', '.join(lacking)} is in the files, and the running runtime has none"
        shown = f"it shows: {', '.join(runtime.handlers) or 'no handler'}"
        yield Found("fault", text, (shown,), "restart the runtime: it read its files before")
    elif not ours and facts.agent.get().managed:
        yield Found("fault", 'no handler of NVIDIA\'s is configured ("no runtime for nvidia")')
    elif not ours:
        yield Found("info", "no handler of NVIDIA's is configured: pods with a runtime class fail")


def _overridden(facts: Facts) -> Iterator[Found]:
    for key, file, later in facts.config.get().overrides:
        yield Found("fault", f"{later} is read after {file}, and sets {key} to something else",
                    remedy=f"remove the key from {later}")  # fmt: skip


def _unloaded(facts: Facts) -> Iterator[Found]:
    config = facts.config.get()
    if config.unloaded and not config.dormant:
        text = f"{config.unloaded} was changed after the runtime was started, and is not what runs"
        yield Found("warning", text)


def _reloaded(facts: Facts) -> Iterator[Found]:
    config = facts.config.get()
    if config.reloaded:
        text = f"{config.reloaded} was changed after the runtime was started"
        yield Found("warning", f"{text}, which may only have reloaded it")


def _rendered(facts: Facts) -> Iterator[Found]:
    config = facts.config.get()
    for path, program, source in config.rendered:
        text = f"{program} writes {path} anew at each start"
        severity: Severity = "warning" if config.nvidia_handlers else "info"
        yield Found(severity, text, remedy=f"put settings into {source}")


def _nvidia_default(facts: Facts) -> Iterator[Found]:
    config, runtime = facts.config.get(), facts.runtime.get()
    if config.nvidia_default and runtime.native:
        text = f"{config.default} is the default runtime, although the runtime injects CDI devices"
        yield Found("warning", text)


def _isolation(facts: Facts) -> Iterator[Found]:
    config, runtime, toolkit = facts.config.get(), facts.runtime.get(), facts.toolkit.get()
    if toolkit.variables and runtime.native:
        who = "any image" if config.nvidia_default else "any pod of NVIDIA's handlers"
        text = f"{who} with NVIDIA_VISIBLE_DEVICES=all gets every GPU"
        key = "accept-nvidia-visible-devices-envvar-when-unprivileged"
        severity: Severity = "warning" if config.nvidia_default else "info"
        yield Found(severity, text, (f"{toolkit.config} does not have {key} = false",))


def _calls(facts: Facts) -> Iterator[Found]:
    toolkit = facts.toolkit.get()
    if not toolkit.callable:
        named = ", ".join(toolkit.calls)
        text = f"NVIDIA's runtime finds none of the low-level runtimes that it tries: {named}"
        # A name alone may be in the PATH of the runtime (k3s brings its own runc).
        severity: Severity = "fault" if any("/" in path for path in toolkit.calls) else "warning"
        yield Found(severity, text, (f"runtimes in {toolkit.config}",))


def _settings(facts: Facts) -> Iterator[Found]:
    toolkit = facts.toolkit.get()
    platform = facts.driver.value.platform if facts.driver.value else ""
    if toolkit.broken:
        text, remedy = split(toolkit.broken)
        yield Found("fault", text, ("NVIDIA's runtime reads this file for each container",), remedy)
    elif toolkit.mode not in _MODES:
        text = f"{toolkit.config} has the mode {toolkit.mode}, which NVIDIA's runtime does not know"
        yield Found("fault", text, remedy="make it auto")
    elif toolkit.mode == "csv" and platform != "Tegra":
        text = f"{toolkit.config} has the mode csv, and this is no Tegra"
        yield Found("fault", text, remedy="make it auto")
    severity: Severity = "fault" if toolkit.mode == "legacy" else "warning"
    for key, path in toolkit.absent if toolkit.mode != "cdi" else ():  # which uses none of them
        text = f"{key} of NVIDIA's runtime is {path}, which is not there"
        yield Found(severity, text, (f"in {toolkit.config}",))
    if toolkit.no_cgroups and toolkit.mode in ("auto", "legacy"):
        text = f"{toolkit.config} has no-cgroups = true: containers may not open their GPUs"
        yield Found(severity, text, remedy="make nvidia-container-cli.no-cgroups false there")


def _locked(facts: Facts) -> Iterator[Found]:
    config = facts.config.get()
    if config.locked:
        text = f"{config.root} cannot be written: {config.locked.partition(';')[0]}"
        yield Found("warning", text)


def _sandbox(facts: Facts) -> Iterator[Found]:
    for handler in facts.config.get().handlers.values():
        if handler.sandbox and handler.name.startswith("nvidia"):
            yield Found("warning", f"handler {handler.name} is a sandbox, and not NVIDIA's runtime")


def _hooks(facts: Facts) -> Iterator[Found]:
    config, runtime = facts.config.get(), facts.runtime.get()
    for path, program, there in config.hooks:
        if not there:
            yield Found("fault", f"the OCI hook {path} runs {program}, which is not there")
        elif "nvidia" in program and runtime.native:
            yield Found("warning", f"the OCI hook {path} runs {program} beside native CDI")


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

HANDLERS = (
    Check(
        "handler-defect", "Handlers can run pods, and files say one thing",
        "Status and dump look well; pods of the handler fail, or settings are not read.",
        "correct the table of the handler", _defect,
    ),
    Check(
        "config-override", "No later file has another word",
        "The file that is read last wins, and NVIDIA's settings are not in force.",
        "remove the key from the later file", _overridden,
    ),
    Check(
        "handler-program", "Handlers called nvidia run NVIDIA's runtime",
        "Pods of the handler start without a GPU, and nothing fails.",
        "correct BinaryName (runtime_path) in the file that is read last, or run "
        "`toolkit-agent apply`", _program,
    ),
    Check(
        "handler-binary", "The programs of handlers are there",
        "The runtime lists the handler all the same; each of its pods fails.",
        "install the program (NVIDIA's: `toolkit-agent apply`), or correct the path", _binary,
    ),
    Check(
        "toolkit-config", "NVIDIA's runtime can use its config.toml",
        "Containers of its handlers fail, or start without their GPU.",
        "correct the key, or run `toolkit-agent apply` to have a toolkit of its own", _settings,
    ),
    Check(
        "toolkit-calls", "NVIDIA's runtime finds runc or crun",
        'Each pod of its handlers fails: "no runtime binary found from candidate list".',
        "give the whole path of runc or crun in that list, or run `toolkit-agent apply`", _calls,
    ),
    Check(
        "handler-cgroup", "Handlers and kubelet use the same cgroup driver",
        "systemd and the runtime both manage the cgroups, and containers are killed at random.",
        "set SystemdCgroup in the options of the handlers to what the kubelet's cgroupDriver says",
        _cgroups,
    ),
    Check(
        "config-import", "Drop-ins are loaded",
        "The handlers in the file do not exist for the runtime.",
        "import the directory in the root file (imports), or move the file to one that is loaded",
        _stray,
    ),
    Check(
        "handler-lost", "Handlers stand in a section that the runtime reads",
        'Pods with the runtime class fail: "no runtime for nvidia is configured".',
        "move the table to the section that this version reads, in the file that is read last, or "
        "run `toolkit-agent apply`", _lost,
    ),
    Check(
        "handler-missing", "The running runtime has NVIDIA's handler",
        'Pods with the runtime class fail: "no runtime for nvidia is configured".',
        "`toolkit-agent apply`", _handler_missing,
    ),
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
