"""Specs as text, for what the options say and what the node has.

Invariant: the management spec needs no runtime, no NVML and none of the large libraries, so that it
is quick by hand; what the others need is imported where they are made.
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
from agent.cdi.driver.driver import Driver, Places
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import hooks as hook_programs
from agent.cdi.make import transform
from agent.cdi.make.choice import EMPTY, EVERYTHING, Choice
from agent.cdi.make.driver_edits import Surroundings, remedy
from agent.cdi.make.hooks import Hooks, Program
from agent.cdi.model import ContainerEdits, Device, Spec
from agent.cdi.specs import readers, rules
from agent.cdi.specs.readers import NOBODY, Reader
from agent.errors import AgentError, DevicesLost, DriverFailed, NoDevices, NoDriver, Refused
from agent.host.paths import HostRoot
from agent.options.settings import Settings

if TYPE_CHECKING:
    from agent.cdi.driver.gpus import Answer, Library

_NAMED = 4  # paths in a warning
_FIRMWARE = "/sys/module/firmware_class/parameters/path"

Text = tuple[str, tuple[str, ...]]
# What tells the GPUs, given the driver's NVML. May raise DriverFailed.
Ask: TypeAlias = "Callable[[Library], Answer]"


@dataclass(frozen=True, slots=True)
class Made:
    """A spec, warnings, and agent paths by whose owners, modes and links it was decided what may be
    in it."""

    spec: Spec
    warnings: tuple[str, ...] = ()
    way: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A spec that a node is to have: its text, or why there is none, warnings, and the agent paths
    on which depends what may be in it."""

    kind: str
    text: str | None
    problem: AgentError | None
    warnings: tuple[str, ...]
    way: tuple[str, ...] = ()


def places(settings: Settings) -> Places:
    """Where the options say that the driver is."""
    return Places(
        driver_root=settings.driver_root,
        driver_root_seen=settings.driver_root_ctr_path,
        dev_root=settings.dev_root,
        dev_root_seen=settings.dev_root_ctr_path,
        libraries=settings.library_search_paths,
        configs=settings.config_search_paths,
    )


def watched(settings: Settings, host: HostRoot) -> Iterator[str]:
    """Agent paths that change when any of the specs would be another one; `PREFIX*DIRECTORY` for
    names in a directory that start so."""
    from agent.cdi.driver import kernel
    from agent.cdi.make import driver_edits, others, platforms

    given = places(settings)
    yield from kernel.watched(host)
    yield from platforms.watched(host, settings)
    yield from driver.watched(host, given)
    yield host.agent_path("/etc/cufile.json")
    for root in driver.roots(host, given):
        yield from driver_edits.watched(root)
        for dev in driver.dev_roots(host, given, root):
            yield from others.watched(dev)


def wanted(
    settings: Settings, host: HostRoot, hook: str | None, ask: Ask | None = None,
    without: Collection[str] = (), reader: Reader = NOBODY,
) -> tuple[Wanted, ...]:  # fmt: skip
    """Every spec that this node should have, but for those of the kinds in `without`: the
    management spec first (WSL2 and a Tegra have none), that of GPUs, those of others where their
    devices are there; with hooks by the program at the host path `hook`, and with nothing for which
    `reader` would refuse all of it. Never raises an AgentError: one that cannot be made keeps no
    other away."""
    from agent.cdi.make import gpu as gpus
    from agent.cdi.make import others

    mode, found = automatic(settings, host, ask), []
    if mode == "nvml":
        found.append(
            _wanted(settings.cdi_kind, lambda: management(settings, host, hook=hook), reader)
        )
    without = {*(one.kind for one in found), *without}
    if gpus.KIND not in without:

        def make() -> Made:
            return _devices(mode, settings, host, hook=hook, ask=ask)

        found.append(_wanted(gpus.KIND, make, reader))
    for mode, which in others.CLASSES.items():
        if which.kind not in without:
            one = _wanted(which.kind, functools.partial(other, mode, settings, host), reader)
            found += () if is_absent(one.problem) else (one,)
    return tuple(found)


def is_absent(problem: AgentError | None) -> bool:
    """Are there simply no devices of a kind? Then nobody misses them."""
    return isinstance(problem, NoDevices) and not isinstance(problem, DevicesLost)


def _wanted(kind: str, make: Callable[[], Made], reader: Reader) -> Wanted:
    try:
        made = make()
        spec, more = made.spec, made.warnings
        if not readers.takes(reader, rules.minimum_version(spec)):
            spec, why = _without_groups(spec, reader)
            more = (*more, *why)
        return Wanted(kind, emit.text(spec), None, more, made.way)
    except AgentError as error:
        return Wanted(kind, None, error, ())


def _without_groups(spec: Spec, reader: Reader) -> tuple[Spec, tuple[str, ...]]:
    """Without what came last of all that a spec of ours can have. NVIDIA's generator writes it
    (v1.19 and later), and such a runtime takes nothing from the file."""
    less = transform.without_groups(spec)
    text = (
        f"CDI specs have no groups of device nodes, because {reader.name} may read no more than "
        f"CDI {reader.newest}: only root in a container can open nodes that are not open to "
        "everybody; update it"
    )
    return less, (text,) if less != spec else ()


def text(
    mode: str, settings: Settings, host: HostRoot, form: str = "yaml", *, hook: str | None,
    choice: Choice = EVERYTHING, mark: bool = True,
) -> Text:  # fmt: skip
    """The text of a mode's spec, and warnings. Raises NoDriver, NoDevices or DriverFailed."""
    if mode == "auto":
        mode = automatic(settings, host)
    if mode == "management":
        made = management(settings, host, hook=hook)
    elif mode in ("nvml", "gpu", "csv", "wsl"):
        made = _devices(mode, settings, host, hook=hook, choice=choice)
    else:
        made = other(mode, settings, host, choice)
    spec = choice.named(made.spec)
    spec = spec if choice.groups else transform.without_groups(spec)
    return emit.text(spec, form, mark=mark), made.warnings


def automatic(settings: Settings, host: HostRoot, ask: Ask | None = None) -> str:
    """The mode of nvidia.com/gpu that fits the machine: nvml, csv or wsl."""
    if not (platform.wsl(host) or platform.tegra(host)):
        return "nvml"
    from agent.cdi.make import platforms

    with contextlib.suppress(DriverFailed):  # told where its spec is made
        return platforms.mode(host, places(settings), _asking(ask))
    return "nvml"


def _asking(ask: Ask | None) -> Callable[[DriverRoot, str], Answer]:
    from agent.cdi.driver import gpus as inventory

    return lambda root, library: _told(root, library, ask or inventory.ask)


def _devices(
    mode: str, settings: Settings, host: HostRoot, *, hook: str | None, ask: Ask | None = None,
    choice: Choice = EVERYTHING,
) -> Made:  # fmt: skip
    """The spec `nvidia.com/gpu` of a mode, and warnings."""
    if mode in ("nvml", "gpu"):
        return gpu(settings, host, hook=hook, ask=ask, choice=choice)
    from agent.cdi.make import platforms

    hooks, program = _hooks(settings, host, hook)
    around = _surroundings(host, hooks)
    found = platforms.made(mode, settings, host, places(settings), around, _asking(ask), choice)
    warnings = (*found.warnings, *_warnings(hooks, program))
    return _made(found.spec, found.roots, warnings, program.way)


def _hooks(settings: Settings, host: HostRoot, path: str | None) -> tuple[Hooks, Program]:
    """The hooks that may be made by the program at a host path, and what was judged of it."""
    program = hook_programs.program(host, path)
    ldconfig = settings.ldconfig_path or ""
    hooks = Hooks(program.path, settings.disabled_hooks, settings.enabled_hooks, ldconfig)
    return hooks, program


def management(settings: Settings, host: HostRoot, *, hook: str | None) -> Made:
    """The management spec, and warnings; hooks are done by the program at the host path `hook`.
    Raises NoDriver."""
    hooks, program = _hooks(settings, host, hook)
    found = driver.find(host, places(settings))
    from agent.cdi.make import management as management_spec

    spec = management_spec.spec(found, _surroundings(host, hooks), settings.cdi_kind)
    warnings = (*_warnings(hooks, program), *_elsewhere(found, host))
    return _made(spec, (found.root, *found.devs), warnings, program.way)


def _elsewhere(found: Driver, host: HostRoot) -> Iterator[str]:
    """What the host's dev or the driver root's has, and the device root that was asked for has
    not."""
    has, places = {node.inside for node in found.nodes}, [dev.host_path for dev in found.devs]
    for root in (*driver.roots(host, Places(driver_root=driver.HOST_DRIVER)), found.root):
        if root.host_path in places:
            continue
        places.append(root.host_path)
        more = [n.host_path for n in driver.device_nodes((root,)) if n.inside not in has]
        if more:
            yield (
                f"CDI specs are without {_some(more)}: device nodes are taken from "
                f"{places[0]} (--dev-root) only, which has none of these names; make them there, "
                "or leave --dev-root out"
            )


def _made(
    spec: Spec, roots: Iterable[DriverRoot], warnings: tuple[str, ...] = (),
    way: tuple[str, ...] = (),
) -> Made:  # fmt: skip
    """A spec with what was left out of it, one warning for each cause."""
    roots = tuple(dict.fromkeys(roots))
    causes: dict[str, list[str]] = {}
    for path, why in ((path, why) for root in roots for path, why in root.left_out.items()):
        causes.setdefault(why, []).append(path)
    told = (f"CDI specs are without {_some(paths)}: {why}{remedy(paths[0])}"
            for why, paths in causes.items())  # fmt: skip
    ways = dict.fromkeys((*way, *(path for root in roots for path in root.way)))
    return Made(spec, (*warnings, *told), tuple(ways))


def _some(paths: Sequence[str]) -> str:
    """The first of several paths by name, the others by their number."""
    named, more = paths[:_NAMED], len(paths) - _NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def gpu(
    settings: Settings, host: HostRoot, *, hook: str | None, ask: Ask | None = None,
    choice: Choice = EVERYTHING,
) -> Made:  # fmt: skip
    """The spec `nvidia.com/gpu`, and warnings.

    Raises NoDriver, NoDevices, or DriverFailed where that library crashes or hangs.
    """
    from agent.cdi.driver import kernel
    from agent.cdi.make import gpu as gpus

    hooks, program = _hooks(settings, host, hook)
    found = driver.find(host, places(settings))
    if EMPTY in choice.ids:
        nothing = Device(EMPTY, ContainerEdits(env=("NVCT_EMPTY_DEVICE=",)))
        common = gpus.common(found, _surroundings(host, hooks))
        spec = transform.finish(Spec(gpus.KIND, (nothing,), common), merged=False)
        roots = (found.root, *found.devs)
        return _made(spec, roots, _warnings(hooks, program), program.way)
    answer = _answer(found, host, ask)
    known = gpus.Kernel(
        {one.bus: kernel.drm_names(host, one.bus) for one in answer.gpus},
        kernel.mig_minors(host) if any(one.mig for one in answer.gpus) else {},
    )
    spec, missing = gpus.spec(
        found, _surroundings(host, hooks),
        gpus.chosen(answer.gpus, choice.ids, answer.warnings), known,
        settings.device_name_strategies, merged=choice.merged, lost=answer.warnings,
    )  # fmt: skip
    warnings = (*answer.warnings, *missing, *_warnings(hooks, program))
    return _made(spec, (found.root, *found.devs), warnings, program.way)


def _answer(found: Driver, host: HostRoot, ask: Ask | None) -> Answer:
    """The GPUs from NVML, else from the kernel's list."""
    from agent.cdi.driver import gpus as inventory
    from agent.cdi.driver import kernel

    name = f"libnvidia-ml.so.{found.version}"
    library = next(iter(found.find_libraries(name)), None)
    if library is None:
        why = f"there is no {name}"
    elif not kernel.is_loaded(host):
        why = "its kernel module is not loaded"
    else:
        answer = _told(found.root, library, ask or inventory.ask)
        if not answer.error:
            return answer
        why = answer.error
    listed = kernel.gpus(host)
    if listed.error:
        raise NoDevices(
            f"cannot make a CDI spec for nvidia.com/gpu: NVML does not list the GPUs: {why}; and "
            f"{listed.error}; load the driver's kernel module"
        )
    warning = (
        "GPUs are read from /proc/driver/nvidia, without MIG devices, because NVML does not list "
        f"them: {why}"
    )
    return inventory.Answer(listed.gpus, (warning, *listed.warnings))


def _told(root: DriverRoot, library: str, ask: Ask) -> Answer:
    """The answer of the very file that was judged."""
    from agent.cdi.driver.gpus import UNLOADABLE, Answer, Library

    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(root.opened(library, os.O_RDONLY))
        except (OSError, Refused) as error:
            return Answer(error=f"{UNLOADABLE}: {library} cannot be opened ({error})")
        if file.distrust:
            return Answer(error=f"{UNLOADABLE}: others than root can change it: {file.distrust}")
        return ask(Library(file.path.agent, file.fd))


def other(mode: str, settings: Settings, host: HostRoot, choice: Choice = EVERYTHING) -> Made:
    """The spec of another class of devices. Raises NoDevices, or NoDriver where there are only such
    as are not of its driver, or are not root's alone."""
    from agent.cdi.make import others

    which = others.CLASSES[mode]
    given = places(settings)
    roots = driver.roots(host, given)
    own = driver.roots(host, Places(driver_root=driver.HOST_DRIVER))
    tried: list[DriverRoot] = []
    for root in roots:
        devs = driver.dev_roots(host, given, root)
        nodes = driver.nodes_at(devs, which.nodes)
        if spec := others.spec(mode, nodes, (root, *own), choice):
            return _made(spec, (root, *own, *devs))
        tried += devs
    if distrusted := driver.left_out(tried):
        raise NoDriver(f"cannot make a CDI spec for {which.kind}: {distrusted}")
    names = ", ".join("/".join(place) for place in which.nodes)
    if mode == "imex" and (why := others.no_channel(tried)):
        raise DevicesLost(f"cannot make a CDI spec for {which.kind}: {why}")
    raise NoDevices(
        f"cannot make a CDI spec for {which.kind}: there is no {names}; load its kernel module"
    )


def _surroundings(host: HostRoot, hooks: Hooks) -> Surroundings:
    machine = os.uname()
    return Surroundings(hooks, machine.release, _firmware(host), machine.machine)


def _warnings(hooks: Hooks, program: Program) -> tuple[str, ...]:
    """That there are no hooks, although they are wanted."""
    why = program.distrust or "there is no nvidia-cdi-hook on the host"
    text = (
        f"the CDI spec has no hooks: {why}; programs in containers find the driver's libraries by "
        "LD_LIBRARY_PATH only"
    )
    return () if hooks.path or not hooks.wanted else (text,)


def _firmware(host: HostRoot) -> str:
    """The kernel's own firmware directory, where somebody set one."""
    try:
        with open(host.agent_path(_FIRMWARE), encoding="utf-8", errors="surrogateescape") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
