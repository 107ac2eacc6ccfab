"""What differs between the versions of CRI-O, and the settings that each has.

Observed on 1.37 (`tests/data/captures/cri-o-1.37`); what other versions have or lack was read in
their source. A version here stands for all its patch releases. The order of the settings is that
in which the daemon prints them.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Parsed TOML or JSON: any table.
Table = dict[str, Any]

CAPTURE = Path(__file__).resolve().parents[2] / "data/captures/cri-o-1.37"
VERSIONS = ("1.23.5", "1.24.6", "1.28.11", "1.30.14", "1.32.11", "1.33.5", "1.37.0")

# A handler's settings: what each is where nobody gives it, and since when there is such a setting.
HANDLER: dict[str, tuple[Any, tuple[int, int]]] = {
    "runtime_config_path": ("", (1, 0)),
    "runtime_path": ("", (1, 0)),
    "runtime_type": ("", (1, 0)),
    "runtime_root": ("", (1, 0)),
    "privileged_without_host_devices": (False, (1, 0)),
    "allowed_annotations": ([], (1, 0)),
    "monitor_path": ("", (1, 24)),
    "monitor_cgroup": ("", (1, 24)),
    "monitor_env": ([], (1, 24)),
    "monitor_exec_cgroup": ("", (1, 25)),
    "platform_runtime_paths": ({}, (1, 28)),
    "runtime_pull_image": (False, (1, 28)),
    "container_min_memory": ("", (1, 30)),
    "no_sync_log": (False, (1, 31)),
    "inherit_default_runtime": (False, (1, 32)),
    "default_annotations": ({}, (1, 32)),
    "stream_websockets": (False, (1, 34)),
    "exec_cpu_affinity": ("", (1, 34)),
    "seccomp_profile": ("", (1, 34)),
    "container_create_timeout": (0, (1, 35)),
}
# Those that the daemon prints also while they are empty.
ALWAYS = ("runtime_config_path", "runtime_path", "runtime_type", "runtime_root", "no_sync_log")

# Lists that are not printed while nobody has set them, by table; so no capture shows them.
UNSET: Table = {
    "": {"storage_option": []},
    "runtime": {
        name: []
        for name in "conmon_env default_env default_sysctls default_ulimits additional_devices "
        "absent_mount_sources_to_reject".split()
    },
    "image": {"insecure_registries": []},
    "network": {"plugin_dir": ""},
}
# Durations are text in what the daemon prints; it reads whole numbers, too.
DURATIONS = (
    "pull_progress_timeout",
    "cni_status_grace_period",
    "nri_plugin_registration_timeout",
    "nri_plugin_request_timeout",
)

# What a daemon that is told nothing has instead of the captured one's private values.
_BUILT_IN: Table = {
    "": {
        "root": "/var/lib/containers/storage",
        "runroot": "/run/containers/storage",
        "log_dir": "/var/log/crio/pods",
        "version_file": "/var/run/crio/version",
        "version_file_persist": "",
        "clean_shutdown_file": "/var/lib/crio/clean.shutdown",
        "internal_wipe": True,
    },
    "api": {"listen": "/var/run/crio/crio.sock"},
    "runtime": {
        "hooks_dir": ["/usr/share/containers/oci/hooks.d"],
        "cdi_spec_dirs": ["/etc/cdi", "/var/run/cdi"],
        "conmon": "",
        "conmon_cgroup": "",
        "irqbalance_config_file": "/etc/sysconfig/irqbalance",
        "cgroup_manager": "systemd",
        "container_exits_dir": "/var/run/crio/exits",
        "container_attach_socket_dir": "/var/run/crio",
        "namespaces_dir": "/var/run",
        "pinns_path": "",
    },
    "image": {
        "pause_image": "registry.k8s.io/pause:3.10",
        "pinned_images": [],
        "signature_policy": "",
    },
    "network": {"network_dir": "/etc/cni/net.d/", "plugin_dirs": ["/opt/cni/bin/"]},
    "nri": {"enable_nri": True},
}


@dataclass(frozen=True)
class Generation:
    """One minor version, by its number."""

    number: tuple[int, int]

    @property
    def has_cdi(self) -> bool:
        """Whether there is `cdi_spec_dirs` at all; no version has a switch."""
        return self.number >= (1, 24)

    @property
    def reads_toml_11(self) -> bool:
        """Whether line breaks and last commas in inline tables are read: seen on 1.37; 1.30 is
        built with a reader that refuses them."""
        return self.number >= (1, 37)

    @property
    def shows_handlers(self) -> bool:
        """Whether Status lists the handlers."""
        return self.number >= (1, 30)

    @property
    def shows_image(self) -> bool:
        """Whether `info["config"]` is there, with the sandbox image."""
        return self.number >= (1, 27)

    @property
    def shows_config(self) -> bool:
        """Whether `info["config"]` has the configuration."""
        return self.number >= (1, 33)

    @property
    def prints_disallowed(self) -> bool:
        """Whether `GET /config` has what a handler is not allowed, computed and in random order."""
        return self.number < (1, 31)

    @property
    def default_runtime(self) -> str:
        """The handler that is there, and the default, where no file says anything."""
        return "crun" if self.number >= (1, 31) else "runc"

    def handler(self) -> Table:
        """A handler of which nothing is set."""
        return {
            name: copy.deepcopy(value)
            for name, (value, since) in HANDLER.items()
            if self.number >= since
        }

    def defaults(self) -> Table:
        """The built-in configuration, without the outermost table `crio`."""
        document = copy.deepcopy(_captured())
        if not self.has_cdi:
            del document["runtime"]["cdi_spec_dirs"]
        if self.number < (1, 26):
            del document["nri"]
        name = self.default_runtime
        document["runtime"]["default_runtime"] = name
        given: Table = {
            "runtime_type": "oci",
            "runtime_root": f"/run/{name}",
            "allowed_annotations": ["io.containers.trace-syscall", "io.kubernetes.cri-o.Devices"],
            "monitor_env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        }
        if self.number >= (1, 31):
            given["container_min_memory"] = "500KiB"
            given["container_create_timeout"] = 240
        elif self.number >= (1, 30):
            given["container_min_memory"] = "12MiB"
        if self.number >= (1, 35):
            given["allowed_annotations"] = ["io.containers.trace-syscall", "devices.crio.io"]
        empty = self.handler()
        own = {key: value for key, value in given.items() if key in empty}
        document["runtime"]["runtimes"] = {name: {**empty, **own}}
        return document


@functools.cache
def _captured() -> Table:
    """The captured configuration with the built-in values, in the daemon's order."""
    text = (CAPTURE / "http-config.toml").read_text(encoding="utf-8").partition("\n---stderr")[0]
    document: Table = tomllib.loads(text)["crio"]
    for name, values in (*UNSET.items(), *_BUILT_IN.items()):
        (document[name] if name else document).update(copy.deepcopy(values))
    return document


@functools.cache
def captured_status() -> Table:
    """The captured `info["config"]`."""
    found: Table = json.loads((CAPTURE / "status-info-config.json").read_text(encoding="utf-8"))
    return found


def generation_of(version: str) -> Generation:
    """Find the generation of a version such as "1.37.0" or "v1.28.11"."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    if not found:
        raise ValueError(f"not a version of CRI-O: {version}")
    return Generation((int(found[1]), int(found[2])))
