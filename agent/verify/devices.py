"""The device with which `verify` tries a container.

Invariant: a device of the node's own specs is preferred. If there is none, a probe spec with a
device of ours is written, which sets one variable. That spec is removed after use; a later run
removes the specs of interrupted runs. `toolkit-agent verify` writes nothing else on the node.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from agent.cdi.specs import installed, spec_files
from agent.cdi.specs.readers import UNKNOWN_READER
from agent.errors import Refused, reason
from agent.host import files, trust
from agent.host.paths import HostRoot
from agent.options.device_classes import GPU_KIND
from agent.verify import judge
from agent.verify.injection import Injection
from agent.verify.judge import Effects
from agent.verify.pods import LEFT_OVER, Verdict

_KIND = "toolkit-agent.probe/verify"
_NAME = "toolkit-agent.probe-verify-"

Device = tuple[str, Effects]  # qualified name, effects in a container


@contextmanager
def device(host: HostRoot, kind: str, injection: Injection) -> Iterator[Device | Verdict]:
    """A device to try, or the verdict if there is none: a GPU, else a device of `kind`, the kind of
    the management spec, else a probe device."""
    if injection.unavailable:
        yield Verdict("not tried", injection.unavailable)
        return
    found = _installed(host, (GPU_KIND, kind), injection.spec_dirs)
    if found is None and injection.has_driver:
        dirs = ", ".join(injection.spec_dirs) or "no directory"
        found = Verdict("failed", f"no CDI spec has a GPU; the runtime reads {dirs}")
    if found is not None:
        yield found
        return
    try:
        with _probe_device(host, injection.spec_dirs) as probe:
            yield probe
    except Refused as error:
        yield Verdict("undecided", error.message)


def _installed(
    host: HostRoot, kinds: Sequence[str], names: Sequence[str]
) -> Device | Verdict | None:
    """A device of the first of `kinds` that a spec in the directories `names` (host paths)
    describes; the verdict "failed" if no container can get one; None if no spec describes one."""
    dirs = spec_files.directories(host, names, UNKNOWN_READER)
    specs = installed.specs(host, dirs)
    devices = installed.devices(specs, dirs)
    for kind in kinds:
        listed = [item for item in devices if item.name.startswith(f"{kind}=")]
        usable = [item for item in listed if item.state == "resolvable"]
        if usable:  # a single GPU is preferred to `all`
            first = min(usable, key=lambda item: item.name.endswith("=all"))
            spec = next(file.spec for file in specs if file.name == first.file)
            return first.name, judge.effects(spec, first.name.removeprefix(f"{kind}="))
        if listed:
            text = f"no container can get {listed[0].name} of {listed[0].file}: {listed[0].why}"
            return Verdict("failed", text)
    return None


@contextmanager
def _probe_device(host: HostRoot, directories: Sequence[str]) -> Iterator[Device]:
    """A device whose probe spec exists while the context is open.

    The spec is written into the last existing one of `directories` (host paths), which the runtime
    or NVIDIA's runtime reads. If none exists, the last one is made, and removed at the end. Raises
    Refused.
    """
    # CDI before 0.5.0 requires that the name of a device begins with a letter.
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
                old = directory.child(entry).agent
                with contextlib.suppress(OSError):
                    if entry.startswith(_NAME) and os.lstat(old).st_mtime < time.time() - LEFT_OVER:
                        files.remove(old)
            yield f"{_KIND}={mark}", Effects((variable,))
        finally:
            files.remove(path)
    except OSError as error:
        raise Refused(f"cannot {purpose}: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            files.remove_directories(made)
