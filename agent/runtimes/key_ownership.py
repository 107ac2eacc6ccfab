"""Which keys of a configuration file are ours, and whether somebody else edited the file.

Invariant: `condition` alone decides whether somebody edited a file after our last write. Plans,
`status` and `revert` all use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from agent.errors import Refused
from agent.host.files import FileState
from agent.runtimes.config_file import ConfigFile, is_hook
from agent.runtimes.containerd.generations import CRI_PLUGINS
from agent.runtimes.desired_state import leaves
from agent.state.store import Memory, Original
from agent.toml import document
from agent.toml.dialect import BOM
from agent.toml.document import Data, Path, get
from agent.toml.ops import identical

HEADER = (
    "# Written by toolkit-agent: the NVIDIA container runtime for this node.\n"
    "# `toolkit-agent plan` shows what is in force and why; `toolkit-agent revert` undoes it.\n"
)
IMPORTS: Path = ("imports",)
_MISSING = object()
_PROGRAM_KEYS = frozenset({"binaryname", "runtime", "runtime_path", "runtime_engine"})

Condition = Literal["gone", "as before", "as written", "edited since"]
Keys = Mapping[str, Any]  # values by path; the path is JSON; None means that the key is removed


def condition(original: Original, now: FileState | None) -> Condition:
    """The condition of a file that we wrote, compared with its original and our last write. `now`
    is the present state of the file."""
    if now is None:
        return "gone"
    if now.digest == original.digest:
        return "as before"
    if now.digest != original.written:
        return "edited since"
    # An edit that was repaired leaves nothing of anybody else's in a file that we made.
    alone = not original.edited or (original.digest is None and is_ours_alone(original, now))
    return "as written" if alone else "edited since"


def is_proven(memory: Memory, file: ConfigFile) -> bool:
    """Has the file the content of our last write? Only proven content is in `memory`."""
    known = memory.files.get(file.path.host)
    return bool(known and file.state and known.written == file.state.digest)


def is_untouched(memory: Memory, file: ConfigFile) -> bool:
    """Did we create this file, and has nobody edited it since?"""
    known = memory.files.get(file.path.host)
    if known is None or known.digest is not None:
        return False
    return condition(known, file.state) == "as written"


def is_ours_alone(original: Original, now: FileState) -> bool:
    """Has a file only keys, values and comments that we wrote?"""
    try:
        data = document.parse(now.data, "")
    except Refused:
        return False
    text = document.decoded(now.data, "").removeprefix(BOM).removeprefix(HEADER)
    ours = {_path(key): value for key, value in original.keys.items()}
    return not document.has_comments(text) and all(
        ours.get(path, _MISSING) == value for path, value in _values(data)
    )


def changed_keys(before: bytes | None, after: bytes | None, name: str) -> dict[str, Any]:
    """The keys in which two contents of a file differ, with their new values. For a list of
    imports, only the added entries. `name` is the file's host path. A removed file and an OCI hook
    have none."""
    if after is None or is_hook(name):
        return {}
    old, new = (dict(_values(_parsed(data))) for data in (before, after))
    differences = {
        path: value for path, value in new.items()
        if path not in old or not identical(value, old[path])
    }  # fmt: skip
    differences |= {path: None for path in old if path not in new}
    if IMPORTS in differences:
        known = old.get(IMPORTS, [])
        differences[IMPORTS] = [item for item in new.get(IMPORTS, []) if item not in known]
    return {json.dumps(path): value for path, value in differences.items() if _is_plain(value)}


def merged_keys(known: Keys, more: Keys) -> dict[str, Any]:
    """The keys of an earlier change and of a later one, each with its last value; the imports of
    both."""
    imports = json.dumps(IMPORTS)
    result = {**known, **more}
    if imports in known and imports in more:
        result[imports] = list(dict.fromkeys((*known[imports], *more[imports])))
    return result


def still_ours(original: Original, current: Data) -> Iterator[Path]:
    """The paths of the keys that we set or removed and that nobody changed since. `current` is the
    file's present data. Imports are not among them."""
    for key, value in original.keys.items():
        path = _path(key)
        now = get(current, path, _MISSING)
        if path != IMPORTS and (now is _MISSING if value is None else now == value):
            yield path


def is_rewritten(original: Original, current: Data, path: Path) -> bool:
    """Did somebody else write the handler or the key at this path, although it looks like ours?
    True if we never wrote it, if its value differs from ours, or if somebody changed the program of
    the handler. False if an older version of this agent did not note which keys it wrote."""
    if not original.keys:
        return False
    written = {_path(key): value for key, value in original.keys.items() if value is not None}
    below = {key: value for key, value in written.items() if key[: len(path)] == path}
    decisive = [key for key in below if key == path or key[-1].lower() in _PROGRAM_KEYS]
    return not below or any(get(current, key) != below[key] for key in decisive)


def added_imports(original: Original) -> tuple[str, ...]:
    """The imports that we added to a file."""
    return tuple(original.keys.get(json.dumps(IMPORTS)) or ())


def _values(data: Data) -> Iterator[tuple[Path, Any]]:
    """The values in a file with their paths, without empty tables, which set nothing."""
    return ((path, value) for path, value in leaves(data) if value != {})


def _path(key: str) -> Path:
    return tuple(json.loads(key))


def _parsed(data: bytes | None) -> Data:
    try:
        return document.parse(data or b"", "")
    except Refused:
        return {}


def _is_plain(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


_PUBLIC_SECTION_KEYS = frozenset({
    ("enable_cdi",), ("cdi_spec_dirs",), ("containerd", "default_runtime_name"),
})  # fmt: skip
_PUBLIC_CRIO_KEYS = frozenset({"default_runtime", "hooks_dir", "cdi_spec_dirs"})
_PUBLIC_HANDLER_KEYS = frozenset({
    "runtime_type", "runtime_path", "runtime_root", "runtime_engine", "monitor_path",
    "allowed_annotations", "pod_annotations", "container_annotations", "sandbox_mode", "sandboxer",
    "privileged_without_host_devices", "privileged_without_host_devices_all_devices_allowed",
    "container_min_memory",
})  # fmt: skip
_PUBLIC_SHIM_OPTIONS = frozenset({"binaryname", "root", "systemdcgroup"})


def is_public(path: Path) -> bool:
    """May `plan` show the value of this key? Only values of keys that our edits set are public.
    Values that our handlers inherit can be secret."""
    match path:
        case ("version",) | ("imports",):
            return True
        case ("crio", "runtime", key):
            return key in _PUBLIC_CRIO_KEYS
        case ("crio", "runtime", "runtimes", _, key):
            return key in _PUBLIC_HANDLER_KEYS
        case ("plugins", section, *_) if section not in CRI_PLUGINS:
            return False
        case ("plugins", _, "containerd", "runtimes", _, key) | (
            "plugins", _, "containerd", "default_runtime", key
        ):  # fmt: skip
            return key in _PUBLIC_HANDLER_KEYS
        case ("plugins", _, "containerd", "runtimes", _, "options", key) | (
            "plugins", _, "containerd", "default_runtime", "options", key
        ):  # fmt: skip
            return key.lower() in _PUBLIC_SHIM_OPTIONS
    return path[:1] == ("plugins",) and path[2:] in _PUBLIC_SECTION_KEYS
