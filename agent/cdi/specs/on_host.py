"""The files on the host that a spec needs: device nodes, sources of mounts, programs of hooks.

Invariant: files are looked up as by the runtime (a link is no device node), but no link is followed
out of the host root, and no file is opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from agent.cdi.specs.scalar import quoted
from agent.cdi.specs.shape import Problem, edits
from agent.cdi.specs.spec_files import refusal_reason
from agent.errors import Refused, reason
from agent.host.paths import HostRoot

_TYPES = {"b": stat.S_ISBLK, "c": stat.S_ISCHR, "p": stat.S_ISFIFO}
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_NOT_CREATED = "containers with it are not created"
_NOT_STARTED = "containers with it are not started"

Data = Mapping[str, Any]


class _Missing(Exception):
    """A file is missing; `text` says why, as a predicate. `unseen`: only root can see whether it
    exists."""

    def __init__(self, text: str, cause: BaseException | None = None) -> None:
        super().__init__(text)
        self.unseen = isinstance(cause, PermissionError)
        self.text = "permission denied" if self.unseen else text


def check(spec: Data, host: HostRoot) -> Iterator[Problem]:
    """Problems of the files that a spec names and the host lacks, or has with another type.
    Relative paths are problems of `rules`, and are skipped here."""
    rules = (("deviceNodes", _node), ("mounts", _mount), ("hooks", _hook))
    for where, part in edits(spec):
        for field, rule in rules:
            for number, item in enumerate(part.get(field, ())):
                if item is not None:
                    yield from rule(item, f"{where}.{field}[{number}]", host)


def _node(node: Data, where: str, host: HostRoot) -> Iterator[Problem]:
    """The runtime reads the node on the host if the spec lacks its type or numbers
    (fillMissingInfo)."""
    path, kind = node.get("hostPath") or node.get("path", ""), node.get("type", "")
    if not path or (kind and (node.get("major") or kind == "p")):
        return
    try:
        # The working directory of runtimes is /, so a relative path starts there.
        found = _look_up(host, os.path.join("/", path), follow=False)
    except _Missing as error:
        yield _problem(where, f"device node {quoted(path)}", error, _NOT_CREATED)
        return
    actual = next((word for word, test in _TYPES.items() if test(found.st_mode)), None)
    if actual is None:
        is_link = stat.S_ISLNK(found.st_mode)
        link = " but a link, which the runtime does not follow" if is_link else ""
        text = f"{quoted(path)} is no device node{link}: {_NOT_CREATED}"
        yield Problem("use", where, text, "use the path of the device node itself as hostPath")
    elif kind not in ("", actual):
        text = f"{quoted(path)} is of type {actual}, not {kind}: {_NOT_CREATED}"
        yield Problem("use", f"{where}.type", text, f"write {actual}, or nothing")


def _mount(mount: Data, where: str, host: HostRoot) -> Iterator[Problem]:
    path, options = mount.get("hostPath", ""), mount.get("options", ())
    binds = mount.get("type", "") in ("", "none", "bind") or {"bind", "rbind"} & set(options)
    if not (binds and path.startswith("/")):
        return
    try:
        _look_up(host, path)
    except _Missing as error:
        yield _problem(where, f"mount source {quoted(path)}", error, _NOT_STARTED)


def _hook(hook: Data, where: str, host: HostRoot) -> Iterator[Problem]:
    """Hooks run on the host. Only startContainer runs a program of the container."""
    path = hook.get("path", "")
    if hook.get("hookName") == "startContainer" or not path.startswith("/"):
        return
    try:
        found = _look_up(host, path)
    except _Missing as error:
        yield _problem(where, f"hook binary {quoted(path)}", error, _NOT_STARTED)
        return
    if not (stat.S_ISREG(found.st_mode) and found.st_mode & 0o111):
        text = f"hook binary {quoted(path)} cannot be run: {_NOT_STARTED}"
        yield Problem("use", f"{where}.path", text, "make it executable, or name another program")


def _problem(where: str, what: str, error: _Missing, so: str) -> Problem:
    if error.unseen:
        return Problem("nothing", where, f"{what} cannot be looked at: {error.text}", "run as root")
    remedy = "create it, or generate the spec again on this host"
    return Problem("use", where, f"{what} {error.text}: {so}", remedy)


def _look_up(host: HostRoot, path: str, *, follow: bool = True) -> os.stat_result:
    """The stat result of a path. Links are followed inside the host root, a link at the end only
    with `follow`. Raises _Missing."""
    try:
        if follow:
            real = host.resolve(path).host
        else:
            above, name = os.path.split(path.rstrip("/"))
            real = os.path.join(host.resolve(above).host, name)
        if _CONTROL.search(os.path.basename(real)):
            raise _Missing("has a control character in its name")
        found = os.lstat(host.agent_path(real))
    except Refused as error:
        raise _Missing(f"is not there ({refusal_reason(error)})", error.__cause__) from error
    except (FileNotFoundError, ValueError) as error:  # ValueError: no path can have that name
        raise _Missing("is missing on the host") from error
    except OSError as error:
        raise _Missing(f"is not there ({reason(error)})", error) from error
    if path.endswith("/") and not stat.S_ISDIR(found.st_mode):
        raise _Missing("is not there (the path ends with a slash, but is not a directory)")
    return found
