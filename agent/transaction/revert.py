"""Revert the node to its remembered original state.

Invariant: a file that somebody edited after our last write is never overwritten, a file that
another file imports by name is never deleted, and a handler is never removed while pods use it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass, replace

from agent.cdi.driver import known_gpus
from agent.cdi.specs import own_specs
from agent.decide import DEFAULT_DIRS
from agent.errors import Refused, Unreachable
from agent.host import files
from agent.host.files import Change
from agent.plan import garbled_files, obstacles, pod_guard, toolkit_users
from agent.plan.context import Context
from agent.plan.propose import trial_verdict
from agent.runtimes import find, registry
from agent.runtimes.base import ConfiguredRuntime, Runtime
from agent.runtimes.config_file import Files, is_hook
from agent.runtimes.desired_state import OUR_NAMES, Desired
from agent.runtimes.preflight import Candidate
from agent.state import store
from agent.state.journal import parents
from agent.state.store import Memory
from agent.toolkit import install
from agent.transaction import change, original_files, recover, stand_aside
from agent.transaction.converge import publishing_failures


@dataclass(frozen=True)
class Reverted:
    """The result of a revert. `changed` are the host paths that were changed, `removed` are those
    of them that no longer exist. `restarted`: the runtime was restarted. `pending`: somebody still
    has to restart it. `notes` are further texts for a person."""

    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: bool = False
    pending: bool = False
    notes: tuple[str, ...] = ()


def revert(ctx: Context, *, keep_edits: bool = False, toolkit: bool = False) -> Reverted:
    """Restore the original files, prove that state, and withdraw readiness.

    With `toolkit`, the installed toolkit is removed too. With `keep_edits`, only our keys are
    removed from a file that somebody edited. A `run` that holds the lock is asked to release it,
    and does nothing more after a completed revert.

    Raises Refused, and changes nothing, if a file was edited (without `keep_edits`), if a pod uses
    a handler that would be removed, if a pod or a file needs a program that would be removed, or if
    a file cannot be written. Raises RolledBack or RollbackFailed after a failed restart, and Locked
    if another command holds the lock.
    """
    with publishing_failures(ctx), stand_aside.node_lock(ctx) as locked, locked.locked():
        waiting = recover.recover(locked).waiting
        memory = store.current_memory(locked.store)
        garbled_files.repair(locked, memory)
        one = _Revert(locked, memory, keep_edits=keep_edits, toolkit=toolkit)
        if waiting:  # no runtime has loaded the last change, so it is undone first
            one.check()
            recover.give_up_waiting(locked)
            memory = locked.store.memory()
            one = _Revert(locked, memory, keep_edits=keep_edits, toolkit=toolkit)
        return one.carry_out()


class _Revert:
    """The steps of one revert of the files in `memory`; options as in `revert`."""

    def __init__(self, ctx: Context, memory: Memory, *, keep_edits: bool, toolkit: bool) -> None:
        self._ctx = ctx
        self._memory = memory
        self._keep_edits = keep_edits
        self._toolkit = toolkit

    def carry_out(self) -> Reverted:
        """Check everything, then revert. Raises AgentError."""
        self.check()
        ctx, (request, request_notes) = self._ctx, self._request
        notes = [*request_notes]
        restarted = pending = False
        changed: list[str] = []
        restart = request.restart if request else None
        for note in (*notes, *(restart.warnings if restart else ())):
            ctx.log.warning("warning of the plan", text=note)
        if request is not None:
            done = change.carry_out(ctx, request)
            notes += done.down
            changed += (item.path.host for item in request.changes)
            restarted, pending = done.restarted, done.pending
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
        """Empty the memory, and remove the directories that we made, if they are empty."""
        store = self._ctx.store
        for name, original in self._memory.files.items():
            if original.digest is None:
                above = parents(self._ctx.host.agent_path(name), original.made)
                with contextlib.suppress(OSError):  # an empty directory has no effect
                    files.remove_directories(above)
        store.remember(Memory())
        with contextlib.suppress(OSError):
            known_gpus.forget(store)
        store.forget_failure()
        store.forget_restarts()
        store.prune(Memory())

    def check(self) -> None:
        """Raise the error of the first obstacle to the revert (AgentError). Writes nothing."""
        ctx = self._ctx
        settings, host = ctx.settings, ctx.host
        if self._toolkit:
            self._refuse_used_toolkit()
        request, _ = self._request
        specs = own_specs.written_by_us(settings, host, self._spec_dirs)
        blocked = obstacles.removal_refusal(host, specs)
        if request is not None and blocked is None:
            blocked = obstacles.change_refusal(ctx, request.changes, transaction=True)
        if self._toolkit and blocked is None:
            blocked = obstacles.toolkit_removal_refusal(settings, host)
        if blocked is not None:
            raise blocked

    @functools.cached_property
    def _spec_dirs(self) -> tuple[str, ...]:
        """As `find.spec_directories`; the default directories if no runtime answers."""
        try:
            return find.spec_directories(self._runtime)
        except (Refused, Unreachable):
            return DEFAULT_DIRS

    def _refuse_used_toolkit(self) -> None:
        """Raise Refused if a pod runs by a program of the toolkit, or if a remaining file names a
        program that would be removed."""
        settings, host, moved = self._ctx.settings, self._ctx.host, self._memory.moved
        install.require_removable(settings, host, moved)
        names = install.installed_paths(settings, host)
        if not names and not moved:
            return
        after = self._planned_files if self._memory.files else ((), self._node.files)
        changed = toolkit_users.ChangedNode(self._node, *after)
        remains = install.paths_after_removal(settings, host, names) if names else ()
        directories = [(names, remains)] if names else []
        directories += [((name,), ()) for name in moved]
        for directory, remaining in directories:
            if error := toolkit_users.refusal(settings, changed, directory, remaining):
                raise error

    @functools.cached_property
    def _planned_files(self) -> tuple[tuple[Change, ...], Files]:
        """The changes of the runtime's files, and the files after the changes. Raises Refused."""
        host, node = self._ctx.host, self._node
        changes = original_files.changes(
            host, self._ctx.store, node, self._memory, keep_edits=self._keep_edits
        )
        # The root file comes first: the other files can be removed when it no longer imports them.
        changes = tuple(sorted(changes, key=lambda item: item.path.host != node.root.path.host))
        return changes, node.load({item.path.host: item.after for item in changes})

    @functools.cached_property
    def _request(self) -> tuple[change.Request | None, list[str]]:
        """The request for the change of files and runtime, None if no change is needed; and notes.
        Raises AgentError if the change is not possible."""
        if not self._memory.files:
            return None, []
        ctx, node, host = self._ctx, self._node, self._ctx.host
        answer = node.runtime.answer
        changes, after = self._planned_files
        effective, now = node.effective(after), node.effective(node.files)
        default, running = registry.shown_handler_names(answer)
        # The handlers in the present files (also a runc that we made), and our running ones.
        names = dict.fromkeys((*now.runtimes, *(name for name in running if name in OUR_NAMES)))
        removed = tuple(name for name in names if name not in effective.runtimes)
        if used := pod_guard.revert_refusal(ctx.settings, node, after):
            raise used
        desired = Desired({}, effective.default, False, removed)
        is_root_gone, notes = self._removed_files()
        ours = default in (*OUR_NAMES, *removed)
        running_as = desired if ours else replace(desired, default=None)
        if not changes and (is_root_gone or not node.adapter.unproven(running_as, answer)):
            return None, notes
        restart = None
        # A restart is due if the runtime still runs on other files. It reads changed OCI hooks
        # without a restart.
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
            tried = trial_verdict(ctx, self._memory, node, changes, desired, "revert")
            if tried.refusal is not None:
                raise tried.refusal
            notes += tried.warnings
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
        """Did somebody remove the root file? With notes about all files that were removed.

        If the root file is missing, the runtime is not restarted, because it would lose the
        settings of that file, such as the socket and the directory of the containers.
        """
        removed = original_files.removed_files(self._ctx.host, self._memory)
        notes = [f"{name} was removed since it was written: nothing is restored there"
                 for name in removed]  # fmt: skip
        root = self._node.root
        is_root_gone = root.state is None and root.path.host in removed
        if is_root_gone:
            notes.append(
                "the runtime is not restarted, because it would start without that file; it has "
                "our handlers until its next restart"
            )
        return is_root_gone, notes

    @functools.cached_property
    def _runtime(self) -> Runtime:
        """The runtime. Raises Refused or Unreachable."""
        return find.find_runtime(self._ctx.settings, self._ctx.host)

    @functools.cached_property
    def _node(self) -> ConfiguredRuntime:
        """The runtime with its files. If they cannot be loaded because somebody removed a file that
        another file imports by name, the original of that file takes its place. Raises Refused or
        Unreachable."""
        settings, host, memory = self._ctx.settings, self._ctx.host, self._memory
        adapter = registry.adapter(self._runtime.kind)
        try:
            return adapter.configured_runtime(settings, host, self._runtime)
        except Refused:
            overlay = original_files.removed_originals(host, self._ctx.store, memory)
            if not overlay:
                raise
            return adapter.configured_runtime(settings, host, self._runtime, overlay)
