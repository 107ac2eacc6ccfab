"""The configuration files of a runtime, as every runtime reads and writes them.

Invariant: a file that another user than root can change is refused, because it names the programs
that root runs.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from agent.errors import Refused
from agent.host import trust
from agent.host.files import FileState, new_state
from agent.host.paths import HostPath, HostRoot
from agent.toml import dialect, document
from agent.toml.dialect import Kind
from agent.toml.document import Data, Path, get

if TYPE_CHECKING:
    from agent.toml.masking import Source

Overlay: TypeAlias = Mapping[str, FileState | None]  # by host path: files as they will be


def is_hook(name: str) -> bool:
    """Is a file that a runtime reads an OCI hook, and has no settings? Only hooks are JSON."""
    return name.endswith(".json")


@dataclass(frozen=True)
class ConfigFile:
    """One loaded file. `name` is the path that the daemon uses, `path` the one without links. If
    the file does not exist (only a root file may not), `state` is None and `data` is {}. `unread`
    is the reason why we cannot parse it, although the runtime may; then `data` is {} too."""

    name: str
    path: HostPath
    state: FileState | None
    data: Data
    unread: str = ""

    @property
    def version(self) -> int | None:
        found = self.data.get("version")
        return found if isinstance(found, int) else None

    @property
    def source(self) -> Source:
        """What a message about the file is explained with."""
        from agent.toml.masking import Source  # needed only if something fails

        text = dialect.decoded(self.state.data) if self.state else ""
        return Source(self.path.host, text, self.data)


Files: TypeAlias = tuple[ConfigFile, ...]
# The types of the settings that the agent reads, tables first. "*" stands for any key.
Shape: TypeAlias = tuple[tuple[Path, type], ...]
_KINDS = {
    dict: "a table", str: "a string", int: "a whole number", bool: "true or false",
    list: "a list of strings",
}  # fmt: skip


class Unparsed(Refused):
    """A file whose text we cannot parse. `file` is that file without data."""

    def __init__(self, message: str, file: ConfigFile) -> None:
        super().__init__(message)
        self.file = file


def checked_file(host: HostRoot, name: str, overlay: Overlay) -> ConfigFile:
    """A file by its host path, parsed; without data if it does not exist. A file in `overlay`
    counts as it is there. Raises Unparsed for a text that is not TOML; Refused for a file that
    cannot be read, or that another user than root can change."""
    path = host.resolve(name)
    if path.host in overlay:
        above, state = os.path.dirname(path.host), overlay[path.host]
        trust.require(host, above, f"use {path}", allow_sticky=True)
    else:
        path, state = trust.read_file(host, name)
    if state is not None:
        document.decoded(state.data, path.host)  # no runtime reads it either
    try:
        data = {} if state is None else document.parse(state.data, path.host)
    except Refused as error:
        file = ConfigFile(name, path, state, {}, error.message.partition(": ")[2])
        raise Unparsed(
            f"{error.message} (also where no edit of it is needed: the result of any edit depends "
            "on every file that the runtime loads)",
            file,
        ) from error
    return ConfigFile(name, path, state, data)


def check_shape(file: ConfigFile, shape: Shape) -> None:
    """Raise Refused for a value of another type than `shape` says. No runtime starts on such a
    file."""
    for path, kind in shape:
        for key, value in _values(file.data, path):
            items = value if isinstance(value, list) else ()
            if type(value) is not kind or any(not isinstance(item, str) for item in items):
                raise Refused(
                    f"cannot use {file.path}: {'.'.join(key)} is not {_KINDS[kind]}; repair it"
                )


def _values(data: object, pattern: Path, above: Path = ()) -> Iterator[tuple[Path, object]]:
    """The values at the paths that a pattern stands for."""
    if not pattern:
        yield above, data
    elif isinstance(data, dict):
        for key in data if pattern[0] == "*" else data.keys() & {pattern[0]}:
            yield from _values(data[key], pattern[1:], (*above, key))


def refuse_unread(file: ConfigFile, reader: Collection[Kind], title: str = "") -> None:
    """Raise Refused for a file that the runtime's own TOML reader rejects. `reader` is what that
    accepts besides TOML 1.0. `title` is the name of the runtime in the error; without it, the error
    names the versions of containerd that accept the file."""
    text = document.decoded(file.state.data, file.path.host) if file.state else ""
    odd = dialect.first_rejected(text, reader)
    if odd is not None:
        readers = f"{title} does not start on it" if title else odd.readers
        raise Refused(
            f"cannot use {file.path}: {odd.words}; {readers}, so the running one was started on "
            f"another content; {odd.remedy}"
        )


def owner(files: Files, path: Path) -> ConfigFile | None:
    """The last file that has a key."""
    missing = object()
    return next((f for f in reversed(files) if get(f.data, path, missing) is not missing), None)


def names(host: HostRoot, directory: str, overlay: Overlay) -> set[str]:
    """The present and future names in a directory, none if it does not exist. Raises Refused,
    also if another user than root can add a file, because the runtime would load it."""
    path, existing = trust.list_directory(host, directory)
    found = set(existing)
    above = path.host.rstrip("/") + "/"
    for name, state in overlay.items():
        first, slash, _ = name.removeprefix(above).partition("/")
        if name.startswith(above) and state is not None:
            found.add(first)  # the file, or a directory that comes with it
        elif name.startswith(above) and not slash:
            found.discard(first)
    return found


def fresh_state(loaded: Iterable[ConfigFile]) -> FileState:
    """The state of a new file. Our handlers copy settings from these files, which can include
    passwords. So only a user who can read all of them can read the new file."""
    mode = 0o644
    for file in loaded:
        mode &= file.state.mode if file.state else mode
    return new_state(mode=mode | 0o600)


def with_text(state: FileState, text: str) -> FileState:
    """The file with another text, and owner, mode and label as they are."""
    return FileState(document.encoded(text), state.mode, state.uid, state.gid, state.label)
