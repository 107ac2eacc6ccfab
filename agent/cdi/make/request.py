"""What `cdi generate` is asked for, the program of its hooks, and its output file.

Invariant: a `Request` is complete and valid; below it nothing reads the environment. The file has
its whole content at every moment; only the file and missing directories above it are written.
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

EMPTY = "none"  # the id of a device that brings nothing

_HOOK_PROGRAMS = (programs.CDI_HOOK, programs.CTK)
_ENDINGS = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}


@dataclass(frozen=True)
class Choice:
    """The part of a spec that is asked for: `ids` are indices or UUIDs of devices, `all` or `none`;
    `merged` adds a device `all`; `several` allows more than one GPU on a Tegra; `groups` adds the
    groups of device nodes; `vendor` and `class_name` replace those of the mode if they are not
    empty."""

    ids: tuple[str, ...] = ("all",)
    merged: bool = True
    several: bool = True
    groups: bool = True
    vendor: str = ""
    class_name: str = ""

    def with_kind(self, spec: Spec) -> Spec:
        """The spec under the chosen vendor and class."""
        vendor, _, class_name = spec.kind.partition("/")
        return replace(spec, kind=f"{self.vendor or vendor}/{self.class_name or class_name}")


EVERYTHING = Choice()


@dataclass(frozen=True)
class Request:
    """`output` is a path, "" for standard output; `hook_path` is a program, "" for the installed
    one; `warnings` name options that have no effect."""

    mode: str
    form: str
    output: str
    hook_path: str
    choice: Choice
    warnings: tuple[str, ...] = ()


def with_environment(
    given: Mapping[str, str | None], env: Mapping[str, str]
) -> dict[str, str | None]:
    """The options of the command line, completed from the variables of nvidia-ctk."""
    found = dict(given)
    for name, variable in GENERATE_ENV.items():
        if found.get(name) is None and env.get(variable, "").strip():
            found[name] = env[variable]
    return found


def request(given: Mapping[str, str | None], env: Mapping[str, str]) -> Request:
    """The request of the command line, completed from the environment. Raises UsageError."""
    values: dict[str, Any] = {}
    for option in GENERATE:
        text, origin = raw_value(option, given, env)
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
        merged=not (values["no_all_device"] or empty),
        several="disable-multiple-csv-devices" not in flags,
        groups="no-additional-gids-for-device-nodes" not in flags,
        vendor=values["vendor"] or "",
        class_name=values["class_name"] or "",
    )
    return Request(
        values["spec_mode"], form, values["output"] or "", values["hook_path"] or "", choice,
        warnings,
    )  # fmt: skip


def _form(output: str, asked: str | None) -> tuple[str, tuple[str, ...]]:
    """YAML or JSON: what the ending of the output file says, because a runtime reads the file by
    its ending; and a warning if the option asks for the other one."""
    implied = _ENDINGS.get(os.path.splitext(output)[1].lower())
    if implied and asked not in (None, implied):
        return implied, (f"{output} is written as {implied}, as its name says, not as {asked}",)
    return implied or asked or "yaml", ()


def hook_program(settings: Settings, host: HostRoot, asked: str) -> str | None:
    """Host path of the program of hooks; None if there is none.

    `asked` is a path, which is not checked, or the name of a program. Raises UsageError for an
    unknown name, and Refused if the named program is not on the host.
    """
    if asked.startswith("/"):
        return asked
    if asked and asked not in _HOOK_PROGRAMS:
        raise UsageError(
            f"cannot use {asked!r} as the program of hooks: give an absolute path, or "
            f"{' or '.join(_HOOK_PROGRAMS)}"
        )
    found = programs.find(settings, host, asked or programs.CDI_HOOK)
    if asked and found is None:
        directory = programs.directory_name(settings, host)
        raise Refused(
            f"cannot make hooks: there is no {asked} in {directory} or /usr/bin; give its path "
            "with --nvidia-cdi-hook-path"
        )
    return found


def write_output(host: HostRoot, asked: str, form: str, text: str) -> HostPath:
    """Write a spec to the path of the option, and give that path. A name without an ending gets
    that of the form, because runtimes read no other file. Raises Refused."""
    if os.path.splitext(asked)[1] not in (".json", ".yaml"):
        asked = f"{asked}.{form}"
    path = host.locate(os.path.join(os.getcwd(), asked))
    try:
        files.make_directories(os.path.dirname(path.agent))
        files.write(path.agent, files.new_state(text.encode()))
    except OSError as error:
        raise Refused(f"cannot write {path}: {reason(error)}") from error
    return path
