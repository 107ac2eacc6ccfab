"""The adapter of containerd.

Invariant: reads only. A `ContainerdNode` has one observation of the node, so that a decision and
its edits are based on the same moment.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.cri import process
from agent.cri.client import Answer, Unimplemented
from agent.cri.process import Process
from agent.decide import Evidence, Switch
from agent.errors import Refused, Unreachable
from agent.host import budget
from agent.host.files import Change, FileState
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.runtimes import find
from agent.runtimes.base import (
    ConfiguredRuntime,
    Defect,
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
from agent.runtimes.containerd import deadly_specs, edit, faults, handlers, load, merge, rendered
from agent.runtimes.containerd.generations import CRI_PLUGINS, GENERATIONS, Generation, generation
from agent.runtimes.containerd.load import DEFAULT_ROOT, import_pattern
from agent.runtimes.desired_state import (
    LINUX,
    Desired,
    Effective,
    binaries,
    is_ours,
    is_runc,
    is_sandbox,
    own_keys,
    programs_of,
    same,
    same_value,
)
from agent.toml import document
from agent.toml.document import Data, Op, Path, Set, Unset, get
from agent.toolkit import programs

if TYPE_CHECKING:
    from agent.runtimes.preflight import Candidate, Preflight
    from agent.runtimes.trial import Launch

_IMAGES = "io.containerd.cri.v1.images"  # the plugin, since 2.0
_STUB = b"# Emptied by toolkit-agent: another file imports this one by name.\n"


class Containerd(RuntimeAdapter):
    """containerd as a kind of runtime."""

    kind = title = "containerd"
    low_level = ("runc", "crun")
    shape = load.SHAPE
    cgroup_driver_since = (2, 0, 0)

    def explained(
        self, error: Unimplemented, settings: Settings, host: HostRoot, socket: HostPath
    ) -> Unimplemented:
        """The error with the entry of `disabled_plugins` that disables the CRI plugin, if there is
        one."""
        try:
            running = process.find(socket.agent, socket.host, host, self.kind)
            name = root_name(settings, host, running)
            files: Files = (load.load_file(host, name),)
            with contextlib.suppress(Refused):  # no version is known, and imports hardly differ
                files = load.load(host, GENERATIONS[-1], name)
        except (Refused, Unreachable):
            return error
        if (disabling := faults.disabling_entry(GENERATIONS[-1], files)) is None:
            return error
        file, entry = disabling
        return Unimplemented(
            f"{error.message.partition(';')[0]}: disabled_plugins in {file.path} names "
            f"{entry!r}; take it out and restart containerd"
        )

    def configured_runtime(
        self, settings: Settings, host: HostRoot, runtime: Runtime, overlay: Overlay | None = None
    ) -> ContainerdNode:
        """Load the files of a containerd, and find its executable. Raises Refused."""
        gen = generation(self.version_of(runtime))
        root = root_name(settings, host, runtime.process)
        node = ContainerdNode(
            host=host,
            runtime=runtime,
            gen=gen,
            files=load.load(host, gen, root, overlay or {}),
            executable=find.executable(settings, host, runtime.process),
            drop_in=drop_in(settings, host, root),
        )
        if first_unread(node.files):
            from agent.runtimes.containerd import preflight  # its executable is run

            preflight.require_harmless(node, node.files)
        return node

    def evidence(self, answer: Answer) -> tuple[Evidence, ...]:
        """The evidence in Status."""
        return (_evidence("cri-status", answer.config, "enableCDI", "cdiSpecDirs"),)

    def shown_handlers(self, answer: Answer) -> tuple[str | None, Mapping[str, Data] | None]:
        """The default runtime and the handlers in Status."""
        default = get(answer.config, ("containerd", "defaultRuntimeName"))
        return default if isinstance(default, str) else None, handlers.shown_tables(answer)

    def table_problems(
        self, table: Data, running: Data, shown: Mapping[str, Data]
    ) -> Iterable[str]:
        options = running.get("options") or {}
        for key, value in table["options"].items():
            if not same(value, options.get(key)):
                yield f"option {key} is not as wanted"
        for key, value in binaries({"options": options}):
            if value != table["options"].get("BinaryName", ""):
                yield f"option {key} names another binary"
        for key, value in table.items():
            if key != "options" and key in running and not same_value(key, value, running[key]):
                yield f"{key} is not as wanted"

    def watch_paths(
        self, settings: Settings, host: HostRoot, running: Process | None
    ) -> Iterator[str]:
        """The root file, the drop-in and the imports."""
        root = root_name(settings, host, running)
        yield root
        own = drop_in(settings, host, root).host
        yield from (own, os.path.dirname(own))
        imports = load.load_file(host, root).data.get("imports", [])
        for pattern in imports[: budget.CONFIG.values]:
            absolute = os.path.normpath(os.path.join(os.path.dirname(root), pattern))
            yield _fixed_part(absolute)

    def low_level_program(self, effective: Effective, name: str) -> str | None:
        """The program in the options, or that of the v1.linux shim. None for containerd's own
        runc."""
        table = effective.table(name)
        if table.get("runtime_type") == LINUX:
            return next(programs_of(table), None) or effective.linux_runtime or None
        named = dict(sorted(binaries(table))) if is_runc(table) else {}
        return list(named.values())[-1] if named else None  # containerd takes the last spelling

    def pod_programs(
        self, info: Mapping[str, object], running: Effective, handler: str
    ) -> tuple[str, ...]:
        """The programs in the pod's status. containerd keeps them until the pod is gone, also for
        containers that start again, even if its handler changes."""
        options = info.get("runtimeOptions")
        values = options.values() if isinstance(options, Mapping) else ()
        return tuple(value for value in values if isinstance(value, str))


ADAPTER = Containerd()


@dataclass(frozen=True)
class ContainerdNode(ConfiguredRuntime):
    """A containerd with its configuration."""

    adapter = ADAPTER
    imports_drop_in = True

    gen: Generation

    def load(self, overlay: Overlay | None = None) -> Files:
        return load.load(self.host, self.gen, self.root.name, overlay or {})

    def effective(self, files: Files) -> Effective:
        return merge.effective(self.gen, files)

    def evidence(self) -> tuple[Evidence, ...]:
        """Status, and the dump if Status shows nothing."""
        status_evidence = ADAPTER.evidence(self.runtime.answer)
        if status_evidence[0].seen or self.executable is None:
            return status_evidence
        dump = self._dump(self.executable)
        sections = (get(dump, ("plugins", name)) for name in CRI_PLUGINS)
        section = next((one for one in sections if "containerd" in (one or {})), None)
        return (*status_evidence, _evidence("config-dump", section, "enable_cdi", "cdi_spec_dirs"))

    def _dump(self, executable: str, *plugins: str) -> Data | None:
        """The executable's dump of the files on disk; `plugins` as in `config_dump`."""
        from agent.runtimes.command import config_dump  # needed only if the runtime shows nothing

        path = self.root.name if self.root.state is not None else None
        return config_dump(self.host, executable, path, plugins=plugins).data

    def edits(self, request: EditRequest) -> tuple[Edits, tuple[str, ...]]:
        features = handlers.shown_features(self.runtime.answer, self._missing_shims())
        warnings = (
            *unread_warnings(self.files),
            *(f"{one.text}; {one.remedy}" for one in faults.doubtful(self.gen, self.files)),
            *handlers.unknown_key_warnings(self.effective(self.files), request, features),
        )
        return edit.edits(self, request, features), warnings

    def _missing_shims(self) -> tuple[str, ...]:
        """The runtime types for which this containerd has no shim. A type of its generation's
        `missing_shims` is not among them if the shim of an earlier containerd 1.x is still
        installed."""
        return tuple(kind for kind in self.gen.missing_shims if not self._has_shim(kind))

    def _has_shim(self, kind: str) -> bool:
        """Does the shim of a runtime type exist beside the executable, in the usual directories, or
        in the PATH of the running process?"""
        running = self.runtime.process
        path = ((process.environment(running) if running else None) or {}).get("PATH", "")
        beside = (os.path.dirname(self.executable),) if self.executable else ()
        name = "-".join(("containerd-shim", *kind.split(".")[-2:]))
        places = (*beside, *programs.DIRECTORIES, *filter(None, path.split(":")))
        return any(programs.runs(self.host, f"{place}/{name}") for place in places)

    def preflight(self, candidate: Candidate) -> Preflight:
        from agent.runtimes.containerd import preflight  # only if something changes

        preflight.require_harmless(self, candidate.files)
        return preflight.check(self, candidate)

    def launch(
        self, executable: str, desired: Desired, files: Mapping[str, bytes | None]
    ) -> Launch:
        from agent.runtimes.containerd import trial  # only if something changes

        return trial.launch(self, executable, desired, files)

    def restart_hazard(self, files: Files) -> RestartHazard | None:
        """The first CDI spec that would make this containerd crash or hang."""
        return deadly_specs.first_deadly(self.host, self.gen, files)

    def defects(self) -> Iterable[Defect]:
        effective = self.effective(self.files)
        for name, table in effective.runtimes.items():
            path = table.get("base_runtime_spec")
            named = isinstance(path, str) and path
            if named and not os.path.lexists(self.host.agent_path(named)):
                text = f"handler {name} has base_runtime_spec {path}, which is not there"
                yield Defect(text, "write that file, or remove the key", deadly=True)
        sandboxes = {
            str(table["runtime_type"]) for table in effective.runtimes.values()
            if is_sandbox(table) and not table.get("runtime_path")
        }  # fmt: skip
        missing = (kind for kind in sorted(sandboxes) if not self._has_shim(kind))
        lacking = (*self._missing_shims(), *missing)
        yield from faults.defects(self.gen, self.files, effective, lacking)

    def rendered(self) -> Iterable[tuple[str, str, str]]:
        """The files that k3s, RKE2, k0s or MicroK8s write."""
        renderers = ((file.path.host, rendered.renderer(file)) for file in self.files)
        return ((path, one.program, one.source) for path, one in renderers if one)

    def cgroup_drivers(self) -> Mapping[str, str]:
        """The option SystemdCgroup of each handler."""
        tables = self.effective(self.files).runtimes
        drivers = {name: faults.cgroup_driver(table) for name, table in tables.items()}
        return {name: driver for name, driver in drivers.items() if driver}

    def sandbox_image(self) -> str | None:
        """The image in Status (1.x), else in the executable's dump (2.0 and later)."""
        shown = super().sandbox_image()
        if shown or self.executable is None:
            return shown
        dump = self._dump(self.executable, _IMAGES)
        image = get(dump, ("plugins", _IMAGES, "pinned_images", "sandbox"))
        return image if isinstance(image, str) and image else None

    def comparable_settings(self, file: ConfigFile) -> tuple[object, list[Data]]:
        """The CRI section, in Status and in the file."""
        names = merge.names(self.gen, self.files, file)
        sections = [get(file.data, ("plugins", name)) or {} for name in names]
        return self.runtime.answer.config or {}, sections

    def passes_annotation(self, effective: Effective, prefix: str) -> bool:
        """Does a handler of ours list the prefix in container_annotations?"""
        tables = [table for name, table in effective.runtimes.items() if is_ours(name, table)]
        known = {item for table in tables for item in table.get("container_annotations") or ()}
        return f"{prefix}*" in known

    def watch_paths(self) -> Iterator[str]:
        """The usual paths, and the directories of imports with a wildcard."""
        yield from super().watch_paths()
        for file in self.files:
            for pattern in file.data.get("imports", []):
                absolute = import_pattern(self.gen, file.name, pattern)
                if absolute is not None and "*" in absolute:
                    yield _fixed_part(absolute)

    def own_keys(self, data: Data, *, switch: bool) -> Iterable[Path]:
        """The paths of our keys, in the section of each plugin that has handlers."""
        for name, section in data.get("plugins", {}).items():
            above: Path = ("plugins", name)
            yield from own_keys(data, (*above, *handlers.RUNTIMES), (*above, *handlers.DEFAULT))
            if switch and get(section, ("enable_cdi",)) is True:
                yield (*above, "enable_cdi")

    def revert_operations(
        self, name: str, ops: list[Op], data: tuple[Data, Data], imported: tuple[str, ...] | None
    ) -> list[Op]:
        """The operations, with our imports removed too. With containerd 1.x, the table of the
        default runtime is kept while the file has other handlers."""
        current, before = data
        if self.gen.merge == "replace":
            ops = _with_default_table(current, ops)
        if imported is None:
            return ops
        pattern = functools.partial(import_pattern, self.gen, name)
        gone = {pattern(item) or item for item in (edit.import_glob(self.drop_in), *imported)}
        listed, old = current.get("imports", []), before.get("imports", [])
        kept = [item for item in listed if item in old or (pattern(item) or item) not in gone]
        if kept == listed:
            return ops
        keep = kept or "imports" in before  # an empty list of the admin's comes back
        return [*ops, Set(("imports",), kept) if keep else Unset(("imports",))]

    def adapted_revert(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """The changes; but a file that another file imports by name is emptied, not removed,
        because containerd does not start without it."""
        if all(item.after for item in changes):
            return changes
        overlay = {item.path.host: item.after for item in changes}
        needed = set()
        for file in self.files:
            data = file.data
            if file.path.host in overlay:
                state = overlay[file.path.host]
                data = document.parse(state.data, file.path.host) if state else {}
            for item in data.get("imports", []):
                name = import_pattern(self.gen, file.name, item)
                if name and "*" not in item:
                    needed.add(self.host.resolve(name).host)
        return tuple(
            replace(item, after=replace(item.before or FileState(b""), data=_STUB))
            if item.after is None and item.path.host in needed
            else item
            for item in changes
        )


def root_name(settings: Settings, host: HostRoot, running: Process | None) -> str:
    """The host path of the root file: that of the running process, else --config.

    Raises Refused if the two differ, because the running containerd would never read our edit.
    """
    loaded = None
    if running is not None:
        loaded = host.seen_by_host(running.config or DEFAULT_ROOT)
    if not settings.config:
        return loaded or DEFAULT_ROOT
    asked = host.name(settings.config)
    if loaded and host.resolve(asked) != host.resolve(loaded):
        raise Refused(
            f"cannot use {asked}: the running containerd loads {loaded}; leave --config out or "
            "give that file"
        )
    return asked


def drop_in(settings: Settings, host: HostRoot, root: str) -> HostPath:
    """The file for our drop-in: that of the option, else conf.d/99-nvidia.toml beside the root
    file."""
    return find.given_drop_in(settings, host) or host.resolve(
        os.path.join(os.path.dirname(root), "conf.d", "99-nvidia.toml")
    )


def _fixed_part(pattern: str) -> str:
    """The directory above the first part with a wildcard. Its modification time changes when an
    entry comes or goes."""
    while any(char in pattern for char in "*?["):
        pattern = os.path.dirname(pattern)
    return pattern


def _evidence(source: str, data: object, switch: str, dirs: str) -> Evidence:
    if not isinstance(data, dict) or "containerd" not in data:
        return Evidence(source)
    listed, switch_value = data.get(dirs), Switch.ABSENT
    if switch in data:
        values = ((True, Switch.TRUE), (False, Switch.FALSE), (None, Switch.NULL))
        switch_value = next(
            (seen for value, seen in values if data[switch] is value), Switch.UNSEEN
        )
    return Evidence(
        source, switch_value, tuple(map(str, listed)) if isinstance(listed, list) else None
    )


def _with_default_table(current: Data, ops: list[Op]) -> list[Op]:
    """The operations without those that remove the default runtime's table while other handlers
    stay. containerd 1.x does not serve the CRI if a file has handlers but not the default."""
    after = document.apply(current, ops)
    for name, section in after.get("plugins", {}).items():
        below: Path = ("plugins", name, "containerd")
        default = document.get(section, ("containerd", "default_runtime_name")) or "runc"
        runtimes = document.get(after, (*below, "runtimes")) or {}
        table = (*below, "runtimes", default)
        if runtimes and default not in runtimes and document.get(current, table) is not None:
            ops = [op for op in ops if op.path[: len(table)] != table]
    return ops
