"""Checks of the runtime: whether it answers, and which version and process it is.

Invariant: reads only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from agent.cri import process
from agent.cri.process import Process
from agent.doctor.check import Check, Symptom, split
from agent.doctor.node import Node, NotSeen, value_or_none
from agent.doctor.surroundings import KUBELET_CONFIG, text
from agent.errors import Unreachable
from agent.runtimes import find
from agent.systemd.units import SystemdError

_PROFILES = "/sys/kernel/security/apparmor/profiles"
_FOR_ROOT = (KUBELET_CONFIG, _PROFILES)  # files that often only root may read


def _start(node: Node) -> Iterator[Symptom]:
    if node.error and node.start_failure:
        words = f"the runtime does not start on its files: {node.start_failure}"
        yield Symptom("fault", words, (node.error.message, *_unit(node)))


def _unit(node: Node) -> tuple[str, ...]:
    """The state of the systemd unit of a runtime that does not answer; () if it cannot be seen."""
    with contextlib.suppress(SystemdError):
        if node.silent_runtime and node.is_root:
            return (str(node.ctx.reach(node.host, f"{node.silent_runtime[0].kind}.service")[1]),)
    return ()


def _socket(node: Node) -> Iterator[Symptom]:
    if node.error is None:
        return
    words, remedy = split(node.error.message)
    if remedy.startswith("run as root"):
        remedy = "run doctor as root"
    if remedy in ("", "is the runtime up?"):
        slow = "no answer in time" in words  # the runtime runs, so starting it does not help
        remedy = "restart the runtime; its log may say what blocks it" if slow else ""
    existing = ", ".join(item.socket.host for item in find.sockets(node.settings, node.host))
    denied = not node.is_root and "permission denied" in words
    evidence = (*_unit(node), f"existing sockets: {existing or 'none'}")
    yield Symptom("warning" if denied else "fault", words, evidence, remedy)


def _ready(node: Node) -> Iterator[Symptom]:
    if not node.runtime.answer.ready:
        words = f"{node.title} {node.runtime.version} says that it is not ready"
        yield Symptom("fault", words)


def _wrong_runtime(node: Node) -> Iterator[Symptom]:
    socket, used = node.runtime.socket.host, node.kubelet.socket
    if used:
        if socket not in (used, used.removeprefix("/var")):
            words = f"the kubelet uses {used}, and doctor checks {socket}"
            yield Symptom("fault", words, remedy=f"give --socket={used}")
    elif others := ", ".join(_other_sockets(node)):
        words = f"more than one runtime listens: {socket}, which doctor checks, and {others}"
        yield Symptom("warning", words)


def _other_sockets(node: Node) -> Iterator[str]:
    """Usual sockets of other runtimes on which a process listens."""
    for socket in (item.socket for item in find.sockets(node.settings, node.host)):
        with contextlib.suppress(Unreachable, OSError):
            if socket.host != node.runtime.socket.host:
                process.peer_pid(socket.agent, socket.host, 1.0)
                yield socket.host


def _upgrade(node: Node) -> Iterator[Symptom]:
    version, program = node.runtime.version, node.executable
    if not program:
        return
    if _is_deleted(node.runtime.process) and not os.path.lexists(node.host.agent_path(program)):
        words = f"{program}, which runs as {node.title}, is not there any more"
        yield Symptom("fault", words, remedy="install the runtime again before any restart")
    after = find.executable_version(node.host, program) or version
    if after.lstrip("v") != version.lstrip("v"):
        yield Symptom("warning", f"{node.title} {version} runs, and {program} is {after}")


def _is_deleted(running: Process | None) -> bool:
    """Was the executable of a process removed or replaced?"""
    try:
        link = os.readlink(f"{running.proc}/{running.pid}/exe") if running else ""
    except OSError:
        return False
    return link.endswith(" (deleted)")


def _process(node: Node) -> Iterator[Symptom]:
    running = node.runtime.process
    if running is None:
        words = f"the process behind {node.runtime.socket.host} cannot be seen"
        yield Symptom(
            "info", words, remedy="in a pod: set hostPID, and mount the host's / at /host"
        )
    elif not running.unit:
        words = f"no systemd unit runs {node.title} (process {running.pid})"
        yield Symptom("info", words, remedy="give --restart-mode=signal or none")


def _rights(node: Node) -> Iterator[Symptom]:
    if not node.is_root:
        denied = tuple(f"not readable: {name}" for name in _FOR_ROOT if _is_denied(node, name))
        yield Symptom("info", "doctor does not run as root, and cannot see everything", denied)


def _is_denied(node: Node, name: str) -> bool:
    path = node.host.agent_path(name)
    return os.path.exists(path) and not os.access(path, os.R_OK, effective_ids=True)


def _units(node: Node) -> Iterator[Symptom]:
    running = node.runtime.process
    name = running.unit if running else None
    if not name:
        raise NotSeen("no systemd unit runs the runtime")
    if not node.is_root:
        raise NotSeen("only root may ask systemd")
    try:
        systemd, unit = node.ctx.reach(node.host, name)
        bound = systemd.ties(name).bound
        found = [systemd.unit(other) for other in dict.fromkeys((*bound, *unit.carries))]
    except SystemdError as error:
        raise NotSeen(f"systemd cannot be asked: {error}") from error
    units = [item for item in found if item.load == "loaded"]
    for item in units:
        if not item.up:
            words = f"{item}, and it goes down with {name}"
            yield Symptom("warning", words, remedy=f"systemctl start {item.name}")
    if stopping := [item.name for item in units if item.up and item.name in bound]:
        words = f"{', '.join(stopping)} stops for good if {name} ends by itself (BindsTo)"
        yield Symptom("info", words, remedy="restart by systemd only: --restart-mode=systemd")


# Prefixes of the toolkit's programs. Ubuntu's profile of nvidia-modprobe does no harm.
_TOOLKIT = ("nvidia-container", "nvidia-cdi", "nvidia-ctk")


def _confined(node: Node) -> Iterator[Symptom]:
    for profile in _enforced(_confinement(None if node.error else node.runtime.process)):
        words = f"AppArmor confines the runtime and all its children: {profile}"
        yield Symptom("warning", words)
    handlers = value_or_none(lambda: node.nvidia_handlers) or ()
    names = {os.path.basename(path) for name in handlers for path in node.programs(name)}
    for profile in _enforced(text(node.host, _PROFILES)):
        name = os.path.basename(profile)
        if name.startswith(_TOOLKIT) or name in names:
            yield Symptom("warning", f"AppArmor confines a program of NVIDIA's: {profile}")


def _confinement(running: Process | None) -> str:
    """The AppArmor profile of a process in the kernel's format `NAME (enforce)`; "" if it is
    unknown."""
    try:
        path = f"{running.proc}/{running.pid}/attr/current" if running else os.devnull
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(256).strip("\0\n")
    except OSError:
        return ""


def _enforced(lines: str) -> Iterator[str]:
    """The names of the enforced profiles among these lines, without subprofiles."""
    for line in lines.splitlines():
        name, _, mode = line.rpartition(" (")
        if mode.rstrip(")") in ("enforce", "kill") and "//" not in name:
            yield name


CHECKS = (
    Check(
        "runtime-start", "The runtime starts on its files",
        "The node runs no pods until the runtime starts.",
        "repair the named cause, then restart the runtime", _start,
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
        "Settings of the other runtime reach no pod.",
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
        "Without them the agent cannot restart the runtime.",
        "give --restart-mode=signal or none", _process,
    ),
    Check(
        "units", "Units that go down with the runtime are up",
        "The service of such a unit (Docker, the kubelet) is down until it is started by hand.",
        "start the unit", _units,
    ),
    Check(
        "apparmor", "AppArmor lets NVIDIA's programs work",
        "Actions that a profile forbids fail: hooks, and so containers with a GPU.",
        'look for apparmor="DENIED" in the kernel\'s log; `aa-complain PROFILE` allows them',
        _confined,
    ),
    Check(
        "rights", "doctor can read all that it needs",
        "Skipped checks find nothing.",
        "run it as root", _rights,
    ),
)  # fmt: skip
