"""The configuration files of a runtime: the parts of loading that all runtimes share.

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


# The future state of files by host path. None: the file will not exist.
Overlay: TypeAlias = Mapping[str, FileState | None]


def is_hook(name: str) -> bool:
    """Is a file of a runtime an OCI hook, not a file with settings? Only hooks are JSON."""
    return name.endswith(".json")


@dataclass(frozen=True)
class ConfigFile:
    """One loaded file. `name` is the path that the daemon uses, `path` is the path without links.
    If the file does not exist (only a root file may be missing), `state` is None and `data` is {}.
    If the agent cannot parse the file, although the runtime may, `unread` is the reason and `data`
    is {}."""

    name: str
    path: HostPath
    state: FileState | None
    data: Data
    unread: str = ""

    @property
    def version(self) -> int | None:
        value = self.data.get("version")
        return value if isinstance(value, int) else None

    @property
    def source(self) -> Source:
        """The file's text and data, by which an error of the runtime about the file is masked."""
        from agent.toml.masking import Source  # needed only if something failed

        text = dialect.decoded(self.state.data) if self.state else ""
        return Source(self.path.host, text, self.data)


Files: TypeAlias = tuple[ConfigFile, ...]
# The types of the settings that the agent reads, tables first. "*" stands for any key.
Shape: TypeAlias = tuple[tuple[Path, type], ...]
_KINDS = {
    dict: "a table", str: "a string", int: "a whole number", bool: "true or false",
    list: "a list of strings",
}  # fmt: skip


def checked_file(
    host: HostRoot, name: str, overlay: Overlay, shape: Shape, *, may_be_unread: bool
) -> ConfigFile:
    """Read and parse the file with the host path `name`. A file in `overlay` has the state given
    there. If the file does not exist, the result has no data. Raises Refused for a file that cannot
    be read, that another user than root can change, or that has a value of another type than
    `shape` says; and for a text that is not TOML, unless it `may_be_unread`."""
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
        if may_be_unread:
            return ConfigFile(name, path, state, {}, error.message.partition(": ")[2])
        raise Refused(
            f"{error.message} (also where no edit of it is needed: the result of any edit depends "
            "on every file that the runtime loads)"
        ) from error
    file = ConfigFile(name, path, state, data)
    check_shape(file, shape)
    return file


def check_shape(file: ConfigFile, shape: Shape) -> None:
    """Raise Refused for a value of another type than that in `shape`. No runtime starts on such a
    file."""
    for path, kind in shape:
        for key, value in _values(file.data, path):
            items = value if isinstance(value, list) else ()
            if type(value) is not kind or any(not isinstance(item, str) for item in items):
                raise Refused(
                    f"cannot use {file.path}: {'.'.join(key)} is not {_KINDS[kind]}; repair it"
                )


def _values(data: object, pattern: Path, above: Path = ()) -> Iterator[tuple[Path, object]]:
    """The values at all paths that match a pattern of `Shape`, each with its path."""
    if not pattern:
        yield above, data
    elif isinstance(data, dict):
        for key in data if pattern[0] == "*" else data.keys() & {pattern[0]}:
            yield from _values(data[key], pattern[1:], (*above, key))


def refuse_unread(file: ConfigFile, reader: Collection[Kind], title: str = "") -> None:
    """Raise Refused for a file that the runtime's own TOML reader rejects. `reader` lists what that
    reader accepts besides TOML 1.0. `title` is the name of the runtime in the error; without a
    title, the error names the versions of containerd that accept the file."""
    text = document.decoded(file.state.data, file.path.host) if file.state else ""
    odd = dialect.first_rejected(text, reader)
    if odd is not None:
        readers = f"{title} does not start on it" if title else odd.readers
        raise Refused(
            f"cannot use {file.path}: {odd.words}; {readers}, so the running one was started on "
            f"another content; {odd.remedy}"
        )


def owner(files: Files, path: Path) -> ConfigFile | None:
    """The last file that sets the key at this path, None if no file does."""
    missing = object()
    return next((f for f in reversed(files) if get(f.data, path, missing) is not missing), None)


def directory_names(host: HostRoot, directory: str, overlay: Overlay) -> set[str]:
    """The names in a directory of the host, as they will be with `overlay`; none if the directory
    does not exist. Raises Refused, also if another user than root can add a file, because the
    runtime would load that file."""
    path, existing = trust.list_directory(host, directory)
    result = set(existing)
    above = path.host.rstrip("/") + "/"
    for name, state in overlay.items():
        first, slash, _ = name.removeprefix(above).partition("/")
        if name.startswith(above) and state is not None:
            result.add(first)  # the file, or a directory that comes with it
        elif name.startswith(above) and not slash:
            result.discard(first)
    return result


def fresh_state(loaded: Iterable[ConfigFile]) -> FileState:
    """The state of a new file beside the loaded files: readable only for users who can read all of
    these, because our handlers copy their settings, which can include passwords."""
    mode = 0o644
    for file in loaded:
        mode &= file.state.mode if file.state else mode
    return new_state(mode=mode | 0o600)


def with_text(state: FileState, text: str) -> FileState:
    """The state of a file with another text, but the same owner, mode and label."""
    return FileState(document.encoded(text), state.mode, state.uid, state.gid, state.label)


def first_unread(files: Files) -> ConfigFile | None:
    """The first file that we cannot parse, None if we can parse all."""
    return next((file for file in files if file.unread), None)


def unread_warnings(files: Files) -> Iterator[str]:
    """A warning for each file that we cannot parse. `require_harmless` has checked the files."""
    for file in files:
        if file.unread:
            yield (
                f"{file.path} cannot be read by this agent ({file.unread}); the runtime's own "
                "executable reads it, and shows that it changes nothing of ours"
            )
