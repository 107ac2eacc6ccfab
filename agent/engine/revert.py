"""Back to the remembered original.

Invariant: a file that somebody edited since we wrote it is never overwritten, a file that somebody
imports by name is never deleted, and a handler is never taken from under a running pod.
"""

from __future__ import annotations

import contextlib
import functools

from agent.data import dataclass, replace
from agent.decide import DEFAULT_DIRS
from agent.engine import (
    change,
    gpus,
    in_use,
    install,
    kinds,
    low_level,
    parsed,
    recover,
    specs,
    undoing,
)
from agent.engine import node as nodes
from agent.engine.context import Context
from agent.engine.converge import states_of, tell
from agent.engine.kinds import AnyNode, Files
from agent.engine.plan import Change
from agent.engine.preflight import Candidate
from agent.engine.propose import tried_out, why_not
from agent.engine.state import Memory, parents
from agent.engine.wanted import OUR_NAMES, Wanted, is_ours
from agent.errors import AgentError, Locked, Refused, Unreachable
from agent.host import files
from agent.host.paths import is_below
from agent.runtimes.merge import Cri


@dataclass(frozen=True, slots=True)
class Reverted:
    """What was put back, and whether the runtime was restarted for it (or still has to be)."""

    changed: tuple[str, ...] = ()
    restarted: bool = False
    pending: bool = False


def revert(ctx: Context, *, keep_edits: bool = False, toolkit: bool = False) -> Reverted:
    """Undo everything that was ever applied, prove it, and withdraw readiness.

    `toolkit`: what was installed goes too. Raises Refused where a file was edited since
    (`keep_edits` then takes our keys out of it), or a pod still uses a handler that would go, or
    anything still needs a program that would go.
    """
    try:
        with ctx.locked():
            if recover.recover(ctx).waiting:
                recover.give_up_waiting(ctx)
            memory = ctx.store.memory()
            if toolkit:
                _refuse_needed(ctx, memory, keep_edits)
            done = _revert(ctx, memory, keep_edits) if memory.files else Reverted()
            dirs = _spec_dirs(ctx)
            if memory.files or specs.present(ctx, dirs):
                ctx.publisher.withdraw()  # first: whatever becomes of the rest, nothing is ready
            if not done.pending:
                _forget(ctx, memory)
            gone = specs.remove(ctx, dirs)
            if toolkit and not done.pending:
                gone = (*gone, *install.remove(ctx))
            ctx.publisher.forgive()
            return replace(done, changed=(*done.changed, *gone))
    except Locked:
        raise
    except AgentError as error:
        tell(ctx, error)
        raise


def _refuse_needed(ctx: Context, memory: Memory, keep_edits: bool) -> None:
    """The toolkit stays as long as a pod runs by it, or a file names a program of it that will
    not be there. Raises Refused."""
    names = install.installed(ctx)
    if not names:
        return
    node = kinds.look(ctx.settings, ctx.host, nodes.find_runtime(ctx.settings, ctx.host))
    if used := in_use.toolkit_refusal(ctx.host, node.runtime, names):
        raise used
    changes, after = (
        _files_after(ctx, node, memory, keep_edits) if memory.files else ((), node.files)
    )
    if (spec := specs.naming(ctx, _spec_dirs(ctx), names)) is not None:
        raise Refused(
            f"cannot remove the toolkit: {spec} has hooks in {names[0]}, without which no "
            "container with its devices would start; remove that file first"
        )
    left = install.left(ctx, names)

    def goes(path: str) -> bool:
        return is_below(path, *names) and path not in left

    overlay = {item.path.host: item.after for item in changes}
    for file, path in kinds.hook_programs(node, ctx.host, overlay):
        if goes(path):
            raise Refused(
                f"cannot remove the toolkit: the OCI hook {file} runs {path}, without which no "
                "container would start; remove that file first"
            )
    cri = kinds.effective(node, after)
    for handler in cri.runtimes:
        for path in low_level.executables(cri.table(handler)):
            if goes(path):
                raise Refused(
                    f"cannot remove the toolkit: handler {handler} of the restored configuration "
                    f"runs {path}; take it out, or leave the toolkit where it is"
                )


def _files_after(
    ctx: Context, node: AnyNode, memory: Memory, keep_edits: bool
) -> tuple[tuple[Change, ...], Files]:
    """What a revert changes, and the files as they will be."""
    changes = undoing.changes(ctx, node, memory, keep_edits=keep_edits)
    # The root file first: once it no longer imports them, the others can go.
    changes = tuple(sorted(changes, key=lambda item: item.path.host != node.root.path.host))
    return changes, kinds.load(node, ctx.host, {item.path.host: item.after for item in changes})


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
        gpus.forget(ctx.store)
    ctx.store.forget_failure()
    ctx.store.prune(Memory())


def _revert(ctx: Context, memory: Memory, keep_edits: bool) -> Reverted:
    node = kinds.look(ctx.settings, ctx.host, nodes.find_runtime(ctx.settings, ctx.host))
    changes, after = _files_after(ctx, node, memory, keep_edits)
    cri_after, cri_now = kinds.effective(node, after), kinds.effective(node, node.files)
    going = _going(cri_now, cri_after)
    if used := in_use.refusal(node.runtime, going, "revert"):
        raise used
    if not changes:
        return Reverted()
    wanted = Wanted({}, cri_after.default, False, going)
    settings, runtime = ctx.settings, node.runtime
    changed = tuple(n for n in cri_now.runtimes if cri_now.table(n) != cri_after.table(n))
    way = None
    if kinds.needs_restart(node, tuple(item.path.host for item in changes)):
        mode = settings.restart_mode
        way = ctx.choose_restart(mode, runtime.process, ctx.host, runtime.kind)
    if blocked := kinds.deadly(node, ctx.host, after):
        raise blocked
    checked = kinds.check(ctx.host, node, Candidate(after, (), (*OUR_NAMES, *going, *changed)))
    if not checked.done:
        ctx.log("warning", text=f"not pre-flighted: {checked.note}")
    if way is not None:
        tried = tried_out(ctx, node, changes, wanted, "revert")
        if tried.refusal is not None:
            raise tried.refusal
        if not tried.done or tried.warning:
            ctx.log("warning", text=tried.warning or f"not tried: {tried.note}")
    done = change.carry_out(
        ctx,
        change.Request(
            purpose="revert",
            runtime=runtime,
            changes=changes,
            restart=way,
            wanted=wanted,
            before=states_of(node),
            why_not=functools.partial(why_not, ctx, node),
            memory=memory,
            fingerprint="revert",
            check=functools.partial(kinds.refuse_changed, node, ctx.host),
        ),
    )
    return Reverted(tuple(item.path.host for item in changes), done.restarted, pending=done.pending)


def _going(now: Cri, after: Cri) -> tuple[str, ...]:
    """Handlers of ours that there will be no more."""
    return tuple(
        name for name, table in now.runtimes.items()
        if is_ours(name, table) and name not in after.runtimes
    )  # fmt: skip
