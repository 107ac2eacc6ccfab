"""A miniature of Debian's driver packages, as they are once they are configured.

    python -m tests.tools.debian_driver DIRECTORY

Libraries lie in a directory of their own and are reached through /etc/alternatives, by absolute
links, up to five of them in a row; some lie beside them without any. Names, links and places are
those of 550.163.01 in Debian 13; the content is as in `driver`.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from tests.tools.driver import elf
from tests.unit.support.ld_cache import make_cache

VERSION = "550.163.01"
LIB = "/usr/lib/x86_64-linux-gnu"
CURRENT = f"{LIB}/nvidia/current"
_MACHINE = "x86_64-linux-gnu"

# Library: (soname's version, names that alternatives lead to, whether it comes by way of glx too)
BEHIND_LINKS = {
    "libEGL_nvidia": ("0", ("so.0",), False),
    "libGLX_nvidia": ("0", ("so.0",), False),
    "libcuda": ("1", ("so", "so.1"), False),
    "libcudadebugger": ("1", ("so.1",), False),
    "libnvcuvid": ("1", ("so", "so.1"), False),
    "libnvidia-allocator": ("1", ("so.1",), False),
    "libnvidia-cfg": ("1", ("so.1",), True),
    "libnvidia-encode": ("1", ("so.1",), False),
    "libnvidia-ml": ("1", ("so.1",), False),
    "libnvidia-nvvm": ("4", ("so.4", f"so.{VERSION}"), False),
    "libnvidia-opticalflow": ("1", ("so.1",), False),
    "libnvidia-ptxjitcompiler": ("1", ("so.1",), False),
}
PLAIN = (
    "libnvidia-eglcore", "libnvidia-glcore", "libnvidia-glsi", "libnvidia-glvkspirv",
    "libnvidia-gpucomp", "libnvidia-pkcs11-openssl3", "libnvidia-rtcore", "libnvidia-tls",
)  # fmt: skip
_FILES = (
    "/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
    "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
    "/usr/share/vulkan/icd.d/nvidia_icd.json",
    "/usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
    "/etc/nvidia/current/nvidia-drm-outputclass.conf",
    "/usr/lib/nvidia/current/nvidia_drv.so",
    f"/usr/lib/nvidia/current/libglxserver_nvidia.so.{VERSION}",
)
_PROGRAMS = (
    "/usr/bin/nvidia-cuda-mps-control", "/usr/bin/nvidia-modprobe", "/usr/bin/nvidia-persistenced",
    "/usr/lib/nvidia/current/nvidia-smi", "/usr/sbin/nvidia-cuda-mps-server",
)  # fmt: skip
_LINKS = {
    "/etc/alternatives/nvidia": "/usr/lib/nvidia/current",
    "/usr/lib/nvidia/nvidia": "/etc/alternatives/nvidia",
    # A program, one link further.
    "/usr/bin/nvidia-smi": "/etc/alternatives/nvidia--nvidia-smi",
    "/etc/alternatives/nvidia--nvidia-smi": "/usr/lib/nvidia/current/nvidia-smi",
    # Of the X server, through both alternatives.
    "/usr/lib/xorg/modules/drivers/nvidia_drv.so": "/etc/alternatives/glx--nvidia_drv.so",
    "/etc/alternatives/glx--nvidia_drv.so": "/usr/lib/nvidia/nvidia_drv.so",
    "/usr/lib/nvidia/nvidia_drv.so": "/etc/alternatives/nvidia--nvidia_drv.so",
    "/etc/alternatives/nvidia--nvidia_drv.so": "/usr/lib/nvidia/current/nvidia_drv.so",
    "/usr/share/X11/xorg.conf.d/nvidia-drm-outputclass.conf":
        "/etc/alternatives/glx--nvidia-drm-outputclass.conf",
    "/etc/alternatives/glx--nvidia-drm-outputclass.conf":
        "/etc/nvidia/nvidia-drm-outputclass.conf",
    "/etc/nvidia/nvidia-drm-outputclass.conf":
        "/etc/alternatives/nvidia--nvidia-drm-outputclass.conf",
    "/etc/alternatives/nvidia--nvidia-drm-outputclass.conf":
        "/etc/nvidia/current/nvidia-drm-outputclass.conf",
    # For Mesa's buffers, under another name.
    f"{LIB}/gbm/nvidia-drm_gbm.so": f"/etc/alternatives/nvidia--nvidia-drm_gbm.so-{_MACHINE}",
    f"/etc/alternatives/nvidia--nvidia-drm_gbm.so-{_MACHINE}": f"{CURRENT}/nvidia-drm_gbm.so",
    f"{CURRENT}/nvidia-drm_gbm.so": f"libnvidia-allocator.so.{VERSION}",
    f"{LIB}/libnvidia-egl-wayland.so.1": "libnvidia-egl-wayland.so.1.1.18",
}  # fmt: skip


def make_debian_driver(root: Path) -> Path:
    """Make it and return `root`; device nodes are made by `driver.make_nodes`."""
    for name, (number, names, by_glx) in BEHIND_LINKS.items():
        _write(root, f"{CURRENT}/{name}.so.{VERSION}", elf(f"{name}.so.{number}"))
        _link(root, f"{CURRENT}/{name}.so.{number}", f"{name}.so.{VERSION}")
        _link(root, f"{CURRENT}/{name}.so", f"{name}.so.{number}")
        for ending in names:
            _chain(root, f"{name}.{ending}", by_glx=by_glx)
    for name in PLAIN:
        _write(root, f"{LIB}/{name}.so.{VERSION}", elf(f"{name}.so.{VERSION}"))
    _write(root, f"{LIB}/libnvidia-egl-wayland.so.1.1.18", elf("libnvidia-egl-wayland.so.1"))
    for path in _FILES:
        _write(root, path, b"{}\n")
    for path in _PROGRAMS:
        _write(root, path, b"#!/bin/sh\n").chmod(0o755)
    for path, target in _LINKS.items():
        _link(root, path, target)
    _write(root, "/etc/ld.so.cache", make_cache([*_cached()]))
    return root


def _chain(root: Path, name: str, *, by_glx: bool) -> None:
    """Alternatives from the loader's directory to the driver's."""
    hops = [f"{LIB}/{name}"]
    if by_glx:
        hops += [f"/etc/alternatives/glx--{name}-{_MACHINE}", f"{LIB}/nvidia/{name}"]
    hops += [f"/etc/alternatives/nvidia--{name}-{_MACHINE}", f"{CURRENT}/{name}"]
    for path, target in itertools.pairwise(hops):
        _link(root, path, target)


def _cached() -> list[str]:
    """What ldconfig has found, which does not look into the driver's own directory."""
    linked = (
        f"{LIB}/{name}.{ending}" for name, (_, names, _) in BEHIND_LINKS.items() for ending in names
    )
    return sorted([*linked, *(f"{LIB}/{name}.so.{VERSION}" for name in PLAIN)], reverse=True)


def _write(root: Path, inside: str, content: bytes) -> Path:
    path = Path(f"{root}{inside}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _link(root: Path, inside: str, target: str) -> None:
    path = Path(f"{root}{inside}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


if __name__ == "__main__":
    make_debian_driver(Path(sys.argv[1]))
