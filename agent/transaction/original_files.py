"""The changes that restore each file to its content before our first change.

Invariant: a file that somebody edited after our last write is never overwritten, and a file that
another file imports by name is never deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from agent.errors import Refused
from agent.host import files
from agent.host.files import Change, FileState
from agent.host.paths import HostPath, HostRoot
from agent.runtimes.base import ConfiguredRuntime
from agent.runtimes.config_file import is_hook
from agent.runtimes.key_ownership import HEADER, added_imports, condition, is_rewritten, still_ours
from agent.state.store import Memory, Original, Store
from agent.toml import document
from agent.toml.document import Data, Op, Path, Set, Unset


def changes(
    host: HostRoot, store: Store, node: ConfiguredRuntime, memory: Memory, *, keep_edits: bool
) -> tuple[Change, ...]:
    """The changes of a revert, none for a file that has its original content. With `keep_edits`,
    only our keys are removed from a file that somebody edited. Raises Refused, also for such a file
    without `keep_edits`."""
    result = []
    drop_in_goes = True
    # The drop-in comes first: its import is removed only if no settings stay in it.
    for name in sorted(memory.files, key=lambda name: name != node.drop_in.host):
        path = HostPath(host.agent_path(name), name)
        item = _change(store, node, memory, path, keep_edits, drop_in_goes)
        if item is None:
            continue
        result.append(item)
        made_by_us = memory.files[name].digest is None
        if node.imports_drop_in and name == node.drop_in.host and made_by_us:
            left = document.parse(item.after.data, name) if item.after else {}
            drop_in_goes = not left.keys() - {"version"}
    return node.adapted_revert(tuple(result))


def removed_files(host: HostRoot, memory: Memory) -> tuple[str, ...]:
    """The host paths of files that existed before our first change and that somebody removed since.
    A revert does not restore them. Raises Refused."""
    return tuple(
        name
        for name, original in sorted(memory.files.items())
        if original.digest is not None and files.read(host.agent_path(name), name) is None
    )


def removed_originals(host: HostRoot, store: Store, memory: Memory) -> dict[str, FileState | None]:
    """The original states of the files in `removed_files`, by host path. Raises Refused."""
    originals: dict[str, FileState | None] = {}
    for name in removed_files(host, memory):
        known = memory.files[name]
        data = store.original_bytes(known.digest or "")
        originals[name] = FileState(data, known.mode, known.uid, known.gid)
    return originals


def _change(
    store: Store,
    node: ConfiguredRuntime,
    memory: Memory,
    path: HostPath,
    keep_edits: bool,
    drop_in_goes: bool,
) -> Change | None:
    """The change of one file, None if the file has its original content or does not exist.

    `drop_in_goes` means that our drop-in has no settings of others, so that its import can be
    removed.
    """
    host = path.host
    original = memory.files[host]
    now = files.read(path.agent, host)
    present = condition(original, now)
    if now is None:
        loaded = next((file for file in node.files if file.path.host == host), None)
        return Change(path, None, loaded.state) if loaded and loaded.state else None
    if present == "as before":
        return None
    data = store.original_bytes(original.digest) if original.digest else None
    if present == "as written" and drop_in_goes:
        if data is None:
            return Change(path, now, None)
        state = FileState(data, original.mode, original.uid, original.gid, now.label)
        return Change(path, now, state)
    if present == "edited since" and not keep_edits:
        raise Refused(
            f"cannot revert {host}: somebody edited it since; --keep-edits takes our keys out and "
            "leaves the rest as it is"
        )
    if is_hook(host):
        return None  # a hook has no keys of ours, so an edited one stays as it is
    both = (document.parse(now.data, host), document.parse(data or b"", host))
    ops = inverse_operations(
        node, host, both, original, switch=memory.enabled_cdi, drop_in_goes=drop_in_goes
    )
    text = document.edit(document.decoded(now.data, host).removeprefix(HEADER), ops, host)
    text = _without_emptied(text, document.parse(data or b"", host), ops, host)
    if data is None and _is_empty(text, host):
        return Change(path, now, None)
    after = document.encoded(text)
    if after == now.data:
        return None
    return Change(path, now, FileState(after, now.mode, now.uid, now.gid, now.label))


def _is_empty(text: str, host: str) -> bool:
    """Has a file no settings but its version, and no comments?"""
    data = document.without_empty(document.parse(document.encoded(text), host))
    return not data.keys() - {"version"} and not document.has_comments(text)


def inverse_operations(
    node: ConfiguredRuntime, host: str, data: tuple[Data, Data], known: Original, *,
    switch: bool, drop_in_goes: bool,
) -> list[Op]:  # fmt: skip
    """The operations that set our keys in the file `host` to their original values, or remove them.

    Our keys are those that look like ours and those in `known`. A handler that another toolkit has
    written since stays. `data` are the file's data now and before our first change. `switch` means
    that we switched CDI on, `drop_in_goes` that the import of our drop-in is removed too."""
    current, before = data
    visible = [*node.own_keys(current, switch=switch)]
    foreign = [path for path in visible if is_rewritten(known, current, path)]
    paths = [
        path
        for path in (*visible, *still_ours(known, current))
        if not any(path[: len(other)] == other for other in foreign)
    ]
    ops: list[Op] = []
    for key in dict.fromkeys(paths):
        if key == ("version",):
            continue  # the remaining settings need the file's version
        old = document.get(before, key)
        ops.append(Unset(key) if old is None else Set(key, old))
    return node.revert_operations(host, ops, data, added_imports(known) if drop_in_goes else None)


def _without_emptied(text: str, before: Data, done: list[Op], host: str) -> str:
    """The text without the headers of tables that had only our keys and that the original does not
    have. `done` are the operations that removed our keys."""
    paths = [op.path for op in done if isinstance(op, Unset)]

    def had_ours(table: Path) -> bool:
        lengths = (min(len(table), len(path)) for path in paths)
        return any(table[:n] == path[:n] for n, path in zip(lengths, paths, strict=True))

    empty = _empty_tables(document.parse(document.encoded(text), host))
    ops = [Unset(path) for path in empty if document.get(before, path) is None and had_ours(path)]
    with contextlib.suppress(Refused):  # an empty table has no effect
        return document.edit(text, ops, host)
    return text


def _empty_tables(data: Data, above: Path = ()) -> Iterable[Path]:
    """The paths of empty tables, the innermost first."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _empty_tables(value, (*above, key))
            if not document.without_empty(value):
                yield (*above, key)
