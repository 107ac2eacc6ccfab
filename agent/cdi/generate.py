"""Specs as text, for what the options say and what the node has.

Invariant: the management spec needs no runtime, no NVML and none of the large libraries, so that it
is quick by hand; what the others need is imported where they are made.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, TypeAlias

from agent.cdi import driver, emit, pipeline, readers, rules
from agent.cdi import management as recipe
from agent.cdi.driver import Driver, Places
from agent.cdi.hooks import Hooks
from agent.cdi.model import Spec
from agent.cdi.readers import NOBODY, Reader
from agent.cdi.recipe import Surroundings
from agent.data import dataclass
from agent.errors import AgentError, NoDevices
from agent.host.paths import HostRoot
from agent.settings import Settings

if TYPE_CHECKING:
    from agent.cdi.inventory import Answer

_FIRMWARE = "/sys/module/firmware_class/parameters/path"

Text = tuple[str, tuple[str, ...]]
Made = tuple[Spec, tuple[str, ...]]
# What tells the GPUs, given the agent path of the driver's NVML. May raise DriverFailed.
Ask: TypeAlias = "Callable[[str], Answer]"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A spec that a node is to have: its text, or why there is none, and warnings."""

    kind: str
    text: str | None
    problem: AgentError | None
    warnings: tuple[str, ...]


def places(settings: Settings) -> Places:
    """Where the options say that the driver is."""
    return Places(
        driver_root=settings.driver_root,
        driver_root_seen=settings.driver_root_ctr_path,
        dev_root=settings.dev_root,
        dev_root_seen=settings.dev_root_ctr_path,
    )


def watched(settings: Settings, host: HostRoot) -> Iterator[str]:
    """Agent paths that change when any of the specs would be another one; `PREFIX*DIRECTORY` for
    names in a directory that start so."""
    from agent.cdi import kernel, others, recipe

    given = places(settings)
    yield from kernel.watched(host)
    yield from driver.watched(host, given)
    yield host.agent_path("/etc/cufile.json")
    for root in driver.roots(host, given):
        yield from recipe.watched(root)
        for dev in driver.dev_roots(host, given, root):
            yield from others.watched(dev)


def wanted(
    settings: Settings, host: HostRoot, hook: str | None, ask: Ask | None = None,
    without: Collection[str] = (), reader: Reader = NOBODY,
) -> tuple[Wanted, ...]:  # fmt: skip
    """Every spec that this node should have, but for those of the kinds in `without`: the
    management spec first, that of GPUs, those of others where their devices are there; with hooks
    by the program at the host path `hook`, and with nothing for which `reader` would refuse all of
    it. Never raises an AgentError: one that cannot be made keeps no other away."""
    from agent.cdi import gpu as gpus
    from agent.cdi import others

    found = [_wanted(settings.cdi_kind, lambda: management(settings, host, hook=hook), reader)]
    without = {settings.cdi_kind, *without}
    if gpus.KIND not in without:
        found.append(_wanted(gpus.KIND, lambda: gpu(settings, host, hook=hook, ask=ask), reader))
    for mode, which in others.CLASSES.items():
        if which.kind not in without:
            one = _wanted(which.kind, functools.partial(other, mode, settings, host), reader)
            found += () if isinstance(one.problem, NoDevices) else (one,)
    return tuple(found)


def _wanted(kind: str, make: Callable[[], Made], reader: Reader) -> Wanted:
    try:
        spec, warnings = make()
        if not readers.takes(reader, rules.minimum_version(spec)):
            spec, more = _without_groups(spec, reader)
            warnings = (*warnings, *more)
        return Wanted(kind, emit.text(spec), None, warnings)
    except AgentError as error:
        return Wanted(kind, None, error, ())


def _without_groups(spec: Spec, reader: Reader) -> Made:
    """Without what came last of all that a spec of ours can have. NVIDIA's generator writes it
    (v1.19 and later), and such a runtime takes nothing from the file."""
    less = pipeline.without_groups(spec)
    text = (
        "CDI specs are without the groups of device nodes, so that only root in a container can "
        f"open those that are not for everybody: {reader.name} may read no more than CDI "
        f"{reader.newest}; update it"
    )
    return less, (text,) if less != spec else ()


def text(
    mode: str, settings: Settings, host: HostRoot, form: str = "yaml", *, hook: str | None
) -> Text:
    """The text of a mode's spec, and warnings. Raises NoDriver, NoDevices or DriverFailed."""
    if mode == "management":
        spec, warnings = management(settings, host, hook=hook)
    elif mode in ("nvml", "gpu"):
        spec, warnings = gpu(settings, host, hook=hook)
    else:
        spec, warnings = other(mode, settings, host)
    return emit.text(spec, form), warnings


def management(settings: Settings, host: HostRoot, *, hook: str | None) -> Made:
    """The management spec, and warnings; hooks are done by the program at the host path `hook`.
    Raises NoDriver."""
    hooks = Hooks(hook, settings.disabled_hooks)
    found = driver.find(host, places(settings))
    spec = recipe.spec(found, _surroundings(host, hooks), settings.cdi_kind)
    return spec, _warnings(hooks)


def gpu(settings: Settings, host: HostRoot, *, hook: str | None, ask: Ask | None = None) -> Made:
    """The spec `nvidia.com/gpu`, and warnings.

    Raises NoDriver, NoDevices, or DriverFailed where that library crashes or hangs.
    """
    from agent.cdi import gpu as gpus
    from agent.cdi import kernel

    hooks = Hooks(hook, settings.disabled_hooks)
    found = driver.find(host, places(settings))
    answer = _answer(found, host, ask)
    known = gpus.Kernel(
        {one.bus: kernel.drm_names(host, one.bus) for one in answer.gpus},
        kernel.mig_minors(host) if any(one.mig for one in answer.gpus) else {},
    )
    spec, missing = gpus.spec(
        found, _surroundings(host, hooks), answer.gpus, known, settings.device_name_strategies
    )
    return spec, (*answer.warnings, *missing, *_warnings(hooks))


def _answer(found: Driver, host: HostRoot, ask: Ask | None) -> Answer:
    """The GPUs from NVML, else from the kernel's list."""
    from agent.cdi import inventory, kernel

    name = f"libnvidia-ml.so.{found.version}"
    library = next(iter(found.find_libraries(name)), None)
    if library is None:
        why = f"there is no {name}"
    elif not kernel.is_loaded(host):
        why = "its kernel module is not loaded"
    else:
        answer = (ask or inventory.ask)(found.root.agent_path(library))
        if not answer.error:
            return answer
        why = answer.error
    listed = kernel.gpus(host)
    if listed.error:
        raise NoDevices(
            f"cannot make a CDI spec for nvidia.com/gpu: NVML does not tell the GPUs: {why}; and "
            f"{listed.error}; load the driver's kernel module"
        )
    warning = f"GPUs are those of the kernel's list, for NVML does not tell them: {why}"
    return inventory.Answer(listed.gpus, (warning, *listed.warnings))


def other(mode: str, settings: Settings, host: HostRoot) -> Made:
    """The spec of another class of devices. Raises NoDevices."""
    from agent.cdi import others

    which = others.CLASSES[mode]
    given = places(settings)
    roots = driver.roots(host, given)
    own = driver.roots(host, Places(driver_root=driver.HOST_DRIVER))
    for root in roots:
        nodes = driver.nodes_at(driver.dev_roots(host, given, root), which.nodes)
        if spec := others.spec(mode, nodes, (root, *own)):
            return spec, ()
    names = ", ".join("/".join(place) for place in which.nodes)
    raise NoDevices(
        f"cannot make a CDI spec for {which.kind}: there is no {names}; load its kernel module"
    )


def _surroundings(host: HostRoot, hooks: Hooks) -> Surroundings:
    machine = os.uname()
    return Surroundings(hooks, machine.release, _firmware(host), machine.machine)


def _warnings(hooks: Hooks) -> tuple[str, ...]:
    text = (
        "the CDI spec has no hooks: there is no nvidia-cdi-hook on the host; programs in "
        "containers find the driver's libraries by LD_LIBRARY_PATH only"
    )
    return () if hooks.path or not hooks.wanted else (text,)


def _firmware(host: HostRoot) -> str:
    """The kernel's own firmware directory, where somebody set one."""
    try:
        with open(host.agent_path(_FIRMWARE), encoding="utf-8", errors="surrogateescape") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
