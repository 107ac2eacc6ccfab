"""Move a configuration's plugin sections from older versions to where containerd 2.x has them."""

from __future__ import annotations

from tests.doubles.containerd.generation import CRI_IMAGES, CRI_RUNTIME, GRPC_CRI, Table

# Short names of version 1, of the plugins that have settings.
_SHORT = {
    "cri": GRPC_CRI,
    "cgroups": "io.containerd.monitor.v1.cgroups",
    "scheduler": "io.containerd.gc.v1.scheduler",
    "bolt": "io.containerd.metadata.v1.bolt",
    "task": "io.containerd.runtime.v2.task",
    "opt": "io.containerd.internal.v1.opt",
    "overlayfs": "io.containerd.snapshotter.v1.overlayfs",
    "native": "io.containerd.snapshotter.v1.native",
    "devmapper": "io.containerd.snapshotter.v1.devmapper",
    "zfs": "io.containerd.snapshotter.v1.zfs",
}

# Keys of the old CRI section by the plugin that has them now; the rest belong to CRI_RUNTIME.
_IMAGES = (
    "registry",
    "image_decryption",
    "max_concurrent_downloads",
    "image_pull_progress_timeout",
    "image_pull_with_sync_fs",
    "stats_collect_period",
)
_STREAMING = (
    "disable_tcp_service",
    "stream_server_address",
    "stream_server_port",
    "stream_idle_timeout",
    "enable_tls_streaming",
    "x509_key_pair_streaming",
)
_SNAPSHOTS = ("snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers")


def migrate_names(table: Table) -> None:
    """Give plugins the full names, in a file of version 1 or without one."""
    if "plugins" in table:
        plugins = table["plugins"]
        table["plugins"] = {_SHORT.get(name, name): plugins[name] for name in plugins}
    for key in ("disabled_plugins", "required_plugins"):
        if key in table:
            table[key] = [_SHORT.get(name, name) for name in table[key]]


def migrate_sections(plugins: Table) -> None:
    """Split the CRI section of version 2, in place; for handlers the new name's own keys win.

    TypeError where the real one panics: something that is no table where one is looked into.
    """
    if GRPC_CRI not in plugins:
        return
    old = _table(plugins[GRPC_CRI])
    images = _table(plugins.setdefault(CRI_IMAGES, {}))
    images |= {key: old[key] for key in _IMAGES if key in old}
    if "sandbox_image" in old:
        images.setdefault("pinned_images", {})["sandbox"] = old["sandbox_image"]
    containerd = _table(old.get("containerd", {}))
    if "runtimes" in containerd:  # observed on 2.1.9: without handlers these are forgotten
        images |= {key: containerd[key] for key in _SNAPSHOTS if key in containerd}
    _migrate_runtime(_table(plugins.setdefault(CRI_RUNTIME, {})), old)


def _migrate_runtime(new: Table, old: Table) -> None:
    elsewhere = {*_IMAGES, *_STREAMING, "sandbox_image", "cni", "containerd"}
    _add_absent(new, old, elsewhere)
    if isinstance(old.get("cni"), dict):  # anything else is forgotten
        cni = _table(new.setdefault("cni", {}))
        _add_absent(cni, old["cni"], {"bin_dir"})
        if old["cni"].get("bin_dir") and not cni.get("bin_dirs"):
            cni["bin_dirs"] = [old["cni"]["bin_dir"]]
    if "containerd" in old:
        containerd = _table(new.setdefault("containerd", {}))
        _add_absent(containerd, old["containerd"], set(_SNAPSHOTS))
        for handler in _table(containerd.get("runtimes", {})).values():
            if "sandbox_mode" in _table(handler):
                handler.setdefault("sandboxer", handler.pop("sandbox_mode"))


def _add_absent(new: Table, old: Table, without: set[str]) -> None:
    for key, value in old.items():
        if key not in without:
            new.setdefault(key, value)


def _table(value: object) -> Table:
    if not isinstance(value, dict):
        raise TypeError(f"interface conversion: {type(value).__name__} is no map")
    return value
