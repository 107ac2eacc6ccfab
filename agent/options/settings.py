"""Effective settings: the command line counts first, then the environment, then defaults.

Invariant: a `Settings` object is complete and valid. No other module reads the value of an option
from the environment or parses it again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agent.errors import UsageError
from agent.options import gpu_operator
from agent.options.option import FALSE, TRUE, Option
from agent.options.table import OPTIONS

Entry = Literal["toolkit-agent", "nvidia-toolkit"]

_NUMBER = r"(\d{1,6}(?:\.\d{1,6})?)"
_DURATION = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s?)?", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Settings:
    """A value for each supported option, by its name. Paths are not resolved yet; `host.paths` does
    that.

    A value is None if it was not given and will be found on the node. `origins` maps the name of
    each option to "default", "command line" or the environment variable that set it. `ignored` has
    the given options that are not supported. `warnings` are sentences about values with an
    unexpected effect.
    """

    entry: Entry
    runtime: str
    socket: str | None
    config: str | None
    drop_in_config: str | None
    drop_in_config_host_path: str | None
    executable_path: str | None
    restart_mode: str
    host_root: str | None
    runtime_name: str
    set_as_default: bool | None
    runtime_type: str
    cdi_enabled: bool
    enable_cdi_in_runtime: bool | None
    native_cdi: str
    mode: str | None
    annotation_prefixes: tuple[str, ...] | None
    device_list_strategy: tuple[str, ...] | None
    kubelet_version: tuple[int, int] | None
    cdi_output_dir: str | None
    cdi_kind: str
    driver_root: str | None
    driver_root_ctr_path: str | None
    dev_root: str | None
    dev_root_ctr_path: str | None
    device_name_strategies: tuple[str, ...]
    disabled_hooks: tuple[str, ...]
    enabled_hooks: tuple[str, ...]
    ldconfig_path: str | None
    library_search_paths: tuple[str, ...]
    config_search_paths: tuple[str, ...]
    csv_files: tuple[str, ...]
    csv_ignore_patterns: tuple[str, ...]
    csv_compat_container_root: str
    crio_config_mode: str | None
    crio_hooks_dir: str
    crio_hook_filename: str
    toolkit_install_dir: str
    toolkit_source_root: str | None
    toolkit_package_type: str
    create_device_nodes: tuple[str, ...]
    cdi_default_kind: str
    low_level_runtimes: tuple[str, ...] | None
    runtime_debug: str
    runtime_log_level: str
    cli_debug: str
    hook_skip_mode_detection: bool
    accept_envvar: bool | None
    accept_mounts: bool
    opt_in_features: tuple[str, ...] | None
    status_dir: str
    state_dir: str
    proof_timeout: float
    verify: str
    interval: float
    restart_spread: float
    node_name: str | None
    ready_file: str | None
    no_runtime_config: bool
    no_daemon: bool
    debug: bool
    pid_file: str | None
    is_host_driver: bool | None
    enable_nri_plugin: bool
    origins: Mapping[str, str]
    ignored: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def may_enable_cdi(self) -> bool:
        """May the agent set `enable_cdi` in the runtime? Without the option: if CDI is enabled."""
        option = self.enable_cdi_in_runtime
        return self.cdi_enabled if option is None else option

    @property
    def option_paths(self) -> tuple[str, ...]:
        """Host paths that options name. The agent's container may have mounts of its own for
        them."""
        found = (
            self.config, self.drop_in_config, self.socket, self.executable_path, self.state_dir,
            self.toolkit_install_dir, self.status_dir, self.pid_file, self.cdi_output_dir,
            self.crio_hooks_dir, self.driver_root or self.driver_root_ctr_path,
            self.dev_root or self.dev_root_ctr_path,
        )  # fmt: skip
        return tuple(path for path in found if path)

    @property
    def default_is_negotiable(self) -> bool:
        """May the decision overrule `set_as_default`? Under the entry point `nvidia-toolkit` it
        may, because gpu-operator always sets NVIDIA_RUNTIME_SET_AS_DEFAULT=false."""
        return self.entry == "nvidia-toolkit" and self.origins["set_as_default"] != "command line"


def resolve(options: Mapping[str, str | None], env: Mapping[str, str], entry: Entry) -> Settings:
    """The settings from the command line (`options`, texts by option name) and the environment.

    Raises UsageError, which names the option or the variable, for an invalid value.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    ignored: list[str] = []
    for option in OPTIONS:
        text, origin = raw_value(option, options, env)
        origins[option.name] = origin
        value = None if text is None else parse(option, text, display_name(option, origin))
        if option.supported:
            values[option.name] = value
        elif origin != "default" and gpu_operator.is_relevant(option.name, values):
            ignored.append(display_name(option, origin))
    if values["cdi_enabled"] is None:
        values["cdi_enabled"] = entry == "toolkit-agent"
    if not values["cdi_output_dir"]:
        values["cdi_output_dir"] = None
    warnings = (
        *gpu_operator.overruled_variables(env, origins, parse),
        *gpu_operator.complete(values, origins, entry),
    )
    _check(values)
    return Settings(
        entry=entry,
        origins=origins,
        ignored=tuple(ignored),
        warnings=(
            *warnings,
            *map("{} is accepted, but has no effect in this version".format, ignored),
        ),
        **values,
    )


def raw_value(
    option: Option, options: Mapping[str, str | None], env: Mapping[str, str]
) -> tuple[str | None, str]:
    """The text of an option, and its origin: "command line", the environment variable, or
    "default". The text is None if there is no default."""
    value = options.get(option.name)
    if value is not None:
        return value, "command line"
    for name in option.env:
        found = env.get(name)
        empty_counts = option.keep_empty and option.kind != "bool"
        if found is not None and (found.strip() or empty_counts):
            return found, name
    return option.default, "default"


def display_name(option: Option, origin: str) -> str:
    """The name of an option in a message: the variable that set it, else the flag."""
    return option.all_flags[0] if origin in ("command line", "default") else origin


def parse(option: Option, raw: str, where: str) -> Any:
    """The value of a text, in the type of the option's kind. `where` names the origin in errors.
    Raises UsageError."""
    text = raw.strip()
    if "\0" in text or "\n" in text:
        raise UsageError(f"cannot use {where}: it contains a line break or NUL; remove it")
    if _SURROGATE.search(text):  # a byte that is not UTF-8, which TOML cannot hold
        raise UsageError(f"cannot use {where}: it is not UTF-8; give another name")
    match option.kind:
        case "bool":
            if text not in TRUE | FALSE:
                raise _unusable(where, text, "give true or false")
            return text in TRUE
        case "duration":
            return parse_duration(_word(option, text, where), where)
        case "version":
            found = re.match(r"v?(\d{1,4})\.(\d{1,4})", text)
            if not found:
                raise _unusable(where, text, "give a version such as 1.31")
            return int(found[1]), int(found[2])
        case "list":
            words = (part.strip() for part in text.split(","))
            return tuple(_word(option, word, where) for word in words if word)
    return _word(option, text, where)


def _word(option: Option, text: str, where: str) -> str:
    """A valid value, or a valid item of a list. Raises UsageError."""
    if not text and option.keep_empty:
        return ""
    word = text.removeprefix("unix://") if option.kind == "path" else text
    if option.kind == "path" and not word.startswith("/"):
        raise _unusable(where, text, "give an absolute path")
    if not option.allows(word):
        raise _unusable(where, text, option.needs or f"give one of {', '.join(option.choices)}")
    return word


def _unusable(where: str, text: str, needs: str) -> UsageError:
    printable = text if text.isprintable() else repr(text)
    return UsageError(f"cannot use {where}={printable}: {needs}")


def parse_duration(text: str, where: str) -> float:
    """The seconds of a duration in the format of Go's time.ParseDuration, or of a plain number.
    Raises UsageError."""
    found = _DURATION.fullmatch(text)
    if text and found:
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
        value = 3600 * hours + 60 * minutes + seconds
        if value <= 86400:
            return value
    raise _unusable(where, text, "give a time such as 300, 300s or 5m, at most 24h")


def _check(values: Mapping[str, Any]) -> None:
    """Check values against each other and against cases that no kind covers. Raises UsageError."""
    if values["runtime"] == "docker":
        raise UsageError(
            "cannot work with docker: Docker reads CDI specs by itself and is not a CRI runtime; "
            "give --runtime=containerd or crio, or leave it out"
        )
    for name in ("device_list_strategy", "device_name_strategies"):
        if values[name] == ():
            words = name.replace("_", " ").replace("ies", "y")
            raise UsageError(f"cannot use an empty {words}: name one or leave it out")
