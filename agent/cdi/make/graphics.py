"""Files of the driver for graphics: EGL, Vulkan, OpenCL and X.

Invariant: depends on the arguments and the files of the driver root only. The files and their names
in a container are those of NVIDIA's generator (internal/discover/graphics.go, v1.20). XDG_DATA_DIRS
is ignored: it belongs to the agent's process, and does not describe the driver root.
"""

from __future__ import annotations

import os

from agent.cdi.driver.driver import Driver
from agent.cdi.make import driver_files
from agent.cdi.make.hooks import Hooks
from agent.cdi.model import ContainerEdits, Mount

# Libraries whose versions differ from the driver's.
_PLATFORMS = tuple(
    f"libnvidia-egl-{name}.so.*.*" for name in ("gbm", "wayland", "wayland2", "xcb", "xlib")
)
_CONFIG_DIRECTORIES = ("/etc", "/usr/local/share", "/usr/share")
# Paths in a container. On the host a file may be in any of _CONFIG_DIRECTORIES.
_CONFIGS = (
    *(f"/usr/share/{name}" for name in (
        "glvnd/egl_vendor.d/10_nvidia.json",
        "egl/egl_external_platform.d/15_nvidia_gbm.json",
        "egl/egl_external_platform.d/10_nvidia_wayland.json",
        "egl/egl_external_platform.d/09_nvidia_wayland2.json",
        "egl/egl_external_platform.d/20_nvidia_xcb.json",
        "egl/egl_external_platform.d/20_nvidia_xlib.json",
        "nvidia/nvoptix.bin",
        "X11/xorg.conf.d/10-nvidia.conf",
        "X11/xorg.conf.d/nvidia-drm-outputclass.conf",
    )),
    "/etc/OpenCL/vendors/nvidia.icd",
)  # fmt: skip
_VULKAN = (
    "vulkan/icd.d/nvidia_icd.json",
    "vulkan/icd.d/nvidia_layers.json",
    "vulkan/implicit_layer.d/nvidia_layers.json",
)
_XORG_PARTS = ("drivers", "extensions", "updates/drivers", "updates/extensions")
_XORG_MODULES = (
    "/usr/lib/xorg/modules", "/usr/lib64/xorg/modules",
    "/usr/X11R6/lib/modules", "/usr/X11R6/lib64/modules",
)  # fmt: skip


def edits(driver: Driver, hooks: Hooks, machine: str) -> ContainerEdits:
    """Mounts of all files for graphics that exist, and the hook for their links. `machine` is the
    architecture (`uname -m`)."""
    version = driver.version
    allocator = driver.find_libraries(f"libnvidia-allocator.so.{version}")
    producer = driver.find_libraries(f"libnvidia-vulkan-producer.so.{version}")
    platforms = (path for pattern in _PLATFORMS for path in driver.find_libraries(pattern))
    server = _xorg(driver, f"libglxserver_nvidia.so.{version}")
    xconfig = driver.program("nvidia-xconfig")
    # The allocator is already mounted as a library of the driver. Only its link is added here.
    files = (*platforms, *producer, *_xorg(driver, "nvidia_drv.so"), *server)
    links = (
        *(f"../libnvidia-allocator.so.1::{os.path.dirname(path)}/gbm/nvidia-drm_gbm.so"
          for path in allocator),
        *(f"{os.path.basename(path)}::{path.removesuffix('.' + version)}"
          for path in (*producer, *server)),
    )  # fmt: skip
    return ContainerEdits(
        hooks=hooks.symlinks(links),
        mounts=(
            *(driver_files.mount(driver.root, path) for path in files),
            *((driver_files.mount(driver.root, xconfig),) if xconfig else ()),
            *_configs(driver, machine),
        ),
    )


def _xorg(driver: Driver, name: str) -> tuple[str, ...]:
    """The path of a module of the X server in the first directory that has it; () if none has."""
    places = [
        place
        for directory in driver.directories
        for place in (f"{directory}/nvidia/xorg", *_modules(f"{directory}/xorg/modules"))
    ]
    places += [place for directory in _XORG_MODULES for place in _modules(directory)]
    return driver.root.files(dict.fromkeys(places), name)[:1]


def _modules(directory: str) -> tuple[str, ...]:
    return tuple(f"{directory}/{part}" for part in _XORG_PARTS)


def _configs(driver: Driver, machine: str) -> tuple[Mount, ...]:
    directories = driver.configs or _CONFIG_DIRECTORIES
    # (path below a configuration directory on the host, path in a container)
    configs = ((path.removeprefix("/usr/share/").removeprefix("/etc/"), path) for path in _CONFIGS)
    # Some packages add the machine to the file name. GKE has the files in the driver root itself.
    names = (*_VULKAN, f"vulkan/icd.d/nvidia_icd.{machine}.json")
    targets = (
        *((directories, name, target) for name, target in configs),
        *(((*directories, "/"), name, f"/etc/{name}") for name in names),
    )
    return tuple(
        driver_files.mount(driver.root, path, target)
        for places, name, target in targets
        for path in driver.root.files(places, name)[:1]
    )
