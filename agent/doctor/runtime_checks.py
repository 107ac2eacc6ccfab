"""Checks of the runtime: whether it answers, and what runs.

Invariant: pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.doctor.check import Check, Found
from agent.doctor.facts import Facts


def split(message: str) -> tuple[str, str]:
    """An error of ours as what is wrong and what to do: a semicolon stands between them."""
    text, _, remedy = message.partition("; ")
    return text, remedy


def _start(facts: Facts) -> Iterator[Found]:
    if facts.down and facts.down.reason:
        text = f"the runtime does not start on its files: {facts.down.reason}"
        yield Found("fault", text, (facts.down.error, *_unit(facts)))


def _unit(facts: Facts) -> tuple[str, ...]:
    return (facts.down.unit,) if facts.down and facts.down.unit else ()


def _socket(facts: Facts) -> Iterator[Found]:
    down = facts.down
    if down is None:
        return
    text, remedy = split(down.error)
    if remedy.startswith("run as root"):
        remedy = "run doctor as root"
    if remedy in ("", "is the runtime up?"):
        remedy = ""
    there = f"sockets that are there: {', '.join(down.sockets) or 'none'}"
    yield Found("warning" if down.denied else "fault", text, (*_unit(facts), there), remedy)


def _ready(facts: Facts) -> Iterator[Found]:
    runtime = facts.runtime.get()
    if not runtime.ready:
        yield Found("fault", f"{runtime.title} {runtime.version} says that it is not ready")


def _wrong_runtime(facts: Facts) -> Iterator[Found]:
    runtime, kubelet = facts.runtime.get(), facts.kubelet.get()
    used = kubelet.socket
    alias = {used, f"/run{used.removeprefix('/var/run')}" if used.startswith("/var/run") else used}
    if used and runtime.socket not in alias:
        text = f"the kubelet uses {used}, and this is a look at {runtime.socket}"
        yield Found("fault", text, remedy=f"give --socket={used}")
    elif facts.machine.runtimes and not used:
        others = ", ".join(facts.machine.runtimes)
        text = f"more than one runtime listens: {runtime.socket} is looked at, and {others}"
        yield Found("warning", text)


def _upgrade(facts: Facts) -> Iterator[Found]:
    runtime = facts.runtime.get()
    after = runtime.next_version.lstrip("v")
    if after and after != runtime.version.lstrip("v"):
        text = f"{runtime.title} {runtime.version} runs, and {runtime.executable} is {after}"
        yield Found("warning", text)


def _process(facts: Facts) -> Iterator[Found]:
    runtime = facts.runtime.get()
    if not runtime.process:
        text = f"the process behind {runtime.socket} cannot be seen"
        yield Found("info", text, remedy="in a pod: set hostPID, and mount the host's / at /host")
    elif not runtime.unit:
        text = f"no systemd unit runs {runtime.title} (process {runtime.process})"
        yield Found("info", text, remedy="give --restart-mode=signal or none")


def _rights(facts: Facts) -> Iterator[Found]:
    if not facts.machine.root:
        yield Found("info", "doctor does not run as root, and cannot see everything")


CHECKS = (
    Check(
        "runtime-start", "The runtime starts on its files",
        "The node runs no pods until the runtime starts.",
        "repair what the reason names, then restart the runtime", _start,
    ),
    Check(
        "runtime-socket", "The runtime answers at its CRI socket",
        "Without an answer the kubelet reports the node as NotReady.",
        "start the runtime (its log says why it ended), or give its CRI socket with --socket",
        _socket,
    ),
    Check(
        "runtime-ready", "The runtime says that it is ready",
        "The kubelet creates no pods before that.",
        "look in the runtime's log", _ready,
    ),
    Check(
        "runtime-two", "One runtime, and it is the kubelet's",
        "What is configured in the other runtime reaches no pod.",
        "give the socket that the kubelet uses with --socket, and stop the other runtime",
        _wrong_runtime,
    ),
    Check(
        "runtime-upgrade", "The running version is that of the executable",
        "The next restart also upgrades the runtime, which may read its files in another way.",
        "restart the runtime at a time of your choice, then run doctor again", _upgrade,
    ),
    Check(
        "runtime-process", "Process and systemd unit of the runtime can be seen",
        "A restart needs to know whom to restart.",
        "give --restart-mode=signal or none", _process,
    ),
    Check(
        "rights", "doctor may read what it has to",
        "Checks that were not made find nothing.",
        "run it as root", _rights,
    ),
)  # fmt: skip
