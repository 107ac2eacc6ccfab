"""What a CRI-O makes of its configuration files together, and what it says of itself.

Invariant: pure, and nothing that is given is changed. A key in a later file takes the place of the
same key in an earlier one, arrays as a whole. The table of handlers keeps those that only an
earlier file has. Whether a handler that a later file names again keeps its other keys is a matter
of the TOML decoder that a CRI-O was built with: the running one shows it (`Rules.by_key`), and an
edit has to be right both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent.data import dataclass, replace
from agent.errors import Refused
from agent.runtimes.containerd import ConfigFile
from agent.runtimes.merge import Cri, deep_merge
from agent.runtimes.versions import Version
from agent.tomledit import Data, Path, get

Files = tuple[ConfigFile, ...]

RUNTIME: Path = ("crio", "runtime")
RUNTIMES: Path = (*RUNTIME, "runtimes")
DEFAULT: Path = (*RUNTIME, "default_runtime")
DEFAULT_HOOKS = "/usr/share/containers/oci/hooks.d"

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TRACE = "io.containers.trace-syscall"

# Keys of a handler by their names in Status, where these are more than another spelling.
_IRREGULAR = {"ExecCPUAffinity": "exec_cpu_affinity"}
# What CRI-O fills in by itself in a handler that is silent on it; a copy would only go stale.
DERIVED = frozenset({
    "runtime_path", "monitor_path", "monitor_cgroup", "disallowed_annotations",
    "container_create_timeout", "inherit_default_runtime",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a range of versions: `default` is the built-in default runtime, `handler` what
    CRI-O has for it where no file says anything; `by_key`: a handler that is named again keeps the
    keys that it had."""

    since: Version
    default: str
    handler: Data
    by_key: bool = False


def _builtin(name: str) -> Data:
    return {
        "runtime_type": "oci",
        "runtime_root": f"/run/{name}",
        # In the spelling that every version knows: one that it does not costs a handler its life.
        "allowed_annotations": [_TRACE, "io.kubernetes.cri-o.Devices"],
        "monitor_env": [_PATH],
    }


RULES = (
    Rules((0, 0, 0), "runc", _builtin("runc")),
    Rules((1, 31, 0), "crun", _builtin("crun")),
)


def rules(version: Version, files: Files = (), running: Data | None = None) -> Rules:
    """The rules of a version. What the daemon itself shows of its built-in handler (`running`, as
    of `shown`) is better than the table, which knows some versions only."""
    found = max((r for r in RULES if version >= r.since), key=lambda r: r.since)
    table = get(running, ("runtimes", found.default))
    named = any(get(file.data, (*RUNTIMES, found.default)) is not None for file in files)
    if isinstance(table, dict) and not named:
        told = {key: value for key, value in table.items() if key not in DERIVED and value}
        found = replace(found, handler=told)
    return replace(found, by_key=_keeps_keys(found, files, running))


def _keeps_keys(found: Rules, files: Files, running: Data | None) -> bool:
    """Does the running daemon show a key of a handler that only an earlier file has?"""
    apart, together = (effective(replace(found, by_key=way), files) for way in (False, True))
    for name, table in together.runtimes.items():
        for key, value in table.items():
            if key not in DERIVED and value and value != apart.table(name).get(key):
                return bool(get(running, ("runtimes", name, key)) == value)
    return False


def merged(files: Iterable[ConfigFile], *, by_key: bool) -> Data:
    """Everything that the files say together."""
    whole: Data = {}
    for file in files:
        given = file.data
        whole = deep_merge(whole, given)
        named = get(given, RUNTIMES)
        if named and not by_key:
            whole["crio"]["runtime"]["runtimes"].update(named)
    return whole


def effective(found: Rules, files: Files) -> Cri:
    """What the daemon makes of these files at its next start."""
    section = get(merged(files, by_key=found.by_key), RUNTIME) or {}
    named = section.get("runtimes") or {}
    given = named.get(found.default)
    # The built-in handler is there whatever files say of others.
    builtin = found.handler if given is None else given
    if found.by_key and given is not None:
        builtin = deep_merge(found.handler, given)
    runtimes = {**named, found.default: builtin}
    return Cri(section.get("default_runtime") or found.default, runtimes, None, section)


def hooks_dirs(files: Files) -> tuple[str, ...]:
    """The directories in which CRI-O looks for OCI hooks after its next start."""
    found = get(merged(files, by_key=True), (*RUNTIME, "hooks_dir"))
    return tuple(found) if isinstance(found, list) else (DEFAULT_HOOKS,)


def owner(files: Files, path: Path) -> ConfigFile | None:
    """The file whose value of a key is in force."""
    missing = object()
    return next((f for f in reversed(files) if get(f.data, path, missing) is not missing), None)


def check_shape(file: ConfigFile) -> None:
    """Refuse wrong types where we are going to read: CRI-O would not start on them."""
    expected: tuple[tuple[Path, type, str], ...] = (
        (("crio",), dict, "a table"),
        (RUNTIME, dict, "a table"),
        (RUNTIMES, dict, "a table"),
        (DEFAULT, str, "a string"),
        ((*RUNTIME, "hooks_dir"), list, "a list of strings"),
        ((*RUNTIME, "cdi_spec_dirs"), list, "a list of strings"),
    )
    for path, kind, words in expected:
        value = get(file.data, path)
        items = value if isinstance(value, list) else ()
        if value is not None and (
            not isinstance(value, kind) or any(not isinstance(item, str) for item in items)
        ):
            raise _wrong(file, path, words)
    for name, table in (get(file.data, RUNTIMES) or {}).items():
        if not isinstance(table, dict):
            raise _wrong(file, (*RUNTIMES, name), "a table")
        for key in ("runtime_path", "runtime_type"):
            if not isinstance(table.get(key, ""), str):
                raise _wrong(file, (*RUNTIMES, name, key), "a string")


def _wrong(file: ConfigFile, path: Path, words: str) -> Refused:
    return Refused(f"cannot use {file.path}: {'.'.join(path)} is not {words}; repair it")


def shown(config: Mapping[str, Any] | None, dump: Mapping[str, Any] | None) -> Data | None:
    """What the running CRI-O says of its `crio.runtime` section, in the names of the files: from
    Status (1.33 and later), else from its effective configuration. None where it says nothing."""
    status = get(config, ("crio",))
    if isinstance(status, Mapping):
        runtimes = status.get("Runtimes")
        tables = runtimes if isinstance(runtimes, Mapping) else {}
        return {
            "default_runtime": status.get("DefaultRuntime"),
            "runtimes": {
                name: {_toml_name(key): value for key, value in table.items()}
                for name, table in tables.items()
                if isinstance(table, Mapping)
            },
            "cdi_spec_dirs": status.get("CDISpecDirs"),
            "hooks_dir": status.get("HooksDir"),
        }
    section = get(dump, RUNTIME)
    return dict(section) if isinstance(section, Mapping) else None


def _toml_name(name: str) -> str:
    """`RuntimePath` is `runtime_path` in a file."""
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
