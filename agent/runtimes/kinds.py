"""What differs between containerd and CRI-O, behind one function each.

Invariant: the engine (propose, converge, change, recover, revert) knows no runtime by name;
whatever depends on the kind of runtime is decided here, by the node that it is given. What is
CRI-O's alone is loaded where there is one, inside the functions: the others need not wait for it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from agent.cri.client import Answer
from agent.decide import Decision
from agent.errors import Refused
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.plan import unread
from agent.runtimes import desired as wishes
from agent.runtimes import node as nodes
from agent.runtimes import pods
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd import deadly_specs, edit, faults, handlers, merge, preflight
from agent.runtimes.containerd import load as config
from agent.runtimes.containerd.edit import Edits
from agent.runtimes.containerd.load import Overlay
from agent.runtimes.containerd.merge import Cri
from agent.runtimes.containerd.overlay import Scene
from agent.runtimes.containerd.preflight import Candidate, Preflight
from agent.runtimes.crio import answer as crio
from agent.runtimes.desired import Wanted
from agent.runtimes.node import Node, Runtime
from agent.state.store import Memory, Store
from agent.toml import edit as tomledit
from agent.toml.edit import Data, get
from agent.toolkit import programs
from agent.toolkit.programs import Binary

if TYPE_CHECKING:
    from agent.runtimes.crio.node import CrioNode
    from agent.runtimes.trial import Subject

AnyNode: TypeAlias = "Node | CrioNode"
Files = tuple[ConfigFile, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """What edits are made from, besides the node. `hook_program`: the host path of the program
    that an OCI hook would run, None where there is none."""

    settings: Settings
    store: Store
    memory: Memory
    decision: Decision
    available: tuple[Binary, ...]
    hook_program: str | None = None


def look(
    settings: Settings, host: HostRoot, runtime: Runtime, overlay: Overlay | None = None
) -> AnyNode:
    """Configuration and executable of a runtime that was found; `overlay` as in `config.load`.
    Raises Refused."""
    if runtime.kind == "crio":
        from agent.runtimes.crio import node as crio_nodes

        found = crio_nodes.look(settings, host, runtime, overlay)
        if unread.first(found.files):
            from agent.runtimes.crio import preflight as crio_check

            crio_check.require_harmless(host, found)
        return found
    node = nodes.with_config(settings, host, runtime, overlay)
    unread.require_harmless(host, node, node.files)
    return node


def load(node: AnyNode, host: HostRoot, overlay: Overlay | None = None) -> Files:
    """The node's files as they are by now; `overlay` as in `config.load`. Raises Refused."""
    if isinstance(node, Node):
        return config.load(host, node.gen, node.root.name, overlay or {})
    return node.load(host, overlay)


def refuse_changed(node: AnyNode, host: HostRoot) -> None:
    """See that the runtime's files are still those that were looked at, one that came or went
    included: what was planned and checked was the whole. Raises Refused."""
    was = {file.name: file.state and file.state.digest for file in node.files}
    now = {file.name: file.state and file.state.digest for file in load(node, host)}
    for name in (*was, *now):
        if name not in was or name not in now or was[name] != now[name]:
            raise Refused(
                f"cannot write: somebody changed {name} in the meantime; nothing was changed; "
                "try again"
            )


def effective(node: AnyNode, files: Files) -> Cri:
    """What the runtime makes of these files at its next start."""
    if isinstance(node, Node):
        return merge.effective(node.gen, files)
    return node.effective(files)


def edits(node: AnyNode, host: HostRoot, wish: Wish) -> tuple[Edits, tuple[str, ...]]:
    """What has to be written, and warnings. Raises Refused."""
    settings, memory, available = wish.settings, wish.memory, wish.available
    if not isinstance(node, Node):
        from agent.runtimes.crio import edit as crio_plan

        scene = crio_plan.Scene(
            host, settings, wish.store, node, memory, wish.decision, available, wish.hook_program
        )
        found = crio_plan.edits(scene)
        return found, (*unread.warnings(node.files), *crio_plan.warnings(scene, found))

    seen = handlers.shown(node.runtime.answer.config, _lacking(node, host))

    def want(cri: Cri) -> Wanted:
        return handlers.want(
            cri, wish.decision, available, settings.runtime_name, memory.default,
            settings.runtime_type, seen,
        )  # fmt: skip

    told = (
        *unread.warnings(node.files),
        *faults.hidden(node.gen, node.files),
        *faults.doubtful(node.gen, node.files),
        *handlers.left_out(effective(node, node.files), available, memory.default, seen),
    )
    return edit.edits(Scene(host, node.gen, node.files, node.drop_in, memory, want)), told


def _lacking(node: Node, host: HostRoot) -> tuple[str, ...]:
    """Types of handlers that this containerd has no shim for. One may be left of a containerd 1.x
    that was there before."""
    beside = (os.path.dirname(node.executable),) if node.executable else ()

    def there(kind: str) -> bool:
        name = "-".join(("containerd-shim", *kind.split(".")[-2:]))
        places = (*beside, *programs.DIRECTORIES)
        return any(programs.runs(host, f"{place}/{name}") for place in places)

    return tuple(kind for kind in node.gen.lacking if not there(kind))


def unproven(wanted: Wanted, answer: Answer) -> list[str]:
    """What the running runtime lacks, in words; empty where it is as wanted."""
    if answer.name == crio.NAME:
        from agent.runtimes.crio import desired as crio_wishes

        return crio_wishes.unproven(wanted, answer)
    return wishes.unproven(wanted, answer)


def check(host: HostRoot, node: AnyNode, candidate: Candidate) -> Preflight:
    """What the runtime's own executable makes of the files as they will be. Raises Refused."""
    if isinstance(node, Node):
        unread.require_harmless(host, node, candidate.files)
        return preflight.check(host, node, candidate)
    from agent.runtimes.crio import preflight as crio_check

    return crio_check.check(host, node, candidate)


def trial_subject(host: HostRoot, node: AnyNode, wanted: Wanted) -> Subject | str:
    """What a trial start of this runtime is made with, or why there can be none."""
    from agent.runtimes import trial  # loaded where a restart is due only
    from agent.runtimes.containerd import (
        trial as trial_containerd,  # loaded where a restart is due only
    )

    if node.executable is None:
        return preflight.UNKNOWN
    problems = functools.partial(unproven, wanted)
    if isinstance(node, Node):
        launch = functools.partial(trial_containerd.launch, host, node, node.executable, wanted)
        return trial.Subject("containerd", node.executable, launch, problems)
    from agent.runtimes.crio import trial as crio_trial

    launch = functools.partial(crio_trial.launch, host, node, node.executable, wanted)
    return trial.Subject("CRI-O", node.executable, launch, problems)


def deadly(node: AnyNode, host: HostRoot, files: Files) -> deadly_specs.Deadly | None:
    """What the runtime would die of at a start on these files."""
    return (
        deadly_specs.deadly(host, node.gen, files)
        if isinstance(node, Node)
        else node.deadly(host, files)
    )


def shown(answer: Answer) -> tuple[str | None, tuple[str, ...]]:
    """The default runtime and the handlers that the runtime shows; None and none where it does
    not say."""
    default, tables = _shown(answer)
    listed = tuple(name for name in answer.handlers if name)
    names = tuple(sorted(tables)) if isinstance(tables, dict) and tables else listed
    return (default if isinstance(default, str) else None), names


def shows_nvidia(answer: Answer) -> bool:
    """Does the runtime show a default runtime that is NVIDIA's, whatever its name?"""
    default, tables = _shown(answer)
    said = tomledit.get(tables, (str(default),))
    table: dict[str, object] = said if isinstance(said, dict) else {}
    # containerd's names for keys, where CRI-O has those of its file
    keys: dict[str, str] = {
        "runtimeType": "runtime_type",
        "runtimePath": "runtime_path",
        "runtimeEngine": "runtime_engine",
    }
    named = {keys.get(key, key): value for key, value in table.items()}
    return wishes.is_ours(str(default), named)


def _shown(answer: Answer) -> tuple[object, object]:
    """What the runtime shows as its default and its handlers' tables, as it says it."""
    if answer.name == crio.NAME:
        from agent.runtimes.crio import merge as crio_rules

        said = crio_rules.shown(answer.config, answer.dump) or {}
        return said.get("default_runtime"), said.get("runtimes")
    containerd = (answer.config or {}).get("containerd")
    below = containerd if isinstance(containerd, dict) else {}
    return below.get("defaultRuntimeName"), below.get("runtimes")


def running(node: AnyNode) -> Cri:
    """What the running runtime shows, over what its files say where it does not show it."""
    cri = effective(node, node.files)
    default, names = shown(node.runtime.answer)
    if isinstance(node, Node):
        tables: Mapping[str, Data] = {name: cri.table(name) for name in names}
    else:
        from agent.runtimes.crio.node import shown as crio_shown

        tables = {n: t for n, t in get(crio_shown(node.runtime), ("runtimes",), {}).items() if t}
    return Cri(default or cri.default, {**cri.runtimes, **tables}, cri.enable_cdi, cri.section)


def pod_states(node: AnyNode, cri: Cri, below: str | None) -> Mapping[str, object]:
    """What the pods of each handler ("" is the default) need to stay as it is. containerd keeps for
    each pod the program that runs it: there the handler only has to be there, for a container that
    starts again. CRI-O finds a pod again by its handler alone. `below` is the low-level program
    that NVIDIA's runtime calls."""
    if isinstance(node, Node):
        return dict.fromkeys(("", *cri.runtimes))
    found = {name: pods.crio_state(name, cri.runtimes, cri.default, below) for name in cri.runtimes}
    return {**found, "": found.get(cri.default)}


def pods_by_list(node: AnyNode) -> bool:
    """Do the runtime's lists say which handler a pod was created with?"""
    return isinstance(node, Node)


def passed(node: AnyNode, cri: Cri) -> Callable[[str], bool]:
    """Does a container's annotation with this prefix reach NVIDIA's runtime? CRI-O passes all."""
    if not isinstance(node, Node):
        return lambda _: True
    tables = [table for name, table in cri.runtimes.items() if wishes.is_ours(name, table)]
    known = {item for table in tables for item in table.get("container_annotations") or ()}
    return lambda prefix: f"{prefix}*" in known


def hook_programs(
    node: AnyNode, host: HostRoot, overlay: Overlay
) -> Iterable[tuple[HostPath, str]]:
    """Files with OCI hooks that the runtime will read, each with the program that it names."""
    if isinstance(node, Node):
        return ()
    from agent.runtimes.crio import hook  # see above

    return hook.programs(node, host, overlay)


def needs_restart(node: AnyNode, changed: tuple[str, ...]) -> bool:
    """Does the runtime see a change of these files (host paths) only at its next start? CRI-O
    looks at its hooks all the time."""
    return isinstance(node, Node) or any(name != node.hook.host for name in changed)
