"""The device with which a container is tried.

Invariant: it is a device of the node's own specs if there is one. Otherwise it is one of ours,
which sets one variable. Its spec goes with it; a later run removes specs that an interrupted run
left. `toolkit-agent verify` writes nothing else on the node.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from agent.cdi.make import gpu
from agent.cdi.specs import installed, spec_files
from agent.cdi.specs.readers import UNKNOWN_READER
from agent.errors import Refused, reason
from agent.host import files, trust
from agent.host.paths import HostRoot
from agent.verify import judge
from agent.verify.injection import Injection
from agent.verify.judge import Effects
from agent.verify.pods import LEFT_OVER, Verdict

_KIND = "toolkit-agent.probe/verify"
_NAME = "toolkit-agent.probe-verify-"

Device = tuple[str, Effects]  # its qualified name, and what it brings into a container


@contextmanager
def device(host: HostRoot, kind: str, way: Injection) -> Iterator[Device | Verdict]:
    """A device to try, or the verdict if there is none. It is a GPU, or of the `kind` that the
    options ask for."""
    if way.unusual:
        yield Verdict("not tried", way.unusual)
        return
    found = _installed(host, (gpu.KIND, kind), way.spec_dirs)
    if found is None and way.has_driver:
        dirs = ", ".join(way.spec_dirs) or "no directory"
        found = Verdict("failed", f"no CDI spec has a GPU; the runtime reads {dirs}")
    if found is not None:
        yield found
        return
    try:
        with _probe_device(host, way.spec_dirs) as made:
            yield made
    except Refused as error:
        yield Verdict("undecided", error.message)


def _installed(
    host: HostRoot, kinds: Sequence[str], names: Sequence[str]
) -> Device | Verdict | None:
    """A device of the first of these kinds that has one; None if no file describes one. `names`
    are the directories."""
    dirs = spec_files.directories(host, names, UNKNOWN_READER)
    specs = installed.specs(host, dirs)
    devices = installed.devices(specs, dirs)
    for kind in kinds:
        listed = [one for one in devices if one.name.startswith(f"{kind}=")]
        usable = [one for one in listed if one.state == "resolvable"]
        if usable:  # one GPU before all of them
            one = min(usable, key=lambda one: one.name.endswith("=all"))
            spec = next(file.spec for file in specs if file.name == one.file)
            return one.name, judge.effects(spec, one.name.removeprefix(f"{kind}="))
        if listed:
            text = f"no container can get {listed[0].name} of {listed[0].file}: {listed[0].why}"
            return Verdict("failed", text)
    return None


@contextmanager
def _probe_device(host: HostRoot, directories: Sequence[str]) -> Iterator[Device]:
    """A device that the reader of these directories (host paths) finds.

    Its spec goes into the last of these directories that exists, and is removed at the end. If none
    exists, the last one is made. Raises Refused.
    """
    # It begins with a letter, as CDI before 0.5.0 wants the name of a device.
    mark = f"p{os.urandom(6).hex()}"
    variable = f"TOOLKIT_AGENT_VERIFY={mark}"
    spec = {
        "cdiVersion": "0.3.0",
        "kind": _KIND,
        "devices": [{"name": mark, "containerEdits": {"env": [variable]}}],
    }
    if not directories:
        raise Refused("cannot make a probe device: the runtime reads no CDI spec directory")
    present = (name for name in reversed(directories) if os.path.isdir(host.agent_path(name)))
    name = next(present, directories[-1])
    purpose = f"write a probe spec into {name}"
    made = files.missing_directories(trust.require(host, name, purpose, allow_sticky=True).agent)
    try:
        directory = trust.make_directory(host, name, purpose)
        path = directory.child(f"{_NAME}{mark}.json").agent
        try:
            files.write(path, files.new_state(json.dumps(spec).encode()))
            for entry in files.names(directory.agent):
                left = directory.child(entry).agent
                with contextlib.suppress(OSError):
                    if (
                        entry.startswith(_NAME)
                        and os.lstat(left).st_mtime < time.time() - LEFT_OVER
                    ):
                        files.remove(left)
            yield f"{_KIND}={mark}", Effects((variable,))
        finally:
            files.remove(path)
    except OSError as error:
        raise Refused(f"cannot {purpose}: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            files.remove_directories(made)
