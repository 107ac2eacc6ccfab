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
from agent.plan import garbled_files, in_force, obstacles, own_specs, pod_guard, toolkit_users
from agent.plan.context import Context
from agent.plan.propose import trial_verdict
from agent.runtimes import find, registry
from agent.runtimes.base import ConfiguredRuntime, Runtime
from agent.runtimes.config_file import Files, is_hook
from agent.runtimes.desired_state import OUR_NAMES, Desired
from agent.runtimes.preflight import Candidate
from agent.runtimes.restart import down_message
from agent.state import store
from agent.state.store import Memory, parents
from agent.toolkit import install
from agent.transaction import change, original_files, recover, stand_aside
from agent.transaction.converge import publish_failure


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


def revert(ctx: Context, *, keep_edits: bool = False, toolkit: bool = False) -> Reverted:
    """Undo everything that was ever applied, prove it, and withdraw readiness.

    With `toolkit`, the installed toolkit is removed too. With `keep_edits`, only our keys are taken
    out of a file that somebody edited. Raises Refused, with nothing touched, if a file was
    edited (without `keep_edits`), if a pod still uses a handler that would go, if anything
    needs a program that would go, and if a file cannot be written. A `run` that holds the lock
    is asked to stand aside, and does nothing more after a revert.
    """
    try:
        with stand_aside.node_lock(ctx) as locked, locked.locked():
            waiting = recover.recover(locked).waiting
            memory = store.current_memory(locked.store)
            garbled_files.repair(locked.settings, locked.host, locked.log, memory)
            one = _Revert(locked, memory, keep_edits=keep_edits, toolkit=toolkit)
            if waiting:  # no runtime has seen the last change, so that one is undone first
                one.check()
                recover.give_up_waiting(locked)
                memory = locked.store.memory()
                one = _Revert(locked, memory, keep_edits=keep_edits, toolkit=toolkit)
            return one.carry_out()
    except Locked:
        raise
    except AgentError as error:
        publish_failure(ctx.publisher, ctx.log, error)
        raise


class _Revert:
    """The steps of one revert of what is remembered in `memory`; options as in `revert`."""

    def __init__(self, ctx: Context, memory: Memory, *, keep_edits: bool, toolkit: bool) -> None:
        self._ctx = ctx
        self._memory = memory
        self._keep_edits = keep_edits
        self._toolkit = toolkit

    def carry_out(self) -> Reverted:
        """Revert, if nothing refuses it. Raises AgentError."""
        self.check()
        ctx, (request, found) = self._ctx, self._request
        notes = [*found]
        restarted = pending = False
        changed: list[str] = []
        restart = request.restart if request else None
        for note in (*notes, *(restart.warnings if restart else ())):
            ctx.log.warning("warning of the plan", text=note)
        if request is not None:
            end = change.carry_out(ctx, request)
            notes += map(down_message, end.down)
            changed += (item.path.host for item in request.changes)
            restarted, pending = end.restarted, end.pending
        if self._memory.files or own_specs.written_by_us(ctx.settings, ctx.host, self._spec_dirs):
            ctx.publisher.withdraw()  # first, because the node is not ready whatever follows
        if not pending:
            self._forget()
        changed += own_specs.remove(ctx.settings, ctx.host, self._spec_dirs)
        if self._toolkit and not pending:
            changed += install.remove(ctx.settings, ctx.host)
            changed += (name for name in self._memory.moved if install.remove_from(ctx.host, name))
        ctx.publisher.remove_error()
        removed = tuple(name for name in changed if not os.path.lexists(ctx.host.agent_path(name)))
        return Reverted(tuple(changed), removed, restarted, pending, tuple(notes))

    def _forget(self) -> None:
        """Forget everything, and remove the directories that we made, if they are empty."""
        store = self._ctx.store
        for name, original in self._memory.files.items():
            if original.digest is None:
                above = parents(self._ctx.host.agent_path(name), original.made)
                with contextlib.suppress(OSError):  # an empty directory does no harm
                    files.remove_directories(above)
        store.remember(Memory())
        with contextlib.suppress(OSError):
            known_gpus.forget(store)
        store.forget_failure()
        store.forget_restarts()
        store.prune(Memory())

    def check(self) -> None:
        """Check everything that can refuse the revert. Nothing is written. Raises AgentError."""
        ctx = self._ctx
        settings, host = ctx.settings, ctx.host
        if self._toolkit:
            self._refuse_needed()
        request, _ = self._request
        specs = own_specs.written_by_us(settings, host, self._spec_dirs)
        blocked = obstacles.removal_refusal(host, specs)
        if request is not None and blocked is None:
            blocked = obstacles.change_refusal(
                host, ctx.store, ctx.publisher, request.changes, transaction=True
            )
        if self._toolkit and blocked is None:
            blocked = obstacles.toolkit_removal_refusal(settings, host)
        if blocked is not None:
            raise blocked

    @functools.cached_property
    def _spec_dirs(self) -> tuple[str, ...]:
        """The directories that may have specs of ours: those that the runtime reads, if it says so,
        and the default ones."""
        try:
            return find.spec_directories(self._runtime)
        except (Refused, Unreachable):
            return DEFAULT_DIRS

    def _refuse_needed(self) -> None:
        """Raise Refused if a pod runs by the toolkit, or if a remaining file names a program
        of it that would be removed."""
        settings, host, moved = self._ctx.settings, self._ctx.host, self._memory.moved
        install.require_removable(settings, host, moved)
        names = install.installed_paths(settings, host)
        if not names and not moved:
            return
        after = self._planned_files if self._memory.files else ((), self._node.files)
        changed = toolkit_users.ChangedNode(self._node, *after)
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
        return changes, node.load({item.path.host: item.after for item in changes})

    @functools.cached_property
    def _request(self) -> tuple[change.Request | None, list[str]]:
        """The change of files and runtime, None if none is needed; and notes. Raises AgentError
        where it is not possible."""
        if not self._memory.files:
            return None, []
        ctx, node, host = self._ctx, self._node, self._ctx.host
        answer = node.runtime.answer
        changes, after = self._planned_files
        effective, now = node.effective(after), node.effective(node.files)
        default, running = registry.shown_handler_names(answer)
        # Those in the present files (a runc that we made included), and those of ours that run.
        names = dict.fromkeys((*now.runtimes, *(name for name in running if name in OUR_NAMES)))
        removed = tuple(name for name in names if name not in effective.runtimes)
        if used := pod_guard.revert_refusal(ctx.settings, host, node, after):
            raise used
        desired = Desired({}, effective.default, False, removed)
        is_root_gone, notes = self._removed_files()
        ours = default in (*OUR_NAMES, *removed)
        running_as = desired if ours else replace(desired, default=None)
        if not changes and (is_root_gone or not node.adapter.unproven(running_as, answer)):
            return None, notes
        restart = None
        # Without changes the runtime runs on older files. It reads changed OCI hooks at once.
        is_due = not changes or any(not is_hook(item.path.host) for item in changes)
        if is_due and not is_root_gone:
            restart = ctx.choose_restart(
                ctx.settings.restart_mode, node.runtime.process, host, node.runtime.kind
            )
            if blocked := node.restart_hazard(after):
                raise blocked
        changed = (name for name in now.runtimes if now.table(name) != effective.table(name))
        checked = node.preflight(Candidate(after, (), (*OUR_NAMES, *removed, *changed)))
        if not checked.done:
            notes.append(f"not pre-flighted: {checked.note}")
        if restart is not None:
            notes += self._tried(changes, desired)
        return change.Request(
            purpose="revert",
            node=node,
            changes=changes,
            restart=restart,
            desired=desired,
            memory=self._memory,
            fingerprint="revert",
            overlaid=any(item.before is None for item in changes),
        ), notes  # fmt: skip

    def _removed_files(self) -> tuple[bool, list[str]]:
        """Whether somebody removed the root file, and notes on all files that were removed.

        Without the root file the runtime is not restarted, because a restart would lose the
        settings in it, such as the socket and the place of the containers.
        """
        gone = original_files.removed(self._ctx.host, self._memory)
        notes = [f"{name} was removed since it was written: nothing is restored there"
                 for name in gone]  # fmt: skip
        root = self._node.root
        is_root_gone = root.state is None and root.path.host in gone
        if is_root_gone:
            notes.append(
                "the runtime is not restarted, because it would start without that file; it has "
                "our handlers until its next restart"
            )
        return is_root_gone, notes

    def _tried(self, changes: tuple[Change, ...], desired: Desired) -> list[str]:
        """Notes from a trial start. Raises Refused if the runtime would not start again."""
        ctx = self._ctx
        unloaded = in_force.first_unloaded(self._memory, self._node, ctx.wall)
        trial = trial_verdict(ctx.start_trial, self._node, changes, desired, "revert", unloaded)
        if trial.refusal is not None:
            raise trial.refusal
        note = trial.warning if trial.done else f"not tried: {trial.note}"
        return [note] if note else []

    @functools.cached_property
    def _runtime(self) -> Runtime:
        """The runtime. Raises Refused or Unreachable."""
        return find.find_runtime(self._ctx.settings, self._ctx.host)

    @functools.cached_property
    def _node(self) -> ConfiguredRuntime:
        """The runtime with its files. A file that somebody removed, although another file imports
        it by name, counts with its original content, because no runtime starts without it. Raises
        Refused or Unreachable."""
        settings, host, memory = self._ctx.settings, self._ctx.host, self._memory
        adapter = registry.adapter(self._runtime.kind)
        try:
            return adapter.configured_runtime(settings, host, self._runtime)
        except Refused:
            overlay = original_files.removed_originals(host, self._ctx.store, memory)
            if not overlay:
                raise
            return adapter.configured_runtime(settings, host, self._runtime, overlay)
