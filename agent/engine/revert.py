"""Back to the remembered original.

Invariant: a file that somebody edited since we wrote it is never overwritten, a file that somebody
imports by name is never deleted, and a handler is never taken from under a running pod.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable

from agent import tomledit
from agent.data import dataclass, replace
from agent.decide import DEFAULT_DIRS
from agent.engine import change, guard, parsed, preflight, recover, specs
from agent.engine import node as nodes
from agent.engine.context import Context
from agent.engine.converge import state_of, tell
from agent.engine.node import Node
from agent.engine.overlay import import_glob
from agent.engine.plan import Change
from agent.engine.preflight import Candidate
from agent.engine.state import Memory, parents
from agent.engine.wanted import OUR_NAMES, Wanted, is_ours
from agent.errors import AgentError, Locked, Refused, Unreachable
from agent.host import files
from agent.host.files import FileState
from agent.host.paths import HostPath
from agent.observe import config, cri
from agent.runtimes.merge import Cri, effective
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
    try:
        with ctx.locked():
            if recover.recover(ctx).waiting:
                recover.give_up_waiting(ctx)
            memory = ctx.store.memory()
            done = _revert(ctx, memory, keep_edits) if memory.files else Reverted()
            dirs = _spec_dirs(ctx)
            if memory.files or specs.present(ctx, dirs):
                ctx.publisher.withdraw()  # first: whatever becomes of the rest, nothing is ready
            if not done.pending:
                _forget(ctx, memory)
            gone = specs.remove(ctx, dirs)
            ctx.publisher.forgive()
            return replace(done, changed=(*done.changed, *gone))
    except Locked:
        raise
    except AgentError as error:
        tell(ctx, error)
        raise


def _spec_dirs(ctx: Context) -> tuple[str, ...]:
    """Where a spec of ours may lie: where the runtime looks, if it says so, or would by default."""
    try:
        runtime = nodes.find_runtime(ctx.settings, ctx.host)
    except (Refused, Unreachable):
        return DEFAULT_DIRS
    seen = nodes.evidence(None, runtime, ctx.host)[0].spec_dirs
    return (*(seen if isinstance(seen, tuple) else ()), *DEFAULT_DIRS)


def _forget(ctx: Context, memory: Memory) -> None:
    """Nothing is remembered any more, and directories that we made are gone as far as empty."""
    for host, original in memory.files.items():
        if original.digest is None:
            above = parents(ctx.host.agent_path(host), original.made)
            with contextlib.suppress(OSError):  # an empty directory does no harm
                files.remove_directories(above)
    ctx.store.remember(Memory())
    with contextlib.suppress(OSError):
        parsed.forget(ctx.store)
    ctx.store.forget_failure()
    ctx.store.prune(Memory())


def _revert(ctx: Context, memory: Memory, keep_edits: bool) -> Reverted:
    node = nodes.look(ctx.settings, ctx.host)
    changes = _changes(ctx, node, memory, keep_edits)
    changes = _keep_imported(ctx, node, changes)
    # The root file first: once it no longer imports them, the others can go.
    changes = tuple(sorted(changes, key=lambda item: item.path.host != node.root.path.host))
    overlay = {item.path.host: item.after for item in changes}
    after = config.load(ctx.host, node.gen, node.root.name, overlay)
    cri_after = effective(node.gen, after)
    cri_now = effective(node.gen, node.files)
    going = _going(cri_now, cri_after)
    _refuse_while_used(node, going)
    if not changes:
        return Reverted()
    wanted = Wanted({}, cri_after.default, False, going)
    settings, runtime = ctx.settings, node.runtime
    way = ctx.choose_restart(settings.restart_mode, runtime.process, ctx.host, runtime.kind)
    if blocked := guard.deadly(ctx.host, node.gen, after):
        raise blocked
    changed = tuple(n for n in cri_now.runtimes if cri_now.table(n) != cri_after.table(n))
    checked = preflight.check(ctx.host, node, Candidate(after, (), (*OUR_NAMES, *going, *changed)))
    if not checked.done:
        ctx.log("warning", text=f"not pre-flighted: {checked.note}")
    done = change.carry_out(
        ctx,
        change.Request(
            purpose="revert",
            runtime=runtime,
            changes=changes,
            restart=way,
            wanted=wanted,
            before=state_of(node),
            memory=memory,
            fingerprint="revert",
            check=functools.partial(nodes.refuse_changed, node, ctx.host),
        ),
    )
    return Reverted(tuple(item.path.host for item in changes), done.restarted, pending=done.pending)


def _changes(ctx: Context, node: Node, memory: Memory, keep_edits: bool) -> tuple[Change, ...]:
    """What has to happen to each file; the drop-in first, for the root file's import depends on
    what is left of it."""
    found = []
    ours: str | None = import_glob(node.drop_in)
    for host in sorted(memory.files, key=lambda host: host != node.drop_in.host):
        item = _change(ctx, memory, host, keep_edits, ours)
        if item is None:
            continue
        found.append(item)
        made_by_us = memory.files[host].digest is None
        if host == node.drop_in.host and made_by_us and _has_content(item):
            ours = None
    return tuple(found)


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
