"""The arguments of containerd's trial start, and the reason of a failure in its log.

Invariant: a trial start differs from the real start only in its directories and its socket.
Observed on 1.6.20, 1.7.24 and 2.1.9: `--root`, `--state` and `--address` win over the files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from agent.errors import Refused
from agent.host.isolation import View
from agent.host.paths import is_below
from agent.runtimes import command, trial
from agent.runtimes.config_file import Files
from agent.runtimes.containerd.load import DEFAULT_ROOT
from agent.runtimes.desired_state import Desired, binaries, leaves
from agent.runtimes.trial import Launch
from agent.toml.document import Data

if TYPE_CHECKING:
    from agent.runtimes.containerd.adapter import ContainerdNode

# containerd makes /opt/containerd at each start, whatever its options are. /run/nri has the sockets
# of NRI.
_WRITABLE = ("/run/containerd", "/run/nri", "/opt/containerd", "/opt/nri/plugins")
_CRI_PLUGINS = ("grpc.v1.cri", "cri.v1.")
_PROXIES = "proxy_plugins"
# Keys whose value is a socket, and keys whose value is a directory that has to be empty or
# writable.
_SOCKETS = ("address", "socket_path")
_DIRECTORIES = ("root_path", "plugin_path")
_WRITTEN_KEYS = (*_SOCKETS, *_DIRECTORIES, "root", "state")


def launch(
    node: ContainerdNode, executable: str, desired: Desired, files: Mapping[str, bytes | None]
) -> Launch:
    """The trial start of this containerd. `files` are contents by host path (None: no such file),
    and replace the real files."""
    needed = {executable, *files, *_read(node.files)}
    directories = dict.fromkeys((*_WRITABLE, *_written(node)))
    writable = tuple(path for path in directories if not any(is_below(one, path) for one in needed))
    work = trial.work_directory(node.host, writable, needed)
    own = {name: os.path.join(work, f"trial-{name}") for name in ("root", "state", "socket")}
    argv = (
        executable, *_config(node, files), "--root", own["root"], "--state", own["state"],
        "--address", own["socket"],
    )  # fmt: skip
    programs = (path for table in desired.handlers.values() for _, path in binaries(table))
    # containerd connects to the sockets of proxy plugins.
    proxies = (path for file in node.files for path in _paths(file.data.get(_PROXIES) or {}))
    visible = tuple(path for key, path in proxies if key == "address")
    view = View(work, writable, visible, files, tuple(sorted({*programs} - {""})))
    env, sources = trial.environment(node.runtime.process), trial.sources(node.files, files)
    return Launch(argv, env, view, own["socket"], reason, sources)


def _config(node: ContainerdNode, files: Mapping[str, bytes | None]) -> tuple[str, ...]:
    """The arguments that name the root file. The usual root file needs no argument, because
    containerd reads it if it exists; a file that an argument names has to exist."""
    root, running = node.root, node.runtime.process
    exists = (
        files[root.path.host] is not None if root.path.host in files else root.state is not None
    )
    named = running.config is not None if running else exists
    return ("-c", root.name) if named or (root.name != DEFAULT_ROOT and exists) else ()


def _read(files: Files) -> Iterator[str]:
    """The paths of the files, and every path in them to which containerd does not write."""
    for file in files:
        yield from (file.name, file.path.host)
        for key, value in _paths(file.data):
            if key not in _WRITTEN_KEYS and value not in _WRITABLE:
                yield value


def _written(node: ContainerdNode) -> Iterator[str]:
    """The directories in which this containerd has sockets, or data that `--root` does not move."""
    yield os.path.dirname(node.runtime.socket.host)
    for file in node.files:
        without = {key: value for key, value in file.data.items() if key != _PROXIES}
        for key, value in _paths(without):
            if key in (*_SOCKETS, *_DIRECTORIES):
                name = os.path.dirname(value) if key in _SOCKETS else value
                with contextlib.suppress(Refused):
                    yield node.host.resolve(name).host


def _paths(data: Data) -> Iterator[tuple[str, str]]:
    """Every absolute path in a document, with its key."""
    for path, value in leaves(data):
        if isinstance(value, str) and value.startswith("/"):
            yield path[-1], value


def reason(output: str) -> str:
    """The reason in the output why containerd does not serve the CRI: the error of the first CRI
    plugin that does not load, else the last words."""
    for line in output.splitlines():
        entry = command.entry(line)
        if entry is None:
            continue
        text = f"{entry.get('msg', '')} {entry.get('id', '')}"
        failed = text.startswith("failed to load plugin") and entry.get("error")
        if failed and any(name in text for name in _CRI_PLUGINS):
            return failed
    return command.last_words(output).removeprefix("containerd: ")
