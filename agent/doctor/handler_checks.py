"""Checks of handlers: whether the runtime has NVIDIA's handlers, and whether they can run pods.

Invariant: reads only. A finding shows only names and paths from the content of a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator

from agent.cri.versions import parse_version
from agent.decide import MODES_WITHOUT_CDI
from agent.doctor.check import Check, Severity, Symptom, split
from agent.doctor.node import Node
from agent.doctor.surroundings import names
from agent.errors import AgentError, Refused
from agent.host import files
from agent.host.paths import HostRoot
from agent.runtimes import low_level, registry
from agent.runtimes.desired_state import leaves, programs_of
from agent.toml.document import Path, dotted, get
from agent.toolkit import programs

_SWITCHES = ("enable_cdi", "default_runtime_name", "default_runtime")
_MISSING = "nothing"  # why a missing program cannot be run
_SCRIPT = 1 << 16  # bytes of a wrapper
_SHELLS = ("/bin/sh", "/usr/bin/env")  # every host with a shell has them
_WRAPPED = re.compile(rb"/[^\s\"']+\.real\b")  # the program that a wrapper runs
_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine of an ELF file
_PROGRAM_KEYS = ("binaryname", "runtime_path")
_UNNAMED = (("default_runtime",), ("untrusted_workload_runtime",))  # handlers by another name
_DIRECTORIES = ("conf.d", "config.d")  # places where tools put drop-ins that may not be loaded
_LOW_LEVEL = ("runc", "crun")  # NVIDIA's default
_MODES = ("auto", "cdi", *MODES_WITHOUT_CDI)  # of nvidia-container-runtime
# Keys of NVIDIA's config.toml that name a path of the host.
_HOST_PATHS = (
    ("nvidia-container-cli", "path"),
    ("nvidia-container-cli", "root"),
    ("nvidia-container-cli", "ldconfig"),
    ("nvidia-container-runtime-hook", "path"),
    ("nvidia-ctk", "path"),
)


def _defect(node: Node) -> Iterator[Symptom]:
    for defect in node.configured.defects():
        if not defect.deadly:
            severity: Severity = "fault" if defect.harmful else "warning"
            yield Symptom(severity, defect.text, remedy=defect.remedy)


def _overridden(node: Node) -> Iterator[Symptom]:
    """Keys of NVIDIA's in our drop-in that a later file overrides."""
    loaded, drop_in = node.configured.files, node.configured.drop_in.host
    places = [file.path.host for file in loaded]
    if drop_in not in places:
        return
    number = places.index(drop_in)
    ours = loaded[number].data
    own_keys = tuple(node.configured.own_keys(ours, switch=True))
    for path, value in leaves(ours):
        if not any(path[: len(key)] == key for key in own_keys) and path[-1] not in _SWITCHES:
            continue
        for later in loaded[number + 1 :]:
            for other, new_value in leaves(later.data):
                if _tail(other) == _tail(path) and new_value != value:
                    text = f"is read after {drop_in}, and sets {dotted(_tail(path))}"
                    yield Symptom("fault", f"{later.path.host} {text} to another value",
                                remedy=f"remove the key from {later.path.host}")  # fmt: skip


def _tail(path: Path) -> Path:
    """The key without its section, whose name depends on the version of the file."""
    return path[2:] if path[0] == "plugins" else path


def _program(node: Node) -> Iterator[Symptom]:
    for name in node.nvidia_handlers:
        named = node.programs(name)
        if not named:
            yield Symptom("fault", f"handler {name} names no program, and runs ordinary pods")
        elif not any(map(programs.is_nvidia, named)):
            yield Symptom(
                "fault", f"handler {name} runs {' and '.join(named)}: not NVIDIA's runtime"
            )


def _binary(node: Node) -> Iterator[Symptom]:
    for name in node.effective.runtimes:
        used = name in node.nvidia_handlers or name == node.effective.default
        for path in _with_wrapped(node.host, node.programs(name)):
            if why := why_not_run(node.host, path):
                text = f"{path}, which is not there" if why == _MISSING else f"{why}: {path}"
                yield Symptom("fault" if used else "warning", f"handler {name} runs {text}")


def _with_wrapped(host: HostRoot, paths: tuple[str, ...]) -> Iterator[str]:
    """These programs, and for each wrapper script the program that it runs (`NAME` runs
    `NAME.real`, as made by NVIDIA's installer and by this agent)."""
    for path in paths:
        yield path
        if not path.startswith("/"):
            continue
        with contextlib.suppress(AgentError):
            found = files.read(host.resolve(path).agent, path, _SCRIPT)
            if found and found.data.startswith(b"#!"):
                yield from (os.fsdecode(name) for name in _WRAPPED.findall(found.data))


def why_not_run(host: HostRoot, name: str) -> str:
    """What is at the path instead of an executable program; "" if it can be run. A path that we may
    not look at counts as good. So does a bare name, which the runtime looks up in its own PATH; a
    bare name of NVIDIA's must be in one of `programs.DIRECTORIES`."""
    if "/" not in name:
        places = (f"{above}/{name}" for above in programs.DIRECTORIES)
        lacks = programs.is_nvidia(name) and not any(programs.runs(host, p) for p in places)
        return _MISSING if lacks else ""
    try:
        found = os.stat(host.resolve(name).agent)
    except PermissionError:
        return ""
    except (OSError, Refused):
        link = os.path.islink(host.agent_path(name))
        return "a dangling link" if link else _MISSING
    if not stat.S_ISREG(found.st_mode):
        return "no file"
    return _why_not_loaded(host, name) if found.st_mode & 0o111 else "a file that is not executable"


def _why_not_loaded(host: HostRoot, name: str) -> str:
    """Why the kernel cannot start an executable file, as a noun phrase; "" if it can."""
    try:
        with open(host.resolve(name).agent, "rb") as file:
            head = file.read(256)
    except (OSError, Refused):
        return ""
    if head.startswith(b"#!"):
        words = os.fsdecode(head[2:].partition(b"\n")[0]).split()
        lacks = words and words[0] not in _SHELLS and not _exists(host, words[0])
        return f"a script without its interpreter {words[0]}" if lacks else ""
    machine = int.from_bytes(head[18:20], "little")
    other = head[:4] == b"\x7fELF" and machine != _MACHINES.get(os.uname().machine, machine)
    return "a program for another processor" if other else ""


def _exists(host: HostRoot, name: str) -> bool:
    """Does a path exist? A path that we may not look at counts as existing."""
    try:
        os.stat(host.resolve(name).agent)
    except PermissionError:
        return True
    except (OSError, Refused):
        return False
    return True


def _settings(node: Node) -> Iterator[Symptom]:
    toolkit = node.toolkit
    mode = toolkit.text(("nvidia-container-runtime", "mode"), "auto")
    if toolkit.broken:
        text, remedy = split(toolkit.broken)
        yield Symptom(
            "fault", text, ("NVIDIA's runtime reads this file for each container",), remedy
        )
    elif mode not in _MODES:
        text = f"{toolkit.path} has the mode {mode}, which NVIDIA's runtime does not know"
        yield Symptom("fault", text, remedy="set it to auto")
    elif mode == "csv" and node.driver.platform != "Tegra":
        text = f"{toolkit.path} has the mode csv, and this is no Tegra"
        yield Symptom("fault", text, remedy="set it to auto")
    severity: Severity = "fault" if mode == "legacy" else "warning"
    for key in _HOST_PATHS if mode != "cdi" else ():  # mode cdi uses none
        path = toolkit.text(key).removeprefix("@")
        if path.startswith("/") and not _exists(node.host, path):
            text = f"{'.'.join(key)} of NVIDIA's runtime is {path}, which is not there"
            yield Symptom(severity, text, (f"in {toolkit.path}",))
    no_cgroups = get(toolkit.data, ("nvidia-container-cli", "no-cgroups"), False) is True
    if no_cgroups and mode in ("auto", "legacy"):
        text = f"{toolkit.path} has no-cgroups = true: containers may not open their GPUs"
        yield Symptom(severity, text, remedy="set nvidia-container-cli.no-cgroups to false there")


def _low_level_runtimes(node: Node) -> Iterator[Symptom]:
    toolkit = node.toolkit
    runtimes = toolkit.config.runtimes or _LOW_LEVEL
    existing = [path for name in runtimes if (path := low_level.first_existing(node.host, (name,)))]
    if not toolkit.broken and all(map(programs.is_nvidia, existing)):
        text = "NVIDIA's runtime finds none of the low-level runtimes that it tries"
        # A bare name may be in the PATH of the runtime (k3s has its own runc).
        severity: Severity = "fault" if any("/" in path for path in runtimes) else "warning"
        yield Symptom(severity, f"{text}: {', '.join(runtimes)}", (f"runtimes in {toolkit.path}",))


def _cgroups(node: Node) -> Iterator[Symptom]:
    kubelet, default = node.kubelet, node.effective.default
    drivers = node.configured.cgroup_drivers()
    wrong = [
        name for name in node.effective.runtimes
        if drivers.get(name, "") not in ("", kubelet.cgroups)
        and (name in node.nvidia_handlers or name == default)
    ]  # fmt: skip
    if kubelet.cgroups and wrong:
        other = f"handler {', '.join(wrong)} uses {drivers[wrong[0]]}"
        text = f"the kubelet uses the cgroup driver {kubelet.cgroups}, and {other}"
        evidence = [f"cgroupDriver in {kubelet.source}"]
        since = registry.adapter(node.runtime.kind).cgroup_driver_since
        is_asked = (parse_version(node.runtime.version) or (0,)) >= since and default in wrong
        if is_asked:
            evidence.append("a kubelet of 1.31 or later asks the runtime instead of that setting")
        yield Symptom("warning" if is_asked else "fault", text, tuple(evidence))


def _unloaded_files(node: Node) -> Iterator[Symptom]:
    """Files beside the loaded ones. `is_drop_in`: the file has the name and the place of a
    drop-in."""
    for path, is_drop_in, nvidia in _not_loaded(node):
        text = f"{path} is there, and the runtime does not load it"
        evidence = (f"the runtime loads: {', '.join(node.loaded) or 'no file'}",)
        ours = node.managed and path == node.configured.drop_in.host
        remedy = "`toolkit-agent apply` makes the runtime load it again" if ours else ""
        if is_drop_in and nvidia:
            yield Symptom("warning" if node.nvidia_handlers else "fault", text, evidence, remedy)
        elif is_drop_in:
            yield Symptom("info", text)
        elif nvidia and not node.nvidia_handlers:
            yield Symptom("warning", text)


def _not_loaded(node: Node) -> Iterator[tuple[str, bool, bool]]:
    """(host path, is it named and placed like a drop-in?, does it mention NVIDIA?) of each file
    that the runtime does not load."""
    configured, drop_in = node.configured, node.configured.drop_in.host
    loaded = {file.path.host for file in configured.files}
    beside, ending = os.path.dirname(drop_in), os.path.splitext(drop_in)[1]
    root = os.path.dirname(configured.root.path.host)
    for directory in dict.fromkeys((beside, *(f"{root}/{name}" for name in _DIRECTORIES), root)):
        with contextlib.suppress(Refused):
            above = node.host.resolve(directory)
            for path in (above.child(name) for name in names(above.agent)):
                if path.host not in loaded and os.path.isfile(path.agent):
                    is_drop_in = directory != root and path.host.endswith(ending)
                    yield path.host, is_drop_in, _names_nvidia(path.agent)


def _names_nvidia(path: str) -> bool:
    try:
        found = files.read(path)
    except Refused:
        return False
    return found is not None and b"nvidia" in found.data


def _ineffective(node: Node) -> Iterator[Symptom]:
    """Handlers of NVIDIA's runtime in loaded files that the runtime does not have: their table is
    in a section of another version or name, or a later file hides it."""
    for file in node.configured.files:
        for path, value in leaves(file.data):
            if not isinstance(value, str) or not programs.is_nvidia(value):
                continue
            in_options = path[-2:-1] == ("options",)
            above = path[:-2] if in_options else path[:-1]
            keys = (*_PROGRAM_KEYS, "runtime") if in_options else _PROGRAM_KEYS
            if path[-1].lower() not in keys or above[-1:] in _UNNAMED or not above:
                continue
            if value not in programs_of(node.effective.table(above[-1])):
                evidence = (
                    f"the runtime ignores [{dotted(above)}] in this file",
                    *(defect.text for defect in node.configured.defects()),
                )
                text = f"handler {above[-1]} in {file.path.host} has no effect"
                yield Symptom("warning" if node.nvidia_handlers else "fault", text, evidence[:2])


def _handler_missing(node: Node) -> Iterator[Symptom]:
    shown = registry.shown_handler_names(node.runtime.answer)[1]
    ours = node.nvidia_handlers
    if lacking := sorted({*ours} - {*shown}):
        text = f"handler {', '.join(lacking)} is in the files, but not in the running runtime"
        evidence = f"it shows: {', '.join(shown) or 'no handler'}"
        yield Symptom(
            "fault",
            text,
            (evidence,),
            "restart the runtime: its files have changed since it started",
        )
    elif not ours and node.managed:
        yield Symptom("fault", 'no handler of NVIDIA\'s is configured ("no runtime for nvidia")')
    elif not ours:
        yield Symptom(
            "info", "no handler of NVIDIA's is configured: pods with a runtime class fail"
        )


CHECKS = (
    Check(
        "handler-defect", "Handlers can run pods, and files do not contradict each other",
        "Status and dump look right, but pods of the handler fail, or settings are ignored.",
        "correct the table of the handler", _defect,
    ),
    Check(
        "config-override", "No later file overrides NVIDIA's settings",
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
        "handler-binary", "The programs of handlers exist",
        "The runtime lists the handler, but each of its pods fails.",
        "install the program (NVIDIA's: `toolkit-agent apply`), or correct the path", _binary,
    ),
    Check(
        "toolkit-config", "NVIDIA's runtime can use its config.toml",
        "Containers of its handlers fail, or start without their GPU.",
        "correct the key, or run `toolkit-agent apply`, which installs its own config.toml",
        _settings,
    ),
    Check(
        "toolkit-calls", "NVIDIA's runtime finds runc or crun",
        'Each pod of its handlers fails: "no runtime binary found from candidate list".',
        "give the whole path of runc or crun in that list, or run `toolkit-agent apply`",
        _low_level_runtimes,
    ),
    Check(
        "handler-cgroup", "Handlers and kubelet use the same cgroup driver",
        "systemd and the runtime both manage the cgroups, and containers are killed at random.",
        "make SystemdCgroup in the options of the handlers fit the kubelet's cgroupDriver",
        _cgroups,
    ),
    Check(
        "config-import", "Drop-ins are loaded",
        "The handlers in the file do not exist for the runtime.",
        "import its directory in the root file (imports), or move it to a loaded directory",
        _unloaded_files,
    ),
    Check(
        "handler-lost", "Handlers are in a section that the runtime reads",
        'Pods with the runtime class fail: "no runtime for nvidia is configured".',
        "move the table to the section that this version reads, in the file that is read last, or "
        "run `toolkit-agent apply`", _ineffective,
    ),
    Check(
        "handler-missing", "The running runtime has NVIDIA's handler",
        'Pods with the runtime class fail: "no runtime for nvidia is configured".',
        "`toolkit-agent apply`", _handler_missing,
    ),
)  # fmt: skip
