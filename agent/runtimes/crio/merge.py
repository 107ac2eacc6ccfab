"""The rules by which CRI-O merges its configuration files, and the settings that it shows.

Invariant: pure, and arguments are never changed. A key in a later file replaces the same key in an
earlier file; arrays are replaced as a whole. A flag, or else a variable, replaces the values of all
files (`Overrides`). A handler that only an earlier file defines is kept. If a later file defines
the handler again, the TOML decoder of the CRI-O build decides whether its other keys are kept
(`Rules.by_key`, seen in the settings that the running CRI-O shows). An edit has to be right in both
cases. A key of a handler that this CRI-O does not know has no effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.cri.versions import Version
from agent.runtimes.config_file import ConfigFile, Files, Shape, owner
from agent.runtimes.desired_state import Effective
from agent.toml.document import Data, Path, deep_merge, get

RUNTIME: Path = ("crio", "runtime")
RUNTIMES: Path = (*RUNTIME, "runtimes")
DEFAULT: Path = (*RUNTIME, "default_runtime")
SPEC_DIRS: Path = (*RUNTIME, "cdi_spec_dirs")
SHAPE: Shape = (
    (("crio",), dict),
    (RUNTIME, dict),
    (RUNTIMES, dict),
    (DEFAULT, str),
    ((*RUNTIME, "hooks_dir"), list),
    (SPEC_DIRS, list),
    ((*RUNTIMES, "*"), dict),
    ((*RUNTIMES, "*", "runtime_path"), str),
    ((*RUNTIMES, "*", "runtime_type"), str),
)
DEFAULT_HOOKS = "/usr/share/containers/oci/hooks.d"
_DEFAULT_SPECS = ("/etc/cdi", "/var/run/cdi")

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TRACE = "io.containers.trace-syscall"

# Keys of the section, by their names in Status.
_IN_STATUS = {
    "default_runtime": "DefaultRuntime", "runtimes": "Runtimes", "cdi_spec_dirs": "CDISpecDirs",
    "hooks_dir": "HooksDir",
}  # fmt: skip
# Keys of a handler by their names in Status, if these are more than another spelling.
_IRREGULAR = {"ExecCPUAffinity": "exec_cpu_affinity"}
# Keys that CRI-O fills in if a handler lacks them. A copy in a file would become outdated.
DERIVED = frozenset({
    "runtime_path", "monitor_path", "monitor_cgroup", "disallowed_annotations",
    "container_create_timeout", "inherit_default_runtime",
})  # fmt: skip
# A key that CRI-O computes and no file has. 1.30 shows its items in random order, under its Go
# name.
_COMPUTED = frozenset({"disallowed_annotations", "DisallowedAnnotations"})
# The keys of a handler, each with the first version from which on every release knows it (read in
# the sources of 1.23 to 1.37).
_KEYS: Mapping[str, Version] = {
    **dict.fromkeys((
        "runtime_config_path", "runtime_path", "runtime_type", "runtime_root",
        "privileged_without_host_devices", "allowed_annotations",
    ), (1, 0, 0)),
    **dict.fromkeys((
        "monitor_path", "monitor_cgroup", "monitor_env", "monitor_exec_cgroup",
    ), (1, 24, 0)),
    "platform_runtime_paths": (1, 28, 0),
    "runtime_pull_image": (1, 29, 0),
    "container_min_memory": (1, 30, 0),
    "no_sync_log": (1, 31, 0),
    **dict.fromkeys(("inherit_default_runtime", "default_annotations"), (1, 32, 0)),
    **dict.fromkeys(("stream_websockets", "exec_cpu_affinity", "seccomp_profile"), (1, 34, 0)),
    "container_create_timeout": (1, 35, 0),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A setting of a flag or an environment variable: its values (a single value unless it is a
    list), and the name of that flag or variable (`source`)."""

    values: tuple[str, ...]
    source: str

    @property
    def value(self) -> str:
        """The value of a setting that is no list."""
        return self.values[-1] if self.values else ""


@dataclass(frozen=True)
class Overrides:
    """The settings of a CRI-O process from its flags and its environment, which win over every
    file. Each is None if neither a flag nor a variable sets it. `config` and `directory` are the
    paths of the root file and of the drop-in directory; with an empty value CRI-O reads none.
    `environment` is false if the environment cannot be read."""

    config: Setting | None = None
    directory: Setting | None = None
    default: Setting | None = None
    hooks_dirs: Setting | None = None
    spec_dirs: Setting | None = None
    runtimes: Setting | None = None
    environment: bool = True

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that give another process the same default runtime and handlers."""
        given = (("--default-runtime", self.default), ("--runtimes", self.runtimes))
        return tuple(f"{flag}={value}" for flag, one in given if one for value in one.values)

    @property
    def handlers(self) -> dict[str, Data]:
        """The tables of the handlers that `--runtimes` defines. Each replaces the table of every
        file."""
        tables: dict[str, Data] = {}
        for text in self.runtimes.values if self.runtimes else ():
            name, *fields = text.split(":")
            table: Data = {k: v for k, v in zip(_FIELDS, fields, strict=False) if v}
            if _PRIVILEGED in table:
                table[_PRIVILEGED] = table[_PRIVILEGED] == "true"
            tables[name] = table
        return tables


_NO_OVERRIDES = Overrides()

# The fields after the handler's name in a value of `--runtimes` (criocli.go of 1.30 and 1.37).
_PRIVILEGED = "privileged_without_host_devices"
_FIELDS = (
    "runtime_path", "runtime_root", "runtime_type", _PRIVILEGED, "runtime_config_path",
    "container_min_memory",
)  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """The rules of one CRI-O. `default` is the built-in default runtime, `handler` is its built-in
    table. `by_key`: does a handler keep its other keys if a later file defines it again? `keys` are
    the keys of a handler that this CRI-O knows. `overrides` win over all files."""

    default: str
    handler: Data
    by_key: bool = False
    keys: frozenset[str] = frozenset(_KEYS)
    overrides: Overrides = _NO_OVERRIDES

    @property
    def root(self) -> str:
        """The state directory of a handler that names none."""
        return f"/run/{self.default}"


def rules(
    version: Version, files: Files = (), running: Data | None = None,
    overrides: Overrides = _NO_OVERRIDES,
) -> Rules:  # fmt: skip
    """The rules of a version. `running` are the settings that the daemon shows (the result of
    `shown_section`). They win over the tables of this module, which cover only some versions."""
    default = "crun" if version >= (1, 31, 0) else "runc"
    handler: Data = {
        "runtime_type": "oci",
        "runtime_root": f"/run/{default}",
        # Every version knows this spelling. CRI-O drops a handler with an annotation that it does
        # not know.
        "allowed_annotations": [_TRACE, "io.kubernetes.cri-o.Devices"],
        "monitor_env": [_PATH],
    }
    tables = get(running, ("runtimes",)) or {}
    if default in tables and owner(files, (*RUNTIMES, default)) is None:
        unread = DERIVED | _COMPUTED
        handler = {k: v for k, v in tables[default].items() if k not in unread and v}
    known = frozenset(key for key, since in _KEYS.items() if version >= since)
    plain = Rules(default, handler, False, known | shown_keys(tables), overrides)
    # Does the running daemon show a key that only an earlier file sets in a handler?
    apart, together = effective(plain, files), effective(replace(plain, by_key=True), files)
    for name, table in together.runtimes.items():
        for key, value in table.items():
            if key not in DERIVED and value and value != apart.table(name).get(key):
                return replace(plain, by_key=get(tables, (name, key)) == value)
    return plain


def shown_keys(tables: Mapping[str, Data]) -> frozenset[str]:
    """The keys that the daemon shows in at least one of its handlers."""
    return frozenset(key for table in tables.values() for key in table) - _COMPUTED


def merged(files: Iterable[ConfigFile], *, by_key: bool) -> Data:
    """The merged settings of the files. `by_key` as in `Rules`."""
    whole: Data = {}
    for file in files:
        given = file.data
        whole = deep_merge(whole, given)
        named = get(given, RUNTIMES)
        if named and not by_key:
            whole["crio"]["runtime"]["runtimes"].update(named)
    return whole


def effective(crio_rules: Rules, files: Files) -> Effective:
    """The effective configuration after a start on these files with the same flags."""
    section = get(merged(files, by_key=crio_rules.by_key), RUNTIME) or {}
    named = section.get("runtimes") or {}
    given = named.get(crio_rules.default)
    # The built-in handler exists even if the files define others only.
    builtin = crio_rules.handler if given is None else given
    if crio_rules.by_key and given is not None:
        builtin = deep_merge(crio_rules.handler, given)
    tables = {**named, crio_rules.default: builtin, **crio_rules.overrides.handlers}
    runtimes = {
        name: {key: value for key, value in table.items() if key in crio_rules.keys}
        for name, table in tables.items()
    }
    fixed = crio_rules.overrides.default
    default = fixed.value if fixed else section.get("default_runtime")
    return Effective(default or crio_rules.default, runtimes, None, section)


def hooks_dirs(files: Files, overrides: Overrides) -> tuple[str, ...]:
    """The directories in which CRI-O looks for OCI hooks after its next start."""
    return _directories(files, overrides.hooks_dirs, "hooks_dir", (DEFAULT_HOOKS,))


def spec_dirs(files: Files, overrides: Overrides) -> tuple[str, ...]:
    """The directories in which CRI-O looks for CDI specs after its next start."""
    return _directories(files, overrides.spec_dirs, SPEC_DIRS[-1], _DEFAULT_SPECS)


def _directories(
    files: Files, fixed: Setting | None, key: str, default: tuple[str, ...]
) -> tuple[str, ...]:
    found = get(merged(files, by_key=True), (*RUNTIME, key))
    values = fixed.values if fixed else tuple(found) if isinstance(found, list) else default
    return tuple(value for value in values if value)


def explicit_defaults(files: Files) -> tuple[str, ...]:
    """The default runtimes that files name, that of the last file first."""
    names = (get(file.data, DEFAULT) for file in reversed(files))
    return tuple(name for name in names if isinstance(name, str) and name)


def shown_section(config: Mapping[str, Any] | None, dump: Mapping[str, Any] | None) -> Data | None:
    """The section `crio.runtime` that the running CRI-O shows, with keys as in the files. `config`
    is the verbose Status, which has the section since 1.33; `dump` is the effective configuration.
    None if neither has the section."""
    section, status = get(dump, RUNTIME), get(config, ("crio",))
    if isinstance(status, Mapping):
        section = {key: status[name] for key, name in _IN_STATUS.items() if name in status}
    if not isinstance(section, Mapping):
        return None
    result, tables = dict(section), section.get("runtimes")
    if "runtimes" in result:
        result["runtimes"] = {
            name: {_toml_name(key): value for key, value in table.items()}
            for name, table in (tables.items() if isinstance(tables, Mapping) else ())
            if isinstance(table, Mapping)
        }
    return result


def _toml_name(name: str) -> str:
    """The name in a file of a key of Status: `RuntimePath` is `runtime_path`."""
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
