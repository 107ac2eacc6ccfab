"""Files of the driver for graphics: EGL, Vulkan, OpenCL and X.

Invariant: pure in what was found. Which files, and under which names containers get them, is as in
NVIDIA's generator (internal/discover/graphics.go, v1.20). XDG_DATA_DIRS is not looked at: it is
that of our process, and says nothing about the driver root.
"""

from __future__ import annotations

import os

from agent.cdi.driver.driver import Driver
from agent.cdi.make import driver_files
from agent.cdi.make.hooks import Hooks
from agent.cdi.model import ContainerEdits, Mount

# These have versions of their own.
_PLATFORMS = tuple(
    f"libnvidia-egl-{name}.so.*.*" for name in ("gbm", "wayland", "wayland2", "xcb", "xlib")
)
_CONFIG_DIRECTORIES = ("/etc", "/usr/local/share", "/usr/share")
# Their paths in a container, in whichever of these directories they are on the host.
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
    """All files for graphics that exist; a driver need not have any."""
    version = driver.version
    allocator = driver.find_libraries(f"libnvidia-allocator.so.{version}")
    producer = driver.find_libraries(f"libnvidia-vulkan-producer.so.{version}")
    platforms = (path for pattern in _PLATFORMS for path in driver.find_libraries(pattern))
    server = _xorg(driver, f"libglxserver_nvidia.so.{version}")
    xconfig = driver.program("nvidia-xconfig")
    # The allocator is mounted as a library of the driver; here only its link counts.
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
    """A module of the X server, in the first place that has it."""
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
    # (what to look for, if a container has it)
    configs = ((path.removeprefix("/usr/share/").removeprefix("/etc/"), path) for path in _CONFIGS)
    # Some packages name the machine in it; some put them into the driver root itself (GKE).
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
