"""Made-up hosts of other kinds, WSL2 and Tegra, for tests of what is generated there.

Their specs in tests/data/specs are what NVIDIA's generator 1.20 wrote on these very hosts, with
libraries from a real linker in the place of ours: it does not find the soname in a file without
sections.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.doubles.nvml import nvml
from tests.doubles.nvml.nvml import NOT_SUPPORTED, FakeGpu
from tests.tools.driver import elf
from tests.tools.kernel import make_node
from tests.unit.support.ld_cache import make_cache

CSV = "etc/nvidia-container-runtime/host-files-for-container.d"
NVGPU = "usr/lib/aarch64-linux-gnu/nvidia"
STORE = "usr/lib/wsl/drivers/nv_dispi.inf_amd64_0123456789abcdef"

# The GPU of an Orin is on no PCI bus; that of a Thor is, and may have another one beside it.
ORIN = (FakeGpu(0, uuid="54455d71-1111-4222-8333-444455556666", model="Orin (nvgpu)"),)
THOR = (
    FakeGpu(0, model="NVIDIA Thor", address="0000:01:00.0"),
    FakeGpu(1, model="RTX Pro 6000", address="0000:03:00.0"),
)
OTHER_STORE = "usr/lib/wsl/drivers/iigd_dch.inf_amd64_00"
# What Windows tells: WDDM versions and directories of drivers, the first one not NVIDIA's.
ADAPTERS = ((3100, f"/{OTHER_STORE}"), (3100, f"/{STORE}"))
# Options with which csv-options.json was made.
OPTIONS = (
    "--mode=csv", "--vendor=acme.com", "--class=card", "--device-id=0", "--no-all-device",
    "--device-name-strategy=type-index", "--device-name-strategy=uuid",
    "--nvidia-ctk-path=/usr/local/bin/nvidia-ctk", "--ldconfig-path=/sbin/ldconfig.real",
    "--library-search-path=/opt/lib", "--csv.ignore-pattern=**/libcuda.so",
    "--csv.ignore-pattern=/etc/*/plain", "--disable-hook=all", "--enable-hook=update-ldcache",
    "--feature-flag=no-additional-gids-for-device-nodes",
)  # fmt: skip

# name in dev: (major, minor, mode, group)
_TEGRA_NODES = {
    "nvidia0": (195, 0, 0o666, 0),
    "nvidiactl": (195, 255, 0o666, 0),
    "nvidia-modeset": (195, 254, 0o660, 44),
    "nvhost-ctrl-gpu": (505, 1, 0o660, 44),
    "nvhost-as-gpu": (505, 2, 0o660, 44),
    "nvmap": (10, 58, 0o440, 44),
    "nvgpu/igpu0/ctrl": (504, 3, 0o660, 44),
    "nvgpu/igpu0/power": (504, 4, 0o600, 44),
    "dri/card0": (226, 0, 0o660, 44),
}
_DEVICES = """\
dev, /dev/nvhost-*
dev, /dev/nvmap
 dev , /dev/nvgpu/igpu0/ctrl
dev, nvidia-modeset
dev, /dev/nvidiactl
dev, /dev/nvidia0
dev, /dev/dri/card0
dev, /dev/nothing
"""
_DRIVERS = f"""\
lib, /{NVGPU}/libcuda.so.1.1
lib, /{NVGPU}/libnvrm_gpu.so
lib, /{NVGPU}/libGLX_nvidia.so.0
lib, /{NVGPU}/libnvidia-opticalflow.so.*
lib, /{NVGPU}/libsocket.so_old
sym, /{NVGPU}/libcuda.so
sym, /usr/lib/aarch64-linux-gnu/libcuda.so.1
sym, /usr/lib/aarch64-linux-gnu/libdangling.so
sym, /etc/alternatives/plain
dir, /usr/lib/firmware/tegra*
dir, /usr/share/missing
lib, /usr/share/nvidia/one, two.json
not a line
what, /usr/share/nvidia/one
"""
_L4T = "lib, /etc/vulkan/icd.d/nvidia_icd.json\r\nlib, /etc/nvidia/nvidia_icd.json\n\n"


def make_tegra(root: Path, *, nodes: bool = True) -> Path:
    """A Tegra with one GPU, of which no NVML tells anything. Nodes need root."""
    for name, text in (("devices", _DEVICES), ("drivers", _DRIVERS), ("l4t", _L4T)):
        _write(root / CSV / f"{name}.csv", text)
    _write(root / "etc/nv_tegra_release", "# R36 (release), REVISION: 4.0\n")
    _write(root / "sys/devices/soc0/family", "Tegra\n")
    for name, soname in (
        ("libcuda.so.1.1", "libcuda.so.1"), ("libnvrm_gpu.so", ""),
        ("libGLX_nvidia.so.35.1.0", "libGLX_nvidia.so.0"),
        ("libnvidia-opticalflow.so.35.1", "libnvidia-opticalflow.so.1"),
    ):  # fmt: skip
        (root / NVGPU).mkdir(parents=True, exist_ok=True)
        (root / NVGPU / name).write_bytes(elf(soname))
    _write(root / NVGPU / "libsocket.so_old", "")
    for link, target in (
        (f"{NVGPU}/libcuda.so.1", "libcuda.so.1.1"),
        (f"{NVGPU}/libcuda.so", "libcuda.so.1"),
        (f"{NVGPU}/libGLX_nvidia.so.0", "libGLX_nvidia.so.35.1.0"),
        (f"{NVGPU}/libGLX_nvidia.so", "libGLX_nvidia.so.0"),
        ("usr/lib/aarch64-linux-gnu/libcuda.so.1", f"/{NVGPU}/libcuda.so"),
        ("usr/lib/aarch64-linux-gnu/libdangling.so", "nowhere.so"),
        ("etc/alternatives/plain", "../../usr/share/nvidia/one, two.json"),
        ("etc/vulkan/icd.d/nvidia_icd.json", "../../nvidia/nvidia_icd.json"),
    ):
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(target)
    _write(root / "usr/share/nvidia/one, two.json", "{}")
    _write(root / "etc/nvidia/nvidia_icd.json", "{}")
    (root / "opt/lib" / NVGPU).mkdir(parents=True)
    (root / "opt/lib" / NVGPU / "libnvrm_gpu.so").write_bytes(elf(""))
    for name in ("tegra23x", "tegra19x"):
        _write(root / f"usr/lib/firmware/{name}/gpu.bin", "")
    for name, (major, minor, mode, gid) in _TEGRA_NODES.items() if nodes else ():
        make_node(root / "dev" / name, major, minor, mode, gid)
    make_hook(root)
    return root


def make_orin(root: Path) -> Path:
    """A Tegra whose NVML tells of its GPU. Needs a compiler."""
    lacks = ("PciInfo_v3", "MinorNumber")
    extra = [f"fail nvmlDeviceGet{name} {NOT_SUPPORTED}" for name in lacks]
    place_nvml(make_tegra(root), ORIN, ("cuda 13010", *extra))
    return root


def make_thor(root: Path) -> Path:
    """A Tegra with a second GPU, and nodes of both. Needs a compiler."""
    place_nvml(make_tegra(root), THOR, ("cuda 13010",))
    for name, (major, minor) in {
        "nvidia1": (195, 1), "nvidia2": (195, 2), "nvidia-uvm": (508, 0),
        "nvidia-uvm-tools": (508, 1), "dri/card1": (226, 1),
    }.items():  # fmt: skip
        make_node(root / "dev" / name, major, minor)
    (root / f"sys/bus/pci/devices/{THOR[1].bus}/drm/card1").mkdir(parents=True)
    (root / "dev/dri/by-path").mkdir()
    (root / f"dev/dri/by-path/pci-{THOR[1].bus}-card").symlink_to("../card1")
    with open(root / CSV / "devices.csv", "a", encoding="ascii") as file:
        file.write("dev, /dev/nvidia1\n")
    return root


def place_nvml(root: Path, gpus: Sequence[FakeGpu], extra: Sequence[str] = ()) -> None:
    """Put NVML where a Tegra has it; the loader's cache knows the directory."""
    library = root / NVGPU / "libnvidia-ml.so.1"
    shutil.copyfile(nvml.compiled(""), library)
    lines = [line for gpu in gpus for line in gpu.lines()]
    Path(f"{library}.script").write_text("\n".join([*extra, *lines]) + "\n", encoding="ascii")
    cache = make_cache([f"/{NVGPU}/libnvidia-ml.so.1", f"/{NVGPU}/libcuda.so.1.1"])
    (root / "etc/ld.so.cache").write_bytes(cache)


def make_wsl(root: Path, *, node: bool = True) -> Path:
    """A WSL2 with one driver. The node needs root."""
    for name in (
        "libcuda.so.1.1", "libcuda_loader.so", "libnvidia-ml.so.1", "libnvidia-ml_loader.so",
        "libnvidia-ptxjitcompiler.so.1", "libnvdxgdmal.so.1", "nvcubins.bin", "nvidia-smi",
        "libnvwgf2umx.so", "libnvoptix.so.1", "nvoptix.bin", "nvdxdlkernels.dll", "nv_dispi.cat",
    ):  # fmt: skip
        _write(root / STORE / name, "")
    _write(root / OTHER_STORE / "libigc.so", "")
    _write(root / "usr/lib/wsl/lib/libdxcore.so", "")
    _write(root / "usr/lib/wsl/lib/libcuda.so.1", "")
    if node:
        make_node(root / "dev/dxg", 10, 125)
    make_hook(root)
    return root


def make_hook(root: Path) -> None:
    """NVIDIA's program of hooks."""
    hook = root / "usr/bin/nvidia-cdi-hook"
    _write(hook, "#!/bin/sh\n")
    hook.chmod(0o755)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(text))
