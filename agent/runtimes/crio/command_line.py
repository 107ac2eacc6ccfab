"""The settings that flags and environment variables give to a CRI-O process.

A flag wins over a variable, and both win over every file (read in criocli.go, observed on 1.30 and
1.37). If a flag is given twice, the last value counts; a list takes all values, and each may
have several parts with commas between them. An empty value counts: with an empty `--config` or
`--config-dir` nothing is read, and an empty `--default-runtime` is the built-in default. A relative
path starts at the working directory of the process.

Invariant: reads only. Only the variables below are taken from the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from agent.cri.process import Process, environment
from agent.errors import Refused
from agent.host import files
from agent.host.paths import HostRoot
from agent.runtimes.crio.merge import Overrides, Setting
from agent.systemd.units import unit_files

# The flags for each setting, in all spellings. Two spellings of one flag are never given together.
_FLAGS = {
    "config": ("config", "c"),
    "directory": ("config-dir", "d"),
    "default": ("default-runtime",),
    "hooks_dirs": ("hooks-dir",),
    "spec_dirs": ("cdi-spec-dirs",),
    "runtimes": ("runtimes",),
}
_NAMES = frozenset(name for flags in _FLAGS.values() for name in flags)
_LISTS = ("hooks_dirs", "spec_dirs", "runtimes")
_PATHS = ("config", "directory", "hooks_dirs", "spec_dirs")

_CONFIGURED = ("/etc/sysconfig/crio", "/etc/default/crio")  # as the packaged units read them
_ENVIRONMENT = re.compile(r"(?m)^\s*EnvironmentFile\s*=\s*-?\s*(/\S+)")


def overrides(process: Process | None) -> Overrides:
    """The settings that flags and variables give to a process. If the process is None, because it
    cannot be seen, there are no settings, and `environment` is false."""
    if process is None:
        return Overrides(environment=False)
    variables = environment(process)
    try:
        directory = os.readlink(f"{process.proc}/{process.pid}/cwd")
    except OSError:
        directory = ""
    parsed = parse(process.command, variables or {}, directory)
    return replace(parsed, environment=variables is not None)


def parse(words: tuple[str, ...], variables: Mapping[str, str], directory: str = "") -> Overrides:
    """The settings in a command line and environment variables. `directory` is the working
    directory of the process; if it is empty, relative paths stay relative."""
    given = tuple(_flags_with_values(words))
    settings: dict[str, Any] = {}
    for name, flags in _FLAGS.items():
        values = [value for flag, value in given if flag in flags]
        source, variable = f"--{flags[0]}", f"CONTAINER_{flags[0].replace('-', '_').upper()}"
        if not values and variable in variables:
            values, source = [variables[variable]], variable
        if name in _LISTS:
            values = [part.strip() for value in values for part in value.split(",")]
        if name in _PATHS:
            values = [os.path.normpath(os.path.join(directory, v)) if v else "" for v in values]
        if values:
            settings[name] = Setting(tuple(values if name in _LISTS else values[-1:]), source)
    return Overrides(**settings)


def _flags_with_values(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The known flags on a command line, each with its value.

    Flags are read as by Go's flag package: one dash or two, the value after `=` or as the next
    word. Every word on a daemon's command line is a flag or its value, so other flags can be
    skipped without knowing which of them have a value.
    """
    rest = iter(words[1:])
    for word in rest:
        if word == "--":
            return
        name, equals, value = word[2 if word.startswith("--") else 1 :].partition("=")
        if word.startswith("-") and name in _NAMES:
            following = value if equals else next(rest, None)
            if following is not None:
                yield name, following


def setting_file(host: HostRoot, process: Process | None, source: str) -> str:
    """The host path of the first file that sets the flag or variable `source` for CRI-O's unit. If
    no file is known, a description of the place, for a message."""
    unit = process.unit if process else None
    word = re.compile(rf"(?<![A-Za-z0-9_-]){re.escape(source)}(?![A-Za-z0-9_-])")
    texts = [(name, _text(host, name)) for name in unit_files(host, unit)]
    named = [str(found) for _, text in texts for found in _ENVIRONMENT.findall(text)]
    others = [(name, _text(host, name)) for name in dict.fromkeys((*named, *_CONFIGURED))]
    for name, text in (*others, *texts):
        if word.search(text):
            return name
    return f"the unit {unit} or a file that it reads" if unit else "what starts CRI-O"


def _text(host: HostRoot, name: str) -> str:
    try:
        state = files.read(host.resolve(name).agent, name)
    except Refused:
        return ""
    return state.data.decode("utf-8", "replace") if state else ""
