"""Revert the node to its remembered original state.

Invariant: a file that somebody edited since we wrote it is never overwritten, a file that somebody
imports by name is never deleted, and a handler is never taken from under a running pod.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass, replace

from agent.cdi.driver import known_gpus
from agent.decide import DEFAULT_DIRS
from agent.errors import AgentError, Locked, Refused, Unreachable
from agent.host import files
from agent.host.files import Change
from agent.host.paths import HostRoot
from agent.options.settings import Settings
from agent.plan import garbled_files, obstacles, own_specs, pod_guard, toolkit_users
from agent.plan.context import Context
from agent.plan.propose import start_failure, trial_verdict
from agent.runtimes import find, registry
from agent.runtimes.base import ConfiguredRuntime, Effective
from agent.runtimes.config_file import Files
from agent.runtimes.desired_state import OUR_NAMES, Desired
from agent.runtimes.preflight import Candidate
from agent.runtimes.restart import Restart, down_message
from agent.state import store
from agent.state.store import Memory, Store, parents
from agent.toolkit import install
from agent.transaction import change, original_files, recover, stand_aside
from agent.transaction.converge import down_units, publish_failure, refuse_changed, states_of


@dataclass(frozen=True, slots=True)
class Reverted:
    """The result of a revert. `changed` are the host paths that were changed, `removed` those that
    do not exist any more. `pending` means that somebody still has to restart the runtime. `notes`
    are what a person has to know besides."""

    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: bool = False
    pending: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Plan:
    """A revert that nothing prevents. `request` is None where no file and no runtime has to change.
    `dirs` are the directories that may have specs of ours."""

    request: change.Request | None
    dirs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def revert(ctx: Context, *, keep_edits: bool = False, toolkit: bool = False) -> Reverted:
    """Undo everything that was ever applied, prove it, and withdraw readiness.

    With `toolkit`, the installed toolkit is removed too. With `keep_edits`, only our keys are taken
    out of a file that somebody edited. Raises Refused, with nothing touched, where a file was
    edited (without `keep_edits`), where a pod still uses a handler that would go, where anything
    needs a program that would go, and where a file cannot be written. A `run` that holds the lock
    is asked to stand aside, and does nothing more after a revert.
    """
    try:
        with stand_aside.node_lock(ctx) as locked_ctx, locked_ctx.locked():
            return _revert(locked_ctx, keep_edits=keep_edits, toolkit=toolkit)
    except Locked:
        raise
    except AgentError as error:
        publish_failure(ctx.publisher, ctx.log, error)
        raise


def _revert(ctx: Context, *, keep_edits: bool, toolkit: bool) -> Reverted:
    waiting = recover.recover(ctx).waiting
    memory = store.current_memory(ctx.store)
    garbled_files.repair(ctx.settings, ctx.host, ctx.log, memory)
    plan = _plan(ctx, memory, keep_edits=keep_edits, toolkit=toolkit)
    if waiting:  # no runtime has seen the last change, so that one is undone first
        recover.give_up_waiting(ctx)
        memory = ctx.store.memory()
        plan = _plan(ctx, memory, keep_edits=keep_edits, toolkit=toolkit)
    return _carry_out(ctx, memory, plan, toolkit=toolkit)


def _carry_out(ctx: Context, memory: Memory, plan: _Plan, *, toolkit: bool) -> Reverted:
    request, done = plan.request, Reverted()
    for note in (*plan.notes, *(request.restart.warnings if request and request.restart else ())):
        ctx.log.warning("warning of the plan", text=note)
    if request is not None:
        if request.restart is not None and request.restart.along:
            ctx.log.info("units are restarted along", units=list(request.restart.along))
        try:
            end = change.carry_out(ctx, request)
        finally:
            down = down_units(ctx.log, request.restart)
        plan = replace(plan, notes=(*plan.notes, *map(down_message, down)))
        changed = tuple(item.path.host for item in request.changes)
        done = Reverted(changed, (), end.restarted, pending=end.pending)
    if memory.files or own_specs.written_by_us(ctx.settings, ctx.host, plan.dirs):
        ctx.publisher.withdraw()  # first, because the node is not ready whatever follows
    if not done.pending:
        _forget(ctx.host, ctx.store, memory)
    gone = own_specs.remove(ctx.settings, ctx.host, plan.dirs)
    if toolkit and not done.pending:
        gone = (*gone, *install.remove(ctx.settings, ctx.host))
        gone += tuple(host for host in memory.moved if install.remove_from(ctx.host, host))
    ctx.publisher.remove_error()
    changed = (*done.changed, *gone)
    removed = tuple(host for host in changed if not os.path.lexists(ctx.host.agent_path(host)))
    return replace(done, changed=changed, removed=removed, notes=plan.notes)


def _plan(ctx: Context, memory: Memory, *, keep_edits: bool, toolkit: bool) -> _Plan:
    """The plan of a revert. Everything that can refuse it is checked here, and nothing is written.
    Raises AgentError."""
    if toolkit:
        _refuse_needed(ctx, memory, keep_edits)
    request, notes = _request(ctx, memory, keep_edits) if memory.files else (None, ())
    dirs = _spec_dirs(ctx.settings, ctx.host)
    blocked = obstacles.of_removal(ctx.host, own_specs.written_by_us(ctx.settings, ctx.host, dirs))
    if request is not None and blocked is None:
        blocked = obstacles.of_changes(
            ctx.host, ctx.store, ctx.publisher, request.changes, transaction=True
        )
    if toolkit and blocked is None:
        blocked = obstacles.of_toolkit_removal(ctx.settings, ctx.host)
    if blocked is not None:
        raise blocked
    return _Plan(request, dirs, notes)


def _refuse_needed(ctx: Context, memory: Memory, keep_edits: bool) -> None:
    """Raise Refused where a pod runs by the toolkit, or where a remaining file names a program of
    it that would be removed."""
    install.require_removable(ctx.settings, ctx.host, memory.moved)
    names = install.installed_paths(ctx.settings, ctx.host)
    if not names and not memory.moved:
        return
    node = _configured_runtime(ctx, memory)
    changes, files_after = (
        _planned_files(ctx, node, memory, keep_edits) if memory.files else ((), node.files)
    )
    changed = toolkit_users.ChangedNode(node, changes, files_after)
    left = install.paths_after_removal(ctx.settings, ctx.host, names) if names else ()
    directories = [(names, left)] if names else []
    directories += [((host,), ()) for host in memory.moved]
    for directory, remaining in directories:
        if error := toolkit_users.refusal(ctx.settings, ctx.host, changed, directory, remaining):
            raise error


def _planned_files(
    ctx: Context, node: ConfiguredRuntime, memory: Memory, keep_edits: bool
) -> tuple[tuple[Change, ...], Files]:
    """The changes of a revert, and the files as they will be."""
    changes = original_files.changes(ctx, node, memory, keep_edits=keep_edits)
    # The root file first: once it no longer imports them, the others can go.
    changes = tuple(sorted(changes, key=lambda item: item.path.host != node.root.path.host))
    return changes, node.load(ctx.host, {item.path.host: item.after for item in changes})


def _spec_dirs(settings: Settings, host: HostRoot) -> tuple[str, ...]:
    """The directories that may have specs of ours: those that the runtime reads, if it says so, and
    the default ones."""
    try:
        runtime = find.find_runtime(settings, host)
    except (Refused, Unreachable):
        return DEFAULT_DIRS
    return find.spec_directories(runtime)


def _forget(host: HostRoot, store: Store, memory: Memory) -> None:
    """Forget everything, and remove the directories that we made, if they are empty."""
    for name, original in memory.files.items():
        if original.digest is None:
            above = parents(host.agent_path(name), original.made)
            with contextlib.suppress(OSError):  # an empty directory does no harm
                files.remove_directories(above)
    store.remember(Memory())
    with contextlib.suppress(OSError):
        known_gpus.forget(store)
    store.forget_failure()
    store.forget_restarts()
    store.prune(Memory())


def _request(
    ctx: Context, memory: Memory, keep_edits: bool
) -> tuple[change.Request | None, tuple[str, ...]]:
    """The change of files and runtime, None where none is needed; and notes."""
    node = _configured_runtime(ctx, memory)
    changes, after = _planned_files(ctx, node, memory, keep_edits)
    effective_after, effective_now = node.effective(after), node.effective(node.files)
    default, running = registry.shown(node.runtime.answer)
    removed_handlers = _removed_handlers(effective_now, effective_after, running)
    if used := pod_guard.revert_refusal(ctx.settings, ctx.host, node, after):
        raise used
    desired = Desired({}, effective_after.default, False, removed_handlers)
    root_removed, notes = _removed_root(ctx.host, node, memory)
    ours = default in (*OUR_NAMES, *removed_handlers)
    remaining = node.adapter.unproven(
        replace(desired, default=desired.default if ours else None), node.runtime.answer
    )
    if not changes and (root_removed or not remaining):
        return None, notes
    restart = None if root_removed else _restart(ctx, node, changes, remaining)
    if restart is not None and (blocked := node.restart_hazard(ctx.host, after)):
        raise blocked
    changed = tuple(
        n for n in effective_now.runtimes if effective_now.table(n) != effective_after.table(n)
    )
    checked = node.preflight(
        ctx.host, Candidate(after, (), (*OUR_NAMES, *removed_handlers, *changed))
    )
    if not checked.done:
        notes = (*notes, f"not pre-flighted: {checked.note}")
    if restart is not None:
        notes = (*notes, *_trial_notes(ctx, memory, node, changes, desired))
    request = change.Request(
        purpose="revert",
        runtime=node.runtime,
        changes=changes,
        restart=restart,
        desired=desired,
        before=states_of(node),
        start_failure=functools.partial(start_failure, ctx.host, ctx.start_trial, node),
        memory=memory,
        fingerprint="revert",
        check=(lambda: None)
        if any(item.before is None for item in changes)  # it was looked at as it will be
        else functools.partial(refuse_changed, node, ctx.host),
    )
    return request, notes


def _trial_notes(
    ctx: Context, memory: Memory, node: ConfiguredRuntime, changes: tuple[Change, ...],
    desired: Desired,
) -> tuple[str, ...]:  # fmt: skip
    """Notes from a trial start. Raises Refused where the runtime would not start again."""
    trial = trial_verdict(ctx, memory, node, changes, desired, "revert")
    if trial.refusal is not None:
        raise trial.refusal
    if trial.done and not trial.warning:
        return ()
    return (trial.warning or f"not tried: {trial.note}",)


def _configured_runtime(ctx: Context, memory: Memory) -> ConfiguredRuntime:
    """The runtime with its files. A file that somebody removed, although another file imports it by
    name, counts with its original content, because no runtime starts without it. Raises Refused or
    Unreachable."""
    runtime = find.find_runtime(ctx.settings, ctx.host)
    adapter = registry.adapter(runtime.kind)
    try:
        return adapter.look(ctx.settings, ctx.host, runtime)
    except Refused:
        overlay = original_files.originals(
            ctx.store, memory, original_files.removed(ctx.host, memory)
        )
        if not overlay:
            raise
        return adapter.look(ctx.settings, ctx.host, runtime, overlay)


def _removed_root(
    host: HostRoot, node: ConfiguredRuntime, memory: Memory
) -> tuple[bool, tuple[str, ...]]:
    """Whether somebody removed the root file, and notes on all files that were removed.

    Without the root file the runtime is not restarted, because a restart would lose the settings in
    it, such as the socket and the place of the containers.
    """
    gone = original_files.removed(host, memory)
    notes = [f"{host} was removed since it was written: nothing is restored there" for host in gone]
    root_removed = node.root.state is None and node.root.path.host in gone
    if root_removed:
        notes.append(
            "the runtime is not restarted, because it would start without that file; it has our "
            "handlers until its next restart"
        )
    return root_removed, tuple(notes)


def _restart(
    ctx: Context, node: ConfiguredRuntime, changes: tuple[Change, ...], remaining: list[str]
) -> Restart | None:
    """The way to restart the runtime, None where no restart is needed. Raises Refused."""
    changed = tuple(item.path.host for item in changes)
    if changed and not node.needs_restart(changed):
        return None
    if not changed and not remaining:
        return None
    runtime = node.runtime
    return ctx.choose_restart(ctx.settings.restart_mode, runtime.process, ctx.host, runtime.kind)


def _removed_handlers(
    now: Effective, after: Effective, running: tuple[str, ...]
) -> tuple[str, ...]:
    """The handlers that the files will not define any more: those in the present files (a runc that
    we made included), and those of ours that the running runtime shows."""
    names = (*now.runtimes, *(name for name in running if name in OUR_NAMES))
    return tuple(dict.fromkeys(name for name in names if name not in after.runtimes))
