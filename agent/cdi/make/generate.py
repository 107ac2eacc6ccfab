"""Makes the specs of a node as text, from the options and the node's devices.

Invariant: the management spec needs no runtime, no NVML and no large library, so that the command
is quick. Modules that only other specs need are imported where these are made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.cdi import model
from agent.cdi.driver import driver, platform
from agent.cdi.driver.driver import Driver
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import device_class, driver_files, transform
from agent.cdi.make.driver_files import BuildContext
from agent.cdi.make.hooks import find_hooks
from agent.cdi.make.request import EMPTY, EVERYTHING, Choice
from agent.cdi.model import ContainerEdits, Device, Spec
from agent.cdi.specs import readers
from agent.cdi.specs.readers import UNKNOWN_READER, Reader
from agent.errors import AgentError, DevicesLost, DriverFailed, NoDevices, NoDriver
from agent.host import budget
from agent.host.paths import HostRoot
from agent.options.device_classes import DEVICE_CLASSES, GPU_KIND, DeviceClass
from agent.options.settings import Settings

if TYPE_CHECKING:
    from agent.cdi.driver.nvml import Answer, AskNvml

_NAMED = 4  # paths in a warning
# The kernel's extra firmware directory.
_FIRMWARE = "/sys/module/firmware_class/parameters/path"


@dataclass(frozen=True)
class BuiltSpec:
    """A spec and its warnings. `judged_paths` are the agent paths whose owners, modes and links
    decided what the spec may contain. `driver` is the driver that the spec describes; None for
    other specs."""

    spec: Spec
    warnings: tuple[str, ...] = ()
    judged_paths: tuple[str, ...] = ()
    driver: Driver | None = None


@dataclass(frozen=True)
class DesiredSpec:
    """A spec that a node should have: its `text`, or the `problem` why it cannot be made. The other
    fields are those of `BuiltSpec`."""

    kind: str
    text: str | None
    problem: AgentError | None
    warnings: tuple[str, ...] = ()
    judged_paths: tuple[str, ...] = ()
    driver: Driver | None = None

    @property
    def is_absent(self) -> bool:
        """Has the node no devices of this kind? Then a missing spec is no fault."""
        return isinstance(self.problem, NoDevices) and not isinstance(self.problem, DevicesLost)


def watch_paths(settings: Settings, host: HostRoot) -> Iterator[str]:
    """Agent paths that change when one of the specs has to change, with entries as in
    `driver.watch_paths`."""
    from agent.cdi.driver import kernel

    yield from kernel.watch_paths(host)
    yield f"dxg*{host.agent_path('/dev')}"
    if platform.wsl(host):
        from agent.cdi.make import wsl

        yield from (host.agent_path(path) for path in (wsl.LIBRARIES, wsl.STORES))
    if platform.tegra(host):
        from agent.cdi.make import tegra

        yield from tegra.watch_paths(host, settings)
    yield from driver.watch_paths(host, settings)
    yield host.agent_path("/etc/cufile.json")
    for root in driver.roots(host, settings):
        yield from driver_files.watch_paths(root)
        for dev in driver.dev_roots(host, settings, root):
            yield from device_class.watch_paths(dev)


def desired_specs(
    gpu_mode: str, settings: Settings, host: HostRoot, hook: str | None,
    ask: AskNvml | None = None, without: Collection[str] = (), reader: Reader = UNKNOWN_READER,
) -> tuple[DesiredSpec, ...]:  # fmt: skip
    """Every spec that this node should have: the management spec first (only with `gpu_mode` nvml),
    then the spec of GPUs, then those of the device classes that exist. Kinds of `without` are left
    out. Hooks run the program at the host path `hook`; None means no hooks. `ask` replaces
    `nvml.ask`. Fields for which `reader` would refuse the whole file are removed. An AgentError
    becomes the problem of its spec, so that the other specs are still made."""

    builder = _Builder(settings, host, _context(settings, host, hook), ask, EVERYTHING)
    modes = {settings.cdi_kind: "management"} if gpu_mode == "nvml" else {}
    classes = ((device_class.kind, device_class.mode) for device_class in DEVICE_CLASSES)
    for kind, mode in ((GPU_KIND, gpu_mode), *classes):
        if kind not in without:
            modes.setdefault(kind, mode)
    found = ((mode, _desired(kind, builder, mode, reader)) for kind, mode in modes.items())
    always = ("management", gpu_mode)
    return tuple(spec for mode, spec in found if mode in always or not spec.is_absent)


def _desired(kind: str, builder: _Builder, mode: str, reader: Reader) -> DesiredSpec:
    try:
        built = builder.build(mode)
        spec, warnings = built.spec, built.warnings
        if not readers.can_read(reader, model.minimum_version(spec)):
            # Groups are the newest feature that a spec of ours can have. NVIDIA's generator writes
            # them since v1.19, although such a runtime refuses the whole file.
            spec = transform.without_groups(spec)
            if spec != built.spec:
                text = (
                    f"CDI specs have no groups of device nodes, because {reader.name} may read no "
                    f"more than CDI {reader.newest}: only root in a container can open nodes that "
                    "are not open to everybody; update it"
                )
                warnings = (*warnings, text)
        return DesiredSpec(kind, model.text(spec), None, warnings, built.judged_paths, built.driver)
    except AgentError as error:
        return DesiredSpec(kind, None, error)


def spec_text(
    mode: str, settings: Settings, host: HostRoot, form: str = "yaml", *, hook: str | None,
    choice: Choice = EVERYTHING, mark: bool = True,
) -> tuple[str, tuple[str, ...]]:  # fmt: skip
    """(text, warnings) of the spec for a mode of `cdi generate`. `form` is yaml or json; `hook` is
    the host path of the program of hooks; `mark` marks the file as ours, so that `apply` may
    replace it. Raises NoDriver, NoDevices or DriverFailed."""
    built = build(mode, settings, host, hook=hook, choice=choice)
    spec = choice.with_kind(built.spec)
    spec = spec if choice.groups else transform.without_groups(spec)
    return model.text(spec, form, mark=mark), built.warnings


def build(
    mode: str, settings: Settings, host: HostRoot, *, hook: str | None = None,
    ask: AskNvml | None = None, choice: Choice = EVERYTHING,
) -> BuiltSpec:  # fmt: skip
    """The spec for a mode of `cdi generate`; arguments as in `desired_specs`. Raises NoDriver,
    NoDevices, or DriverFailed if NVML crashes or hangs."""
    mode = gpu_mode(settings, host, ask) if mode == "auto" else mode
    return _Builder(settings, host, _context(settings, host, hook), ask, choice).build(mode)


def gpu_mode(settings: Settings, host: HostRoot, ask: AskNvml | None = None) -> str:
    """The mode for nvidia.com/gpu on this machine: nvml, csv or wsl. Never raises DriverFailed."""
    if platform.wsl(host):
        # A GPU can be passed through to the Linux driver on WSL2.
        roots = driver.roots(host, settings)
        nodes = any(driver.device_nodes(driver.dev_roots(host, settings, root)) for root in roots)
        return "nvml" if nodes else "wsl"
    if platform.tegra(host):
        from agent.cdi.make import tegra

        with contextlib.suppress(DriverFailed):  # the spec's problem will name the failure
            return "csv" if tegra.needs_csv_mode(host, settings, ask) else "nvml"
    return "nvml"


@dataclass(frozen=True)
class _Builder:
    """Makes the specs of a node."""

    settings: Settings
    host: HostRoot
    context: BuildContext
    ask: AskNvml | None
    choice: Choice

    def build(self, mode: str) -> BuiltSpec:
        """The spec for a mode other than auto. Raises NoDriver, NoDevices or DriverFailed."""
        if mode == "management":
            return self._management()
        if mode in ("nvml", "gpu"):
            return self._gpus()
        if mode in ("csv", "wsl"):
            return self._platform(mode)
        return self._device_class(next(item for item in DEVICE_CLASSES if item.mode == mode))

    def _management(self) -> BuiltSpec:
        nvidia_driver = driver.find(self.host, self.settings)
        spec = driver_files.management_spec(nvidia_driver, self.context, self.settings.cdi_kind)
        warnings = (*self.context.hooks.warnings, *_ignored_node_warnings(nvidia_driver, self.host))
        return self._of_driver(spec, nvidia_driver, warnings)

    def _of_driver(self, spec: Spec, nvidia_driver: Driver, warnings: tuple[str, ...]) -> BuiltSpec:
        built = self._built(spec, (nvidia_driver.root, *nvidia_driver.devs), warnings)
        return replace(built, driver=nvidia_driver)

    def _built(
        self, spec: Spec, roots: Iterable[DriverRoot], warnings: tuple[str, ...] = ()
    ) -> BuiltSpec:
        """The spec with its warnings, and one more warning for each reason why paths in `roots`
        were left out."""
        roots = tuple(dict.fromkeys(roots))
        causes: dict[str, list[str]] = {}
        for path, why in ((path, why) for root in roots for path, why in root.left_out.items()):
            causes.setdefault(why, []).append(path)
        more = (f"CDI specs are without {_abbreviated(paths)}: {why}{driver_files.remedy(paths[0])}"
                for why, paths in causes.items())  # fmt: skip
        judged = dict.fromkeys(path for root in roots for path in root.judged_paths)
        judged |= dict.fromkeys(self.context.hooks.judged_paths)
        return BuiltSpec(spec, (*warnings, *more), tuple(judged))

    def _gpus(self) -> BuiltSpec:
        """The spec `nvidia.com/gpu` of the Linux driver."""
        from agent.cdi.driver import kernel
        from agent.cdi.make import gpu

        nvidia_driver = driver.find(self.host, self.settings)
        hook_warnings = self.context.hooks.warnings
        if EMPTY in self.choice.ids:
            empty = Device(EMPTY, ContainerEdits(env=("NVCT_EMPTY_DEVICE=",)))
            spec = Spec(GPU_KIND, (empty,), gpu.common_edits(nvidia_driver, self.context))
            return self._of_driver(
                transform.finish(spec, with_all=False), nvidia_driver, hook_warnings
            )
        answer = self._answer(nvidia_driver)
        known = gpu.KernelGpus(
            {item.bus: kernel.drm_names(self.host, item.bus) for item in answer.gpus},
            kernel.mig_minors(self.host) if any(item.mig for item in answer.gpus) else {},
        )
        chosen = gpu.chosen(answer.gpus, self.choice.ids, answer.warnings)
        spec, missing = gpu.spec(
            nvidia_driver, self.context, chosen, known, self.settings.device_name_strategies,
            with_all=self.choice.with_all, lost=answer.warnings,
        )  # fmt: skip
        return self._of_driver(spec, nvidia_driver, (*answer.warnings, *missing, *hook_warnings))

    def _answer(self, nvidia_driver: Driver) -> Answer:
        """The GPUs from NVML, else from the kernel's list. Raises NoDevices if neither lists
        them."""
        from agent.cdi.driver import kernel, nvml

        name = f"libnvidia-ml.so.{nvidia_driver.version}"
        library = next(iter(nvidia_driver.find_libraries(name)), None)
        if library is None:
            why = f"there is no {name}"
        elif not kernel.is_loaded(self.host):
            why = "its kernel module is not loaded"
        else:
            answer = nvml.ask_in(nvidia_driver.root, library, self.ask)
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

    def _platform(self, mode: str) -> BuiltSpec:
        """The spec `nvidia.com/gpu` of a Tegra (mode csv) or of WSL2 (mode wsl)."""
        from agent.cdi.make import tegra, wsl

        node = self.host, self.settings, self.context
        spec, warnings, roots = (
            wsl.build(*node) if mode == "wsl" else tegra.build(*node, self.ask, self.choice)
        )
        return self._built(spec, roots, (*warnings, *self.context.hooks.warnings))

    def _device_class(self, definition: DeviceClass) -> BuiltSpec:
        """The spec of a device class. Raises NoDevices if there is no device, DevicesLost if only
        the kernel's driver is there, or NoDriver if another driver or another user has all
        nodes."""
        on_host = driver.host_root(self.host)
        where = tuple((nodes.directory, nodes.pattern) for nodes in definition.nodes)
        tried: list[DriverRoot] = []
        for root in driver.roots(self.host, self.settings):
            devs = driver.dev_roots(self.host, self.settings, root)
            nodes = driver.nodes_at(devs, where)
            if spec := device_class.spec(definition, nodes, (root, on_host), self.choice):
                return self._built(spec, (root, on_host, *devs))
            tried += devs
        start = f"cannot make a CDI spec for {definition.kind}"
        if distrusted := driver.first_left_out(tried):
            raise NoDriver(f"{start}: {distrusted}")
        if why := device_class.missing_numbers(definition, tried):
            raise DevicesLost(f"{start}: {why}")
        names = ", ".join(nodes.path for nodes in definition.nodes)
        raise NoDevices(f"{start}: there is no {names}; load its kernel module")


def _context(settings: Settings, host: HostRoot, hook: str | None) -> BuildContext:
    machine = os.uname()
    hooks = find_hooks(settings, host, hook)
    firmware = budget.text(host.agent_path(_FIRMWARE), 4096).strip()
    return BuildContext(hooks, machine.release, firmware, machine.machine)


def _ignored_node_warnings(nvidia_driver: Driver, host: HostRoot) -> Iterator[str]:
    """A warning about device nodes of the host or of the driver root that --dev-root lacks."""
    has = {node.inside for node in nvidia_driver.nodes}
    searched = [dev.host_path for dev in nvidia_driver.devs]
    for root in (driver.host_root(host), nvidia_driver.root):
        if root.host_path in searched:
            continue
        searched.append(root.host_path)
        more = [n.host_path for n in driver.device_nodes((root,)) if n.inside not in has]
        if more:
            yield (
                f"CDI specs are without {_abbreviated(more)}: device nodes are taken from "
                f"{searched[0]} (--dev-root) only, which has none of these names; make them there, "
                "or leave --dev-root out"
            )


def _abbreviated(paths: Sequence[str]) -> str:
    """The first paths by name, and the number of the others."""
    named, more = paths[:_NAMED], len(paths) - _NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")
