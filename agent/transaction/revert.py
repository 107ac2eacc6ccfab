"""Revert the node to its remembered original state.

Invariant: a file that somebody edited since we wrote it is never overwritten, a file that somebody
imports by name is never deleted, and a handler is never taken from under a running pod.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.cdi.driver import known_gpus
from agent.decide import DEFAULT_DIRS
from agent.errors import AgentError, Locked, Refused, Unreachable
from agent.host import files
from agent.host.files import Change
from agent.host.paths import HostRoot
from agent.plan import garbled_files, in_force, obstacles, own_specs, pod_guard, toolkit_users
from agent.plan.context import Context
from agent.plan.propose import start_failure, trial_verdict
from agent.runtimes import find, registry
from agent.runtimes.base import ConfiguredRuntime, Effective, Runtime
from agent.runtimes.config_file import Files
from agent.runtimes.desired_state import OUR_NAMES, Desired
from agent.runtimes.preflight import Candidate
from agent.runtimes.restart import down_message
from agent.state import store
from agent.state.store import Memory, Store, parents
from agent.toolkit import install
from agent.transaction import change, original_files, recover, stand_aside
from agent.transaction.converge import publish_failure, refuse_changed, states_of

if TYPE_CHECKING:
    from agent.runtimes.trial import Trial


@dataclass(frozen=True)
class Reverted:
    """The result of a revert. `changed` are the host paths that were changed, `removed` those that
    do not exist any more. `pending` means that somebody still has to restart the runtime. `notes`
    are what a person has to know besides."""

    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: bool = False
    pending: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
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
            return _recover_and_revert(locked_ctx, keep_edits=keep_edits, toolkit=toolkit)
    except Locked:
        raise
    except AgentError as error:
        publish_failure(ctx.publisher, ctx.log, error)
        raise


def _recover_and_revert(ctx: Context, *, keep_edits: bool, toolkit: bool) -> Reverted:
    waiting = recover.recover(ctx).waiting
    memory = store.current_memory(ctx.store)
    garbled_files.repair(ctx.settings, ctx.host, ctx.log, memory)
    one = _Revert(ctx, memory, keep_edits=keep_edits, toolkit=toolkit)
    plan = one.plan()
    if waiting:  # no runtime has seen the last change, so that one is undone first
        recover.give_up_waiting(ctx)
        one = _Revert(ctx, ctx.store.memory(), keep_edits=keep_edits, toolkit=toolkit)
        plan = one.plan()
    return one.carry_out(plan)


class _Revert:
    """The steps of one revert of what is remembered in `memory`; options as in `revert`."""

    def __init__(self, ctx: Context, memory: Memory, *, keep_edits: bool, toolkit: bool) -> None:
        self._ctx = ctx
        self._memory = memory
        self._keep_edits = keep_edits
        self._toolkit = toolkit

    def carry_out(self, plan: _Plan) -> Reverted:
        """Make the changes. Raises AgentError."""
        ctx, request, done = self._ctx, plan.request, Reverted()
        restart = request.restart if request else None
        for note in (*plan.notes, *(restart.warnings if restart else ())):
            ctx.log.warning("warning of the plan", text=note)
        if request is not None:
            end = change.carry_out(ctx, request)
            plan = replace(plan, notes=(*plan.notes, *map(down_message, end.down)))
            changed = tuple(item.path.host for item in request.changes)
            done = Reverted(changed, (), end.restarted, pending=end.pending)
        if self._memory.files or own_specs.written_by_us(ctx.settings, ctx.host, plan.dirs):
            ctx.publisher.withdraw()  # first, because the node is not ready whatever follows
        if not done.pending:
            _forget(ctx.host, ctx.store, self._memory)
        gone = own_specs.remove(ctx.settings, ctx.host, plan.dirs)
        if self._toolkit and not done.pending:
            gone = (*gone, *install.remove(ctx.settings, ctx.host))
            gone += tuple(
                name for name in self._memory.moved if install.remove_from(ctx.host, name)
            )
        ctx.publisher.remove_error()
        changed = (*done.changed, *gone)
        removed = tuple(name for name in changed if not os.path.lexists(ctx.host.agent_path(name)))
        return replace(done, changed=changed, removed=removed, notes=plan.notes)

    def plan(self) -> _Plan:
        """The plan of a revert. Everything that can refuse it is checked here, and nothing is
        written. Raises AgentError."""
        ctx = self._ctx
        if self._toolkit:
            self._refuse_needed()
        request, notes = self._request() if self._memory.files else (None, ())
        dirs = self._spec_dirs()
        specs = own_specs.written_by_us(ctx.settings, ctx.host, dirs)
        blocked = obstacles.of_removal(ctx.host, specs)
        if request is not None and blocked is None:
            blocked = obstacles.of_changes(
                ctx.host, ctx.store, ctx.publisher, request.changes, transaction=True
            )
        if self._toolkit and blocked is None:
            blocked = obstacles.of_toolkit_removal(ctx.settings, ctx.host)
        if blocked is not None:
            raise blocked
        return _Plan(request, dirs, notes)

    def _refuse_needed(self) -> None:
        """Raise Refused where a pod runs by the toolkit, or where a remaining file names a program
        of it that would be removed."""
        settings, host, moved = self._ctx.settings, self._ctx.host, self._memory.moved
        install.require_removable(settings, host, moved)
        names = install.installed_paths(settings, host)
        if not names and not moved:
            return
        node = self._node
        after = self._planned_files if self._memory.files else ((), node.files)
        changed = toolkit_users.ChangedNode(node, *after)
        left = install.paths_after_removal(settings, host, names) if names else ()
        directories = [(names, left)] if names else []
        directories += [((name,), ()) for name in moved]
        for directory, remaining in directories:
            if error := toolkit_users.refusal(settings, host, changed, directory, remaining):
                raise error

    @functools.cached_property
    def _planned_files(self) -> tuple[tuple[Change, ...], Files]:
        """The changes of a revert, and the files as they will be."""
        host, node = self._ctx.host, self._node
        changes = original_files.changes(
            host, self._ctx.store, node, self._memory, keep_edits=self._keep_edits
        )
        # The root file first: once it no longer imports them, the others can go.
        changes = tuple(sorted(changes, key=lambda item: item.path.host != node.root.path.host))
        return changes, node.load(host, {item.path.host: item.after for item in changes})

    def _request(self) -> tuple[change.Request | None, tuple[str, ...]]:
        """The change of files and runtime, None where none is needed; and notes."""
        ctx, memory, node = self._ctx, self._memory, self._node
        host, runtime = ctx.host, node.runtime
        changes, after = self._planned_files
        effective_after, effective_now = node.effective(after), node.effective(node.files)
        default, running = registry.shown(runtime.answer)
        removed_handlers = _removed_handlers(effective_now, effective_after, running)
        if used := pod_guard.revert_refusal(ctx.settings, host, node, after):
            raise used
        desired = Desired({}, effective_after.default, False, removed_handlers)
        root_removed, notes = _removed_root(host, node, memory)
        ours = default in (*OUR_NAMES, *removed_handlers)
        remaining = node.adapter.unproven(
            replace(desired, default=desired.default if ours else None), runtime.answer
        )
        if not changes and (root_removed or not remaining):
            return None, notes
        restart = None
        if not root_removed and _needs_restart(node, changes):
            restart = ctx.choose_restart(
                ctx.settings.restart_mode, runtime.process, host, runtime.kind
            )
        if restart is not None and (blocked := node.restart_hazard(host, after)):
            raise blocked
        names = (*OUR_NAMES, *removed_handlers, *_changed_handlers(effective_now, effective_after))
        checked = node.preflight(host, Candidate(after, (), names))
        if not checked.done:
            notes = (*notes, f"not pre-flighted: {checked.note}")
        if restart is not None:
            unloaded = in_force.first_unloaded(memory, node, ctx.wall)
            notes += _trial_notes(
                trial_verdict(host, ctx.start_trial, node, changes, desired, "revert", unloaded)
            )
        request = change.Request(
            purpose="revert",
            runtime=runtime,
            changes=changes,
            restart=restart,
            desired=desired,
            before=states_of(node),
            start_failure=functools.partial(start_failure, host, ctx.start_trial, node),
            memory=memory,
            fingerprint="revert",
            check=(lambda: None)
            if any(item.before is None for item in changes)  # it was looked at as it will be
            else functools.partial(refuse_changed, node, host),
        )
        return request, notes

    @functools.cached_property
    def _runtime(self) -> Runtime:
        """The runtime. Raises Refused or Unreachable."""
        return find.find_runtime(self._ctx.settings, self._ctx.host)

    def _spec_dirs(self) -> tuple[str, ...]:
        """The directories that may have specs of ours: those that the runtime reads, if it says so,
        and the default ones."""
        try:
            return find.spec_directories(self._runtime)
        except (Refused, Unreachable):
            return DEFAULT_DIRS

    @functools.cached_property
    def _node(self) -> ConfiguredRuntime:
        """The runtime with its files. A file that somebody removed, although another file imports
        it by name, counts with its original content, because no runtime starts without it. Raises
        Refused or Unreachable."""
        settings, host, memory = self._ctx.settings, self._ctx.host, self._memory
        runtime = self._runtime
        adapter = registry.adapter(runtime.kind)
        try:
            return adapter.look(settings, host, runtime)
        except Refused:
            removed = original_files.removed(host, memory)
            overlay = original_files.originals(self._ctx.store, memory, removed)
            if not overlay:
                raise
            return adapter.look(settings, host, runtime, overlay)


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


def _trial_notes(trial: Trial) -> tuple[str, ...]:
    """Notes from a trial start. Raises Refused where the runtime would not start again."""
    if trial.refusal is not None:
        raise trial.refusal
    if trial.done and not trial.warning:
        return ()
    return (trial.warning or f"not tried: {trial.note}",)


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


def _needs_restart(node: ConfiguredRuntime, changes: tuple[Change, ...]) -> bool:
    """Does the runtime have to restart for a revert with these changes? Without changes it runs on
    older files."""
    return not changes or node.needs_restart(tuple(item.path.host for item in changes))


def _changed_handlers(now: Effective, after: Effective) -> tuple[str, ...]:
    return tuple(name for name in now.runtimes if now.table(name) != after.table(name))


def _removed_handlers(
    now: Effective, after: Effective, running: tuple[str, ...]
) -> tuple[str, ...]:
    """The handlers that the files will not define any more: those in the present files (a runc that
    we made included), and those of ours that the running runtime shows."""
    names = (*now.runtimes, *(name for name in running if name in OUR_NAMES))
    return tuple(dict.fromkeys(name for name in names if name not in after.runtimes))
