"""What the daemon makes of the merged files before it uses them: defaults, paths, inheritance.

A handler that is no good is left out with a warning, unless it is the default: then nothing starts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from tests.doubles.crio.generation import Generation, Table, captured_status
from tests.doubles.crio.load import RefusedError

# Says a line on standard error; the first word is the level.
Log = Callable[[str, str], None]


def validate(generation: Generation, document: Table, log: Log, *, execution: bool) -> None:
    """Complete the merged configuration in its place; raises RefusedError.

    Without `execution`, as for `crio config`, no path is looked at.
    """
    runtime = document["runtime"]
    try:
        check_default(generation, runtime)
        if execution:
            check_handlers(generation, runtime, log)
        _translate_monitor(runtime, execution)
    except RefusedError as error:
        raise RefusedError(f"validating runtime config: {error}") from error


def check_default(generation: Generation, runtime: Table) -> None:
    """Refuse a default that has no table; none is the built-in one."""
    name = runtime["default_runtime"]
    if name in runtime["runtimes"]:
        return
    if name:
        raise RefusedError(
            f'default_runtime set to "{name}", but no runtime entry table '
            f"[crio.runtime.runtimes.{name}] was found"
        )
    built_in = generation.defaults()["runtime"]
    runtime["default_runtime"] = generation.default_runtime
    runtime["runtimes"].setdefault(generation.default_runtime, *built_in["runtimes"].values())


def check_handlers(generation: Generation, runtime: Table, log: Log) -> None:
    """Look at every handler's path; what is no good goes."""
    runtimes, default = runtime["runtimes"], runtime["default_runtime"]
    for handler in runtimes.values():
        if handler.get("inherit_default_runtime"):
            source = runtimes[default]
            path = source["runtime_path"] or shutil.which(default) or ""
            for key in ("runtime_type", "runtime_config_path", "runtime_root"):
                handler[key] = source[key]
            handler["runtime_path"] = path
    for name, handler in list(runtimes.items()):
        try:
            _check_handler(generation, name, handler)
        except RefusedError as error:
            if name == default:
                raise RefusedError(f"runtime validation: {error}") from error
            log("warning", f'Runtime handler "{name}" is being ignored due to: {error}')
            del runtimes[name]


def _check_handler(generation: Generation, name: str, handler: Table) -> None:
    kind = handler["runtime_type"]
    if kind not in ("", "oci", "vm", "pod"):
        raise RefusedError(f'invalid `runtime_type` "{kind}" for runtime "{name}"')
    path = handler["runtime_path"]
    if not path:
        handler["runtime_path"] = shutil.which(name) or ""
        if not handler["runtime_path"]:
            raise RefusedError(
                f'"{name}" not found in $PATH: exec: "{name}": executable file not found in $PATH'
            )
    elif not os.path.exists(path):
        raise RefusedError(
            f"invalid runtime_path for runtime '{name}': stat {path}: no such file or directory"
        )
    if handler["runtime_config_path"] and kind != "vm":
        raise RefusedError("runtime_config_path can only be used with the 'vm' runtime type")
    unknown = set(handler["allowed_annotations"]) - known_annotations()
    if unknown:
        raise RefusedError(f"invalid allowed_annotation: {min(unknown)}")
    if "container_min_memory" in handler and not handler["container_min_memory"]:
        handler["container_min_memory"] = "12MiB"
    if "container_create_timeout" in handler:
        handler["container_create_timeout"] = max(handler["container_create_timeout"] or 240, 30)


def known_annotations() -> set[str]:
    """The annotations that a handler may be allowed."""
    crun = captured_status()["crio"]["Runtimes"]["crun"]
    return {*crun["AllowedAnnotations"], *crun["DisallowedAnnotations"]}


def _translate_monitor(runtime: Table, execution: bool) -> None:
    """The settings for all handlers win over those of each; every monitor has to be there."""
    for name, handler in runtime["runtimes"].items():
        if handler["runtime_type"] not in ("", "oci") or "monitor_path" not in handler:
            continue
        for key in ("path", "cgroup", "env"):
            common = runtime["conmon" if key == "path" else f"conmon_{key}"]
            if common:
                handler[f"monitor_{key}"] = common
        if not execution:
            continue
        where = f"monitor fields translation: failed to translate monitor fields for runtime {name}"
        if not handler["monitor_path"]:
            handler["monitor_path"] = shutil.which("conmon") or ""
        if not handler["monitor_path"]:
            raise RefusedError(f'{where}: exec: "conmon": executable file not found in $PATH')
        if not os.path.exists(handler["monitor_path"]):
            raise RefusedError(
                f"{where}: invalid conmon path: stat {handler['monitor_path']}: "
                "no such file or directory"
            )
