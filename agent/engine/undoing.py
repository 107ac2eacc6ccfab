"""What has to happen to each file so that it is as before our first change.

Invariant: a file that somebody edited since we wrote it is never overwritten, and a file that
somebody imports by name is never deleted.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent import tomledit
from agent.engine.context import Context
from agent.engine.kinds import AnyNode
from agent.engine.node import Node
from agent.engine.overlay import import_glob
from agent.engine.plan import Change
from agent.engine.state import Memory
from agent.engine.wanted import OUR_NAMES, is_ours
from agent.errors import Refused
from agent.host import files
from agent.host.files import FileState
from agent.host.paths import HostPath
from agent.observe import config
from agent.runtimes import crio
from agent.tomledit import Data, Op, Path, Set, Unset

_STUB = b"# Emptied by toolkit-agent: another file imports this one by name.\n"


def changes(ctx: Context, node: AnyNode, memory: Memory, *, keep_edits: bool) -> tuple[Change, ...]:
    """What has to happen to each file; the drop-in first, for the root file's import depends on
    what is left of it. Raises Refused."""
    found = []
    ours: str | None = import_glob(node.drop_in)
    for host in sorted(memory.files, key=lambda host: host != node.drop_in.host):
        item = _change(ctx, memory, host, keep_edits, ours)
        if item is None:
            continue
        found.append(item)
        made_by_us = memory.files[host].digest is None
        if isinstance(node, Node) and host == node.drop_in.host and made_by_us:
            ours = None if _has_content(item) else ours
    if isinstance(node, Node):
        return _keep_imported(ctx, node, tuple(found))
    from agent.engine.crio import plan as crio_plan  # see kinds

    return tuple(crio_plan.guarded(ctx.host, node, item) for item in found)


def _has_content(change: Change) -> bool:
    state = change.after
    return bool(state and tomledit.parse(state.data, change.path.host).keys() - {"version"})


def _change(
    ctx: Context, memory: Memory, host: str, keep_edits: bool, ours: str | None
) -> Change | None:
    """What has to happen to one file; None where it is at its original already.

    `ours` is our import; None where somebody's own settings stay in our drop-in, which therefore
    has to stay imported.
    """
    original = memory.files[host]
    path = HostPath(ctx.host.agent_path(host), host)
    now = files.read(path.agent, host)
    digest = now.digest if now else None
    if digest == original.digest:
        return None
    data = ctx.store.bytes_of(original.digest) if original.digest else None
    untouched = digest == original.written and not original.edited
    if untouched and ours is not None:
        if data is None:
            return Change(path, now, None)
        label = now.label if now else None
        return Change(path, now, FileState(data, original.mode, original.uid, original.gid, label))
    if now is None:
        raise Refused(
            f"cannot revert {host}: somebody removed it since; restore it, or run "
            "`toolkit-agent apply` first"
        )
    if not keep_edits:
        raise Refused(
            f"cannot revert {host}: somebody edited it since; --keep-edits takes our keys out and "
            "leaves the rest as it is"
        )
    if host.endswith(".json"):
        return None  # all of a hook is our key, and all of it is somebody else's by now
    ops = _inverse(host, now, data, ours)
    if not memory.enabled_cdi:
        ops = [op for op in ops if op.path[-1] != "enable_cdi"]  # somebody else's doing
    text = tomledit.edit(now.data.decode(), ops, host)
    if text.encode() == now.data:
        return None
    return Change(path, now, FileState(text.encode(), now.mode, now.uid, now.gid, now.label))


def _inverse(host: str, now: FileState, original: bytes | None, ours: str | None) -> list[Op]:
    """Our keys back to what the original has, or out; `ours` is an import of ours that goes."""
    before = tomledit.parse(original or b"", host)
    current = tomledit.parse(now.data, host)
    ops: list[Op] = []
    for path in _our_keys(current):
        old = tomledit.get(before, path)
        ops.append(Unset(path) if old is None else Set(path, old))
    old_imports = before.get("imports", [])
    imports = [item for item in current.get("imports", []) if item in old_imports or item != ours]
    if imports != current.get("imports", []):
        keep = imports or "imports" in before  # an empty list of the admin's comes back
        ops.append(Set(("imports",), imports) if keep else Unset(("imports",)))
    return ops


def _our_keys(data: Data) -> Iterable[Path]:
    """Paths of handlers of ours, of a default that is one, and of a CDI switch that is on."""
    for name, section in data.get("plugins", {}).items():
        if not isinstance(section, dict):
            continue
        above: Path = ("plugins", name)
        runtimes = tomledit.get(section, ("containerd", "runtimes"), {})
        for handler, table in runtimes.items():
            if is_ours(handler, table):
                yield (*above, "containerd", "runtimes", handler)
        default = tomledit.get(section, ("containerd", "default_runtime_name"))
        if default in OUR_NAMES:
            yield (*above, "containerd", "default_runtime_name")
        if section.get("enable_cdi") is True:
            yield (*above, "enable_cdi")
    for handler, table in (tomledit.get(data, crio.RUNTIMES) or {}).items():
        if is_ours(handler, table):
            yield (*crio.RUNTIMES, handler)
    if tomledit.get(data, crio.DEFAULT) in OUR_NAMES:
        yield crio.DEFAULT


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
        state = overlay.get(file.path.host, file.state)
        data = tomledit.parse(state.data, file.path.host) if state else {}
        for item in data.get("imports", []):
            if (
                "*" not in item
                and ctx.host.resolve(config.literal(node.gen, file.name, item)).host == path.host
            ):
                return True
    return False
