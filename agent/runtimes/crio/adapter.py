"""The adapter of CRI-O.

Invariant: reads only. The flags and the environment of the process behind the socket decide which
files CRI-O reads and which settings are fixed. An option of ours that contradicts them is refused
if it names a file that we write, and is ignored otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agent.cri.client import Answer
from agent.cri.process import Process
from agent.decide import Evidence
from agent.errors import Refused
from agent.host import budget
from agent.host import files as host_files
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot, is_below
from agent.options.settings import Settings
from agent.runtimes import config_file, find
from agent.runtimes.base import (
    ConfiguredRuntime,
    EditRequest,
    Edits,
    RestartHazard,
    Runtime,
    RuntimeAdapter,
)
from agent.runtimes.config_file import (
    ConfigFile,
    Files,
    Overlay,
    first_unread,
    unread_warnings,
)
from agent.runtimes.crio import command_line, edit, hook, load, merge
from agent.runtimes.crio.merge import Overrides, Rules, Setting
from agent.runtimes.desired_state import Desired, Effective, own_keys, same_value
from agent.toml.document import Data, Path, get

if TYPE_CHECKING:
    from agent.runtimes.preflight import Candidate, Preflight
    from agent.runtimes.trial import Launch

_OURS = "99-nvidia.conf"
_HANDLER = "io.kubernetes.cri-o.RuntimeHandler"
# Keys that are always compared. Another key is compared only if this CRI-O shows it in a handler.
_ESSENTIAL = frozenset({"runtime_path", "runtime_type", "runtime_root"})
# Keys whose values CRI-O changes after it has read them, so that it shows other ones.
_REWRITTEN = frozenset({
    "monitor_path", "monitor_cgroup", "monitor_env", "monitor_exec_cgroup",
    "container_min_memory", "container_create_timeout", "stream_websockets",
})  # fmt: skip
_STATE = "/run/runc"  # the state directory of a low-level runtime if no file names one


class Crio(RuntimeAdapter):
    """CRI-O as a kind of runtime."""

    kind = "crio"
    title = "CRI-O"
    low_level = ("crun", "runc")
    shape = merge.SHAPE
    starts_again = False
    lists_handlers = False
    shows_reloaded = True
    restart_note = "CRI-O ends when all containers that are being stopped have ended"
    # Each container has its grace period. systemd's stop timeout (90 s by default) ends the wait.
    stop_seconds = 90
    cgroup_driver_since = (1, 28, 0)

    def completed(self, answer: Answer, socket: str, timeout: float) -> Answer:
        """The answer with CRI-O's effective configuration, if Status does not show it (before
        1.33). Raises Unreachable."""
        if "crio" in (answer.config or {}):
            return answer
        from agent.runtimes.crio import config_request  # its HTTP client takes long to load

        return replace(answer, dump=config_request.effective_config(socket, timeout))

    def configured_runtime(
        self, settings: Settings, host: HostRoot, runtime: Runtime, overlay: Overlay | None = None
    ) -> CrioNode:
        """Load the files of a CRI-O, and find its executable. Raises Refused."""
        root, directory = places(settings, host, runtime.process)
        overrides = command_line.overrides(runtime.process)
        files = load.load(host, root, directory, overlay)
        shown = _shown_section(runtime.answer)
        later = merge.hooks_dirs(files, overrides)
        read = (shown or {}).get("hooks_dir")
        node = CrioNode(
            host=host,
            runtime=runtime,
            rules=merge.rules(self.version_of(runtime), files, shown, overrides),
            files=files,
            executable=find.executable(settings, host, runtime.process),
            directory=directory,
            drop_in=drop_in(settings, host, directory, files[0]),
            hook=hook_file(settings, host, (*(read or ()), *later)),
            hooks_read=tuple(map(str, read)) if isinstance(read, list) else later,
            hooks_later=later,
            overlay=overlay or {},
        )
        if first_unread(node.files):
            from agent.runtimes.crio import preflight  # its executable is run

            preflight.require_harmless(node)
        return node

    def evidence(self, answer: Answer) -> tuple[Evidence, ...]:
        """The spec directories, because CRI-O has no switch for CDI. Status shows them since 1.33,
        and the effective configuration in every version that knows CDI."""
        shown = [("cri-status", merge.shown_section(answer.config, None))]
        if answer.dump is not None:
            shown.append(("config-dump", merge.shown_section(None, answer.dump)))
        listed = ((source, (data or {}).get("cdi_spec_dirs")) for source, data in shown)
        return tuple(
            Evidence(source, spec_dirs=tuple(map(str, dirs)) if isinstance(dirs, list) else None)
            for source, dirs in listed
        )

    def shown_handlers(self, answer: Answer) -> tuple[str | None, Mapping[str, Data] | None]:
        """The default runtime and the handlers in Status, else in the effective configuration."""
        section = _shown_section(answer) or {}
        default = section.get("default_runtime")
        return default if isinstance(default, str) else None, section.get("runtimes")

    def table_problems(
        self, table: Data, running: Data, shown: Mapping[str, Data]
    ) -> Iterable[str]:
        """The differences between two tables of a handler. A key that CRI-O shows in no handler is
        not compared, because this CRI-O does not know it."""
        known = merge.shown_keys(shown) | _ESSENTIAL
        for key, value in table.items():
            compared = key in known and key not in _REWRITTEN
            if compared and not same_value(key, value, running.get(key)):
                yield f"{key} is not as wanted"

    def unproven(self, desired: Desired, answer: Answer) -> list[str]:
        """As in the base class; but names alone prove nothing, because CRI-O also lists handlers
        that it has only reloaded."""
        if self.shown_handlers(answer)[1] is None:
            return ["it does not show its handlers"]
        return super().unproven(desired, answer)

    def watch_paths(
        self, settings: Settings, host: HostRoot, running: Process | None
    ) -> Iterator[str]:
        """The root file, the drop-ins and their directory."""
        root, directory = places(settings, host, running)
        yield from filter(None, (root, directory))
        if directory:
            here = host.resolve(directory).agent
            for name in host_files.some_names(here, budget.CONFIG)[0]:
                yield os.path.join(directory, name)

    def pod_handler(self, info: Mapping[str, object]) -> str:
        """The handler in the pod's annotations. CRI-O stores no handler for a pod that asks for
        none; such a pod always belongs to the present default runtime."""
        handler = get(info, ("runtimeSpec", "annotations", _HANDLER))
        return handler if isinstance(handler, str) else ""


ADAPTER = Crio()


@dataclass(frozen=True)
class CrioNode(ConfiguredRuntime):
    """A CRI-O with its configuration.

    `directory` is the host path of the drop-in directory, empty if CRI-O reads no drop-ins; then
    `drop_in` is the root file. `hook` is the file of our OCI hook. The running process reads hooks
    from the directories `hooks_read`, and reads them from `hooks_later` after its next start. Files
    in `overlay` replace those on disk."""

    adapter = ADAPTER

    rules: Rules
    directory: str
    hook: HostPath
    hooks_read: tuple[str, ...]
    hooks_later: tuple[str, ...]
    overlay: Overlay = field(default_factory=dict)

    @property
    def overrides(self) -> Overrides:
        """The settings that are fixed by flags or variables of the running process."""
        return self.rules.overrides

    @property
    def shown_section(self) -> Data | None:
        """The section `crio.runtime` that the running CRI-O shows, None if it shows none."""
        return _shown_section(self.runtime.answer)

    def setting_file(self, setting: Setting) -> str:
        """The host path of the file that sets a flag or a variable of the running process, for a
        message."""
        return command_line.setting_file(self.host, self.runtime.process, setting.source)

    def load(self, overlay: Overlay | None = None) -> Files:
        known = {**self.overlay, **(overlay or {})}
        return load.load(self.host, self.root.name, self.directory, known)

    def effective(self, files: Files) -> Effective:
        return merge.effective(self.rules, files)

    def by_files(self, files: Files) -> Effective:
        """The effective configuration if no flag or variable fixed the default runtime."""
        free = replace(self.overrides, default=None)
        return merge.effective(replace(self.rules, overrides=free), files)

    def edits(self, request: EditRequest) -> tuple[Edits, tuple[str, ...]]:
        planned = edit.edits(self, request)
        return planned, (*unread_warnings(self.files), *edit.warnings(self, request, planned))

    def preflight(self, candidate: Candidate) -> Preflight:
        from agent.runtimes.crio import preflight  # only if something changes

        return preflight.check(self, candidate)

    def launch(
        self, executable: str, desired: Desired, files: Mapping[str, bytes | None]
    ) -> Launch:
        from agent.runtimes.crio import trial  # only if something changes

        return trial.launch(self, executable, desired, files)

    def restart_hazard(self, files: Files) -> RestartHazard | None:
        """The file or flag that sets a default runtime without a handler."""
        effective, fixed = self.effective(files), self.overrides.default
        if effective.default in effective.runtimes:
            return None
        path, key = (config_file.owner(files, merge.DEFAULT) or self.root).path, "default_runtime"
        if fixed:
            place, key = self.setting_file(fixed), fixed.source
            path = HostPath(self.host.agent_path(place), place) if place.startswith("/") else path
        why = (
            f"makes {effective.default} the default runtime by {key}, and there would be no such "
            "handler"
        )
        return RestartHazard(path, why, "take that back first", ADAPTER.title)

    def cgroup_drivers(self) -> Mapping[str, str]:
        """The cgroup driver of the section for all handlers; the built-in one is systemd."""
        effective = self.effective(self.files)
        driver = str(effective.section.get("cgroup_manager") or "systemd")
        return dict.fromkeys(effective.runtimes, driver)

    def comparable_settings(self, file: ConfigFile) -> tuple[object, list[Data]]:
        """The section `crio.runtime`, shown and in the file."""
        return self.shown_section or {}, [get(file.data, merge.RUNTIME) or {}]

    def reload_keys(self, desired: Desired) -> tuple[Path, ...]:
        """The handlers' programs and the default runtime: after SIGHUP, CRI-O shows new handlers at
        once, but pods still get the old ones (observed on 1.37, read in 1.24 to 1.36)."""
        keys = [(*merge.RUNTIMES, name, "runtime_path") for name in desired.handlers]
        return (*keys, *([merge.DEFAULT] if desired.default is not None else []))

    def pod_states(self, effective: Effective, below: str | None) -> Mapping[str, object]:
        """For each handler, the values by which CRI-O finds its pods again (`pod_state`)."""
        states = {name: pod_state(effective, name, below) for name in effective.runtimes}
        return {**states, "": states.get(effective.default)}

    def hook_programs(self, overlay: Overlay) -> Iterable[tuple[HostPath, str]]:
        return hook.programs(self, overlay)

    def watch_paths(self) -> Iterator[str]:
        """The usual paths, the hook, and the directories with drop-ins, because CRI-O reads every
        new file in them."""
        yield from (*super().watch_paths(), self.hook.host)
        if self.directory:
            yield self.directory
            names = (file.name for file in self.files)
            yield from (os.path.dirname(n) for n in names if is_below(n, self.directory))

    def own_keys(self, data: Data, *, switch: bool) -> Iterable[Path]:
        """The paths of our keys. CRI-O has no CDI switch."""
        return own_keys(data, merge.RUNTIMES, merge.DEFAULT)

    def adapted_revert(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """The changes with temporary files outside the drop-in directory (`edit.guarded`)."""
        return tuple(edit.guarded(self, item) for item in changes)


def _shown_section(answer: Answer) -> Data | None:
    return merge.shown_section(answer.config, answer.dump)


def pod_state(effective: Effective, name: str, below: str | None) -> object:
    """The values by which CRI-O finds the pods of a handler again: the name of the low-level
    program, its state directory, and the runtime type. If one of them changes, CRI-O shows the pods
    as ended although their processes run (observed). `below` is the low-level runtime that
    NVIDIA's runtime calls.
    """
    table = effective.runtimes[name]
    inherits = table.get("inherit_default_runtime")
    runs = effective.runtimes.get(effective.default, table) if inherits else table
    program = os.path.basename(str(runs.get("runtime_path") or name))
    if program.startswith("nvidia-container-runtime"):
        program = os.path.basename(below or "")
    return (program, table.get("runtime_root") or _STATE, runs.get("runtime_type") or "oci")


def places(settings: Settings, host: HostRoot, running: Process | None) -> tuple[str, str]:
    """The host paths of the root file and of the drop-in directory that the process `running`
    reads. Each is empty if the process reads none.

    Our own --config counts only if the process cannot be seen and the file exists, because
    gpu-operator names a file that CRI-O never reads.
    """
    if running is not None:
        overrides = command_line.overrides(running)
        root = overrides.config.value if overrides.config else load.ROOT
        directory = overrides.directory.value if overrides.directory else load.DIRECTORY
        return host.seen_by_host(root), host.seen_by_host(directory)
    asked = host.name(settings.config) if settings.config else None
    exists = asked is not None and os.path.isfile(host.agent_path(asked))
    return (asked if asked and exists else load.ROOT), load.DIRECTORY


def drop_in(settings: Settings, host: HostRoot, directory: str, root: ConfigFile) -> HostPath:
    """The file for our drop-in: that of the option, else 99-nvidia.conf. If CRI-O reads no
    drop-ins, the root file. Raises Refused if CRI-O would not read the file of the option."""
    if not directory:
        return root.path
    given = find.given_drop_in(settings, host)
    if given is None:
        return host.resolve(os.path.join(directory, _OURS))
    real = host.resolve(directory)
    if given.host == real.host or not is_below(given.host, real.host):
        raise Refused(
            f"cannot use {given} as drop-in: the running CRI-O takes drop-ins from {directory}; "
            "give a file in that directory, or leave --drop-in-config out"
        )
    return given


def hook_file(settings: Settings, host: HostRoot, read: tuple[str, ...]) -> HostPath:
    """The file of our OCI hook, in the directory of --hooks-dir. Without that option, it is in the
    usual directory if CRI-O reads hooks there, else in the last directory in `read`."""
    name = host.name(settings.crio_hooks_dir)
    if settings.origins["crio_hooks_dir"] == "default" and read:
        usual = host.resolve(name).host
        if usual not in [host.resolve(os.path.normpath(item)).host for item in read]:
            name = os.path.normpath(read[-1])
    above = host.resolve(name)
    join = os.path.join
    file = settings.crio_hook_filename
    return HostPath(join(above.agent, file), join(above.host, file))
