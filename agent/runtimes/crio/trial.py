"""The arguments of CRI-O's trial start, and the reason of a failure in its log.

Invariant: a trial start has the flags and the environment of the running process, and differs from
the real start only in its directories and its socket. Observed on 1.30 and 1.37: if a flag is given
twice, the second value counts; with the flags in `_PLACES`, CRI-O writes to no other directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from agent.cri.process import Process
from agent.cri.versions import parse_version
from agent.host.isolation import View
from agent.runtimes import command, trial
from agent.runtimes.config_file import is_hook
from agent.runtimes.crio import hook
from agent.runtimes.desired_state import Desired, programs_of
from agent.runtimes.trial import Launch

if TYPE_CHECKING:
    from agent.runtimes.crio.adapter import CrioNode

_WRITABLE = ("/run/crio", "/var/lib/crio", "/run/nri", "/opt/nri/plugins")
_PLACES = (
    "root", "runroot", "listen", "log-dir", "version-file", "version-file-persist",
    "clean-shutdown-file", "container-exits-dir", "container-attach-socket-dir", "namespaces-dir",
)  # fmt: skip


def launch(
    node: CrioNode, executable: str, desired: Desired, files: Mapping[str, bytes | None]
) -> Launch:
    """The trial start of this CRI-O. `files` are contents by host path (None: no such file), and
    replace the real files."""
    needed = {executable, node.directory, *(file.path.host for file in node.files), *files}
    work = trial.work_directory(node.host, _WRITABLE, needed)
    places = {name: os.path.join(work, f"trial-{name}") for name in _PLACES}
    argv = [executable, *_flags(node.runtime.process, executable)]
    for name, path in places.items():
        argv += [f"--{name}", path]
    if (parse_version(node.runtime.version) or (0, 0, 0)) >= (1, 25, 0):
        # Without it, CRI-O would reset the IRQ balance of the host to its state at boot.
        argv += ["--irqbalance-config-restore-file", "disable"]
    view = View(work, _WRITABLE, (), files, tuple(sorted(set(_programs(desired, files)))))
    env = trial.environment(node.runtime.process)
    sources = trial.sources(node.files, files)
    return Launch(tuple(argv), env, view, places["listen"], reason, sources)


def _flags(running: Process | None, executable: str) -> tuple[str, ...]:
    """The flags of the running process. An interpreter with its options can come before the name of
    the executable."""
    words = running.command if running else ()
    names = [
        number
        for number, word in enumerate(words)
        if word == executable or (number < 2 and "crio" in os.path.basename(word))
    ]
    return words[names[0] + 1 :] if names else words[1:]


def _programs(desired: Desired, files: Mapping[str, bytes | None]) -> Iterator[str]:
    """The programs of handlers and hooks, which may be installed only with the change. CRI-O drops
    a handler whose program is missing, and does not start with a hook whose program is missing."""
    for table in desired.handlers.values():
        yield from (path for path in programs_of(table) if path.startswith("/"))
    for name, content in files.items():
        if is_hook(name) and content and (path := hook.program(content)):
            yield path


def reason(output: str) -> str:
    """The reason in the output why CRI-O ended: its last log entry of level fatal, else its last
    line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    entries = (entry for line in reversed(lines) if (entry := command.entry(line)))
    fatal = next((entry for entry in entries if entry.get("level") == "fatal"), None)
    return fatal.get("msg", "") if fatal else lines[-1] if lines else ""
