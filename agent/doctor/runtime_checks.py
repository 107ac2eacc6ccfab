"""Checks of the runtime: whether it answers, and what runs.

Invariant: pure.
"""

from __future__ import annotations

import os
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
        slow = "no answer in time" in text  # it runs, and starting it does not help
        remedy = "look in the runtime's log for what it waits for, and restart it" if slow else ""
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
    if runtime.gone:
        text = f"{runtime.executable}, which runs as {runtime.title}, is not there any more"
        yield Found("fault", text, remedy="install the runtime again before any restart")
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
        unread = tuple(f"not readable: {name}" for name in facts.machine.unread)
        yield Found("info", "doctor does not run as root, and cannot see everything", unread)


def _units(facts: Facts) -> Iterator[Found]:
    unit = facts.runtime.get().unit
    units = facts.units.get()
    for item in units:
        if not item.up:
            text = f"{item.state}, and it goes down with {unit}"
            yield Found("warning", text, remedy=f"systemctl start {item.name}")
    if lost := [item.name for item in units if item.up and item.bound]:
        text = f"{', '.join(lost)} stops for good if {unit} ends by itself (BindsTo)"
        yield Found("info", text, remedy="restart by systemd only: --restart-mode=systemd")


# Programs of the toolkit. Ubuntu has a profile of nvidia-modprobe in force, which is right.
_TOOLKIT = ("nvidia-container", "nvidia-cdi", "nvidia-ctk")


def _confined(facts: Facts) -> Iterator[Found]:
    machine, config = facts.machine, facts.config.value
    if machine.confined:
        text = f"AppArmor confines the runtime and all that it starts: {machine.confined}"
        yield Found("warning", text)
    named = [path for item in config.nvidia_handlers for path in item.programs] if config else []
    names = {os.path.basename(path) for path in named}
    for profile in machine.profiles:
        name = os.path.basename(profile)
        if name.startswith(_TOOLKIT) or name in names:
            yield Found("warning", f"AppArmor confines a program of NVIDIA's: {profile}")


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
        "units", "Units that go down with the runtime are up",
        "What such a unit serves (Docker, the kubelet) is gone until it is started by hand.",
        "start the unit", _units,
    ),
    Check(
        "apparmor", "AppArmor lets NVIDIA's programs work",
        "What a profile does not allow fails: hooks, and with them containers with a GPU.",
        'look for apparmor="DENIED" in the kernel\'s log; `aa-complain PROFILE` lets it pass',
        _confined,
    ),
    Check(
        "rights", "doctor may read what it has to",
        "Checks that were not made find nothing.",
        "run it as root", _rights,
    ),
)  # fmt: skip
