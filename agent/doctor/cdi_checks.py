"""Checks of CDI: which component injects a device, and whether a spec can be used.

Invariant: reads only.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from functools import partial

from agent.cdi.specs import installed
from agent.cdi.specs.provider import OURS
from agent.decide import CDI_PREFIX, DEFAULT_DIRS, NVIDIA_PREFIX, Switch
from agent.doctor.check import Check, Severity, Symptom
from agent.doctor.node import Node, value_or_none
from agent.doctor.surroundings import environment, names
from agent.errors import Refused
from agent.host import files
from agent.host.paths import HostPath
from agent.reports.specs import Finding
from agent.toolkit import programs

# Vendors of the devices that are requested by the CRI's field.
_FIELD = ("k8s.device-plugin.nvidia.com", "k8s.gpu.nvidia.com")
_NUMBER = re.compile(r"\.so\.(\d+(?:\.\d+){1,3})\b")
_ENDINGS = (".json", ".yaml")
_NRI_SOCKET, _NRI_PLUGINS = "/var/run/nri/nri.sock", "/opt/nri/plugins"
_DRA = tuple(f"/var/lib/kubelet/plugins/{name}.nvidia.com" for name in ("gpu", "compute-domain"))


def _requests(node: Node) -> tuple[tuple[str, ...], str, str]:
    """(strategies, annotation prefix, source) of the running device plugin, else of the published
    status."""
    for plugin in node.plugins:
        if plugin.strategy:
            prefix = plugin.prefix or CDI_PREFIX
            return plugin.strategy, prefix, f"the device plugin (process {plugin.pid})"
    lines = node.report.published
    strategy = tuple(filter(None, lines.get("DEVICE_LIST_STRATEGY", "").split(",")))
    return strategy, lines.get("CDI_ANNOTATION_PREFIX", CDI_PREFIX), "the published status"


def _dra(node: Node) -> str:
    """The directory of a DRA driver of NVIDIA's on the node; "" if there is none."""
    return next((name for name in _DRA if os.path.isdir(node.host.agent_path(name))), "")


def _switch(node: Node) -> Iterator[Symptom]:
    if node.evidence.switch is not Switch.FALSE:
        return
    strategy, _, source = _requests(node)
    needs = [f"{source} requests devices by the CRI's field"] if "cdi-cri" in strategy else []
    if node.report.published.get("TOOLKIT_NATIVE_CDI") == "true":
        needs.append("the published status says TOOLKIT_NATIVE_CDI=true")
    specs = value_or_none(lambda: node.specs)
    if specs and any(device.name.startswith(_FIELD) for device in specs.devices):
        needs.append("there are specs of a device plugin or DRA driver")
    if driver := _dra(node):
        needs.append(f"a DRA driver is on this node ({driver})")
    text = f"CDI is switched off in {node.title} {node.runtime.version} (enable_cdi = false)"
    enabled = value_or_none(lambda: node.effective.enable_cdi)
    remedy = "restart the runtime: its files switch CDI on now" if enabled is True else ""
    yield Symptom("fault" if needs else "warning", text, tuple(needs), remedy)


def _unsupported(node: Node) -> Iterator[Symptom]:
    if node.native is not False or node.evidence.switch is not Switch.ABSENT:
        return
    text = f"{node.title} {node.runtime.version} knows no CDI"
    if driver := _dra(node):
        yield Symptom("fault", f"{text}, which the DRA driver on this node needs", (driver,),
                    "upgrade the runtime, or use the device plugin on this node")  # fmt: skip
    else:
        yield Symptom("info" if value_or_none(lambda: node.nvidia_default) else "warning", text)


def _directories(node: Node) -> Iterator[Symptom]:
    if node.error or not node.native:
        return
    if node.evidence.spec_dirs == ():
        yield Symptom("fault", "the runtime reads no directory with specs: cdi_spec_dirs is empty",
                    remedy="remove the key, or add directories to it")  # fmt: skip
        return
    for name, found in _unread_specs(node):
        text = f"the runtime does not read {name}, and there are specs in it"
        evidence = (
            f"specs: {', '.join(found[:5])}",
            f"it reads: {', '.join(_read_directories(node))}",
        )
        severity: Severity = "fault" if any("nvidia" in n for n in found) else "warning"
        yield Symptom(severity, text, evidence)


def _read_directories(node: Node) -> list[str]:
    """The directories that the runtime reads."""
    return [item.name for item in node.specs.directories if not item.unread]


def _unread_specs(node: Node) -> Iterator[tuple[str, list[str]]]:
    """(directory, names of its specs) for each usual or configured directory that the runtime does
    not read."""
    directories = node.specs.directories
    places = {item.name: item.path for item in directories if item.path and item.unread}
    known = {item.path for item in directories if not item.unread}
    for name in DEFAULT_DIRS:
        with contextlib.suppress(Refused):
            path = node.host.resolve(name)
            if path not in known:
                places.setdefault(name, path)
    for name, path in places.items():
        if found := [n for n in names(path.agent) if n.endswith(_ENDINGS)]:
            yield name, found


def _problems(node: Node, kind: str) -> Iterator[tuple[Finding, tuple[str, ...]]]:
    """The first problem of this kind in each file, with its place and the number of further ones as
    evidence."""
    found = [item for item in node.specs.findings if _kind(item) == kind]
    for name in dict.fromkeys(item.file for item in found):
        first, *rest = [item for item in found if item.file == name]
        more = f"and {len(rest)} more in this file" if rest else ""
        yield first, tuple(filter(None, (first.problem.where, more)))


def _kind(finding: Finding) -> str:
    problem = finding.problem
    if problem.severity != "error":
        return "doubt"
    if problem.what.endswith(installed.NOT_USED):
        return "conflict"
    if problem.what.startswith("hook binary"):
        return "hook"
    return "stale" if "missing on the host" in problem.what else "invalid"


def _broken(kind: str, node: Node) -> Iterator[Symptom]:
    for item, evidence in _problems(node, kind):
        yield Symptom("fault", f"{item.file}: {item.problem.what}", evidence, item.problem.remedy)


def _hook(node: Node) -> Iterator[Symptom]:
    for item, evidence in _problems(node, "hook"):
        yield Symptom("fault", f"{item.file}: {item.problem.what}", evidence)


def _stale(node: Node) -> Iterator[Symptom]:
    current = node.driver.library
    ours = {file.name for file in node.specs.files if file.writer == OURS}
    for item, evidence in _problems(node, "stale"):
        what = item.problem.what
        version = next(iter(_NUMBER.findall(what)), "")
        text, remedy = f"{item.file}: {what}", ""
        if what.startswith("device node"):
            remedy = "run `toolkit-agent apply` or `nvidia-modprobe -u -c=0`"
        elif item.file in ours:
            remedy = "`toolkit-agent apply` writes it again"
        if version and current and version != current:
            text = f"{item.file} was made for driver {version}, and driver {current} is installed"
            evidence = (what, *evidence)
        yield Symptom("fault", text, evidence, remedy)


def _doubt(node: Node) -> Iterator[Symptom]:
    for item, evidence in _problems(node, "doubt"):
        unread = item.problem.what.startswith("the directory") and node.is_root
        severity: Severity = "warning" if unread else "info"
        yield Symptom(severity, f"{item.file}: {item.problem.what}", evidence, item.problem.remedy)


def _has_device(node: Node) -> bool:
    """Can a container get any device of NVIDIA's?"""
    usable = (item.name for item in node.specs.devices if item.state == "resolvable")
    return any("nvidia.com/" in name for name in usable)


def _misnamed(node: Node) -> Iterator[Symptom]:
    """Specs of NVIDIA's in files whose names no runtime reads."""
    read = [item.path for item in node.specs.directories if item.path and not item.unread]
    for directory in read if not _has_device(node) else ():
        for path in (directory.child(name) for name in names(directory.agent)):
            if not path.name.endswith(_ENDINGS) and _is_spec(path):
                text = f"{path.host} is a spec, but its name ends in neither .json nor .yaml"
                yield Symptom("warning", text)


def _is_spec(path: HostPath) -> bool:
    try:
        found = files.read(path.agent)
    except Refused:
        return False
    return found is not None and b"cdiVersion" in found.data and b"nvidia.com/" in found.data


def _writable_specs(node: Node) -> Iterator[Symptom]:
    specs = node.specs
    places = [(item.path.host, item.path.agent) for item in specs.directories if item.path]
    places += [(file.name, node.host.agent_path(file.name)) for file in specs.files]
    for name, path in places:
        with contextlib.suppress(OSError):
            found = os.stat(path)
            if found.st_mode & 0o002 or found.st_uid not in (0, os.geteuid()):
                yield Symptom("fault", f"{name} can be changed by others than root")


def _nri(node: Node) -> Iterator[Symptom]:
    """An NRI plugin of NVIDIA's without NRI or beside NVIDIA's handlers, and other NRI plugins."""
    plugin = next((name for pid, name in node.installers.items() if _asks_for_nri(node, pid)), "")
    is_on = os.path.exists(node.host.agent_path(_NRI_SOCKET))
    if plugin and not is_on:
        yield Symptom("fault", f"{plugin} needs NRI, and the runtime has no NRI socket")
    passed = value_or_none(lambda: node.passes(NVIDIA_PREFIX))
    answers = passed and value_or_none(lambda: NVIDIA_PREFIX in node.toolkit.config.prefixes)
    if plugin and is_on and answers:
        text = f"{plugin} injects for annotations {NVIDIA_PREFIX} by NRI, as NVIDIA's handlers do"
        yield Symptom("warning", text, remedy="use the NRI plugin without NVIDIA's handlers")
    with contextlib.suppress(Refused):
        if started := ", ".join(names(node.host.resolve(_NRI_PLUGINS).agent)):
            text = f"NRI plugins that start with the runtime change containers: {started}"
            remedy = "check them if a container has devices that it should not have"
            yield Symptom("info", text, remedy=remedy)


def _asks_for_nri(node: Node, pid: int) -> bool:
    value = environment(node.host, pid).get("ENABLE_NRI_PLUGIN", "")
    return value.lower() in ("1", "t", "true")


def _no_specs(node: Node) -> Iterator[Symptom]:
    needed = node.nvidia_handlers and node.driver.library and node.native
    if needed and not _has_device(node):
        text = f"no CDI spec in {', '.join(_read_directories(node))} has a device of NVIDIA's"
        yield Symptom("fault" if node.managed else "warning", text)


def _unanswered_requests(node: Node) -> Iterator[Symptom]:
    native, (strategy, prefix, source) = node.native, _requests(node)
    if not strategy or native is None:
        return
    setting = f"{source}: DEVICE_LIST_STRATEGY={','.join(strategy)}, CDI_ANNOTATION_PREFIX={prefix}"
    if not native and set(strategy) == {"cdi-cri"}:
        text = "devices are requested by the CRI's field, which this runtime ignores"
        yield Symptom("fault", text, (setting,), "set DEVICE_LIST_STRATEGY=cdi-annotations")
    if strategy == ("envvar",) and not node.nvidia_default:
        hooks = node.configured.hook_programs({})
        if not any("nvidia" in program for _, program in hooks):
            text = "devices are requested by variable, and NVIDIA's runtime is not the default"
            yield Symptom("fault", text, (setting,), "set DEVICE_LIST_STRATEGY=cdi-cri, or make "
                          "NVIDIA's runtime the default")  # fmt: skip
    if "cdi-annotations" in strategy and (unanswered := _unanswered(node, prefix)):
        why, remedy = unanswered
        severity: Severity = "warning" if "cdi-cri" in strategy and native else "fault"
        toolkit = value_or_none(lambda: node.toolkit)
        evidence = (setting, f"config: {toolkit.path}") if toolkit else (setting,)
        yield Symptom(severity, f"nobody answers annotations {prefix}: {why}", evidence, remedy)


def _unanswered(node: Node, prefix: str) -> tuple[str, str] | None:
    """(cause, remedy) if no component injects devices for an annotation with this prefix; None if
    one does."""
    if not prefix.endswith("/"):
        return "a prefix must end in a slash", f"set CDI_ANNOTATION_PREFIX={prefix}/"
    if node.native and prefix == CDI_PREFIX:
        return None
    usual = f"set CDI_ANNOTATION_PREFIX={CDI_PREFIX}" if node.native else "`toolkit-agent apply`"
    if prefix not in node.toolkit.config.prefixes:
        remedy = f"{usual}, or add it to annotation-prefixes in config.toml"
        return "NVIDIA's runtime has another prefix", remedy
    if not node.passes(prefix):
        remedy = f"{usual}, or add {prefix}* to their container_annotations"
        return "handlers do not pass such annotations on", remedy
    if node.nvidia_default:
        return None
    return "NVIDIA's runtime answers them, but is not the default", usual


def _double_injection(node: Node) -> Iterator[Symptom]:
    strategy, _, source = _requests(node)
    toolkit = node.toolkit
    if node.native and CDI_PREFIX in toolkit.config.prefixes and node.passes(CDI_PREFIX):
        text = f"the runtime and NVIDIA's runtime both inject for annotations {CDI_PREFIX}: twice"
        setting = f"annotation-prefixes in {toolkit.path} has {CDI_PREFIX}"
        yield Symptom("warning", text, (setting,), f"change it to {NVIDIA_PREFIX}")
    if "envvar" in strategy and any(item.startswith("cdi") for item in strategy):
        text = "devices are requested by variable and by CDI: pods of NVIDIA's runtime get both"
        yield Symptom("warning", text, (f"{source}: {','.join(strategy)}",))


def _plugin(node: Node) -> Iterator[Symptom]:
    needed, root = node.report.published.get("DEVICE_LIST_STRATEGY", ""), node.driver.root
    for plugin in node.plugins:
        process = (f"process {plugin.pid}",)
        strategy = plugin.strategy or ("envvar",)
        if needed and not set(needed.split(",")) & set(strategy):
            text = f"the device plugin uses {','.join(strategy)}, and this node needs {needed}"
            yield Symptom("fault", text, process)
        by_spec = any(item.startswith("cdi") for item in strategy)
        if root and by_spec and root != plugin.driver_root:
            text = (
                f"the device plugin expects the driver in {plugin.driver_root}, and it is in {root}"
            )
            yield Symptom("fault", text, process, f"set NVIDIA_DRIVER_ROOT={root}")
        if plugin.hook and programs.runs(node.host, plugin.hook) is None:
            text = (
                f"the device plugin writes the hook {plugin.hook} into specs, which does not exist"
            )
            yield Symptom("fault", text, process,
                        "set NVIDIA_CDI_HOOK_PATH to the value in the status file")  # fmt: skip


CHECKS = (
    Check(
        "cdi-off", "CDI is switched on in the runtime",
        "Containers start without the devices that a device plugin or a DRA driver requests.",
        "`toolkit-agent apply`, or set enable_cdi = true and restart the runtime", _switch,
    ),
    Check(
        "cdi-directories", "The runtime reads the directories with specs",
        'Containers fail with "unresolvable CDI devices".',
        "add the directory to cdi_spec_dirs, or write the specs to a directory that is read "
        "(--cdi-output-dir)", _directories,
    ),
    Check(
        "spec-invalid", "Specs can be read by this runtime",
        "The runtime ignores the file, and its devices do not exist.",
        "generate the file again, or remove it", partial(_broken, "invalid"),
    ),
    Check(
        "spec-conflict", "No device is defined twice in a directory",
        "The runtime takes such a device from neither file.",
        "remove one of the files", partial(_broken, "conflict"),
    ),
    Check(
        "spec-stale", "The host has the files that specs name",
        "Containers with the device are not created: the driver has changed since.",
        "generate it again (nvidia-ctk cdi generate), or remove it and run `toolkit-agent apply`",
        _stale,
    ),
    Check(
        "spec-hook", "The programs of hooks exist",
        "Containers with the device are not started.",
        "install NVIDIA's toolkit at that path, or generate the spec again", _hook,
    ),
    Check(
        "spec-open", "Only root can write specs",
        "A user who can write a spec is root on the node: the runtime runs its hooks.",
        "check its content, then chown root: and chmod go-w it", _writable_specs,
    ),
    Check(
        "spec-name", "Specs have names that runtimes read",
        "The runtime ignores the file, and its devices do not exist.",
        "rename it to end in .yaml", _misnamed,
    ),
    Check(
        "spec-none", "There are specs for NVIDIA's devices",
        'Containers that ask for a device fail: "unresolvable CDI devices".',
        "`toolkit-agent apply` writes them", _no_specs,
    ),
    Check(
        "cdi-nobody", "The device plugin's requests are answered",
        "Pods start without their GPU, and nothing fails.",
        "give the device plugin the values of the status file (DEVICE_LIST_STRATEGY, "
        "CDI_ANNOTATION_PREFIX)", _unanswered_requests,
    ),
    Check(
        "plugin-strategy", "The device plugin fits the node",
        "Pods start without their GPU, or not at all.",
        "have the plugin read the status file, see deploy/README.md", _plugin,
    ),
    Check(
        "cdi-twice", "Devices are injected once",
        "A device is injected twice, or a container gets more GPUs than it asked for.",
        "use one strategy", _double_injection,
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
        "spec-doubt", "Specs were checked completely",
        "Problems in the unchecked part of the file are not found.", "check the file", _doubt,
    ),
)  # fmt: skip
