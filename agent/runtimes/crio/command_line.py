"""The settings that the flags and the environment of a CRI-O process make.

A flag wins over a variable, and both win over every file (read in criocli.go, observed on 1.30 and
1.37). If a flag is given twice, the last value counts; a list takes all values, and each may
have several parts with commas between them. An empty value counts: with an empty `--config` or
`--config-dir` nothing is read, and an empty `--default-runtime` is the built-in default. A relative
path starts at the working directory of the process.

Invariant: reads only. Only the variables below are taken from the environment.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from agent.cri.process import Process, environment
from agent.errors import Refused
from agent.host import files
from agent.host.paths import HostRoot
from agent.runtimes.crio.merge import Overrides, Setting

# Names of the flags that are looked at. Two forms of one flag are never given together.
_FLAGS = (
    "config", "c", "config-dir", "d", "default-runtime", "hooks-dir", "cdi-spec-dirs", "runtimes",
)  # fmt: skip
_LISTS = ("hooks-dir", "cdi-spec-dirs", "runtimes")

_CONFIGURED = ("/etc/sysconfig/crio", "/etc/default/crio")  # as the packaged units read them
_UNITS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system",
          "/lib/systemd/system")  # fmt: skip
_ENVIRONMENT = re.compile(r"(?m)^\s*EnvironmentFile\s*=\s*-?\s*(/\S+)")


def overrides(process: Process | None) -> Overrides:
    """The settings of a process. If it cannot be seen, there are none, and `environment` is
    False."""
    if process is None:
        return Overrides(environment=False)
    variables = environment(process)
    found = parse(process.command, variables or {})
    directory = _directory(process)
    return replace(
        found,
        environment=variables is not None,
        config=_absolute(found.config, directory),
        directory=_absolute(found.directory, directory),
        hooks_dirs=_absolute(found.hooks_dirs, directory),
        spec_dirs=_absolute(found.spec_dirs, directory),
    )


def parse(words: tuple[str, ...], variables: Mapping[str, str]) -> Overrides:
    """The settings that a command line and environment variables make."""
    given = tuple(_given(words))

    def setting(flag: str, variable: str, short: str = "") -> Setting | None:
        values = tuple(value for name, value in given if name in (flag, short))
        if values:
            return Setting(values if flag in _LISTS else values[-1:], f"--{flag}")
        return Setting((variables[variable],), variable) if variable in variables else None

    return Overrides(
        config=setting("config", "CONTAINER_CONFIG", "c"),
        directory=setting("config-dir", "CONTAINER_CONFIG_DIR", "d"),
        default=setting("default-runtime", "CONTAINER_DEFAULT_RUNTIME"),
        hooks_dirs=_split(setting("hooks-dir", "CONTAINER_HOOKS_DIR")),
        spec_dirs=_split(setting("cdi-spec-dirs", "CONTAINER_CDI_SPEC_DIRS")),
        runtimes=_split(setting("runtimes", "CONTAINER_RUNTIMES")),
    )


def _split(setting: Setting | None) -> Setting | None:
    """The setting of a list, with each value split at its commas."""
    if setting is None:
        return None
    parts = (part.strip() for value in setting.values for part in value.split(","))
    return replace(setting, values=tuple(parts))


def _given(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The flags on a command line, each with its value.

    As Go's flag package reads them: one dash or two, the value behind `=` or as the next word. It
    need not be known which other flags have a value, because every word on a daemon's command line
    is a flag or its value.
    """
    rest = iter(words[1:])
    for word in rest:
        if word == "--":
            return
        name, equals, value = word[2 if word.startswith("--") else 1 :].partition("=")
        if word.startswith("-") and name in _FLAGS:
            following = value if equals else next(rest, None)
            if following is not None:
                yield name, following


def _absolute(setting: Setting | None, directory: str | None) -> Setting | None:
    """The setting with absolute paths, if the working directory is known."""
    if setting is None or directory is None:
        return setting
    paths = (
        os.path.normpath(os.path.join(directory, value)) if value else ""
        for value in setting.values
    )
    return replace(setting, values=tuple(paths))


def _directory(process: Process) -> str | None:
    try:
        return os.readlink(f"{process.proc}/{process.pid}/cwd")
    except OSError:
        return None


def setting_file(host: HostRoot, process: Process | None, source: str) -> str:
    """The host path of the first file that sets a flag or a variable for the unit of CRI-O, else a
    description of where it may be."""
    unit = process.unit if process else None
    word = re.compile(rf"(?<![A-Za-z0-9_-]){re.escape(source)}(?![A-Za-z0-9_-])")
    texts = list(_unit_files(host, unit)) if unit else []
    named = [str(found) for _, text in texts for found in _ENVIRONMENT.findall(text)]
    others = [(name, _text(host, name)) for name in dict.fromkeys((*named, *_CONFIGURED))]
    for name, text in (*others, *texts):
        if word.search(text):
            return name
    return f"the unit {unit} or a file that it reads" if unit else "what starts CRI-O"


def _unit_files(host: HostRoot, unit: str) -> Iterator[tuple[str, str]]:
    """The unit file and its drop-ins, with their text."""
    for above in _UNITS:
        yield f"{above}/{unit}", _text(host, f"{above}/{unit}")
        with contextlib.suppress(OSError, Refused):
            for name in sorted(files.names(host.resolve(f"{above}/{unit}.d").agent)):
                if name.endswith(".conf"):
                    yield f"{above}/{unit}.d/{name}", _text(host, f"{above}/{unit}.d/{name}")


def _text(host: HostRoot, name: str) -> str:
    try:
        found = files.read(host.resolve(name).agent, name)
    except Refused:
        return ""
    return found.data.decode("utf-8", "replace") if found else ""
