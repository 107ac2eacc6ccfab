"""What has to happen to each file so that it is as before our first change.

Invariant: a file that somebody edited since we wrote it is never overwritten, and a file that
somebody imports by name is never deleted.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable

from agent.errors import Refused
from agent.host import files
from agent.host.files import Change, FileState
from agent.host.paths import HostPath
from agent.plan.context import Context
from agent.runtimes.config_file import import_pattern
from agent.runtimes.containerd import load
from agent.runtimes.containerd.generations import Generation
from agent.runtimes.containerd.overlay import import_glob
from agent.runtimes.crio import merge
from agent.runtimes.desired import is_ours
from agent.runtimes.key_ownership import HEADER, condition, imported, still_ours
from agent.runtimes.kinds import AnyNode
from agent.runtimes.node import Node
from agent.state.store import Memory, Original
from agent.toml import edit as tomledit
from agent.toml.edit import Data, Op, Path, Set, Unset

_STUB = b"# Emptied by toolkit-agent: another file imports this one by name.\n"


def changes(ctx: Context, node: AnyNode, memory: Memory, *, keep_edits: bool) -> tuple[Change, ...]:
    """What has to happen to each file; the drop-in first, for the root file's import depends on
    what is left of it. Raises Refused."""
    found = []
    ours: str | None = import_glob(node.drop_in)
    for host in sorted(memory.files, key=lambda host: host != node.drop_in.host):
        item = _change(ctx, node, memory, host, keep_edits, ours)
        if item is None:
            continue
        found.append(item)
        made_by_us = memory.files[host].digest is None
        if isinstance(node, Node) and host == node.drop_in.host and made_by_us:
            ours = None if _has_content(item) else ours
    if isinstance(node, Node):
        return _keep_imported(ctx, node, tuple(found))
    from agent.runtimes.crio import edit as crio_plan  # see kinds

    return tuple(crio_plan.guarded(ctx.host, node, item) for item in found)


def removed(ctx: Context, memory: Memory) -> tuple[str, ...]:
    """Files that were there before us and that somebody removed since: there is nothing to restore.
    Raises Refused."""
    return tuple(
        host
        for host, original in sorted(memory.files.items())
        if original.digest is not None and files.read(ctx.host.agent_path(host), host) is None
    )


def originals(ctx: Context, memory: Memory, hosts: tuple[str, ...]) -> dict[str, FileState | None]:
    """Files as they were before us. Raises Refused."""
    found: dict[str, FileState | None] = {}
    for host in hosts:
        known = memory.files[host]
        if known.digest is not None:
            data = ctx.store.bytes_of(known.digest)
            found[host] = FileState(data, known.mode, known.uid, known.gid)
    return found


def _has_content(change: Change) -> bool:
    state = change.after
    return bool(state and tomledit.parse(state.data, change.path.host).keys() - {"version"})


def _change(
    ctx: Context, node: AnyNode, memory: Memory, host: str, keep_edits: bool, ours: str | None
) -> Change | None:
    """What has to happen to one file; None where it is at its original already, or gone.

    `ours` is our import; None where somebody's own settings stay in our drop-in, which therefore
    has to stay imported.
    """
    original = memory.files[host]
    path = HostPath(ctx.host.agent_path(host), host)
    now = files.read(path.agent, host)
    found = condition(original, now)
    if now is None:
        loaded = next((file for file in node.files if file.path.host == host), None)
        return Change(path, None, loaded.state) if loaded and loaded.state else None
    if found == "as before":
        return None
    data = ctx.store.bytes_of(original.digest) if original.digest else None
    if found == "as written" and ours is not None:
        if data is None:
            return Change(path, now, None)
        state = FileState(data, original.mode, original.uid, original.gid, now.label)
        return Change(path, now, state)
    if found == "edited since" and not keep_edits:
        raise Refused(
            f"cannot revert {host}: somebody edited it since; --keep-edits takes our keys out and "
            "leaves the rest as it is"
        )
    if host.endswith(".json"):
        return None  # all of a hook is our key, and all of it is somebody else's by now
    ops = _inverse(
        host, now, data, ours, known=original, switch=memory.enabled_cdi,
        gen=node.gen if isinstance(node, Node) else None,
    )  # fmt: skip
    text = tomledit.edit(tomledit.decoded(now.data, host).removeprefix(HEADER), ops, host)
    text = _without_emptied(text, tomledit.parse(data or b"", host), ops, host)
    if data is None and _is_empty(text, host):
        return Change(path, now, None)
    after = tomledit.encoded(text)
    if after == now.data:
        return None
    return Change(path, now, FileState(after, now.mode, now.uid, now.gid, now.label))


def _is_empty(text: str, host: str) -> bool:
    """Is nothing left in a file but its version?"""
    data = tomledit.without_empty(tomledit.parse(tomledit.encoded(text), host))
    return not data.keys() - {"version"} and not tomledit.has_comments(text)


def _inverse(
    host: str, now: FileState, original: bytes | None, ours: str | None, *,
    gen: Generation | None = None, known: Original | None = None, switch: bool = True,
) -> list[Op]:  # fmt: skip
    """Our keys back to what the original has, or out; `ours` is an import of ours that goes.

    `known` says what we wrote, besides what anybody can see to be ours; `gen` is None where there
    is no containerd; `switch`: it was us who switched CDI on.
    """
    before = tomledit.parse(original or b"", host)
    current = tomledit.parse(now.data, host)
    paths = [*_our_keys(current, switch=switch), *(still_ours(known, current) if known else ())]
    ops: list[Op] = []
    for path in dict.fromkeys(paths):
        if path == ("version",):
            continue  # the rest of the file is written in it
        old = tomledit.get(before, path)
        ops.append(Unset(path) if old is None else Set(path, old))
    if gen is not None and gen.merge == "replace":
        ops = _with_default_table(current, ops)
    if ours is not None:
        gone = (ours, *(imported(known) if known else ()))
        ops += _imports(functools.partial(_import, gen, host), current, before, gone)
    return ops


def _import(gen: Generation | None, host: str, item: str) -> str:
    """The pattern of an import, without what can be spelled in several ways."""
    return (import_pattern(gen, host, item) if gen else None) or item


def _with_default_table(current: Data, ops: list[Op]) -> list[Op]:
    """containerd 1.x does not serve the CRI where a file has handlers and not the default one: its
    table stays as long as there are others, whoever wrote it."""
    after = tomledit.apply(current, ops)
    for name, section in after.get("plugins", {}).items():
        below: Path = ("plugins", name, "containerd")
        default = tomledit.get(section, ("containerd", "default_runtime_name")) or "runc"
        runtimes = tomledit.get(after, (*below, "runtimes")) or {}
        table = (*below, "runtimes", default)
        if runtimes and default not in runtimes and tomledit.get(current, table) is not None:
            ops = [op for op in ops if op.path[: len(table)] != table]
    return ops


def _imports(
    place: Callable[[str], str], current: Data, before: Data, ours: tuple[str, ...]
) -> list[Op]:
    """Our imports taken out, however somebody spells them by now."""
    listed = current.get("imports", [])
    old, gone = before.get("imports", []), {place(item) for item in ours}
    kept = [item for item in listed if item in old or place(item) not in gone]
    if kept == listed:
        return []
    keep = kept or "imports" in before  # an empty list of the admin's comes back
    return [Set(("imports",), kept) if keep else Unset(("imports",))]


def _without_emptied(text: str, before: Data, done: list[Op], host: str) -> str:
    """The text without headers of tables that only our keys were in, and that the original has
    not; `done` is what took the keys out."""
    paths = [op.path for op in done if isinstance(op, Unset)]

    def had_ours(table: Path) -> bool:
        lengths = (min(len(table), len(path)) for path in paths)
        return any(table[:n] == path[:n] for n, path in zip(lengths, paths, strict=True))

    empty = _empty_tables(tomledit.parse(tomledit.encoded(text), host))
    ops = [Unset(path) for path in empty if tomledit.get(before, path) is None and had_ours(path)]
    with contextlib.suppress(Refused):  # an empty table does no harm to anybody
        return tomledit.edit(text, ops, host)
    return text


def _empty_tables(data: Data, above: Path = ()) -> Iterable[Path]:
    """Paths of tables in which nothing is, the innermost first."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _empty_tables(value, (*above, key))
            if not tomledit.without_empty(value):
                yield (*above, key)


def _our_keys(data: Data, *, switch: bool) -> Iterable[Path]:
    """Paths of handlers of ours, of a default that is one, and, where that is our doing, of a CDI
    `switch` that is on."""
    for name, section in data.get("plugins", {}).items():
        if not isinstance(section, dict):
            continue
        above: Path = ("plugins", name)
        runtimes = tomledit.get(section, ("containerd", "runtimes"), {})
        for handler, table in runtimes.items():
            if is_ours(handler, table):
                yield (*above, "containerd", "runtimes", handler)
        default = tomledit.get(section, ("containerd", "default_runtime_name"))
        if default and is_ours(default, runtimes.get(default, {})):
            yield (*above, "containerd", "default_runtime_name")
        if switch and section.get("enable_cdi") is True:
            yield (*above, "enable_cdi")
    tables = tomledit.get(data, merge.RUNTIMES) or {}
    for handler, table in tables.items():
        if is_ours(handler, table):
            yield (*merge.RUNTIMES, handler)
    default = tomledit.get(data, merge.DEFAULT)
    if default and is_ours(default, tables.get(default, {})):
        yield merge.DEFAULT


def _keep_imported(ctx: Context, node: Node, changes: tuple[Change, ...]) -> tuple[Change, ...]:
    """A file that would go, but that another one imports by name, stays as an empty one: without
    it containerd does not start."""
    overlay = {item.path.host: item.after for item in changes}
    kept = []
    for item in changes:
        if item.after is None and _imported_by_name(ctx, node, item.path, overlay):
            state = item.before or FileState(b"")
            item = Change(
                item.path, item.before, FileState(_STUB, state.mode, state.uid, state.gid)
            )
        kept.append(item)
    return tuple(kept)


def _imported_by_name(
    ctx: Context, node: Node, path: HostPath, overlay: dict[str, FileState | None]
) -> bool:
    for file in node.files:
        data = file.data
        if file.path.host in overlay:
            state = overlay[file.path.host]
            data = tomledit.parse(state.data, file.path.host) if state else {}
        for item in data.get("imports", []):
            if (
                "*" not in item
                and ctx.host.resolve(load.literal(node.gen, file.name, item)).host == path.host
            ):
                return True
    return False
