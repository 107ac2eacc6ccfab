"""Specs as text, for what the options say and what the node has.

Invariant: the management spec needs no runtime, no NVML and none of the large libraries, so that
the command is quick; modules that only other specs need are imported where these are made.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from agent.cdi import emit
from agent.cdi.driver import driver, platform
from agent.cdi.driver.driver import Driver
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import device_class, driver_files, transform
from agent.cdi.make.driver_files import BuildContext
from agent.cdi.make.hooks import HookProgram, Hooks, find_program
from agent.cdi.make.request import EMPTY, EVERYTHING, Choice
from agent.cdi.model import ContainerEdits, Device, Spec
from agent.cdi.specs import readers, rules
from agent.cdi.specs.readers import UNKNOWN_READER, Reader
from agent.errors import AgentError, DevicesLost, DriverFailed, NoDevices, NoDriver, Refused
from agent.host.paths import HostRoot
from agent.options.device_classes import DEVICE_CLASSES, DeviceClass
from agent.options.settings import Settings

if TYPE_CHECKING:
    from agent.cdi.driver.nvml import Answer, Library

_NAMED = 4  # paths in a warning
_FIRMWARE = "/sys/module/firmware_class/parameters/path"

# Asks the driver's NVML for the GPUs. May raise DriverFailed.
AskNvml: TypeAlias = "Callable[[Library], Answer]"


@dataclass(frozen=True)
class BuiltSpec:
    """A spec, its warnings, the agent paths whose owners, modes and links decided what may be in
    it, and the driver that it describes, if any."""

    spec: Spec
    warnings: tuple[str, ...] = ()
    judged_paths: tuple[str, ...] = ()
    driver: Driver | None = None


@dataclass(frozen=True)
class DesiredSpec:
    """A spec that a node is to have: its text, or the `problem` why there is none; otherwise as
    `BuiltSpec`."""

    kind: str
    text: str | None
    problem: AgentError | None
    warnings: tuple[str, ...] = ()
    judged_paths: tuple[str, ...] = ()
    driver: Driver | None = None

    @property
    def is_absent(self) -> bool:
        """Does the node have no devices of this kind? That is no fault."""
        return isinstance(self.problem, NoDevices) and not isinstance(self.problem, DevicesLost)


def watch_paths(settings: Settings, host: HostRoot) -> Iterator[str]:
    """Agent paths that change when any of the specs would be another one; `PREFIX*DIRECTORY` stands
    for names in a directory that start so."""
    from agent.cdi.driver import kernel

    places = driver.places(settings)
    yield from kernel.watch_paths(host)
    yield f"dxg*{host.agent_path('/dev')}"
    if platform.wsl(host):
        from agent.cdi.make import wsl

        yield from (host.agent_path(path) for path in (wsl.LIBRARIES, wsl.STORES))
    if platform.tegra(host):
        from agent.cdi.make import tegra

        yield from tegra.watch_paths(host, settings)
    yield from driver.watch_paths(host, places)
    yield host.agent_path("/etc/cufile.json")
    for root in driver.roots(host, places):
        yield from driver_files.watch_paths(root)
        for dev in driver.dev_roots(host, places, root):
            yield from device_class.watch_paths(dev)


def desired_specs(
    gpu_mode: str, settings: Settings, host: HostRoot, hook: str | None,
    ask: AskNvml | None = None, without: Collection[str] = (), reader: Reader = UNKNOWN_READER,
) -> tuple[DesiredSpec, ...]:  # fmt: skip
    """Every spec that this node should have, except for the kinds in `without`: the management spec
    first (only with `gpu_mode` nvml), then that of GPUs, then those of the device classes that
    exist. Hooks run the program at the host path `hook`. A spec has nothing for which `reader`
    would refuse the whole file. Never raises an AgentError, so that one failed spec keeps no other
    away."""
    from agent.cdi.make import gpu

    builder = _Builder(settings, host, hook, ask, EVERYTHING)
    found = []
    if gpu_mode == "nvml":
        found.append(_desired(settings.cdi_kind, builder.management, reader))
    without = {*(one.kind for one in found), *without}
    if gpu.KIND not in without:
        found.append(_desired(gpu.KIND, lambda: builder.build(gpu_mode), reader))
    for one in DEVICE_CLASSES:
        if one.kind not in without:
            desired = _desired(one.kind, functools.partial(builder.device_class, one), reader)
            found += () if desired.is_absent else (desired,)
    return tuple(found)


def _desired(kind: str, build: Callable[[], BuiltSpec], reader: Reader) -> DesiredSpec:
    try:
        built = build()
        spec, warnings = built.spec, built.warnings
        if not readers.can_read(reader, rules.minimum_version(spec)):
            spec, more = _without_groups(spec, reader)
            warnings = (*warnings, *more)
        text = emit.text(spec)
        return DesiredSpec(kind, text, None, warnings, built.judged_paths, built.driver)
    except AgentError as error:
        return DesiredSpec(kind, None, error)


def _without_groups(spec: Spec, reader: Reader) -> tuple[Spec, tuple[str, ...]]:
    """The spec without groups, the newest feature that a spec of ours can have. NVIDIA's generator
    writes them (v1.19 and later), and such a runtime refuses the whole file."""
    less = transform.without_groups(spec)
    text = (
        f"CDI specs have no groups of device nodes, because {reader.name} may read no more than "
        f"CDI {reader.newest}: only root in a container can open nodes that are not open to "
        "everybody; update it"
    )
    return less, (text,) if less != spec else ()


def spec_text(
    mode: str, settings: Settings, host: HostRoot, form: str = "yaml", *, hook: str | None,
    choice: Choice = EVERYTHING, mark: bool = True,
) -> tuple[str, tuple[str, ...]]:  # fmt: skip
    """The text of a mode's spec, and warnings. `mark` lets `apply` write the file anew. Raises
    NoDriver, NoDevices or DriverFailed."""
    built = build(mode, settings, host, hook=hook, choice=choice)
    spec = choice.with_kind(built.spec)
    spec = spec if choice.groups else transform.without_groups(spec)
    return emit.text(spec, form, mark=mark), built.warnings


def build(
    mode: str, settings: Settings, host: HostRoot, *, hook: str | None = None,
    ask: AskNvml | None = None, choice: Choice = EVERYTHING,
) -> BuiltSpec:  # fmt: skip
    """The spec of a mode of `cdi generate`. Raises NoDriver, NoDevices, or DriverFailed if NVML
    crashes or hangs."""
    mode = gpu_mode(settings, host, ask) if mode == "auto" else mode
    return _Builder(settings, host, hook, ask, choice).build(mode)


def gpu_mode(settings: Settings, host: HostRoot, ask: AskNvml | None = None) -> str:
    """The mode of nvidia.com/gpu that fits the machine: nvml, csv or wsl."""
    if platform.wsl(host):
        # A GPU can be handed to Linux's own driver there.
        places = driver.places(settings)
        roots = driver.roots(host, places)
        nodes = any(driver.device_nodes(driver.dev_roots(host, places, root)) for root in roots)
        return "nvml" if nodes else "wsl"
    if platform.tegra(host):
        from agent.cdi.make import tegra

        with contextlib.suppress(DriverFailed):  # the spec's own problem will name it
            return "csv" if tegra.is_integrated_only(host, settings, _ask_in_root(ask)) else "nvml"
    return "nvml"


def _ask_in_root(ask: AskNvml | None) -> Callable[[DriverRoot, str], Answer]:
    """Ask the NVML at a path of a driver root. The file that is asked is the one that was
    judged."""
    from agent.cdi.driver import nvml

    def ask_in_root(root: DriverRoot, library: str) -> Answer:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(root.opened(library, os.O_RDONLY))
            except (OSError, Refused) as error:
                return nvml.Answer(error=f"{nvml.UNLOADABLE}: {library} cannot be opened ({error})")
            if file.distrust:
                return nvml.Answer(
                    error=f"{nvml.UNLOADABLE}: others than root can change it: {file.distrust}"
                )
            return (ask or nvml.ask)(nvml.Library(file.path.agent, file.fd))

    return ask_in_root


@dataclass(frozen=True)
class _Builder:
    """Makes the specs of a node, with hooks by the program at the host path `hook`."""

    settings: Settings
    host: HostRoot
    hook: str | None
    ask: AskNvml | None
    choice: Choice

    def build(self, mode: str) -> BuiltSpec:
        """The spec of a mode other than auto."""
        if mode == "management":
            return self.management()
        if mode in ("nvml", "gpu"):
            return self.gpus()
        if mode in ("csv", "wsl"):
            return self.platform(mode)
        return self.device_class(device_class.by_mode(mode))

    def management(self) -> BuiltSpec:
        """The management spec. Raises NoDriver."""
        program, found = find_program(self.host, self.hook), self._driver()
        spec = driver_files.management_spec(found, self._context(program), self.settings.cdi_kind)
        warnings = (*self._hook_warnings(program), *_other_nodes(found, self.host))
        return _built(spec, found, warnings, program)

    def gpus(self) -> BuiltSpec:
        """The spec `nvidia.com/gpu` of the Linux driver. Raises NoDriver, NoDevices or
        DriverFailed."""
        from agent.cdi.driver import kernel
        from agent.cdi.make import gpu

        program, found = find_program(self.host, self.hook), self._driver()
        context, warnings = self._context(program), self._hook_warnings(program)
        if EMPTY in self.choice.ids:
            empty = Device(EMPTY, ContainerEdits(env=("NVCT_EMPTY_DEVICE=",)))
            spec = Spec(gpu.KIND, (empty,), gpu.common_edits(found, context))
            return _built(transform.finish(spec, merged=False), found, warnings, program)
        answer = self._answer(found)
        known = gpu.KernelGpus(
            {one.bus: kernel.drm_names(self.host, one.bus) for one in answer.gpus},
            kernel.mig_minors(self.host) if any(one.mig for one in answer.gpus) else {},
        )
        chosen = gpu.chosen(answer.gpus, self.choice.ids, answer.warnings)
        spec, missing = gpu.spec(
            found, context, chosen, known, self.settings.device_name_strategies,
            merged=self.choice.merged, lost=answer.warnings,
        )  # fmt: skip
        return _built(spec, found, (*answer.warnings, *missing, *warnings), program)

    def _answer(self, found: Driver) -> Answer:
        """The GPUs from NVML, else from the kernel's list."""
        from agent.cdi.driver import kernel, nvml

        name = f"libnvidia-ml.so.{found.version}"
        library = next(iter(found.find_libraries(name)), None)
        if library is None:
            why = f"there is no {name}"
        elif not kernel.is_loaded(self.host):
            why = "its kernel module is not loaded"
        else:
            answer = _ask_in_root(self.ask)(found.root, library)
            if not answer.error:
                return answer
            why = answer.error
        listed = kernel.gpus(self.host)
        if listed.error:
            raise NoDevices(
                "cannot make a CDI spec for nvidia.com/gpu: NVML does not list the GPUs: "
                f"{why}; and {listed.error}; load the driver's kernel module"
            )
        warning = (
            "GPUs are read from /proc/driver/nvidia, without MIG devices, because NVML does not "
            f"list them: {why}"
        )
        return nvml.Answer(listed.gpus, (warning, *listed.warnings))

    def platform(self, mode: str) -> BuiltSpec:
        """The spec `nvidia.com/gpu` of a Tegra (csv) or of WSL2 (wsl). Raises NoDriver, NoDevices
        or DriverFailed."""
        from agent.cdi.make import tegra, wsl

        program = find_program(self.host, self.hook)
        node = self.host, self.settings, self._context(program)
        spec, warnings, roots = (
            wsl.build(*node) if mode == "wsl"
            else tegra.build(*node, _ask_in_root(self.ask), self.choice)
        )  # fmt: skip
        warnings = (*warnings, *self._hook_warnings(program))
        return _with_left_out(spec, roots, warnings, program.judged_paths)

    def device_class(self, one: DeviceClass) -> BuiltSpec:
        """The spec of a device class. Raises NoDevices, or NoDriver if all of its nodes belong
        to another driver or can be changed by another user than root."""
        places, own = driver.places(self.settings), driver.host_root(self.host)
        where = tuple((nodes.directory, nodes.pattern) for nodes in one.nodes)
        tried: list[DriverRoot] = []
        for root in driver.roots(self.host, places):
            devs = driver.dev_roots(self.host, places, root)
            nodes = driver.nodes_at(devs, where)
            if spec := device_class.spec(one, nodes, (root, own), self.choice):
                return _with_left_out(spec, (root, own, *devs))
            tried += devs
        start = f"cannot make a CDI spec for {one.kind}"
        if distrusted := driver.left_out(tried):
            raise NoDriver(f"{start}: {distrusted}")
        if why := device_class.missing_numbers(one, tried):
            raise DevicesLost(f"{start}: {why}")
        names = ", ".join(nodes.path for nodes in one.nodes)
        raise NoDevices(f"{start}: there is no {names}; load its kernel module")

    def _driver(self) -> Driver:
        return driver.find(self.host, driver.places(self.settings))

    def _hooks(self, program: HookProgram) -> Hooks:
        chosen = self.settings
        return Hooks(
            program.path, chosen.disabled_hooks, chosen.enabled_hooks, chosen.ldconfig_path or ""
        )

    def _context(self, program: HookProgram) -> BuildContext:
        machine = os.uname()
        return BuildContext(
            self._hooks(program), machine.release, _firmware(self.host), machine.machine
        )

    def _hook_warnings(self, program: HookProgram) -> tuple[str, ...]:
        """A warning if hooks are switched on and cannot be made."""
        why = program.distrust or "there is no nvidia-cdi-hook on the host"
        text = (
            f"the CDI spec has no hooks: {why}; programs in containers find the driver's libraries "
            "by LD_LIBRARY_PATH only"
        )
        return () if program.path or not self._hooks(program).any_enabled else (text,)


def _other_nodes(found: Driver, host: HostRoot) -> Iterator[str]:
    """A warning about nodes that the host or the driver root has, and --dev-root has not."""
    has, searched = {node.inside for node in found.nodes}, [dev.host_path for dev in found.devs]
    for root in (driver.host_root(host), found.root):
        if root.host_path in searched:
            continue
        searched.append(root.host_path)
        more = [n.host_path for n in driver.device_nodes((root,)) if n.inside not in has]
        if more:
            yield (
                f"CDI specs are without {_some(more)}: device nodes are taken from "
                f"{searched[0]} (--dev-root) only, which has none of these names; make them there, "
                "or leave --dev-root out"
            )


def _built(spec: Spec, found: Driver, warnings: tuple[str, ...], program: HookProgram) -> BuiltSpec:
    """The spec of a driver, with its warnings."""
    roots = (found.root, *found.devs)
    return _with_left_out(spec, roots, warnings, program.judged_paths, found)


def _with_left_out(
    spec: Spec, roots: Iterable[DriverRoot], warnings: tuple[str, ...] = (),
    judged_paths: tuple[str, ...] = (), found: Driver | None = None,
) -> BuiltSpec:  # fmt: skip
    """A spec, with one more warning for each cause why paths of the roots were left out of it."""
    roots = tuple(dict.fromkeys(roots))
    causes: dict[str, list[str]] = {}
    for path, why in ((path, why) for root in roots for path, why in root.left_out.items()):
        causes.setdefault(why, []).append(path)
    more = (f"CDI specs are without {_some(paths)}: {why}{driver_files.remedy(paths[0])}"
            for why, paths in causes.items())  # fmt: skip
    judged = (*judged_paths, *(path for root in roots for path in root.judged_paths))
    return BuiltSpec(spec, (*warnings, *more), tuple(dict.fromkeys(judged)), found)


def _some(paths: Sequence[str]) -> str:
    """The first of several paths by name, the others by their number."""
    named, more = paths[:_NAMED], len(paths) - _NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _firmware(host: HostRoot) -> str:
    """The kernel's extra firmware directory; "" if none is set."""
    try:
        with open(host.agent_path(_FIRMWARE), encoding="utf-8", errors="surrogateescape") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
