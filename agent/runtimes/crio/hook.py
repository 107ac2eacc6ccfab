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
_WORD = re.compile(r"[^\s'\"`;|&()<>=]+")  # a word of a shell's command line
_ARGUMENTS = 100  # the highest number of arguments that are read
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def content(path: str | None) -> bytes:
    """The content of our hook's file. `path` is the host path of the hook's program. Raises
    NoToolkit if it is None."""
    if path is None:
        raise NoToolkit(
            f"cannot write the OCI hook: there is no {_BINARY} in the toolkit; install the whole "
            "toolkit, or give --toolkit-source-root or --toolkit-install-dir"
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
    """An OCI hook that CRI-O finds. `path` is its file, `program` the path of its program.
    `for_all`: does CRI-O run it before the start of every container? `called` are the paths and
    names in its arguments, because the program can be a shell or env that runs another program."""

    path: HostPath
    program: str
    for_all: bool
    called: tuple[str, ...] = ()


def program(data: bytes) -> str | None:
    """The program in the content of a hook's file, None if CRI-O ignores the file."""
    hook = _read(HostPath("", ""), data)
    return hook.program if hook else None


def programs(node: CrioNode, overlay: Overlay) -> Iterator[tuple[HostPath, str]]:
    """The absolute paths of programs that OCI hooks run or name in their arguments, each with the
    hook's file. Files in `overlay` replace those on disk."""
    for hook in _hooks(node, overlay):
        for name in (hook.program, *hook.called):
            if name.startswith("/"):
                yield hook.path, name


def of_nvidia(node: CrioNode) -> tuple[Hook, ...]:
    """The hooks that CRI-O finds and that run NVIDIA's program, whatever the names of their files
    are. Of two files with the same name, the one in the later directory counts (read in
    hooks.go)."""
    by_name = {os.path.basename(hook.path.host): hook for hook in _hooks(node, {})}
    return tuple(hook for hook in by_name.values() if _is_nvidia(node.host, hook))


def of_others(node: CrioNode) -> tuple[Hook, ...]:
    """The hooks of `of_nvidia` without our own."""
    return tuple(hook for hook in of_nvidia(node) if hook.path.host != node.hook.host)


def hidden_by(node: CrioNode) -> HostPath | None:
    """The file that CRI-O takes in place of our hook, because it has the same name in a later
    directory; None if there is none."""
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
    """Raise Refused if another user than root can write to a directory of hooks, because CRI-O runs
    hooks as root."""
    directories = (os.path.dirname(node.hook.host), *node.hooks_read, *node.hooks_later)
    for name in dict.fromkeys(os.path.normpath(name) for name in directories):
        trust.require(node.host, name, f"use the hooks directory {name}")


def _hooks(node: CrioNode, overlay: Overlay) -> Iterator[Hook]:
    for directory in _directories(node):
        for path, data in spec_files.entries(node.host, directory):
            if path.host in overlay:
                state = overlay[path.host]
                data = state.data if state else b""
            hook = _read(path, data) if is_hook(path.host) else None
            if hook is not None:
                yield hook


def _read(path: HostPath, data: bytes) -> Hook | None:
    """The hook in a file of version 1.0.0 or 0.1.0, None if CRI-O ignores the file. Version 0.1.0
    needs no key `version`, and its `hook` is a string, the program. The case of keys does not
    matter."""
    try:
        given = _lower(budget.json_value(data, budget.HOOK))
    except ValueError:
        return None
    hook, when = given.get("hook"), _lower(given.get("when"))
    if isinstance(hook, str):  # version 0.1.0: one condition that holds is enough
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
    """Do all conditions in `when` hold for every container (CRI-O's pkg/hooks/1.0.0)?"""
    always, commands = when.get("always"), when.get("commands")
    if always is False or when.get("annotations") or when.get("hasbindmounts") is not None:
        return False
    return _all(commands) if commands else always is True


def _called(arguments: Any) -> tuple[str, ...]:
    """The words in a hook's arguments, split as by a shell."""
    texts = arguments[:_ARGUMENTS] if isinstance(arguments, list) else ()
    return tuple(word for text in texts if isinstance(text, str) for word in _WORD.findall(text))


def _lower(value: Any) -> dict[str, Any]:
    return {str(k).lower(): v for k, v in value.items()} if isinstance(value, dict) else {}


def _all(commands: Any) -> bool:
    return isinstance(commands, list) and any(item in (".*", "", "^.*$") for item in commands)


def _early(stages: Any) -> bool:
    return isinstance(stages, list) and bool({"prestart", "createRuntime"} & {*map(str, stages)})


def _is_nvidia(host: HostRoot, hook: Hook) -> bool:
    """Does a hook run NVIDIA's program: directly, by a link, or as an argument of another program?

    The first argument of a hook is the program's name, also if the program's file has another name.
    """
    names = [hook.program, *hook.called]
    for name in (hook.program, *hook.called):
        with contextlib.suppress(Refused, ValueError):
            names += [host.resolve(name).host] if name.startswith("/") else []
    return any(os.path.basename(name).startswith(_PROGRAMS) for name in names)


def warning(node: CrioNode) -> str | None:
    """A warning if CRI-O reads hooks from our hook's directory only after its next start. Raises
    Refused if it never reads that directory."""
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
