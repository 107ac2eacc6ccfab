"""What has to be looked at while waiting: every path whose change can make this node wrong.

Invariant: reads only, never raises, and names paths as we open them. A path too many costs a
convergence that does nothing; one that is missing is a node that stays wrong until the interval.

An entry is a path, `PREFIX*DIRECTORY` for the names in a directory that start so,
`!PREFIX*DIRECTORY` for all other files in it, with their content, or `=PATH` for a path of which
only counts what it is and whose, but not what is in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from agent import status
from agent.cdi.driver import driver
from agent.cdi.make import generate
from agent.cri import process
from agent.cri.process import Process
from agent.errors import AgentError
from agent.host import budget, files
from agent.host.paths import HostPath, HostRoot, is_below
from agent.plan import own_specs
from agent.plan.context import Context
from agent.runtimes import node as nodes
from agent.runtimes.config_file import import_pattern
from agent.runtimes.containerd import load
from agent.runtimes.crio import node as crio_nodes
from agent.runtimes.crio.node import CrioNode
from agent.runtimes.kinds import AnyNode
from agent.toolkit import install, programs


def watched(
    ctx: Context, node: AnyNode | None, spec: own_specs.Proposed | None = None
) -> tuple[str, ...]:
    """The watch list; `node` None where none could be read, `spec` None where none was made."""
    files = _of_node(ctx, node) if node is not None else _of_settings(ctx)
    way = (f"={path}" for path in (spec.way if spec else ()))
    return tuple(dict.fromkeys((*files, *_published(ctx), *_programs(ctx), *_cdi(ctx, node), *way)))


def _of_node(ctx: Context, node: AnyNode) -> Iterator[str]:
    yield from _path(ctx.host, node.runtime.socket.host)
    yield from _drop_in(node.drop_in)
    if isinstance(node, CrioNode):
        yield from _of_crio(ctx.host, node)
        return
    for file in node.files:
        yield from _path(ctx.host, file.name)
        for pattern in file.data.get("imports", []):
            absolute = import_pattern(node.gen, file.name, pattern)
            if absolute is not None and "*" in absolute:
                yield from _path(ctx.host, _fixed_part(absolute))


def _of_crio(host: HostRoot, node: CrioNode) -> Iterator[str]:
    """Every directory with drop-ins is one whose time counts: any name in it does."""
    yield node.hook.agent
    if node.directory:
        yield from _path(host, node.directory)
    for file in node.files:
        if not file.name:
            continue  # a root file that CRI-O does not read
        yield from _path(host, file.name)
        if node.directory and is_below(file.name, node.directory):
            yield from _path(host, os.path.dirname(file.name))


def _fixed_part(pattern: str) -> str:
    """The directory above the first part with a wildcard: its time changes with its entries."""
    while any(char in pattern for char in "*?["):
        pattern = os.path.dirname(pattern)
    return pattern


def _of_settings(ctx: Context) -> Iterator[str]:
    """A runtime that is down or cannot be worked with: where it would be, and its files."""
    settings, host = ctx.settings, ctx.host
    kinds = tuple(nodes.SOCKETS) if settings.runtime == "auto" else (settings.runtime,)
    sockets = [(kind, path) for kind in kinds for path in nodes.SOCKETS[kind]]
    for kind, path in [(kinds[0], settings.socket)] if settings.socket else sockets:
        try:
            socket = host.locate(path)
        except AgentError:
            yield host.agent_path(host.name(path))
            continue
        yield socket.agent
        yield from _of_process(ctx, _running(host, socket, kind), kind)


def _running(host: HostRoot, socket: HostPath, kind: str) -> Process | None:
    try:
        return process.find(socket.agent, socket.host, host, kind)
    except AgentError:
        return None


def _of_process(ctx: Context, running: Process | None, kind: str) -> Iterator[str]:
    """The files of a runtime whose configuration may be the trouble."""
    try:
        if kind == "crio":
            root, directory = crio_nodes.places(ctx.settings, ctx.host, running)
            for name in filter(None, (root, directory)):
                yield from _path(ctx.host, name)
            if directory:
                here = ctx.host.resolve(directory).agent
                yield here
                for file in files.some_names(here, budget.CONFIG)[0]:
                    yield from _path(ctx.host, os.path.join(directory, file))
            return
        root = nodes.root_name(ctx.settings, ctx.host, running)
        yield from _path(ctx.host, root)
        yield from _drop_in(nodes.drop_in(ctx.settings, ctx.host, root))
        imports = load.load_file(ctx.host, root).data.get("imports", [])
        for pattern in imports[: budget.CONFIG.values]:
            absolute = os.path.normpath(os.path.join(os.path.dirname(root), pattern))
            yield from _path(ctx.host, _fixed_part(absolute))
    except (AgentError, OSError):
        return


def _drop_in(path: HostPath) -> Iterator[str]:
    yield path.agent
    yield os.path.dirname(path.agent)


def _path(host: HostRoot, name: str) -> Iterator[str]:
    """A host path by its name and by where its links lead: both can be exchanged."""
    yield host.agent_path(name)
    try:
        yield host.resolve(name).agent
    except AgentError:
        return


def _published(ctx: Context) -> Iterator[str]:
    """Not their directory, nor the error file: others write there, and so do failures of ours."""
    for name in (status.READY, status.TWIN):
        yield ctx.publisher.path(name)


def _programs(ctx: Context) -> Iterator[str]:
    host = ctx.host
    yield from install.watched(ctx.settings, ctx.host)
    installed = os.path.join(host.name(ctx.settings.toolkit_install_dir), "toolkit")
    for directory in (installed, "/usr/bin"):
        for name in (*programs.RUNTIMES, programs.CDI_HOOK):
            yield from _path(host, os.path.join(directory, name))


def _cdi(ctx: Context, node: AnyNode | None) -> Iterator[str]:
    """Driver and devices, and the specs: ours, and those beside which ours would be one too many.
    Files that start with `k8s.` come with every pod of a DRA driver, and are none of these."""
    settings = ctx.settings
    if not settings.cdi_enabled or settings.cdi_output_dir is None:
        # The toolkit's config.toml names the driver's root all the same.
        yield from driver.watched(ctx.host, generate.places(settings))
        return
    yield from generate.watched(settings, ctx.host)
    seen = nodes.evidence(None, node.runtime, ctx.host)[0].spec_dirs if node else ()
    for directory in own_specs.directories(ctx, seen if isinstance(seen, tuple) else ()):
        yield f"!k8s.*{directory.agent}"
