"""The spec `nvidia.com/gpu` of a Tegra: the files and devices that CSV files list.

Invariant: reads CSV files and files of the driver root, and asks NVML. A CSV file that another user
than root can change is not read, because every line names a path that containers get. Entries and
their order are those of NVIDIA's generator (pkg/nvcdi v1.20, mode csv), because the order decides
the arguments of hooks.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.cdi.driver import driver, kernel
from agent.cdi.driver.driver import Driver, Node
from agent.cdi.driver.nvml import UNLOADABLE, Answer, AskNvml, Gpu, ask_in, is_integrated_model
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import driver_files, gpu, transform
from agent.cdi.make.driver_files import BuildContext
from agent.cdi.make.gpu import KernelGpus
from agent.cdi.make.request import Choice
from agent.cdi.model import ContainerEdits, Device, Hook, Mount, Spec
from agent.errors import NoDevices, NoDriver, Refused, reason
from agent.host import budget, trust
from agent.host.paths import HostRoot
from agent.options.device_classes import GPU_KIND
from agent.options.settings import Settings

ONLY_GPU = "0"  # the name of a GPU that NVML does not describe

_NVML = "libnvidia-ml.so.1"
_RELEASE = "/etc/nv_tegra_release"
_TYPES = ("dev", "dir", "lib", "sym")
_REGULAR = re.compile(r"/dev/nvidia[0-9]+")
_WILD = re.compile(r"[*?\[]")
_THOR = "0000:01:00."  # the PCI address of a Thor's integrated GPU


def needs_csv_mode(host: HostRoot, settings: Settings, ask: AskNvml | None) -> bool:
    """Is mode csv right for this Tegra? It is if NVML cannot be loaded, or lists an integrated GPU.
    A Tegra with only GPUs on the PCI bus is like any other machine. May raise DriverFailed."""
    answer = _ask(driver.root_option_or_host(host, settings), ask)
    return UNLOADABLE in answer.error or any(is_integrated_model(g.model) for g in answer.gpus)


def watch_paths(host: HostRoot, settings: Settings) -> Iterator[str]:
    """Agent paths that change when the spec has to change, with entries as in
    `driver.watch_paths`."""
    listed, _, _ = read(host, settings.csv_files)
    above = {os.path.dirname(path) for kind in ("lib", "sym") for path in listed[kind]}
    yield from map(host.agent_path, (*settings.csv_files, _RELEASE, *sorted(above)))
    yield from (f"{name}*{host.agent_path('/dev')}" for name in ("nvhost", "nvmap", "nvgpu"))


def build(
    host: HostRoot, settings: Settings, context: BuildContext, ask: AskNvml | None, choice: Choice
) -> tuple[Spec, tuple[str, ...], tuple[DriverRoot, ...]]:
    """(spec, warnings, searched driver roots). Raises NoDriver, NoDevices or DriverFailed."""
    listed, unread, missing = read(host, settings.csv_files)
    if not any(listed.values()):
        why = "; ".join((*unread, *missing)) or "they are empty"
        raise NoDriver(
            f"cannot make a CDI spec: CSV files list nothing: {why}; install NVIDIA's packages for "
            "containers (nvidia-l4t-init), or give --csv.file"
        )
    if settings.origins["csv_files"] == "default":
        missing = []
    root, on_host = driver.root_option_or_host(host, settings), driver.host_root(host)
    driver.refuse_distrusted((root,))
    answer = _ask(root, ask)
    drm = {item.bus: kernel.drm_names(host, item.bus) for item in answer.gpus if item.bus}
    devs = driver.dev_roots(host, settings, root)
    builder = _Builder(
        root, on_host, devs, KernelGpus(drm, {}), context, listed, answer, settings, choice
    )  # fmt: skip
    found, warnings = builder.spec()
    unsure = answer.error and UNLOADABLE not in answer.error
    text = (
        f"the CDI spec has no hook for a newer CUDA of an image: NVML says nothing: {answer.error}"
    )
    warnings = (
        *missing, *unread, *warnings, *answer.warnings, *((text,) if unsure else ()),
    )  # fmt: skip
    return found, warnings, (root, on_host, *devs)


def _ask(root: DriverRoot, ask: AskNvml | None) -> Answer:
    """The answer of the NVML in a driver root; an answer with an error if the root has no NVML."""
    library = next(iter(driver.libraries(root, _NVML)), None)
    return ask_in(root, library, ask) if library else Answer(error=f"{UNLOADABLE}: it is not there")


def read(
    host: HostRoot, names: Iterable[str]
) -> tuple[Mapping[str, Sequence[str]], list[str], list[str]]:
    """The paths in the CSV files with these host paths, by type (dev, dir, lib, sym); warnings
    about unreadable files; warnings about missing files, because no JetPack has all of the default
    ones."""
    found: dict[str, list[str]] = {kind: [] for kind in _TYPES}
    warnings, missing = [], []
    for name in names:
        try:
            for kind, path in _lines(_text(host, name)):
                found[kind].append(path)
        except FileNotFoundError:
            missing.append(f"there is no {name}")
        except (OSError, Refused) as error:
            why = error.message if isinstance(error, Refused) else reason(error)
            warnings.append(f"{name} is not read: {why}")
    return found, warnings, missing


def _text(host: HostRoot, name: str) -> str:
    """The text of a CSV file. Raises OSError, or Refused with only the reason as its message."""
    with trust.open_path(host, name, os.O_RDONLY) as file:
        if file.distrust:
            raise Refused(f"another user than root can change it: {file.distrust}")
        if not stat.S_ISREG(file.status.st_mode):
            raise Refused("it is not a regular file")
        data = os.read(file.fd, budget.CSV.size + 1)
    if len(data) > budget.CSV.size:
        raise Refused(budget.too_large(budget.CSV))
    if data.count(b"\n") > budget.CSV.values:
        raise Refused(budget.too_many(budget.CSV, "lines"))
    return data.decode("utf-8", "replace")


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """(type, path) of each line that has both. Other lines are comments or empty, and are
    ignored."""
    for line in text.split("\n"):
        kind, comma, path = (part.strip() for part in line.strip().partition(","))
        usable = path and path.isprintable() and "\ufffd" not in path
        if comma and kind in _TYPES and usable:
            yield kind, path


@dataclass(frozen=True)
class _Builder:
    """Makes the spec of a driver root. `on_host` is the host as a driver root; `devs` are the
    device roots; `listed` are the paths in CSV files by type."""

    root: DriverRoot
    on_host: DriverRoot
    devs: tuple[DriverRoot, ...]
    kernel: KernelGpus
    context: BuildContext
    listed: Mapping[str, Sequence[str]]
    answer: Answer
    settings: Settings
    choice: Choice

    def spec(self) -> tuple[Spec, tuple[str, ...]]:
        """The spec, and warnings. Raises NoDevices."""
        devices, warnings = self._several_gpus() if self.choice.several_gpus else ((), ())
        if not devices:
            devices = self._one_gpu()
        void = ContainerEdits(env=(driver_files.VOID,))
        found = Spec(GPU_KIND, devices, transform.joined(self._file_edits(), void))
        return transform.finish(found, with_all=self.choice.with_all), warnings

    def _file_edits(self) -> ContainerEdits:
        """Mounts and hooks for the listed files. A link is not mounted: its target is, and a hook
        creates the link again."""
        root, hooks, search = self.root, self.context.hooks, self.settings.library_search_paths
        names = self.listed["dir"]
        directories = [path for name in names for path in root.directories(*_place(name))]
        libraries = _files(root, self.listed["lib"], search)
        ignored = self.settings.csv_ignore_patterns
        links = tuple(name for name in self.listed["sym"] if not _is_ignored(name, ignored))
        inside = (*directories, *libraries, *_files(root, links, search))
        release = self._release()
        return ContainerEdits(
            hooks=(
                *hooks.library_links(root, libraries),
                *hooks.symlinks(_links(root, links)),
                *self._compat(),
                *hooks.ldcache((*inside, *(item.container_path for item in release))),
            ),
            mounts=(*(driver_files.mount(root, path) for path in inside), *release),
        )

    def _release(self) -> tuple[Mount, ...]:
        """The mount of the file by which programs recognize a Tegra. It always comes from the
        host."""
        found = self.on_host.files((os.path.dirname(_RELEASE),), os.path.basename(_RELEASE))
        return tuple(driver_files.mount(self.on_host, path) for path in found)

    def _compat(self) -> tuple[Hook, ...]:
        """The hook for an image with a newer CUDA; () if NVML does not tell the driver's CUDA
        version."""
        cuda = self.answer.cuda
        if not cuda:
            return ()
        version = f"{cuda // 1000}.{cuda % 1000 // 10}"
        orin = any("Orin (nvgpu)" in nvml_gpu.model for nvml_gpu in self.answer.gpus)
        root = self.settings.csv_compat_container_root
        words = (f"--cuda-compat-container-root={root}",) if orin else ()
        return self.context.hooks.make(
            "enable-cuda-compat", f"--host-cuda-version={version}", *words
        )

    def _one_gpu(self) -> tuple[Device, ...]:
        """All listed device nodes as one GPU, which NVML does not describe. Raises NoDevices."""
        start = f"cannot make a CDI spec for {GPU_KIND}"
        for device_id in self.choice.ids:
            if device_id not in (transform.ALL, ONLY_GPU):
                raise NoDevices(
                    f"{start}: there is no GPU {device_id}: NVML lists only {ONLY_GPU}; "
                    f"give --device-id={ONLY_GPU} or all"
                )
        names = gpu.device_names(Gpu(0, "", 0, ""), None, self.settings.device_name_strategies)
        if not names:
            raise NoDevices(f"{start}: its GPU has no UUID; give --device-name-strategy=index")
        listed = self.listed["dev"]
        nodes = self._nodes(listed)
        if not nodes:
            where = " or ".join(dev.host_path.rstrip("/") + "/dev" for dev in self.devs)
            raise NoDevices(
                f"{start}: none of the {len(listed)} device nodes that CSV files list is in "
                f"{where}; load the driver's kernel modules, or give --csv.file"
            )
        return tuple(Device(name, self._node_edits(nodes)) for name in names)

    def _several_gpus(self) -> tuple[tuple[Device, ...], tuple[str, ...]]:
        """An integrated GPU and one on the PCI bus as devices, and warnings; no devices if there is
        only one GPU, or if the order of the GPUs is unknown."""
        if len(self.answer.gpus) < 2:
            return (), ()
        chosen = gpu.chosen(self.answer.gpus, self.choice.ids)
        if any(nvml_gpu.index != (0 if _is_integrated(nvml_gpu) else 1) for nvml_gpu in chosen):
            return (), ("all GPUs are one device, because NVML lists them in an unknown order",)
        devices: list[Device] = []
        warnings = []
        # By convention /dev/nvidia1 belongs to the other GPU, and /dev/nvidia2 to the display.
        names = (name for name in self.listed["dev"] if name != "/dev/nvidia1")
        integrated = self._node_edits(self._nodes((*names, "/dev/nvidia2")))
        for nvml_gpu in chosen:
            edits = integrated if _is_integrated(nvml_gpu) else self._discrete(nvml_gpu)
            if isinstance(edits, str):
                warnings.append(f"GPU {nvml_gpu.index} is not in the CDI spec: {edits}")
                continue
            device_names = gpu.device_names(nvml_gpu, None, self.settings.device_name_strategies)
            devices += (Device(name, edits) for name in device_names)
        return tuple(devices), tuple(warnings)

    def _discrete(self, nvml_gpu: Gpu) -> ContainerEdits | str:
        found = Driver(self.root, "", (), (), self.devs)
        edits = gpu.gpu_edits(found, self.context, self.kernel, nvml_gpu)
        if isinstance(edits, str):
            return edits
        listed = (
            name for name in self.listed["dev"]
            if not _REGULAR.fullmatch(name) and name not in gpu.CONTROL_NODES
        )  # fmt: skip
        control = driver_files.node_edits(self._nodes(gpu.CONTROL_NODES))
        return transform.joined(edits, control, self._node_edits(self._nodes(listed)))

    def _node_edits(self, nodes: Iterable[Node]) -> ContainerEdits:
        return transform.joined(
            driver_files.node_edits(nodes), ContainerEdits(mounts=self._release())
        )

    def _nodes(self, names: Iterable[str]) -> tuple[Node, ...]:
        """The device nodes with these paths or names in /dev; both may be patterns."""
        places = [_split(f"{above}/{name}") for name in names for above in ("", "/dev")]
        plain = [place for place in places if "/" not in place[1]]
        deep = (
            (os.path.dirname(path), os.path.basename(path))
            for directory, pattern in places if "/" in pattern
            for dev in self.devs for path in dev.glob(directory, pattern)
        )  # fmt: skip
        return driver.nodes_at(self.devs, (*plain, *dict.fromkeys(deep)))


def _is_integrated(nvml_gpu: Gpu) -> bool:
    """Is a GPU part of a Tegra? (The rule `isIntegratedGPU` of NVIDIA's generator.)"""
    return nvml_gpu.bus.startswith(_THOR) if nvml_gpu.bus else is_integrated_model(nvml_gpu.model)


def _split(path: str) -> tuple[str, str]:
    """(directory without wildcards, pattern below it) of a path from the root."""
    parts = os.path.normpath("/" + path.lstrip("/")).split("/")
    wild = next((at for at, part in enumerate(parts) if _WILD.search(part)), len(parts) - 1)
    return "/".join(parts[:wild]) or "/", "/".join(parts[wild:])


def _place(path: str) -> tuple[tuple[str], str]:
    """As `_split`, but with a tuple of directories, which the searches of DriverRoot expect."""
    directory, pattern = _split(path)
    return (directory,), pattern


def _files(root: DriverRoot, names: Iterable[str], search: Sequence[str]) -> tuple[str, ...]:
    """Paths of the files that match `names`, links followed, each once. Directories of `search`
    come first."""
    places = (_place(f"{above}/{name}") for name in names for above in (*search, ""))
    return tuple(dict.fromkeys(path for place in places for path in root.real_files(*place)))


def _links(root: DriverRoot, names: Iterable[str]) -> tuple[str, ...]:
    """`TARGET::LINK` for every link in the chains of links that begin at files with these names."""
    found: dict[str, None] = {}
    for name in names:
        for path in root.files(*_place(name)):
            here, seen = path, set[str]()
            while here not in seen and (target := root.read_link(here)):
                seen.add(here)
                found[f"{target}::{here}"] = None
                here = os.path.normpath(os.path.join(os.path.dirname(here), target))
    return tuple(found)


def _is_ignored(name: str, patterns: Iterable[str]) -> bool:
    """Does a path match a pattern? `**/` at the start of a pattern stands for any directory; other
    wildcards do not match a slash."""
    for pattern in patterns:
        target = os.path.basename(name) if pattern.startswith("**/") else name
        globs, parts = pattern.removeprefix("**/").split("/"), target.split("/")
        if len(globs) == len(parts) and all(map(fnmatch.fnmatchcase, parts, globs)):
            return True
    return False
