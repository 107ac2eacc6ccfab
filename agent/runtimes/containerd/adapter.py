"""The adapter of containerd.

Invariant: reads only. Later steps use one observation of the node, so that a decision and the edit
that follows from it are about the same moment.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cri import process
from agent.cri.client import Answer, Unimplemented
from agent.cri.process import Process
from agent.cri.versions import parse_version
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
    Effective,
    Rendered,
    RestartHazard,
    Restoration,
    Runtime,
    RuntimeAdapter,
)
from agent.runtimes.command import config_dump
from agent.runtimes.config_file import ConfigFile, Files, Overlay
from agent.runtimes.containerd import deadly_specs, edit, faults, handlers, load, merge, rendered
from agent.runtimes.containerd.generations import CRI_PLUGINS, GENERATIONS, Generation, generation
from agent.runtimes.containerd.load import DEFAULT_ROOT, import_pattern
from agent.runtimes.containerd.overlay import EditInput, import_glob
from agent.runtimes.desired_state import (
    LINUX,
    Desired,
    binaries,
    is_ours,
    is_runc,
    is_sandbox,
    programs_of,
)
from agent.runtimes.preflight import Candidate, Preflight, first_unread, unread_warnings
from agent.toml import document
from agent.toml.document import Data, Op, Path, Set, Unset, get
from agent.toolkit import programs

if TYPE_CHECKING:
    from agent.runtimes.trial import Launch

_IMAGES = "io.containerd.cri.v1.images"  # the plugin, since 2.0
_STUB = b"# Emptied by toolkit-agent: another file imports this one by name.\n"


class Containerd(RuntimeAdapter):
    """The kind of runtime."""

    kind = title = "containerd"
    low_level = ("runc", "crun")
    cgroup_driver_since = (2, 0, 0)

    def explained(
        self, error: Unimplemented, settings: Settings, host: HostRoot, socket: HostPath
    ) -> Unimplemented:
        """A containerd whose configuration disables the CRI plugin."""
        try:
            running = process.find(socket.agent, socket.host, host, self.kind)
            name = root_name(settings, host, running)
            files: Files = (load.load_file(host, name),)
            with contextlib.suppress(Refused):  # no version is known, and imports hardly differ
                files = load.load(host, GENERATIONS[-1], name)
        except (Refused, Unreachable):
            return error
        for file in files:
            entry = load.disabled_cri(file)
            if entry is not None:
                return Unimplemented(
                    f"{error.message.partition(';')[0]}: disabled_plugins in {file.path} names "
                    f"{entry!r}; take it out and restart containerd"
                )
        return error

    def look(
        self, settings: Settings, host: HostRoot, runtime: Runtime, overlay: Overlay | None = None
    ) -> ContainerdNode:
        """The node of a containerd that was found. Raises Refused."""
        version = parse_version(runtime.version)
        if version is None:
            raise Refused(
                f"cannot work with containerd {runtime.version!r}: that is not a version number"
            )
        gen = generation(version)
        root = root_name(settings, host, runtime.process)
        node = ContainerdNode(
            runtime=runtime,
            gen=gen,
            files=load.load(host, gen, root, overlay or {}),
            executable=find.executable(settings, host, runtime.process),
            drop_in=drop_in(settings, host, root),
        )
        if first_unread(node.files):
            from agent.runtimes.containerd import preflight  # its executable is run

            preflight.require_harmless(host, node, node.files)
        return node

    def check_shape(self, file: ConfigFile) -> None:
        load.check_shape(file)

    def evidence(self, answer: Answer) -> tuple[Evidence, ...]:
        """What Status shows of CDI."""
        return (_evidence("cri-status", answer.config, "enableCDI", "cdiSpecDirs"),)

    def shown_default(self, answer: Answer) -> object:
        """The default runtime in Status."""
        return get(answer.config, ("containerd", "defaultRuntimeName"))

    def shown_handlers(self, answer: Answer) -> object:
        """The handlers' tables in Status."""
        return handlers.shown_handlers(answer)

    def unproven(self, desired: Desired, answer: Answer) -> list[str]:
        return handlers.unproven(desired, answer)

    def watch_paths(
        self, settings: Settings, host: HostRoot, running: Process | None
    ) -> Iterator[str]:
        """Root file, drop-in and imports of a containerd whose configuration cannot be read."""
        root = root_name(settings, host, running)
        yield root
        yield from _with_directory(drop_in(settings, host, root).host)
        imports = load.load_file(host, root).data.get("imports", [])
        for pattern in imports[: budget.CONFIG.values]:
            absolute = os.path.normpath(os.path.join(os.path.dirname(root), pattern))
            yield _fixed_part(absolute)

    def low_level_program(self, effective: Effective, name: str) -> str | None:
        """The program in the options, or that of the v1.linux shim; None for containerd's runc."""
        table = effective.table(name)
        if table.get("runtime_type") == LINUX:
            return next(programs_of(table), None) or effective.linux_runtime or None
        named = dict(sorted(binaries(table))) if is_runc(table) else {}
        return list(named.values())[-1] if named else None  # so does containerd choose

    def pod_programs(
        self, info: Mapping[str, object], running: Effective, handler: str
    ) -> tuple[str, ...]:
        """The programs that containerd keeps for each pod until the pod is gone, whatever becomes
        of its handler. Containers that start again are run by them too."""
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

    def load(self, host: HostRoot, overlay: Overlay | None = None) -> Files:
        return load.load(host, self.gen, self.root.name, overlay or {})

    def effective(self, files: Files) -> Effective:
        return merge.effective(self.gen, files)

    def shown_tables(self, by_files: Effective) -> Mapping[str, Data]:
        """The handlers that Status shows, with their tables from the files, because Status shows
        some keys under other names."""
        shown = ADAPTER.shown_handlers(self.runtime.answer)
        names = shown if isinstance(shown, dict) and shown else self.runtime.answer.handlers
        return {name: by_files.table(name) for name in names if name}

    def evidence(self, host: HostRoot) -> tuple[Evidence, ...]:
        """Status, and the dump if Status shows nothing."""
        found = ADAPTER.evidence(self.runtime.answer)
        if found[0].seen or self.executable is None:
            return found
        path = self.root.name if self.root.state is not None else None
        return (*found, _dump_evidence(config_dump(host, self.executable, path).data))

    def edits(self, host: HostRoot, request: EditRequest) -> tuple[Edits, tuple[str, ...]]:
        settings, memory, available = request.settings, request.memory, request.available
        features = handlers.shown_features(self.runtime.answer, self._missing_shims(host))

        def derive(effective: Effective) -> Desired:
            return handlers.derive_desired(
                effective, request.decision, available, settings.runtime_name, memory.default,
                settings.runtime_type, features,
            )  # fmt: skip

        warnings = (
            *unread_warnings(self.files),
            *faults.hidden(self.gen, self.files),
            *faults.doubtful(self.gen, self.files),
            *handlers.left_out(self.effective(self.files), available, memory.default, features),
        )
        inputs = EditInput(host, self.gen, self.files, self.drop_in, memory, derive)
        return edit.edits(inputs), warnings

    def _missing_shims(self, host: HostRoot) -> tuple[str, ...]:
        """The runtime types for which this containerd has no shim. A shim of an earlier containerd
        1.x may still be installed."""
        return tuple(kind for kind in self.gen.missing_shims if not self._has_shim(host, kind))

    def _has_shim(self, host: HostRoot, kind: str) -> bool:
        """Is there a program for a runtime type, beside the executable or in its PATH?"""
        running = self.runtime.process
        path = ((process.environment(running) if running else None) or {}).get("PATH", "")
        beside = (os.path.dirname(self.executable),) if self.executable else ()
        name = "-".join(("containerd-shim", *kind.split(".")[-2:]))
        places = (*beside, *programs.DIRECTORIES, *filter(None, path.split(":")))
        return any(programs.runs(host, f"{place}/{name}") for place in places)

    def preflight(self, host: HostRoot, candidate: Candidate) -> Preflight:
        from agent.runtimes.containerd import preflight  # only where something changes

        preflight.require_harmless(host, self, candidate.files)
        return preflight.check(host, self, candidate)

    def launch(
        self, host: HostRoot, executable: str, desired: Desired, files: Mapping[str, bytes | None]
    ) -> Launch:
        from agent.runtimes.containerd import trial  # only where something changes

        return trial.launch(host, self, executable, desired, files)

    def restart_hazard(self, host: HostRoot, files: Files) -> RestartHazard | None:
        """CDI specs of which this containerd dies."""
        return deadly_specs.deadly(host, self.gen, files)

    def defects(self, host: HostRoot) -> Iterable[Defect]:
        effective = self.effective(self.files)
        for name, path in faults.base_specs(effective):
            if not os.path.lexists(host.agent_path(path)):
                text = f"handler {name} has base_runtime_spec {path}, which is not there"
                yield Defect(text, "write that file, or remove the key", deadly=True)
        sandboxes = {
            str(table["runtime_type"]) for table in effective.runtimes.values()
            if is_sandbox(table) and not table.get("runtime_path")
        }  # fmt: skip
        missing = (kind for kind in sorted(sandboxes) if not self._has_shim(host, kind))
        lacking = (*self._missing_shims(host), *missing)
        yield from faults.defects(self.gen, self.files, effective, lacking)

    def rendered(self) -> Iterable[Rendered]:
        """k3s, RKE2, k0s and MicroK8s write the configuration of their containerd."""
        for file in self.files:
            if found := rendered.renderer(file):
                yield Rendered(file.path.host, found.program, found.source)

    def cgroup_drivers(self) -> Mapping[str, str]:
        """The option SystemdCgroup of each handler."""
        tables = self.effective(self.files).runtimes
        found = {name: faults.cgroup_driver(table) for name, table in tables.items()}
        return {name: driver for name, driver in found.items() if driver}

    def sandbox_image(self, host: HostRoot) -> str | None:
        """The one in Status (1.x), or that in the dump (2.0 and later do not show it)."""
        shown = super().sandbox_image(host)
        if shown or self.executable is None:
            return shown
        path = self.root.name if self.root.state is not None else None
        dump = config_dump(host, self.executable, path, (), (), (_IMAGES,))
        found = get(dump.data, ("plugins", _IMAGES, "pinned_images", "sandbox"))
        return found if isinstance(found, str) and found else None

    def shows(self, file: ConfigFile) -> tuple[object, list[Data]]:
        """The CRI section, in Status and in the file."""
        names = merge.names(self.gen, self.files, file)
        sections = [get(file.data, ("plugins", name)) or {} for name in names]
        return self.runtime.answer.config or {}, sections

    def passes_annotation(self, effective: Effective, prefix: str) -> bool:
        """containerd passes what a handler of ours lists."""
        tables = [table for name, table in effective.runtimes.items() if is_ours(name, table)]
        known = {item for table in tables for item in table.get("container_annotations") or ()}
        return f"{prefix}*" in known

    def watch_paths(self, host: HostRoot) -> Iterator[str]:
        """Its files, and the directories of imports with a wildcard."""
        yield from _with_directory(self.drop_in.host)
        for file in self.files:
            yield file.name
            for pattern in file.data.get("imports", []):
                absolute = import_pattern(self.gen, file.name, pattern)
                if absolute is not None and "*" in absolute:
                    yield _fixed_part(absolute)

    def own_keys(self, data: Data, *, switch: bool) -> Iterable[Path]:
        """In each plugin's section that has handlers."""
        for name, section in data.get("plugins", {}).items():
            if not isinstance(section, dict):
                continue
            above: Path = ("plugins", name)
            runtimes = get(section, ("containerd", "runtimes"), {})
            for handler, table in runtimes.items():
                if is_ours(handler, table):
                    yield (*above, "containerd", "runtimes", handler)
            default = get(section, ("containerd", "default_runtime_name"))
            if default and is_ours(default, runtimes.get(default, {})):
                yield (*above, "containerd", "default_runtime_name")
            if switch and section.get("enable_cdi") is True:
                yield (*above, "enable_cdi")

    def restored(self, host: str, current: Data, restoration: Restoration) -> list[Op]:
        """Our imports are removed. In containerd 1.x the table of the default runtime stays as long
        as other handlers do."""
        ops = restoration.ops
        if self.gen.merge == "replace":
            ops = _with_default_table(current, ops)
        if not restoration.drop_in_goes:
            return ops
        pattern = functools.partial(import_pattern, self.gen, host)
        gone = {
            pattern(item) or item for item in (import_glob(self.drop_in), *restoration.imported)
        }
        listed, old = current.get("imports", []), restoration.original.get("imports", [])
        kept = [item for item in listed if item in old or (pattern(item) or item) not in gone]
        if kept == listed:
            return ops
        keep = kept or "imports" in restoration.original  # an empty list of the admin's comes back
        return [*ops, Set(("imports",), kept) if keep else Unset(("imports",))]

    def finished(self, host: HostRoot, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """A file that another one imports by name is emptied instead of removed, because containerd
        does not start without it."""
        overlay = {item.path.host: item.after for item in changes}
        kept = []
        for item in changes:
            if item.after is None and self._imported_by_name(host, item.path, overlay):
                state = item.before or FileState(b"")
                emptied = FileState(_STUB, state.mode, state.uid, state.gid)
                item = Change(item.path, item.before, emptied)
            kept.append(item)
        return tuple(kept)

    def _imported_by_name(
        self, host: HostRoot, path: HostPath, overlay: Mapping[str, FileState | None]
    ) -> bool:
        for file in self.files:
            data = file.data
            if file.path.host in overlay:
                state = overlay[file.path.host]
                data = document.parse(state.data, file.path.host) if state else {}
            for item in data.get("imports", []):
                name = import_pattern(self.gen, file.name, item)
                if name and "*" not in item and host.resolve(name).host == path.host:
                    return True
        return False


def root_name(settings: Settings, host: HostRoot, running: Process | None) -> str:
    """Host name of the root file: what the process was started with, or the option.

    Raises Refused if the two disagree: the running containerd would never read our edit.
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
    """Our drop-in: as asked for, else conf.d/99-nvidia.toml beside the root file."""
    return find.given_drop_in(settings, host) or host.resolve(
        os.path.join(os.path.dirname(root), "conf.d", "99-nvidia.toml")
    )


def _with_directory(path: str) -> Iterator[str]:
    yield path
    yield os.path.dirname(path)


def _fixed_part(pattern: str) -> str:
    """The directory above the first part with a wildcard. Its time changes with its entries."""
    while any(char in pattern for char in "*?["):
        pattern = os.path.dirname(pattern)
    return pattern


def _dump_evidence(data: Data | None) -> Evidence:
    for name in CRI_PLUGINS:
        section = get(data, ("plugins", name))
        if isinstance(section, dict) and "containerd" in section:
            return _evidence("config-dump", section, "enable_cdi", "cdi_spec_dirs")
    return Evidence("config-dump")


def _evidence(source: str, data: object, switch: str, dirs: str) -> Evidence:
    if not isinstance(data, dict) or "containerd" not in data:
        return Evidence(source)
    listed = data.get(dirs)
    found = tuple(map(str, listed)) if isinstance(listed, list) else None
    return Evidence(source, _switch(data, switch), found)


def _switch(data: Mapping[str, object], key: str) -> Switch:
    if key not in data:
        return Switch.ABSENT
    for value, switch in ((True, Switch.TRUE), (False, Switch.FALSE), (None, Switch.NULL)):
        if data[key] is value:
            return switch
    return Switch.UNSEEN


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
