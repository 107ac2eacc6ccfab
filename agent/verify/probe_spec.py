"""The CDI device of the agent's own, for a node without GPUs: it sets one variable.

Invariant: each device has a file of its own, which goes with it. The files of interrupted runs are
removed by a later one. `toolkit-agent verify` writes nothing else on the node.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from agent.errors import Refused, reason
from agent.host import files, trust
from agent.host.paths import HostPath, HostRoot
from agent.verify.judge import Effects

_KIND = "toolkit-agent.probe/verify"
_NAME = "toolkit-agent.probe-verify-"
LEFT_OVER = 60.0  # seconds after which an object of ours is one of an interrupted run


@contextmanager
def probe_device(host: HostRoot, directories: Sequence[str]) -> Iterator[tuple[str, Effects]]:
    """A device that the reader of these directories (host paths) finds, and what it brings.

    Its spec is written into the last one that is there, and removed at the end. If none is there,
    the last one is made for it. Raises Refused.
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
    name = next((one for one in reversed(directories) if os.path.isdir(host.agent_path(one))),
                directories[-1])  # fmt: skip
    purpose = f"write a probe spec into {name}"
    made = files.missing_directories(trust.require(host, name, purpose, allow_sticky=True).agent)
    try:
        directory = trust.make_directory(host, name, purpose)
        path = directory.child(f"{_NAME}{mark}.json")
        try:
            files.write(path.agent, files.new_state(json.dumps(spec).encode()))
            _remove_left_over(directory)
            yield f"{_KIND}={mark}", Effects((variable,))
        finally:
            files.remove(path.agent)
    except OSError as error:
        raise Refused(f"cannot {purpose}: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            files.remove_directories(made)


def _remove_left_over(directory: HostPath) -> None:
    for entry in files.names(directory.agent):
        path = directory.child(entry)
        with contextlib.suppress(OSError):
            if entry.startswith(_NAME) and os.lstat(path.agent).st_mtime < time.time() - LEFT_OVER:
                files.remove(path.agent)
