"""The request of `cdi generate`, the program of its hooks, and its output file.

Invariant: a `Request` is complete and valid, so that no other module reads the environment for it.
The output file is complete at every moment. Only the file, and missing directories above it, are
written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.cdi.model import Spec
from agent.errors import Refused, UsageError, reason
from agent.host import files
from agent.host.paths import HostPath, HostRoot
from agent.options.cdi import GENERATE, GENERATE_ENV
from agent.options.settings import Settings, display_name, parse, raw_value
from agent.toolkit import programs

EMPTY = "none"  # the id of a placeholder device without a GPU

_HOOK_PROGRAMS = (programs.CDI_HOOK, programs.CTK)
_ENDINGS = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}


@dataclass(frozen=True)
class Choice:
    """The requested part of a spec. `ids` are indices or UUIDs of devices, or `all` or `none`.
    `with_all` adds a device `all`; `several_gpus` allows more than one GPU on a Tegra; `groups`
    adds the groups of device nodes. `vendor` and `class_name` replace those of the mode; "" keeps
    them."""

    ids: tuple[str, ...] = ("all",)
    with_all: bool = True
    several_gpus: bool = True
    groups: bool = True
    vendor: str = ""
    class_name: str = ""

    def with_kind(self, spec: Spec) -> Spec:
        """The spec with the requested vendor and class in its kind."""
        vendor, _, class_name = spec.kind.partition("/")
        return replace(spec, kind=f"{self.vendor or vendor}/{self.class_name or class_name}")


EVERYTHING = Choice()


@dataclass(frozen=True)
class Request:
    """The valid options of `cdi generate`. `form` is yaml or json. `output` is a path, "" for
    standard output. `hook_path` is the program of hooks, "" for the installed one. `warnings` name
    options without effect."""

    mode: str
    form: str
    output: str
    hook_path: str
    choice: Choice
    warnings: tuple[str, ...] = ()


def with_environment(
    options: Mapping[str, str | None], env: Mapping[str, str]
) -> dict[str, str | None]:
    """The options of the command line by name; missing ones come from the variables of
    nvidia-ctk."""
    completed = dict(options)
    for name, variable in GENERATE_ENV.items():
        if completed.get(name) is None and env.get(variable, "").strip():
            completed[name] = env[variable]
    return completed


def request(options: Mapping[str, str | None], env: Mapping[str, str]) -> Request:
    """The request in these options; missing ones come from the environment. Raises UsageError."""
    values: dict[str, Any] = {}
    for option in GENERATE:
        text, origin = raw_value(option, options, env)
        if text is not None and option.kind == "choice":
            text = text.lower()
        values[option.name] = (
            None if text is None else parse(option, text, display_name(option, origin))
        )
    if not values["device_ids"]:
        raise UsageError("cannot use an empty device id: name one or leave it out")
    form, warnings = _form(values["output"] or "", values["form"])
    empty = EMPTY in values["device_ids"]
    if empty and not values["no_all_device"]:
        warnings = (*warnings, f"there is no device `all` beside {EMPTY}")
    flags = values["feature_flags"]
    choice = Choice(
        ids=values["device_ids"],
        with_all=not (values["no_all_device"] or empty),
        several_gpus="disable-multiple-csv-devices" not in flags,
        groups="no-additional-gids-for-device-nodes" not in flags,
        vendor=values["vendor"] or "",
        class_name=values["class_name"] or "",
    )
    return Request(
        values["spec_mode"], form, values["output"] or "", values["hook_path"] or "", choice,
        warnings,
    )  # fmt: skip


def _form(output: str, option: str | None) -> tuple[str, tuple[str, ...]]:
    """yaml or json, and warnings. The extension of the output file decides, because a runtime reads
    the file by its extension; there is a warning if `option` contradicts it."""
    implied = _ENDINGS.get(os.path.splitext(output)[1].lower())
    if implied and option not in (None, implied):
        return implied, (f"{output} is written as {implied}, as its name says, not as {option}",)
    return implied or option or "yaml", ()


def hook_program(settings: Settings, host: HostRoot, program: str) -> str | None:
    """Host path of the program of hooks; None if the default one is not installed.

    `program` is a path, which is not checked, the name of a program, or "" for the default. Raises
    UsageError for an unknown name, and Refused if the named program is not on the host.
    """
    if program.startswith("/"):
        return program
    if program and program not in _HOOK_PROGRAMS:
        raise UsageError(
            f"cannot use {program!r} as the program of hooks: give an absolute path, or "
            f"{' or '.join(_HOOK_PROGRAMS)}"
        )
    found = programs.find(settings, host, program or programs.CDI_HOOK)
    if program and found is None:
        directory = programs.directory_name(settings, host)
        raise Refused(
            f"cannot make hooks: there is no {program} in {directory} or /usr/bin; give its path "
            "with --nvidia-cdi-hook-path"
        )
    return found


def write_output(host: HostRoot, output: str, form: str, text: str) -> HostPath:
    """Write a spec to the path of --output, and return the path. A name without an extension for
    specs gets the extension of `form`, because runtimes read no other file. Raises Refused."""
    if os.path.splitext(output)[1] not in (".json", ".yaml"):
        output = f"{output}.{form}"
    path = host.locate(os.path.join(os.getcwd(), output))
    try:
        files.make_directories(os.path.dirname(path.agent))
        files.write(path.agent, files.new_state(text.encode()))
    except OSError as error:
        raise Refused(f"cannot write {path}: {reason(error)}") from error
    return path
