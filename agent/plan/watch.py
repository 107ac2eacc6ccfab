"""The watch list: every path whose change can make this node wrong.

Invariant: reads only, never raises, and returns agent paths. A needless path can only cost a
convergence that changes nothing. If a path is missing, a node can stay wrong until the next
interval.

An entry is a path; `PREFIX*DIRECTORY` for the names in a directory that start with the prefix;
`!PREFIX*DIRECTORY` for all other files in it, with their content; or `=PATH` for a path of which
only the type and the owner count, but not the content.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from agent import status
from agent.cdi.driver import driver
from agent.cdi.make import generate
from agent.cdi.specs import own_specs
from agent.cri import process
from agent.errors import AgentError
from agent.host.paths import HostRoot
from agent.options.settings import Settings
from agent.plan.context import Context
from agent.runtimes import registry
from agent.runtimes.base import ConfiguredRuntime
from agent.toolkit import install, programs


def watch_paths(
    ctx: Context, node: ConfiguredRuntime | None, spec: own_specs.SpecProposal | None
) -> tuple[str, ...]:
    """The watch list: entries as in the docstring of this module. `node` is None if the
    configuration could not be read, `spec` is None if no specs were proposed."""
    settings, host = ctx.settings, ctx.host
    entries = [*(_node_paths(host, node) if node is not None else _settings_paths(settings, host))]
    # The directory and the error file are not watched: others write there, and so do our failures.
    entries += [ctx.publisher.path(name) for name in (status.READY, status.TWIN)]
    entries += [*_programs(settings, host), *_cdi(settings, host, node)]
    entries += [f"={path}" for path in (spec.judged_paths if spec else ())]
    return tuple(dict.fromkeys(entries))


def _node_paths(host: HostRoot, node: ConfiguredRuntime) -> Iterator[str]:
    yield from _path(host, node.runtime.socket.host)
    for name in node.watch_paths():
        yield from _path(host, name)


def _settings_paths(settings: Settings, host: HostRoot) -> Iterator[str]:
    """The sockets and files of a runtime that is down or cannot be used."""
    sockets = [*registry.sockets(settings.runtime)]
    for kind, path in [(sockets[0][0], settings.socket)] if settings.socket else sockets:
        try:
            socket = host.locate(path)
        except AgentError:
            yield host.agent_path(host.name(path))
            continue
        yield socket.agent
        running = None
        with contextlib.suppress(AgentError):
            running = process.find(socket.agent, socket.host, host, kind)
        with contextlib.suppress(AgentError, OSError):
            for name in registry.adapter(kind).watch_paths(settings, host, running):
                yield from _path(host, name)


def _path(host: HostRoot, name: str) -> Iterator[str]:
    """The agent paths of a host path and of the target of its links. Both can be replaced."""
    yield host.agent_path(name)
    with contextlib.suppress(AgentError):
        yield host.resolve(name).agent


def _programs(settings: Settings, host: HostRoot) -> Iterator[str]:
    yield from install.watch_paths(settings, host)
    installed = os.path.join(host.name(settings.toolkit_install_dir), "toolkit")
    for directory in (installed, "/usr/bin"):
        for name in (*programs.RUNTIMES, programs.CDI_HOOK):
            yield from _path(host, os.path.join(directory, name))


def _cdi(settings: Settings, host: HostRoot, node: ConfiguredRuntime | None) -> Iterator[str]:
    """The driver, the devices and all specs, because a spec of others can make ours superfluous.
    Files that start with `k8s.` are left out, because a DRA driver writes one for every pod."""
    if not settings.cdi_enabled or settings.cdi_output_dir is None:
        # The toolkit's config.toml names the driver's root all the same.
        yield from driver.watch_paths(host, settings)
        return
    yield from generate.watch_paths(settings, host)
    seen = node.adapter.evidence(node.runtime.answer)[0].spec_dirs if node else ()
    for directory in own_specs.directories(settings, host, seen or ()):
        yield f"!k8s.*{directory.agent}"
