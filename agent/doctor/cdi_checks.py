"""Checks of CDI: who injects a device, and whether its spec can be used.

Invariant: pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.decide import CDI_PREFIX, NVIDIA_PREFIX
from agent.doctor.check import Check, Found, Severity
from agent.doctor.facts import Facts, SpecProblem

_FIELD = ("k8s.device-plugin.nvidia.com", "k8s.gpu.nvidia.com")  # these ask by the CRI's field
_NUMBER = re.compile(r"\.so\.(\d+(?:\.\d+){1,3})\b")
_GONE = "missing on the host"


def _asked(facts: Facts) -> tuple[tuple[str, ...], str, str]:
    """Strategy, annotation prefix and who says so: the plugin that runs, else what is published."""
    for plugin in facts.plugins.value or ():
        if plugin.strategy:
            prefix = plugin.prefix or CDI_PREFIX
            return plugin.strategy, prefix, f"the device plugin (process {plugin.pid})"
    agent = facts.agent.value
    lines = agent.published if agent else {}
    strategy = tuple(filter(None, lines.get("DEVICE_LIST_STRATEGY", "").split(",")))
    return strategy, lines.get("CDI_ANNOTATION_PREFIX", CDI_PREFIX), "the published status"


def _switch(facts: Facts) -> Iterator[Found]:
    runtime = facts.runtime.get()
    if runtime.switch != "false":
        return
    strategy, _, source = _asked(facts)
    agent, specs = facts.agent.value, facts.specs.value
    needs = [f"{source} asks by the CRI's field"] if "cdi-cri" in strategy else []
    if agent and agent.published.get("TOOLKIT_NATIVE_CDI") == "true":
        needs.append("the published status says TOOLKIT_NATIVE_CDI=true")
    if specs and any(item[0].startswith(_FIELD) for item in specs.devices):
        needs.append("there are specs of a device plugin or DRA driver")
    if facts.machine.dra:
        needs.append(f"a DRA driver is on this node ({facts.machine.dra})")
    text = f"CDI is switched off in {runtime.title} {runtime.version} (enable_cdi = false)"
    config = facts.config.value
    soon = config is not None and config.enable_cdi is True
    remedy = "restart the runtime: its files switch CDI on by now" if soon else ""
    yield Found("fault" if needs else "warning", text, tuple(needs), remedy)


def _unsupported(facts: Facts) -> Iterator[Found]:
    runtime = facts.runtime.get()
    if runtime.native is False and runtime.switch == "absent":
        text = f"{runtime.title} {runtime.version} knows no CDI"
        injects = facts.config.value is not None and facts.config.value.nvidia_default
        if facts.machine.dra:
            text += ", which the DRA driver on this node needs"
            yield Found("fault", text, (facts.machine.dra,), "upgrade the runtime, or use the "
                        "device plugin on this node")  # fmt: skip
        else:
            yield Found("info" if injects else "warning", text)


def _directories(facts: Facts) -> Iterator[Found]:
    specs, runtime = facts.specs.get(), facts.runtime.value
    if runtime is None or not runtime.native:
        return
    if runtime.spec_dirs == ():
        yield Found("fault", "the runtime reads no directory with specs: cdi_spec_dirs is empty",
                    remedy="remove the key, or name the directories in it")  # fmt: skip
        return
    for name, names in specs.unread:
        text = f"the runtime does not read {name}, and there are specs in it"
        evidence = (f"specs: {', '.join(names[:5])}", f"it reads: {', '.join(specs.directories)}")
        yield Found("fault" if any("nvidia" in n for n in names) else "warning", text, evidence)


def _by_file(problems: list[SpecProblem]) -> Iterator[tuple[SpecProblem, tuple[str, ...]]]:
    """The first problem of each file, and how many more there are."""
    for name in dict.fromkeys(item.file for item in problems):
        mine = [item for item in problems if item.file == name]
        more = f"and {len(mine) - 1} more of this file" if len(mine) > 1 else ""
        yield mine[0], tuple(filter(None, (mine[0].where, more)))


def _kind(problem: SpecProblem) -> str:
    if not problem.error:
        return "doubt"
    if " too, and the runtime takes it from none" in problem.text:
        return "conflict"
    if problem.text.startswith("hook binary"):
        return "hook"
    return "stale" if _GONE in problem.text else "invalid"


def _of_kind(facts: Facts, kind: str) -> list[SpecProblem]:
    return [item for item in facts.specs.get().problems if _kind(item) == kind]


def _conflict(facts: Facts) -> Iterator[Found]:
    for problem, evidence in _by_file(_of_kind(facts, "conflict")):
        yield Found("fault", f"{problem.file}: {problem.text}", evidence, problem.remedy)


def _invalid(facts: Facts) -> Iterator[Found]:
    for problem, evidence in _by_file(_of_kind(facts, "invalid")):
        yield Found("fault", f"{problem.file}: {problem.text}", evidence, problem.remedy)


def _hook(facts: Facts) -> Iterator[Found]:
    for problem, evidence in _by_file(_of_kind(facts, "hook")):
        yield Found("fault", f"{problem.file}: {problem.text}", evidence)


def _stale(facts: Facts) -> Iterator[Found]:
    now = facts.driver.value.library if facts.driver.value else ""
    for problem, evidence in _by_file(_of_kind(facts, "stale")):
        made = next(iter(_NUMBER.findall(problem.text)), "")
        text, remedy = f"{problem.file}: {problem.text}", ""
        if problem.text.startswith("device node"):
            remedy = "`toolkit-agent apply` makes it, and `nvidia-modprobe -u -c=0` too"
        elif problem.writer == "toolkit-agent":
            remedy = "`toolkit-agent apply` writes it anew"
        if made and now and made != now:
            text = f"{problem.file} was made for driver {made}, and driver {now} is installed"
            evidence = (problem.text, *evidence)
        yield Found("fault", text, evidence, remedy)


def _doubt(facts: Facts) -> Iterator[Found]:
    for problem, evidence in _by_file(_of_kind(facts, "doubt")):
        unread = problem.text.startswith("the directory") and facts.machine.root
        severity: Severity = "warning" if unread else "info"
        yield Found(severity, f"{problem.file}: {problem.text}", evidence, problem.remedy)


def _has_device(facts: Facts) -> bool:
    """Can a container have any device of NVIDIA's?"""
    found = facts.specs.get().devices
    return any("nvidia.com/" in name and state == "resolvable" for name, _, _, state, _ in found)


def _misnamed(facts: Facts) -> Iterator[Found]:
    for path in facts.specs.get().misnamed if not _has_device(facts) else ():
        yield Found("warning", f"{path} is a spec, and its name ends in neither .json nor .yaml")


def _open(facts: Facts) -> Iterator[Found]:
    for path in facts.specs.get().open:
        yield Found("fault", f"{path} can be changed by others than root")


def _nri(facts: Facts) -> Iterator[Found]:
    machine, config, toolkit = facts.machine, facts.config.value, facts.toolkit.value
    for name in machine.nri_asked if not machine.nri else ():
        text = f"{name} is to be an NRI plugin, and the runtime has no NRI socket"
        yield Found("fault", text)
    passed = config is not None and config.passes.get(NVIDIA_PREFIX)
    answers = passed and toolkit is not None and NVIDIA_PREFIX in toolkit.prefixes
    if machine.nri and machine.nri_asked and answers:
        text = f"{machine.nri_asked[0]} answers {NVIDIA_PREFIX} by NRI; NVIDIA's handlers do too"
        yield Found("warning", text, remedy="use the NRI plugin without NVIDIA's handlers")
    if machine.nri_plugins:
        names = ", ".join(machine.nri_plugins)
        yield Found("info", f"NRI plugins that start with the runtime change containers: {names}",
                    remedy="look at them where a container has more than it should")  # fmt: skip


def _none(facts: Facts) -> Iterator[Found]:
    specs, config, driver = facts.specs.get(), facts.config.get(), facts.driver.get()
    runtime = facts.runtime.get()
    if not (config.nvidia_handlers and driver.library and runtime.native):
        return
    if not _has_device(facts):
        managed = facts.agent.value is not None and facts.agent.value.managed
        text = f"no CDI spec in {', '.join(specs.directories)} has a device of NVIDIA's"
        yield Found("fault" if managed else "warning", text)


def _nobody(facts: Facts) -> Iterator[Found]:
    runtime, (strategy, prefix, source) = facts.runtime.get(), _asked(facts)
    if not strategy or runtime.native is None:
        return
    said = f"{source}: DEVICE_LIST_STRATEGY={','.join(strategy)}, CDI_ANNOTATION_PREFIX={prefix}"
    if not runtime.native and set(strategy) == {"cdi-cri"}:
        text = "devices are asked for by the CRI's field, which this runtime ignores"
        yield Found("fault", text, (said,), "set DEVICE_LIST_STRATEGY=cdi-annotations")
    if strategy == ("envvar",) and not facts.config.get().nvidia_default:
        hooks = any("nvidia" in program for _, program, _ in facts.config.get().hooks)
        text = "devices are asked for by variable, and NVIDIA's runtime is not the default"
        if not hooks:
            yield Found("fault", text, (said,), "set DEVICE_LIST_STRATEGY=cdi-cri, or make NVIDIA's"
                        " runtime the default")  # fmt: skip
    if "cdi-annotations" in strategy and (unanswered := _unanswered(facts, prefix)):
        why, remedy = unanswered
        severity: Severity = "warning" if "cdi-cri" in strategy and runtime.native else "fault"
        toolkit = facts.toolkit.value
        evidence = (said, f"config: {toolkit.config}") if toolkit else (said,)
        yield Found(severity, f"nobody answers annotations {prefix}: {why}", evidence, remedy)


def _unanswered(facts: Facts, prefix: str) -> tuple[str, str] | None:
    """Why nobody injects devices for an annotation with this prefix, and what to do; None where
    somebody does."""
    native = facts.runtime.get().native
    if not prefix.endswith("/"):
        return "a prefix has to end in a slash", f"set CDI_ANNOTATION_PREFIX={prefix}/"
    if native and prefix == CDI_PREFIX:
        return None
    usual = f"set CDI_ANNOTATION_PREFIX={CDI_PREFIX}" if native else "`toolkit-agent apply`"
    config, toolkit = facts.config.get(), facts.toolkit.get()
    if prefix not in toolkit.prefixes:
        remedy = f"{usual}, or add it to annotation-prefixes in config.toml"
        return "NVIDIA's runtime has another prefix", remedy
    if not config.passes.get(prefix, False):
        remedy = f"{usual}, or add {prefix}* to their container_annotations"
        return "handlers do not pass them on", remedy
    if config.nvidia_default:
        return None
    return "NVIDIA's runtime would, and is not the default", usual


def _twice(facts: Facts) -> Iterator[Found]:
    runtime, config, toolkit = facts.runtime.get(), facts.config.get(), facts.toolkit.get()
    strategy, _, source = _asked(facts)
    passed = config.passes.get(CDI_PREFIX, False)
    if runtime.native and CDI_PREFIX in toolkit.prefixes and passed:
        text = f"annotations {CDI_PREFIX} are answered twice: by the runtime and by NVIDIA's"
        said = f"annotation-prefixes in {toolkit.config} has {CDI_PREFIX}"
        yield Found("warning", text, (said,), f"make it {NVIDIA_PREFIX} there")
    if "envvar" in strategy and any(item.startswith("cdi") for item in strategy):
        text = "devices are asked for by variable and by CDI: pods of NVIDIA's runtime get both"
        yield Found("warning", text, (f"{source}: {','.join(strategy)}",))


def _plugin(facts: Facts) -> Iterator[Found]:
    agent = facts.agent.value
    wanted = agent.published.get("DEVICE_LIST_STRATEGY", "") if agent else ""
    for plugin in facts.plugins.get():
        shown = ",".join(plugin.strategy) or "envvar"
        fits = set(wanted.split(",")) & set(plugin.strategy or ("envvar",))
        if wanted and not fits:
            text = f"the device plugin uses {shown}, and this node needs {wanted}"
            yield Found("fault", text, (f"process {plugin.pid}",))
        root = facts.driver.value.root if facts.driver.value else ""
        by_spec = any(item.startswith("cdi") for item in plugin.strategy)
        if root and by_spec and root != plugin.driver_root:
            text = f"the device plugin has the driver at {plugin.driver_root}, and it is at {root}"
            yield Found("fault", text, (f"process {plugin.pid}",),
                        f"set NVIDIA_DRIVER_ROOT={root}")  # fmt: skip
        if plugin.hook_missing:
            text = f"the device plugin writes the hook {plugin.hook} into specs: it is not there"
            yield Found("fault", text, (f"process {plugin.pid}",),
                        "set NVIDIA_CDI_HOOK_PATH to what the status file says")  # fmt: skip


CHECKS = (
    Check(
        "cdi-off", "CDI is switched on in the runtime",
        "Devices that a device plugin or a DRA driver asks for are left out without a word.",
        "`toolkit-agent apply`, or set enable_cdi = true and restart the runtime", _switch,
    ),
    Check(
        "cdi-directories", "The runtime reads the directories with specs",
        'Containers fail with "unresolvable CDI devices".',
        "add the directory to cdi_spec_dirs, or have the specs written to one that is read "
        "(--cdi-output-dir)", _directories,
    ),
    Check(
        "spec-invalid", "Specs can be read by this runtime",
        "The runtime takes nothing from the file, and its devices do not exist.",
        "write the file anew, or remove it", _invalid,
    ),
    Check(
        "spec-conflict", "No device is defined twice in a directory",
        "The runtime takes such a device from neither file.",
        "remove one of the files", _conflict,
    ),
    Check(
        "spec-stale", "Specs name what the host has",
        "Containers with the device are not created: the driver was changed since.",
        "write the spec anew (nvidia-ctk cdi generate), or remove it and run `toolkit-agent apply`",
        _stale,
    ),
    Check(
        "spec-hook", "Hooks of specs are there",
        "Containers with the device are not started.",
        "install NVIDIA's toolkit where the spec names it, or write the spec anew", _hook,
    ),
    Check(
        "spec-open", "Only root can write specs",
        "Whoever can write a spec is root on the node: the runtime runs its hooks.",
        "chown root: and chmod go-w it, after a look at what it says", _open,
    ),
    Check(
        "spec-name", "Specs have names that runtimes read",
        "The runtime passes the file over, and its devices do not exist.",
        "rename it to end in .yaml", _misnamed,
    ),
    Check(
        "spec-none", "There are specs for NVIDIA's devices",
        'Containers that ask for a device fail: "unresolvable CDI devices".',
        "`toolkit-agent apply` writes them", _none,
    ),
    Check(
        "cdi-nobody", "Somebody answers what the device plugin asks for",
        "Pods start without their GPU, and nothing fails.",
        "give the device plugin what the status file says (DEVICE_LIST_STRATEGY, "
        "CDI_ANNOTATION_PREFIX)", _nobody,
    ),
    Check(
        "plugin-strategy", "The device plugin fits the node",
        "Pods start without their GPU, or not at all.",
        "have the plugin read the status file, see deploy/README.md", _plugin,
    ),
    Check(
        "cdi-twice", "Devices are injected once",
        "A device is injected twice, or a container gets more GPUs than it asked for.",
        "use one strategy", _twice,
    ),
    Check(
        "nri", "NRI plugins and NVIDIA's handlers agree",
        "A pod gets no device, or gets it twice.",
        "switch NRI on in the runtime, or the plugin off (ENABLE_NRI_PLUGIN)", _nri,
    ),
    Check(
        "cdi-unsupported", "The runtime knows CDI",
        "DRA does not work on this node, and the device plugin needs annotations.",
        "upgrade the runtime; until then `toolkit-agent apply` has NVIDIA's runtime inject",
        _unsupported,
    ),
    Check(
        "spec-doubt", "Specs could be judged",
        "Not everything in the file was looked at.", "look at the file", _doubt,
    ),
)  # fmt: skip
