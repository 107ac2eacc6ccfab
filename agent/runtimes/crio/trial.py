"""How CRI-O is started for a trial, and what its log says about a failure.

Invariant: what it is started with differs from the real start in its directories and its socket
only; the flags and the environment of the running process count. Observed on 1.30 and 1.37: a flag
that is given twice counts the second time, and with these flags nothing is written elsewhere.
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
from agent.runtimes.desired_state import Desired
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
    """The start of this CRI-O with `files` presented in the place of the real ones."""
    needed = {executable, node.directory, *(file.path.host for file in node.files), *files}
    work = trial.work_directory(node.host, _WRITABLE, needed)
    places = {name: os.path.join(work, f"trial-{name}") for name in _PLACES}
    argv = [executable, *_flags(node.runtime.process, executable)]
    for name, path in places.items():
        argv += [f"--{name}", path]
    if (parse_version(node.runtime.version) or (0, 0, 0)) >= (1, 25, 0):
        # It would put the IRQ balance of the host back to what it was at boot.
        argv += ["--irqbalance-config-restore-file", "disable"]
    view = View(work, _WRITABLE, (), files, tuple(sorted(set(_programs(desired, files)))))
    env = trial.environment(node.runtime.process)
    sources = trial.sources(node.files, files)
    return Launch(tuple(argv), env, view, places["listen"], reason, sources)


def _flags(running: Process | None, executable: str) -> tuple[str, ...]:
    """What the running process was started with; an interpreter, with options of its own, can come
    before its name."""
    words = running.command if running else ()
    names = [
        number
        for number, word in enumerate(words)
        if word == executable or (number < 2 and "crio" in os.path.basename(word))
    ]
    return words[names[0] + 1 :] if names else words[1:]


def _programs(desired: Desired, files: Mapping[str, bytes | None]) -> Iterator[str]:
    """Programs that are installed with the change: CRI-O drops handlers whose program is missing,
    and does not start with a hook whose program is."""
    for table in desired.handlers.values():
        path = table.get("runtime_path")
        if isinstance(path, str) and path.startswith("/"):
            yield path
    for name, content in files.items():
        if is_hook(name) and content and (path := hook.program(content)):
            yield path


def reason(output: str) -> str:
    """Why CRI-O ended: its last log entry of the level fatal, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    entries = (entry for line in reversed(lines) if (entry := command.entry(line)))
    fatal = next((entry for entry in entries if entry.get("level") == "fatal"), None)
    return fatal.get("msg", "") if fatal else lines[-1] if lines else ""
