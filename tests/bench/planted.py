"""The faults that `mutants.py` plants: what each changes, and which tests should catch it.

Each is one that a careless programmer could make: a step left out, a wrong order, a case forgotten,
a comparison the wrong way round. None breaks an import, and none breaks every test.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault: in `file` the text `old`, which has to be there exactly once, becomes `new`.

    `likely` are the tests that should catch it: files, folders or single tests. Where none of them
    is below tests/unit, only tests that start the program catch it.
    """

    name: str
    area: str
    file: str
    old: str
    new: str
    likely: tuple[str, ...]

    @property
    def black_box(self) -> bool:
        """Is it for tests that start the program to find?"""
        return not any(path.startswith("tests/unit") for path in self.likely)


_DECISION = (
    Mutant(
        "null-switch-forgotten", "decide", "agent/decide.py",
        "        case Switch.TRUE | Switch.NULL:\n            return (4",
        "        case Switch.TRUE:\n            return (4",
        ("tests/unit/test_decide.py",),
    ),
    Mutant(
        "cri-field-too-early", "decide", "agent/decide.py",
        '"containerd": (1, 7, 2)',
        '"containerd": (1, 7, 0)',
        ("tests/unit/test_decide.py",),
    ),
    Mutant(
        "own-switch-taken-for-theirs", "decide", "agent/decide.py",
        "return switch is Switch.FALSE or (switch is Switch.TRUE and question.enabled_by_agent)",
        "return switch is Switch.FALSE",
        ("tests/unit/test_decide.py",),
    ),
    Mutant(
        "refused-cdi-tried-again", "decide", "agent/plan/propose.py",
        "allowed = allowed and memory.cdi_refused != loaded_digest(self.runtime, node.files)",
        "allowed = bool(allowed)",
        ("tests/cli/test_restart.py::test_runtime_that_dies_of_native_cdi_is_configured_without_it",),
    ),
)  # fmt: skip

_EDITS = (
    Mutant(
        "comments-lost", "edits", "agent/toml/document.py",
        "if right and not lost and not moved",
        "if right and not moved",
        ("tests/unit/toml/test_document.py",),
    ),
    Mutant(
        "comments-moved", "edits", "agent/toml/document.py",
        "if right and not lost and not moved",
        "if right and not lost",
        ("tests/unit/toml/test_document.py",),
    ),
    Mutant(
        "true-is-one", "edits", "agent/toml/ops.py",
        "return type(first) is type(second) and bool(first == second)",
        "return bool(first == second)",
        ("tests/unit/toml/test_document.py",),
    ),
    Mutant(
        "line-ends-mixed", "edits", "agent/toml/document.py",
        'return mark + (text.replace("\\n", "\\r\\n") if crlf else text)',
        "return mark + text",
        ("tests/unit/toml/test_document.py",),
    ),
    Mutant(
        "commas-of-inner-lists", "edits", "agent/toml/scan.py",
        'between = depth == 1 and word == ","',
        'between = word == ","',
        ("tests/unit/toml/test_scan.py",),
    ),
)  # fmt: skip

_MERGE = (
    Mutant(
        "first-version-counts", "merge", "agent/runtimes/containerd/merge.py",
        "return min(named[-1], gen.highest)",
        "return min(named[0], gen.highest)",
        ("tests/unit/runtimes/containerd/test_merge.py",),
    ),
    Mutant(
        "old-name-wins", "merge", "agent/runtimes/containerd/merge.py",
        "result = {**old, **new}",
        "result = {**new, **old}",
        ("tests/unit/runtimes/containerd/test_merge.py",),
    ),
    Mutant(
        "built-in-runc-forgotten", "merge", "agent/runtimes/containerd/edit.py",
        'ops.append(Set((*section, *RUNTIMES, "runc"), gen.runc))',
        "pass",
        ("tests/unit/runtimes/containerd/test_edit.py",),
    ),
    Mutant(
        "import-without-wildcard", "merge", "agent/runtimes/containerd/edit.py",
        'return f"{stem}*{suffix}"',
        'return f"{stem}{suffix}"',
        ("tests/unit/runtimes/containerd/test_edit.py",),
    ),
)  # fmt: skip

_TRANSACTION = (
    Mutant(
        "content-not-forced-to-disk", "transaction", "agent/host/files.py",
        "            os.setxattr(fd, _LABEL, state.label)\n    os.fsync(fd)\n",
        "            os.setxattr(fd, _LABEL, state.label)\n",
        ("tests/unit/host/test_files.py",),
    ),
    Mutant(
        "name-not-forced-to-disk", "transaction", "agent/host/files.py",
        "        _rename_or_remove(directory, temporary, base)\n        os.fsync(directory)\n",
        "        _rename_or_remove(directory, temporary, base)\n",
        ("tests/unit/host/test_files.py",),
    ),
    Mutant(
        "mode-not-kept", "transaction", "agent/host/files.py",
        "    os.fchmod(fd, state.mode)\n",
        "",
        ("tests/unit/host/test_files.py",),
    ),
    Mutant(
        "temporary-name-is-read", "transaction", "agent/state/journal.py",
        'f".{name}.toolkit-agent-{what}~"',
        'f"{what}-{name}"',
        ("tests/unit/transaction/test_change.py",),
    ),
    Mutant(
        "edit-meanwhile-overwritten", "transaction", "agent/transaction/file_changes.py",
        "if digest_of(entry.agent, entry.host) != entry.before:",
        "if digest_of(entry.agent, entry.host) is None and entry.before is not None:",
        ("tests/unit/transaction/test_change.py",),
    ),
    Mutant(
        "journal-closed-too-early", "transaction", "agent/transaction/change.py",
        "        self.ctx.store.remember(memory)\n        self.close()\n",
        "        self.close()\n        self.ctx.store.remember(memory)\n",
        ("tests/unit/transaction/test_change.py",),
    ),
    Mutant(
        "stage-not-told", "transaction", "agent/transaction/change.py",
        '        change.advance("restarted")\n',
        "",
        ("tests/unit/transaction/test_change.py",),
    ),
    Mutant(
        "failure-not-remembered", "transaction", "agent/transaction/change.py",
        "change.remember_failure(why)",
        "pass",
        ("tests/cli/test_restart.py::test_runtime_that_dies_on_the_new_configuration_gets_the_old_one",),
    ),
)  # fmt: skip

_PROOF = (
    Mutant(
        "one-answer-is-enough", "proof", "agent/runtimes/proof.py",
        "_ANSWERS = 3",
        "_ANSWERS = 1",
        ("tests/unit/runtimes/test_proof.py",),
    ),
    Mutant(
        "answer-of-another-process", "proof", "agent/runtimes/proof.py",
        "return (before, answer) if probe.identity() == before else (None, None)",
        "return before, answer",
        ("tests/unit/runtimes/test_proof.py",),
    ),
    Mutant(
        "old-process-proves-itself", "proof", "agent/transaction/change.py",
        "return self._prove(self._old_process, Desired",
        "return self._prove(None, Desired",
        ("tests/unit/transaction/test_change.py",),
    ),
)  # fmt: skip

_UNDO = (
    Mutant(
        "foreign-edit-undone", "undo", "agent/transaction/file_changes.py",
        "    elif now != entry.after:\n        return False\n",
        "",
        ("tests/unit/transaction/test_change.py",),
    ),
    Mutant(
        "edit-between-two-changes-forgotten", "undo", "agent/runtimes/key_ownership.py",
        "alone = not original.edited or (",
        "alone = True or (",
        ("tests/cli/test_revert.py::test_edit_between_two_applies_needs_keep_edits",),
    ),
    Mutant(
        "unwritable-file-found-too-late", "undo", "agent/plan/obstacles.py",
        "demands = [*_configuration(changes)]",
        "demands = []",
        ("tests/cli/test_refusals.py::test_refusal_touches_nothing",),
    ),
    Mutant(
        "file-imported-by-name-removed", "undo", "agent/runtimes/containerd/adapter.py",
        "if item.after is None and item.path.host in needed",
        "if item.before is None and item.path.host in needed",
        ("tests/cli/test_revert.py::test_drop_in_imported_by_name_stays_emptied",),
    ),
    Mutant(
        "dead-pods-count", "revert", "agent/plan/pod_guard.py",
        "for pod in questions.sandboxes() if pod.ready]",
        "for pod in questions.sandboxes()]",
        ("tests/cli/test_revert.py::test_revert_is_refused_while_pods_use_a_handler",),
    ),
    Mutant(
        "pods-of-the-default-forgotten", "revert", "agent/plan/pod_guard.py",
        'ours | ({""} if is_ours(running.default, running.table(running.default)) else set())',
        "ours",
        ("tests/cli/test_running_pods.py",),
    ),
    Mutant(
        "handlers-of-crio-by-its-lists", "revert", "agent/plan/pod_guard.py",
        "return replace(pod, handler=node.adapter.pod_handler(questions.sandbox_info(pod.id)))",
        "return pod",
        ("tests/cli/test_crio.py::test_handlers_of_running_pods_stay",),
    ),
    Mutant(
        "default-kept-for-ever", "revert", "agent/plan/pod_guard.py",
        "for pod in questions.sandboxes() if pod.ready or 0 < pod.created < booted}",
        "for pod in questions.sandboxes()}",
        ("tests/cli/test_running_pods.py",),
    ),
    Mutant(
        "ready-after-revert", "revert", "agent/transaction/revert.py",
        "ctx.publisher.withdraw()  # first, because the node is not ready whatever follows",
        "pass",
        ("tests/cli/test_revert.py::test_files_put_back_by_hand_leave_nothing_to_revert",),
    ),
    Mutant(
        "reboot-not-noticed", "recover", "agent/transaction/recover.py",
        "    if not change.in_this_boot:\n        return True\n",
        "",
        ("tests/unit/transaction/test_change.py",),
    ),
    Mutant(
        "ready-after-a-reboot", "recover", "agent/transaction/change.py",
        "        saved = saved if self.in_this_boot else {}\n",
        "",
        ("tests/unit/transaction/test_change.py",),
    ),
    Mutant(
        "switch-that-fired-is-passed-over", "deadman", "agent/transaction/host_timer.py",
        "        if self.has_fired():\n            raise NotProven(FIRED)\n",
        "",
        ("tests/unit/transaction/test_host_timer.py",),
    ),
    Mutant(
        "switch-stays-armed", "deadman", "agent/transaction/host_timer.py",
        "for path in (self._guard, self._fired):",
        "for path in (self._fired,):",
        ("tests/unit/transaction/test_host_timer.py",),
    ),
)  # fmt: skip

_SPECS = (
    Mutant(
        "version-too-low", "specs", "agent/cdi/specs/rules.py",
        'if device.get("name", "")[:1].isdigit():',
        'if device.get("name", "").isdigit():',
        ("tests/unit/cdi/test_model.py", "tests/unit/cdi/specs/test_rules.py"),
    ),
    Mutant(
        "link-of-the-driver-as-spelled", "specs", "agent/cdi/driver/root.py",
        "return spelled if same else real",
        "return spelled",
        ("tests/unit/cdi/make/test_driver_files.py", "tests/unit/cdi/make/test_debian.py"),
    ),
    Mutant(
        "excluded-gpus-counted", "specs", "agent/cdi/driver/kernel.py",
        'usable = [info for info in infos if info.get("GPU Excluded", "No") != "Yes"]',
        "usable = infos",
        ("tests/unit/cdi/make/test_gpu_without_nvml.py",),
    ),
    Mutant(
        "ready-without-a-driver", "specs", "agent/cdi/specs/own_specs.py",
        "        return ()\n    if proposal.problem is not None:\n"
        "        ctx.publisher.withdraw()\n",
        "        return ()\n",
        (
            "tests/cli/test_spec.py::test_no_driver_is_refused",
            "tests/cli/test_spec.py::test_run_waits_for_the_driver_and_follows_it",
        ),
    ),
    Mutant(
        "new-nodes-not-in-the-spec", "specs", "agent/transaction/converge.py",
        "if nodes:  # the spec has to describe the new device nodes",
        "if nodes and refused_cdi:",
        ("tests/cli/test_device_nodes.py::test_nodes_are_in_the_spec",),
    ),
    Mutant(
        "deadly-spec-passed-over", "specs", "agent/plan/propose.py",
        "blocked: AgentError | None = hazard if draft.restart else None",
        "blocked: AgentError | None = None",
        ("tests/cli/test_foreign.py::test_deadly_spec_refuses_a_restart",),
    ),
)  # fmt: skip

_TOOLKIT = (
    Mutant(
        "ldconfig-of-the-container", "toolkit", "agent/toolkit/config.py",
        '"ldconfig": f"@{ldconfig}",',
        '"ldconfig": ldconfig,',
        ("tests/unit/toolkit/test_config.py",),
    ),
    Mutant(
        "mode-of-a-copy-not-looked-at", "toolkit", "agent/toolkit/tree.py",
        "not stat.S_ISREG(copy.st_mode) or stat.S_IMODE(copy.st_mode) != entry.mode:",
        "not stat.S_ISREG(copy.st_mode):",
        ("tests/unit/toolkit/test_place.py",),
    ),
    Mutant(
        "their-directory-removed", "toolkit", "agent/toolkit/place.py",
        "    if tree.read_list(old) is None and files.names(old):\n        _keep(old, live)\n"
        "    else:\n        _discard(old, live)\n",
        "    _discard(old, live)\n",
        ("tests/cli/test_revert_toolkit.py::test_somebody_else_s_directory_comes_back",),
    ),
    Mutant(
        "interrupted-install-left", "toolkit", "agent/toolkit/install.py",
        "        place.tidy(directory.agent)\n",
        "",
        ("tests/cli/test_kill.py::test_toolkit_killed_around_the_exchange_is_old_or_new",),
    ),
    Mutant(
        "installed-files-not-watched", "toolkit", "agent/toolkit/install.py",
        "names = (*known.names, tree.LIST) if known else ()",
        "names = (tree.LIST,) if known else ()",
        ("tests/cli/test_toolkit_run.py::test_removed_file_of_the_toolkit_comes_back",),
    ),
)  # fmt: skip

_STATUS = (
    Mutant(
        "barrier-withdrawn-last", "status", "agent/status.py",
        "self._remove(READY, TWIN)",
        "self._remove(TWIN, READY)",
        ("tests/unit/test_status.py",),
    ),
    Mutant(
        "barrier-of-the-validator-made", "status", "agent/status.py",
        "if not self.foreign_barrier or barrier_was_there or self._exists(READY):",
        "if not self.foreign_barrier or barrier_was_there or not self._exists(READY):",
        ("tests/unit/test_status_foreign.py",),
    ),
    Mutant(
        "old-boot-believed", "status", "agent/status.py",
        'if values.get("TOOLKIT_BOOT_ID") != boot_id:',
        'if not values.get("TOOLKIT_BOOT_ID"):',
        ("tests/unit/test_status_reader.py",),
    ),
    Mutant(
        "ready-during-the-change", "status", "agent/transaction/change.py",
        "        if request.restart is not None:\n            ctx.publisher.withdraw()\n",
        "",
        ("tests/unit/transaction/test_change.py",),
    ),
    Mutant(
        "barrier-of-the-validator-lost", "status", "agent/transaction/converge.py",
        "        self._barrier |= READY in ctx.publisher.save()\n",
        "",
        ("tests/operator/test_containerd.py::test_barrier_of_the_validator_is_refilled_and_never_made",),
    ),
    Mutant(
        "ready-before-the-restart", "status", "agent/transaction/converge.py",
        "        if outcome.pending:\n            ctx.publisher.withdraw()\n",
        "        if outcome.pending:\n",
        ("tests/cli/test_restart.py::test_restart_by_others_is_proven_by_the_next_apply",),
    ),
    Mutant(
        "ready-without-a-toolkit", "status", "agent/transaction/converge.py",
        "if isinstance(error, Unreachable | NoToolkit):",
        "if isinstance(error, Unreachable):",
        ("tests/cli/test_run.py::test_not_ready_while_the_toolkit_is_gone",),
    ),
)  # fmt: skip

_SUPERVISOR = (
    Mutant(
        "failed-child-shortens-the-list", "supervisor", "agent/daemon/supervisor.py",
        "listed = tuple(dict.fromkeys((*listed, *before)))",
        "listed = tuple(listed)",
        ("tests/unit/daemon/test_supervisor.py",),
    ),
    Mutant(
        "failure-without-a-list", "supervisor", "agent/daemon/child.py",
        "    finally:\n        watched",
        "    else:\n        watched",
        ("tests/unit/daemon/test_child.py",),
    ),
    Mutant(
        "barrier-not-watched", "supervisor", "agent/plan/watch.py",
        "for name in (status.READY, status.TWIN)]",
        "for name in (status.TWIN,)]",
        ("tests/operator/test_containerd.py::test_barrier_of_the_validator_is_refilled_and_never_made",),
    ),
    Mutant(
        "options-not-handed-down", "supervisor", "agent/daemon/start.py",
        'f"--entry={ctx.settings.entry}", *options,',
        # Without its paths a child would work on this machine.
        'f"--entry={ctx.settings.entry}", *(o for o in options if "runtime-name" not in o),',
        ("tests/cli/test_run.py::test_child_gets_the_options",),
    ),
)  # fmt: skip

_RUNTIME = (
    Mutant(
        "reused-pid-gets-the-signal", "restart", "agent/runtimes/restart.py",
        "if start_time(process.pid) == process.start:",
        "if start_time(process.pid) is not None:",
        ("tests/unit/runtimes/test_restart.py",),
    ),
    Mutant(
        "second-runtime-started", "restart", "agent/runtimes/restart.py",
        'not (is_runtime_unit or state.active == "active")',
        'not (not is_runtime_unit or found.active == "active")',
        ("tests/unit/runtimes/test_restart.py",),
    ),
    Mutant(
        "lock-of-a-removed-file", "lock", "agent/host/lock.py",
        "if inherited is not None and is_current(path, inherited):",
        "if inherited is not None:",
        ("tests/unit/host/test_lock.py",),
    ),
    Mutant(
        "cri-not-served-is-waited-for", "cri", "agent/cri/client.py",
        'if code == "UNIMPLEMENTED":',
        'if code == "UNKNOWN":',
        ("tests/unit/cri/test_client.py",),
    ),
    Mutant(
        "large-answer-refused", "cri", "agent/cri/client.py",
        '        ("grpc.max_receive_message_length", limits.size),\n',
        "",
        ("tests/unit/cri/test_client.py",),
    ),
)  # fmt: skip

MUTANTS = (
    *_DECISION, *_EDITS, *_MERGE, *_TRANSACTION, *_PROOF, *_UNDO, *_SPECS, *_TOOLKIT, *_STATUS,
    *_SUPERVISOR, *_RUNTIME,
)  # fmt: skip
