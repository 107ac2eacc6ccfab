"""The trial start: the runtime's own executable is started once on the future files, before the
running runtime is restarted on them.

Only a start finds some faults that a dump of the configuration does not show: values that the CRI
plugin rejects, a missing base specification, a missing program (containerd 1.6 to 2.4 and CRI-O
1.30 and 1.37). A restart also activates what others changed since the start of the runtime.

Invariant: the program runs in its own namespaces (`host.isolation`), answers on a private socket,
and is ended. A failure that the namespaces may have caused is no verdict. The program's output is
masked, because it can quote any value of the files.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agent.cri import process
from agent.cri.client import Answer, Unimplemented
from agent.cri.process import Process
from agent.errors import FilesDoNotLoad, Refused, TrialFailed, Unreachable
from agent.host import isolation
from agent.host.files import Change
from agent.host.isolation import CannotIsolate, View
from agent.host.paths import HostRoot, is_below
from agent.runtimes import command, registry
from agent.runtimes.base import ConfiguredRuntime
from agent.runtimes.config_file import ConfigFile, is_hook
from agent.runtimes.desired_state import Desired
from agent.runtimes.preflight import UNKNOWN
from agent.toml import document, masking
from agent.toml.masking import Source

_TIMEOUT = 15.0  # seconds for one start; real ones take 0.1 to 0.4 (observed)
_PAUSE = 0.02  # seconds between two questions
_OF_THE_MANAGER = ("NOTIFY_", "LISTEN_", "WATCHDOG_", "INVOCATION_", "JOURNAL_")
# Errors that a program gets in the namespaces of a trial, and would not get on the host itself.
_OF_THE_NAMESPACES = re.compile(
    "read-only file system|operation not permitted|permission denied|no space left on device"
    "|network is unreachable|no default routes|cannot assign requested address",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Launch:
    """The trial start of a runtime: `argv` (the executable's host path first), `env`, the `view` of
    the host's files, and the host path of the CRI's `socket`. `reason` finds in the output the
    reason why the runtime does not serve the CRI. `sources` are the files that the runtime
    reads."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    view: View
    socket: str
    reason: Callable[[str], str]
    sources: tuple[Source, ...] = ()

    def explain(self, output: str) -> str:
        """The reason in the output why the runtime does not serve the CRI, with the values of its
        files masked."""
        return masking.masked_with_keys(
            self.reason(output), self.sources, (self.argv[0], self.socket)
        )


@dataclass(frozen=True)
class Result:
    """The result of one start. `failure` is the reason why the runtime did not serve the CRI as
    desired. `impossible` is the reason why there is no verdict. Both are empty after a success."""

    failure: str = ""
    impossible: str = ""


@dataclass(frozen=True)
class Trial:
    """The verdict on a restart. If no trial was possible, `done` is false and `note` is the reason.
    `refusal` forbids the restart; None allows it. `warning` names a fault that does not forbid the
    restart."""

    done: bool
    note: str
    refusal: Refused | None = None
    warning: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person has to know of a restart that is allowed."""
        found = self.warning if self.done else f"not tried: {self.note}"
        return (found,) if found and self.refusal is None else ()


Start = Callable[[HostRoot, Launch, Callable[[Answer], list[str]]], Result]


def judge(
    node: ConfiguredRuntime, desired: Desired, changes: tuple[Change, ...], purpose: str,
    start: Start, *,
    warn: bool = False,
) -> Trial:  # fmt: skip
    """Start the runtime on the files after `changes`, and judge the restart.

    If the start fails, the runtime is started on the present files too: if they do not load either,
    the present files are at fault. With `warn`, this second start is always made, and its failure
    is a warning. `purpose` ("apply" or "revert") is for messages. `start` makes one start. Never
    raises: a refusal is part of the verdict.
    """
    name, title = node.executable, node.adapter.title
    if name is None:
        return Trial(False, UNKNOWN)
    after = {item.path.host: item.after.data if item.after else None for item in changes}
    launch = node.launch(name, desired, after)
    result = start(node.host, launch, lambda answer: node.adapter.unproven(desired, answer))
    if result.impossible:
        return Trial(False, result.impossible)
    present = start_on_present(node, start) if result.failure or warn else Result()
    if not result.failure:
        warning = (
            f"the files as they are do not load ({present.failure}): {title} would not come back "
            "from a restart on them, nor could this change be undone"
        )
        note = f"{name} starts on it and serves the CRI"
        return Trial(True, note, warning=warning if present.failure else "")
    if present.impossible:
        return Trial(False, present.impossible)
    if present.failure:
        return Trial(True, f"{name} does not start", FilesDoNotLoad(
            f"cannot {purpose}: the file on disk does not load in {name} ({present.failure}); the "
            f"running {title} was started on an older one; repair the file, nothing was changed"
        ))  # fmt: skip
    what = "the original files" if purpose == "revert" else "the new configuration"
    return Trial(True, f"{name} does not start on it", TrialFailed(
        f"cannot {purpose}: {name} does not start on {what}: {result.failure}; nothing was changed"
    ))  # fmt: skip


def start_on_present(node: ConfiguredRuntime, start: Start) -> Result:
    """The result of a trial start on the present files; it has no failure if none is possible."""
    if node.executable is None:
        return Result(impossible=UNKNOWN)
    return start(node.host, node.launch(node.executable, Desired({}), {}), lambda _: [])


def work_directory(host: HostRoot, writable: tuple[str, ...], needed: Iterable[str]) -> str:
    """The host path of a directory that can be empty and writable during a trial, because no path
    in `needed` is in it. `writable` are preferred directories."""
    for path in (*writable, "/mnt", "/media", "/srv"):
        holds = any(is_below(one, path) for one in needed)
        if not holds and os.path.isdir(host.root + path):
            return path
    return "/tmp"  # noqa: S108 - the trial mounts an empty directory there


def sources(loaded: Iterable[ConfigFile], files: Mapping[str, bytes | None]) -> tuple[Source, ...]:
    """The files that a runtime reads during a trial, as sources for masking: `loaded`, with `files`
    (contents by host path, None if removed) in their places."""
    by_path = {file.path.host: file.source for file in loaded}
    for name, data in files.items():
        by_path.pop(name, None)
        if data is not None and not is_hook(name):
            with contextlib.suppress(Refused):
                by_path[name] = Source(
                    name, document.decoded(data, name), document.parse(data, name)
                )
    return tuple(by_path.values())


def environment(running: Process | None) -> dict[str, str]:
    """The environment of the running runtime, without the variables of its service manager."""
    given = process.environment(running) if running else None
    variables = {
        name: value for name, value in (given or {}).items() if not name.startswith(_OF_THE_MANAGER)
    }
    return {"PATH": command.PATH, **variables}


def start_once(host: HostRoot, launch: Launch, problems: Callable[[Answer], list[str]]) -> Result:
    """Start the runtime in namespaces, ask it until it is ready (15 s at most), and end it.
    `problems` returns the differences between an answer and the desired state."""
    try:
        with isolation.start(host, launch.argv, launch.env, launch.view) as program:
            failure = _failure(program, launch, problems)
            output = program.output()
    except CannotIsolate as error:
        return Result(impossible=str(error))
    if failure is None:
        return Result(impossible=f"it did not answer in {_TIMEOUT:g} s")
    if failure and _OF_THE_NAMESPACES.search(f"{failure} {launch.reason(output)}"):
        return Result(impossible=f"it does not run apart from the host: {failure}")
    return Result(failure=failure)


def _failure(
    program: isolation.IsolatedProgram, launch: Launch, problems: Callable[[Answer], list[str]]
) -> str | None:
    """The fault of the started runtime, "" if there is none, None if it did not answer in time."""
    socket, end = program.path(launch.socket), time.monotonic() + _TIMEOUT
    while True:
        ended = program.has_ended()
        try:
            answer = registry.ask(socket, launch.socket, timeout=5.0)
            wrong = problems(answer) if answer.ready else ["RuntimeReady is false"]
            if answer.ready or time.monotonic() >= end:
                return "; ".join(wrong)
        except Unimplemented:
            return launch.explain(program.output()) or "it does not serve the CRI"
        except Unreachable:
            if ended:
                return launch.explain(program.output()) or "it ends at once"
        if time.monotonic() >= end:
            return None
        time.sleep(_PAUSE)
