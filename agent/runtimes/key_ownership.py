"""Which keys of a configuration file are ours, and whether somebody else edited the file.

Invariant: plans, `status` and `revert` ask the same function whether somebody edited a file after
we wrote it.
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
Keys = Mapping[str, Any]  # values by path, which is spelled as JSON; None if the key is removed


def condition(original: Original, now: FileState | None) -> Condition:
    """The present condition of a file that we wrote."""
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
    """Has the file the content that we wrote last? That was committed with a proof."""
    known = memory.files.get(file.path.host)
    return bool(known and file.state and known.written == file.state.digest)


def is_untouched(memory: Memory, file: ConfigFile) -> bool:
    """Was this file made by us, and not edited since?"""
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


def changed(before: bytes | None, after: bytes | None, name: str) -> dict[str, Any]:
    """The keys in which two contents of a file differ, with their new values. Of a list of imports
    only the added entries are taken."""
    if after is None or is_hook(name):
        return {}
    old, new = (dict(_values(_parsed(data))) for data in (before, after))
    found = {
        path: value for path, value in new.items()
        if path not in old or not identical(value, old[path])
    }  # fmt: skip
    found |= {path: None for path in old if path not in new}
    if IMPORTS in found:
        found[IMPORTS] = [item for item in new.get(IMPORTS, []) if item not in old.get(IMPORTS, [])]
    return {json.dumps(path): value for path, value in found.items() if _is_plain(value)}


def merged(known: Keys, more: Keys) -> dict[str, Any]:
    """The keys of all our changes, the last value of each."""
    imports = json.dumps(IMPORTS)
    found = {**known, **more}
    if imports in known and imports in more:
        found[imports] = list(dict.fromkeys((*known[imports], *more[imports])))
    return found


def still_ours(original: Original, current: Data) -> Iterator[Path]:
    """The paths of the keys that we set or removed and that are unchanged since then."""
    for key, value in original.keys.items():
        path = _path(key)
        now = get(current, path, _MISSING)
        if path != IMPORTS and (now is _MISSING if value is None else now == value):
            yield path


def is_rewritten(original: Original, current: Data, path: Path) -> bool:
    """Did somebody else write a handler or a key that looks like ours? We did not write it, or its
    value is another one, or somebody changed the program of the handler. If an older version
    of this agent did not note what it wrote, the answer is no."""
    if not original.keys:
        return False
    written = {_path(key): value for key, value in original.keys.items() if value is not None}
    below = {key: value for key, value in written.items() if key[: len(path)] == path}
    decisive = [key for key in below if key == path or key[-1].lower() in _PROGRAM_KEYS]
    return not below or any(get(current, key) != below[key] for key in decisive)


def imported(original: Original) -> tuple[str, ...]:
    """Imports that we added to a file."""
    return tuple(original.keys.get(json.dumps(IMPORTS)) or ())


def _values(data: Data) -> Iterator[tuple[Path, Any]]:
    """The values in a file with their paths. An empty table is none: it says nothing."""
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
    """Is this a key that our edits may set by themselves, not one that our handlers inherit?"""
    match path:
        case ("version",) | ("imports",):
            return True
        case ("crio", "runtime", key):
            return key in _OF_CRIO
        case ("crio", "runtime", "runtimes", _, key):
            return key in _OF_HANDLER
        case ("plugins", section, *_) if section not in CRI_PLUGINS:
            return False
        case ("plugins", _, "containerd", "runtimes", _, key) | (
            "plugins", _, "containerd", "default_runtime", key
        ):  # fmt: skip
            return key in _OF_HANDLER
        case ("plugins", _, "containerd", "runtimes", _, "options", key) | (
            "plugins", _, "containerd", "default_runtime", "options", key
        ):  # fmt: skip
            return key.lower() in _OF_SHIM
    return path[:1] == ("plugins",) and path[2:] in _OF_SECTION
