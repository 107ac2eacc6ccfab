"""The spec `nvidia.com/gpu` of a Tegra: its files and devices are those that CSV files list.

Invariant: pure in what was found but for reading. A file that somebody else than root can change is
not read, because every line of it is a path that containers get. Entries and their order are those
of NVIDIA's generator (pkg/nvcdi v1.20, mode csv), because it decides the arguments of hooks.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.cdi.driver import driver
from agent.cdi.driver.driver import Driver, Node
from agent.cdi.driver.gpus import INTEGRATED, Answer, Gpu
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import driver_edits, transform
from agent.cdi.make import gpu as gpus
from agent.cdi.make.driver_edits import Surroundings
from agent.cdi.make.gpu import Kernel, Maker
from agent.cdi.model import ContainerEdits, Device, Hook, Mount, Spec
from agent.errors import NoDevices, Refused, reason
from agent.host import budget, trust
from agent.host.paths import HostRoot

RELEASE = "/etc/nv_tegra_release"
ONLY = "0"  # the name of the one GPU of which NVML tells nothing

_TYPES = ("dev", "dir", "lib", "sym")
_REGULAR = re.compile(r"/dev/nvidia[0-9]+")
_WILD = re.compile(r"[*?\[]")
_THOR = "0000:01:00."  # where the integrated GPU of a Thor is


@dataclass(frozen=True, slots=True)
class Listed:
    """Paths that CSV files list, by their types, what is wrong with files, and which are not there:
    no JetPack has all of those that are read by default."""

    paths: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def of(self, kind: str) -> tuple[str, ...]:
        """The paths of a type: dev, dir, lib or sym."""
        return self.paths.get(kind, ())


@dataclass(frozen=True, slots=True)
class Options:
    """What may be chosen: directories that are searched before the root, patterns of links that are
    left out, where a container of an Orin has its CUDA, names of devices, the ids that are wanted,
    whether there can be several devices, whether there is a device `all`."""

    search: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    compat_root: str = ""
    strategies: tuple[str, ...] = ("index", "uuid")
    ids: tuple[str, ...] = (transform.ALL,)
    several: bool = True
    merged: bool = True


@dataclass(frozen=True, slots=True)
class Tegra:
    """Where things are: the driver root, the host's own, the roots of device nodes, and what the
    kernel says of GPUs."""

    root: DriverRoot
    own: DriverRoot
    devs: tuple[DriverRoot, ...]
    kernel: Kernel

    def places(self) -> str:
        """Where device nodes are looked for, in words."""
        return " or ".join(dev.host_path.rstrip("/") + "/dev" for dev in self.devs)


def read(host: HostRoot, names: Iterable[str]) -> Listed:
    """What CSV files at these host paths list; a file that is not there lists nothing."""
    found: dict[str, tuple[str, ...]] = {}
    warnings, missing = [], []
    for name in names:
        try:
            text, why = _text(host, name)
        except FileNotFoundError:
            missing.append(name)
            continue
        if why:
            warnings.append(f"{name} is not read: {why}")
        for kind, path in _lines(text):
            found[kind] = (*found.get(kind, ()), path)
    return Listed(found, tuple(warnings), tuple(missing))


def _text(host: HostRoot, name: str) -> tuple[str, str]:
    """A file's text, and why there is none. Raises FileNotFoundError."""
    try:
        with trust.open_path(host, name, os.O_RDONLY) as file:
            if file.distrust:
                return "", f"not root alone decides what is in it: {file.distrust}"
            if not stat.S_ISREG(file.found.st_mode):
                return "", "it is not a regular file"
            data = os.read(file.fd, budget.CSV.size + 1)
    except FileNotFoundError:
        raise
    except Refused as error:
        return "", error.message
    except OSError as error:
        return "", reason(error)
    if len(data) > budget.CSV.size:
        return "", budget.too_large(budget.CSV)
    if data.count(b"\n") > budget.CSV.values:
        return "", budget.too_many(budget.CSV, "lines")
    return data.decode("utf-8", "replace"), ""


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """(type, path) of each line that has both; others are comments, or nothing."""
    for line in text.split("\n"):
        kind, comma, path = (part.strip() for part in line.strip().partition(","))
        usable = path and path.isprintable() and "\ufffd" not in path
        if comma and kind in _TYPES and usable:
            yield kind, path


def spec(
    tegra: Tegra, around: Surroundings, listed: Listed, told: Answer, options: Options
) -> tuple[Spec, tuple[str, ...]]:
    """The spec, and warnings. `told` is what NVML says; an error of it is one more warning.

    Raises NoDevices where there is no device, or none of those that are wanted.
    """
    found = _Devices(tegra, around, listed, options)
    devices, warnings = found.several(told.gpus) if options.several else ((), ())
    if not devices:
        devices = found.one()
    common = transform.joined(
        _driver_edits(tegra, around, listed, told, options),
        ContainerEdits(env=(driver_edits.VOID,)),
    )
    made = transform.finish(Spec(gpus.KIND, devices, common), merged=options.merged)
    return made, (*listed.warnings, *warnings)


def is_integrated(gpu: Gpu) -> bool:
    """Is it part of a Tegra? A rule of NVIDIA's generator (`isIntegratedGPU`)."""
    if gpu.bus:
        return gpu.bus.startswith(_THOR)
    return any(word in gpu.model for word in INTEGRATED)


def _driver_edits(
    tegra: Tegra, around: Surroundings, listed: Listed, told: Answer, options: Options
) -> ContainerEdits:
    """Files, links and hooks. A mount shows what a link leads to; a hook makes the links anew."""
    root, hooks = tegra.root, around.hooks
    directories = tuple(path for name in listed.of("dir") for path in _directories(root, name))
    libraries = _files(root, listed.of("lib"), options.search)
    wanted = tuple(name for name in listed.of("sym") if not _ignored(name, options.ignored))
    targets = _files(root, wanted, options.search)
    release = _release(tegra)
    inside = (*directories, *libraries, *targets)
    return ContainerEdits(
        hooks=(
            *hooks.library_links(root, libraries),
            *hooks.symlinks(_links(root, wanted)),
            *_compat(around, told, options),
            *hooks.cache((*inside, *(item.container_path for item in release))),
        ),
        mounts=(*(driver_edits.mount(root, path) for path in inside), *release),
    )


def _release(tegra: Tegra) -> tuple[Mount, ...]:
    """The file by which programs know a Tegra; it is the host's, whatever the driver root is."""
    found = tegra.own.files((os.path.dirname(RELEASE),), os.path.basename(RELEASE))
    return tuple(driver_edits.mount(tegra.own, path) for path in found)


def _compat(around: Surroundings, told: Answer, options: Options) -> tuple[Hook, ...]:
    """A newer CUDA of an image is used where the driver says which one it has itself."""
    if not told.cuda:
        return ()
    version = f"{told.cuda // 1000}.{told.cuda % 1000 // 10}"
    orin = any("Orin (nvgpu)" in gpu.model for gpu in told.gpus)
    words = (f"--cuda-compat-container-root={options.compat_root}",) if orin else ()
    return around.hooks.make("enable-cuda-compat", f"--host-cuda-version={version}", *words)


def _split(path: str) -> tuple[str, str]:
    """A directory without wildcards, and a pattern below it; the path is one from the root."""
    parts = os.path.normpath("/" + path.lstrip("/")).split("/")
    wild = next((at for at, part in enumerate(parts) if _WILD.search(part)), len(parts) - 1)
    return "/".join(parts[:wild]) or "/", "/".join(parts[wild:])


def _directories(root: DriverRoot, name: str) -> tuple[str, ...]:
    directory, pattern = _split(name)
    return root.directories((directory,), pattern)


def _files(root: DriverRoot, names: Iterable[str], search: Sequence[str]) -> tuple[str, ...]:
    """Files that paths mean, links followed, each once; directories of `search` come first."""
    places = (_split(f"{above}/{name}") for name in names for above in (*search, ""))
    found = (path for above, pattern in places for path in root.real_files((above,), pattern))
    return tuple(dict.fromkeys(found))


def _links(root: DriverRoot, names: Iterable[str]) -> tuple[str, ...]:
    """`TARGET::LINK` for every link of a chain of links."""
    found: dict[str, None] = {}
    for name in names:
        directory, pattern = _split(name)
        for path in root.files((directory,), pattern):
            here, seen = path, set[str]()
            while here not in seen and (target := root.read_link(here)):
                seen.add(here)
                found[f"{target}::{here}"] = None
                here = os.path.normpath(os.path.join(os.path.dirname(here), target))
    return tuple(found)


def _ignored(name: str, patterns: Iterable[str]) -> bool:
    """`**/` at the start of a pattern stands for whatever directory; other wildcards stop at /."""
    for pattern in patterns:
        target = os.path.basename(name) if pattern.startswith("**/") else name
        ours, theirs = pattern.removeprefix("**/").split("/"), target.split("/")
        if len(ours) == len(theirs) and all(map(fnmatch.fnmatchcase, theirs, ours)):
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Devices:
    """What makes the devices."""

    tegra: Tegra
    around: Surroundings
    listed: Listed
    options: Options

    def one(self) -> tuple[Device, ...]:
        """All that is listed is one GPU, of which nothing else is known. Raises NoDevices."""
        for wanted in self.options.ids:
            if wanted not in (transform.ALL, ONLY):
                raise NoDevices(
                    f"cannot make a CDI spec for {gpus.KIND}: there is no GPU {wanted}: NVML "
                    f"lists only {ONLY}; give --device-id={ONLY} or all"
                )
        names = gpus.device_names(Gpu(0, "", 0, ""), None, self.options.strategies)
        if not names:
            raise NoDevices(
                f"cannot make a CDI spec for {gpus.KIND}: its GPU has no UUID; give "
                "--device-name-strategy=index"
            )
        nodes = self._nodes(self.listed.of("dev"))
        if not nodes:
            raise NoDevices(
                f"cannot make a CDI spec for {gpus.KIND}: none of the {len(self.listed.of('dev'))} "
                f"device nodes that CSV files list is in {self.tegra.places()}; load the driver's "
                "kernel modules, or give --csv.file"
            )
        return tuple(Device(name, self._edits(nodes)) for name in names)

    def several(self, told: Sequence[Gpu]) -> tuple[tuple[Device, ...], tuple[str, ...]]:
        """An integrated GPU and one on the PCI bus, and warnings; nothing where there is one only,
        or where they are not in the order that is known."""
        if len(told) < 2:
            return (), ()
        chosen = gpus.chosen(told, self.options.ids)
        if any(gpu.index != (0 if is_integrated(gpu) else 1) for gpu in chosen):
            return (), ("all GPUs are one device, because NVML lists them in an unknown order",)
        devices: list[Device] = []
        warnings = []
        for gpu in chosen:
            found = self._integrated() if is_integrated(gpu) else self._discrete(gpu)
            if isinstance(found, str):
                warnings.append(f"GPU {gpu.index} is not in the CDI spec: {found}")
                continue
            names = gpus.device_names(gpu, None, self.options.strategies)
            devices += (Device(name, found) for name in names)
        return tuple(devices), tuple(warnings)

    def _integrated(self) -> ContainerEdits:
        """The node of the other GPU is taken to be the second, that of the display the third."""
        names = (name for name in self.listed.of("dev") if name != "/dev/nvidia1")
        return self._edits(self._nodes((*names, "/dev/nvidia2")))

    def _discrete(self, gpu: Gpu) -> ContainerEdits | str:
        tegra = self.tegra
        named = Driver(tegra.root, "", (), (), tegra.devs)
        edits = Maker(named, self.around, gpu, tegra.kernel).make(None)
        if isinstance(edits, str):
            return edits
        listed = (
            name for name in self.listed.of("dev")
            if not _REGULAR.fullmatch(name) and name not in gpus.CONTROL
        )  # fmt: skip
        control = driver_edits.node_edits(self._nodes(gpus.CONTROL))
        return transform.joined(edits, control, self._edits(self._nodes(listed)))

    def _edits(self, nodes: Iterable[Node]) -> ContainerEdits:
        return transform.joined(
            driver_edits.node_edits(nodes), ContainerEdits(mounts=_release(self.tegra))
        )

    def _nodes(self, names: Iterable[str]) -> tuple[Node, ...]:
        """Device nodes by their paths, or by their names in /dev."""
        places = [_split(f"{above}/{name}") for name in names for above in ("", "/dev")]
        plain = [place for place in places if "/" not in place[1]]
        deep = (
            (os.path.dirname(path), os.path.basename(path))
            for directory, pattern in places if "/" in pattern
            for dev in self.tegra.devs for path in dev.glob(directory, pattern)
        )  # fmt: skip
        return driver.nodes_at(self.tegra.devs, (*plain, *dict.fromkeys(deep)))
