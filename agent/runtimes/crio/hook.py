"""The OCI hook that replaces handlers on CRI-O while CDI is off.

Invariant: the file has the bytes that NVIDIA's installer writes, and is written only to a directory
from which CRI-O reads hooks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.cdi.specs import spec_files
from agent.errors import NoToolkit, Refused
from agent.host import budget, trust
from agent.host.paths import HostPath, HostRoot
from agent.runtimes.config_file import Overlay, is_hook

if TYPE_CHECKING:
    from agent.runtimes.crio.adapter import CrioNode

_BINARY = "nvidia-container-runtime-hook"
_PROGRAMS = (_BINARY, "nvidia-container-toolkit")  # the second is an older name of the first
_WORD = re.compile(r"[^\s'\"`;|&()<>=]+")  # of a line for a shell
_ARGUMENTS = 100  # that are looked at
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def content(path: str | None) -> bytes:
    """The hook's file, for its program's host path. Raises NoToolkit if there is none."""
    if path is None:
        raise NoToolkit(
            f"cannot write the OCI hook: there is no {_BINARY} in the toolkit; install the whole "
            "of it, or give --toolkit-source-root or --toolkit-install-dir"
        )
    directory = os.path.dirname(path)
    search = _PATH if directory in _PATH else (*_PATH, directory)
    data = {
        "version": "1.0.0",
        "hook": {"path": path, "args": [_BINARY, "prestart"], "env": [f"PATH={':'.join(search)}"]},
        "when": {"always": True, "commands": [".*"]},
        "stages": ["prestart"],
    }
    return (json.dumps(data, indent=2) + "\n").encode()


@dataclass(frozen=True)
class Hook:
    """An OCI hook that CRI-O finds: its file, its program, and whether CRI-O runs it for every
    container before the start. `called` are the paths and names in its arguments, because a shell
    or env may run another program."""

    path: HostPath
    program: str
    for_all: bool
    called: tuple[str, ...] = ()


def program(data: bytes) -> str | None:
    """The program that a hook's file names, None if CRI-O ignores the file."""
    found = _read(HostPath("", ""), data)
    return found.program if found else None


def programs(node: CrioNode, overlay: Overlay) -> Iterator[tuple[HostPath, str]]:
    """The files of all OCI hooks that CRI-O will find, each with a program that the hook runs or
    names in its arguments. Files in `overlay` replace those on disk."""
    for found in _hooks(node, overlay):
        for name in (found.program, *found.called):
            if name.startswith("/"):
                yield found.path, name


def of_nvidia(node: CrioNode) -> tuple[Hook, ...]:
    """The hooks that CRI-O finds and that run NVIDIA's hook, whatever their files are called. Of
    two files with one name that of the later directory counts (read in hooks.go)."""
    by_name = {os.path.basename(found.path.host): found for found in _hooks(node, {})}
    return tuple(found for found in by_name.values() if _is_nvidia(node.host, found))


def of_others(node: CrioNode) -> tuple[Hook, ...]:
    """The hooks of `of_nvidia` without our own file."""
    return tuple(found for found in of_nvidia(node) if found.path.host != node.hook.host)


def hidden_by(node: CrioNode) -> HostPath | None:
    """The file of our hook's name in a later directory, which CRI-O takes in its place."""
    directories = [path.host for path in _directories(node)]
    here = os.path.dirname(node.hook.host)
    later = directories[directories.index(here) + 1 :] if here in directories else []
    for name in reversed(later):
        path = os.path.join(name, os.path.basename(node.hook.host))
        if os.path.lexists(node.host.agent_path(path)):
            return HostPath(node.host.agent_path(path), path)
    return None


def _directories(node: CrioNode) -> Iterator[HostPath]:
    for name in dict.fromkeys((*node.hooks_read, *node.hooks_later)):
        with contextlib.suppress(Refused):
            yield node.host.resolve(os.path.normpath(name))


def require(node: CrioNode) -> None:
    """Check that only root can write to the directories from which CRI-O reads hooks, because CRI-O
    runs hooks as root. Raises Refused."""
    looked = (os.path.dirname(node.hook.host), *node.hooks_read, *node.hooks_later)
    for name in dict.fromkeys(os.path.normpath(name) for name in looked):
        trust.require(node.host, name, f"use the hooks directory {name}")


def _hooks(node: CrioNode, overlay: Overlay) -> Iterator[Hook]:
    for directory in _directories(node):
        for path, data in spec_files.entries(node.host, directory):
            if path.host in overlay:
                state = overlay[path.host]
                data = state.data if state else b""
            found = _read(path, data) if is_hook(path.host) else None
            if found is not None:
                yield found


def _read(path: HostPath, data: bytes) -> Hook | None:
    """A hook of version 1.0.0 or 0.1.0, None if CRI-O ignores the file. Version 0.1.0 needs no
    version key and has the program as a string. The case of keys does not matter."""
    try:
        given = _lower(budget.json_value(data, budget.HOOK))
    except ValueError:
        return None
    hook, when = given.get("hook"), _lower(given.get("when"))
    if isinstance(hook, str):  # there any condition is enough
        commands = given.get("cmds") or given.get("cmd")
        stages = given.get("stages") or given.get("stage")
        return Hook(path, hook, _all(commands) and _early(stages), _called(given.get("arguments")))
    hook = _lower(hook)
    program = hook.get("path")
    if not isinstance(program, str):
        return None
    for_all = _always(when) and _early(given.get("stages"))
    return Hook(path, program, for_all, _called(hook.get("args")))


def _always(when: dict[str, Any]) -> bool:
    """Do all conditions in `when` hold for every container (pkg/hooks/1.0.0)?"""
    always, commands = when.get("always"), when.get("commands")
    if always is False or when.get("annotations") or when.get("hasbindmounts") is not None:
        return False
    return _all(commands) if commands else always is True


def _called(arguments: Any) -> tuple[str, ...]:
    """The words in arguments, split as by a shell."""
    texts = arguments[:_ARGUMENTS] if isinstance(arguments, list) else ()
    return tuple(word for text in texts if isinstance(text, str) for word in _WORD.findall(text))


def _lower(value: Any) -> dict[str, Any]:
    return {str(k).lower(): v for k, v in value.items()} if isinstance(value, dict) else {}


def _all(commands: Any) -> bool:
    return isinstance(commands, list) and any(item in (".*", "", "^.*$") for item in commands)


def _early(stages: Any) -> bool:
    return isinstance(stages, list) and bool({"prestart", "createRuntime"} & {*map(str, stages)})


def _is_nvidia(host: HostRoot, found: Hook) -> bool:
    """Is this NVIDIA's hook, under a name of its own or a link's, or run by another program?

    A hook names itself in its first argument too, whatever its file is called.
    """
    names = [found.program, *found.called]
    for name in (found.program, *found.called):
        with contextlib.suppress(Refused, ValueError):
            names += [host.resolve(name).host] if name.startswith("/") else []
    return any(os.path.basename(name).startswith(_PROGRAMS) for name in names)


def warning(node: CrioNode) -> str | None:
    """A warning if CRI-O reads the hook's directory only after its next start. Raises Refused
    if it does not read it at all."""
    directory = os.path.dirname(node.hook.host)
    now, later = (
        [node.host.resolve(os.path.normpath(name)).host for name in names]
        for names in (node.hooks_read, node.hooks_later)
    )
    if directory in now:
        return None
    if directory in later:
        return f"CRI-O looks into {directory} for hooks only after its next restart; restart it"
    raise Refused(
        f"cannot use the hooks directory {directory}: CRI-O reads "
        f"{', '.join(node.hooks_read) or 'none'} (hooks_dir); give one of these with --hooks-dir"
    )
