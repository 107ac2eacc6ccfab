"""The device with which a container is tried.

Invariant: it is a device of the node's own specs if there is one. Otherwise it is one of ours,
which is gone at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from agent.cdi.make import gpu
from agent.cdi.specs import installed, spec_files
from agent.cdi.specs.readers import UNKNOWN_READER
from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.plan.context import Context
from agent.verify import judge
from agent.verify.injection import Injection
from agent.verify.judge import Effects
from agent.verify.pods import Verdict
from agent.verify.probe_spec import probe_device


@dataclass(frozen=True)
class Found:
    """A device by its qualified name, and what it brings into a container."""

    name: str
    effects: Effects


@contextmanager
def device(ctx: Context, way: Injection) -> Iterator[Found | Verdict]:
    """A device to try, or the verdict if there is none."""
    if way.unusual:
        yield Verdict("not tried", way.unusual)
        return
    found = _installed(ctx.host, (gpu.KIND, ctx.settings.cdi_kind), way.spec_dirs)
    if found is None and way.has_driver:
        dirs = ", ".join(way.spec_dirs) or "no directory"
        found = Verdict("failed", f"no CDI spec has a GPU; the runtime reads {dirs}")
    if found is not None:
        yield found
        return
    try:
        with probe_device(ctx.host, way.spec_dirs) as (name, effects):
            yield Found(name, effects)
    except Refused as error:
        yield Verdict("undecided", error.message)


def _installed(
    host: HostRoot, kinds: Sequence[str], names: Sequence[str]
) -> Found | Verdict | None:
    """A device of the first of these kinds that has one; None if no file describes one. `names`
    are the directories."""
    dirs = spec_files.directories(host, names, UNKNOWN_READER)
    files = installed.specs(host, dirs)
    devices = installed.devices(files, dirs)
    for kind in kinds:
        listed = [one for one in devices if one.name.startswith(f"{kind}=")]
        # One GPU before all of them.
        usable = sorted(
            (one for one in listed if one.state == "resolvable"),
            key=lambda one: one.name.endswith("=all"),
        )
        if usable:
            name = usable[0].name
            spec = next(file.spec for file in files if file.name == usable[0].file)
            return Found(name, judge.effects(spec, name.removeprefix(f"{kind}=")))
        if listed:
            text = f"no container can get {listed[0].name} of {listed[0].file}: {listed[0].why}"
            return Verdict("failed", text)
    return None
