"""Keys of configuration files whose values may be shown.

Invariant: these are the keys that our edits are about. A value of any other key can be a secret.
"""

from __future__ import annotations

from agent.runtimes.containerd.generations import CRI_PLUGINS
from agent.toml.edit import Path

_OF_SECTION = frozenset({
    ("enable_cdi",), ("cdi_spec_dirs",), ("containerd", "default_runtime_name"),
})  # fmt: skip
_OF_CRIO = frozenset({"default_runtime", "hooks_dir", "cdi_spec_dirs"})
_OF_HANDLER = frozenset({
    "runtime_type", "runtime_path", "runtime_root", "runtime_engine", "monitor_path",
    "allowed_annotations", "pod_annotations", "container_annotations", "sandbox_mode", "sandboxer",
    "privileged_without_host_devices", "privileged_without_host_devices_all_devices_allowed",
    "container_min_memory",
})  # fmt: skip
_OF_SHIM = frozenset({"binaryname", "root", "systemdcgroup"})


def is_public(path: Path) -> bool:
    """Is this a key that our edits are about? What our handlers inherit besides is none."""
    match path:
        case ("version",) | ("imports",):
            return True
        case ("plugins", section, *rest) if section in CRI_PLUGINS:
            return tuple(rest) in _OF_SECTION or _is_handlers(tuple(rest))
        case ("crio", "runtime", key):
            return key in _OF_CRIO
        case ("crio", "runtime", "runtimes", _, key):
            return key in _OF_HANDLER
    return False


def _is_handlers(path: Path) -> bool:
    """Is it a key of a handler of containerd, by its path from the CRI section?"""
    match path:
        case ("containerd", "runtimes", _, *rest) | ("containerd", "default_runtime", *rest):
            pass
        case _:
            return False
    match rest:
        case [key]:
            return key in _OF_HANDLER
        case ["options", key]:
            return key.lower() in _OF_SHIM
    return False
