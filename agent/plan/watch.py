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
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.plan import own_specs
from agent.plan.context import Context
from agent.runtimes import registry
from agent.runtimes.base import ConfiguredRuntime
from agent.status import Publisher
from agent.toolkit import install, programs


def watch_paths(
    ctx: Context, node: ConfiguredRuntime | None, spec: own_specs.SpecProposal | None = None
) -> tuple[str, ...]:
    """The watch list; `node` None where none could be read, `spec` None where none was made."""
    settings, host = ctx.settings, ctx.host
    found = [*(_of_node(host, node) if node is not None else _of_settings(settings, host))]
    found += [*_published(ctx.publisher), *_programs(settings, host), *_cdi(settings, host, node)]
    found += [f"={path}" for path in (spec.judged_paths if spec else ())]
    return tuple(dict.fromkeys(found))


def _of_node(host: HostRoot, node: ConfiguredRuntime) -> Iterator[str]:
    yield from _path(host, node.runtime.socket.host)
    for name in node.watch_paths(host):
        yield from _path(host, name)


def _of_settings(settings: Settings, host: HostRoot) -> Iterator[str]:
    """A runtime that is down or cannot be worked with: where it would be, and its files."""
    sockets = [*registry.sockets(settings.runtime)]
    for kind, path in [(sockets[0][0], settings.socket)] if settings.socket else sockets:
        try:
            socket = host.locate(path)
        except AgentError:
            yield host.agent_path(host.name(path))
            continue
        yield socket.agent
        yield from _of_process(settings, host, _running(host, socket, kind), kind)


def _running(host: HostRoot, socket: HostPath, kind: str) -> Process | None:
    try:
        return process.find(socket.agent, socket.host, host, kind)
    except AgentError:
        return None


def _of_process(
    settings: Settings, host: HostRoot, running: Process | None, kind: str
) -> Iterator[str]:
    """The files of a runtime whose configuration may be the trouble."""
    try:
        for name in registry.adapter(kind).watch_paths(settings, host, running):
            yield from _path(host, name)
    except (AgentError, OSError):
        return


def _path(host: HostRoot, name: str) -> Iterator[str]:
    """A host path by its name and by where its links lead: both can be exchanged."""
    yield host.agent_path(name)
    try:
        yield host.resolve(name).agent
    except AgentError:
        return


def _published(publisher: Publisher) -> Iterator[str]:
    """Not their directory, nor the error file: others write there, and so do failures of ours."""
    for name in (status.READY, status.TWIN):
        yield publisher.path(name)


def _programs(settings: Settings, host: HostRoot) -> Iterator[str]:
    yield from install.watch_paths(settings, host)
    installed = os.path.join(host.name(settings.toolkit_install_dir), "toolkit")
    for directory in (installed, "/usr/bin"):
        for name in (*programs.RUNTIMES, programs.CDI_HOOK):
            yield from _path(host, os.path.join(directory, name))


def _cdi(settings: Settings, host: HostRoot, node: ConfiguredRuntime | None) -> Iterator[str]:
    """Driver and devices, and the specs: ours, and those beside which ours would be one too many.
    Files that start with `k8s.` come with every pod of a DRA driver, and are none of these."""
    if not settings.cdi_enabled or settings.cdi_output_dir is None:
        # The toolkit's config.toml names the driver's root all the same.
        yield from driver.watch_paths(host, driver.places(settings))
        return
    yield from generate.watch_paths(settings, host)
    seen = node.adapter.evidence(node.runtime.answer)[0].spec_dirs if node else ()
    spec_dirs = seen if isinstance(seen, tuple) else ()
    for directory in own_specs.directories(settings, host, spec_dirs):
        yield f"!k8s.*{directory.agent}"
