"""Back to the remembered original.

Invariant: a file that somebody edited since we wrote it is never overwritten, a file that somebody
imports by name is never deleted, and a handler is never taken from under a running pod.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent import tomledit
from agent.engine import change, recover
from agent.engine import node as nodes
from agent.engine.context import Context
from agent.engine.converge import state_of
from agent.engine.node import Node
from agent.engine.plan import Change
from agent.engine.state import Memory, Original, Store
from agent.engine.wanted import OUR_NAMES, Wanted, is_ours
from agent.errors import AgentError, Refused
from agent.host import files
from agent.host.files import FileState
from agent.host.paths import HostPath
from agent.observe import config, cri
from agent.runtimes.containerd import Cri, effective
from agent.tomledit import Data, Op, Path, Set, Unset

_STUB = b"# Emptied by toolkit-agent: another file imports this one by name.\n"


@dataclass(frozen=True, slots=True)
class Reverted:
    """What was put back, and whether the runtime was restarted for it (or still has to be)."""

    changed: tuple[str, ...] = ()
    restarted: bool = False
    pending: bool = False


def revert(ctx: Context, *, keep_edits: bool = False) -> Reverted:
    """Undo everything that was ever applied, prove it, and withdraw readiness.

    Raises Refused where a file was edited since (`keep_edits` then takes our keys out of it) or a
    pod still uses a handler that would go.
    """
    with ctx.locked():
        try:
            if recover.recover(ctx) == "awaiting-restart":
                recover.give_up_waiting(ctx)
            memory = ctx.store.memory()
            done = _revert(ctx, memory, keep_edits) if memory.files else Reverted()
            if not done.pending:
                ctx.store.remember(Memory())
                ctx.store.forget_failure()
                ctx.store.prune(Memory())
            ctx.publisher.retire()
            return done
        except AgentError as error:
            ctx.log("not reverted", code=error.status_code)
            raise


def _revert(ctx: Context, memory: Memory, keep_edits: bool) -> Reverted:
    node = nodes.look(ctx.settings, ctx.host)
    changes = tuple(
        item
        for host, original in memory.files.items()
        if (item := _change(ctx.store, host, original, keep_edits)) is not None
    )
    changes = _keep_imported(ctx, node, changes)
    # The root file first: once it no longer imports them, the others can go.
    changes = tuple(sorted(changes, key=lambda item: item.path.host != node.root.path.host))
    overlay = {item.path.host: item.after for item in changes}
    after = config.load(ctx.host, node.gen, node.root.name, overlay)
    cri_after = effective(node.gen, after)
    going = _going(effective(node.gen, node.files), cri_after)
    _refuse_while_used(node, going)
    wanted = Wanted({}, cri_after.default, False, going)
    settings, runtime = ctx.settings, node.runtime
    way = ctx.choose_restart(settings.restart_mode, runtime.process, ctx.host, runtime.kind)
    done = change.carry_out(
        ctx,
        change.Request(
            purpose="revert",
            runtime=runtime,
            changes=changes,
            restart=way if changes else None,
            wanted=wanted,
            before=state_of(node),
            memory=memory,
            fingerprint="revert",
        ),
    )
    return Reverted(tuple(item.path.host for item in changes), done.restarted, pending=done.pending)


def _change(store: Store, host: str, original: Original, keep_edits: bool) -> Change | None:
    """What has to happen to one file; None where it is at its original already."""
    path = HostPath(original.agent, host)
    now = files.read(original.agent, host)
    digest = now.digest if now else None
    if digest == original.digest:
        return None
    data = store.bytes_of(original.digest) if original.digest else None
    if digest == original.written and not original.edited:
        if data is None:
            return Change(path, now, None)
        label = now.label if now else None
        state = FileState(data, original.mode, original.uid, original.gid, label)
        return Change(path, now, state)
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
    text = tomledit.edit(now.data.decode(), _inverse(host, now, data), host)
    return Change(path, now, FileState(text.encode(), now.mode, now.uid, now.gid, now.label))


def _inverse(host: str, now: FileState, original: bytes | None) -> list[Op]:
    """Our keys back to what the original has, or out."""
    before = tomledit.parse(original or b"", host)
    current = tomledit.parse(now.data, host)
    ops: list[Op] = []
    for path in _our_keys(current):
        old = tomledit.get(before, path)
        ops.append(Unset(path) if old is None else Set(path, old))
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


def _going(now: Cri, after: Cri) -> tuple[str, ...]:
    """Handlers of ours that there will be no more."""
    return tuple(
        name for name, table in now.runtimes.items()
        if is_ours(name, table) and name not in after.runtimes
    )  # fmt: skip


def _refuse_while_used(node: Node, going: tuple[str, ...]) -> None:
    socket = node.runtime.socket
    users = [
        f"{pod.namespace}/{pod.name} ({pod.handler})"
        for pod in cri.sandboxes(socket.agent, socket.host)
        if pod.handler in going
    ]
    if users:
        shown = ", ".join(sorted(users)[:20]) + (" and others" if len(users) > 20 else "")
        raise Refused(
            f"cannot revert: pods use handlers that would go: {shown}; they could no longer be "
            "stopped; delete them first"
        )
