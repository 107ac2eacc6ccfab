"""Running pods that depend on what would change, found through the CRI.

Invariant: reads only, and asks nothing if nothing that a pod may depend on would change. A pod
keeps what it has until it is gone: its handler, its low-level runtime and state directory, the
annotation prefix, and the default runtime that it was created under. A pod that is not ready does
not count, because the kubelet starts no container in it again. Soon after a boot this is different:
no pod is ready, and the kubelet creates the earlier pods again with their old annotations.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from agent.cri import client, process
from agent.cri.client import Container, PodQuestions, Sandbox
from agent.decide import CDI_PREFIX, NVIDIA_PREFIX, Decision, PodNeeds
from agent.errors import Refused
from agent.host.paths import HostRoot, is_below
from agent.options.settings import Settings
from agent.runtimes import low_level
from agent.runtimes.base import ConfiguredRuntime, Runtime
from agent.runtimes.config_file import Files
from agent.runtimes.desired_state import Effective, is_ours
from agent.toolkit import programs
from agent.toolkit.config import ToolkitConfig, accepts_variables, read_config

_SHOWN = 20  # names in a message; a node has up to some hundred pods
_TIMEOUT = 20.0  # seconds for all questions together
# Pods of gpu-operator 26.7 that ask for GPUs, by the start of their names, with the label of the
# node that takes them away. The operator does not change one that somebody set to false.
_OPERANDS = {
    "gpu-feature-discovery": "gpu-feature-discovery",
    "nvidia-cuda-validator": "operator-validator",
    "nvidia-dcgm": "dcgm",
    "nvidia-dcgm-exporter": "dcgm-exporter",
    "nvidia-device-plugin-daemonset": "device-plugin",
    "nvidia-device-plugin-mps-control-daemon": "device-plugin",
    "nvidia-mig-manager": "mig-manager",
    "nvidia-node-status-exporter": "node-status-exporter",
    "nvidia-operator-validator": "operator-validator",
}
_STARTING = 600.0  # seconds in which a kubelet has made the pods of before anew, after a boot


@dataclass(frozen=True)
class GpuService:
    """What a node does for pods that ask for GPUs.

    `default` means that one of our handlers is the default runtime. `prefixes` are the annotation
    prefixes that are answered, and `variables` means that environment variables are answered.
    `known` means that the toolkit's config.toml says so; otherwise these are NVIDIA's defaults."""

    default: bool = False
    prefixes: frozenset[str] = frozenset()
    variables: bool = False
    known: bool = True


def gpu_service(
    node: ConfiguredRuntime, effective: Effective, config: ToolkitConfig | None
) -> GpuService:
    """The service under these settings. `config` is the toolkit's config.toml, None if it is
    missing or cannot be read."""
    answers = config or ToolkitConfig(prefixes=(CDI_PREFIX, NVIDIA_PREFIX))
    found = frozenset(p for p in answers.prefixes if node.passes_annotation(effective, p))
    default = is_ours(effective.default, effective.table(effective.default))
    return GpuService(default, found, answers.variables, config is not None)


def needs(
    settings: Settings, host: HostRoot, node: ConfiguredRuntime, decision: Decision, booted: float
) -> PodNeeds | None:
    """What the running pods would lose by a decision, None if they would lose nothing. `booted`
    is that of `recent_boot`.

    Raises Unreachable. Raises Refused if an OCI hook would replace the handlers, because then
    nothing can be kept.
    """
    now = gpu_service(node, node.running(), _toolkit_config(settings, host))
    if settings.accept_envvar is False:  # an order to answer them no more
        now = replace(now, variables=False)
    native = frozenset([CDI_PREFIX] if decision.native else [])
    answered = frozenset(decision.prefixes)
    if node.adapter.lists_handlers:  # containerd passes only what it is told to
        answered &= frozenset(decision.pass_prefixes)
    # An OCI hook answers variables, whatever the default runtime is.
    later = GpuService(
        decision.is_default or decision.hook, answered | native, accepts_variables(settings)
    )
    found = _needs(node, now, later, native, booted)
    if found is not None and decision.hook:
        raise _refusal("apply", found.pods, f"annotations {', '.join(found.prefixes)}")
    return found


def recent_boot(now: float, uptime: float) -> float:
    """When the machine was started (seconds since the epoch, like `now`), if that was a moment ago;
    0 otherwise. Older pods count although they are not ready. `uptime` is in seconds."""
    return now - uptime if uptime < _STARTING else 0.0


def _needs(
    node: ConfiguredRuntime, now: GpuService, later: GpuService, native: frozenset[str],
    booted: float = 0.0,
) -> PodNeeds | None:  # fmt: skip
    """What pods would lose that ask for GPUs and run by our handlers, or by the default runtime
    where that is ours."""
    loses_default = now.default and not later.default
    prefixes = now.prefixes - (native if loses_default else later.prefixes)
    variables = now.variables and (loses_default or (now.known and not later.variables))
    if not prefixes and not variables:
        return None
    ours = _our_handlers(node.running())
    pods: list[Sandbox] = []
    used: set[str] = set()
    by_variable = False
    with _questions(node.runtime) as ask:
        for pod, containers in _with_containers(node, ask, ours, booted):
            keys = {key for item in containers for key in item.annotations}
            found = {p for p in prefixes if any(key.startswith(p) for key in keys)}
            # No list shows variables. So each container is examined, until enough pods are found
            # for a message.
            asks = variables and not found and len(pods) <= _SHOWN
            asks = asks and any(
                client.asks_by_variable(ask.container_info(item.id)) for item in containers
            )
            if (found or asks) and (pod := _with_handler(node, ask, pod)).handler in ours:
                pods.append(pod)
                used |= found
                by_variable |= asks
    if not pods:
        return None
    return PodNeeds(
        pod_names(pods),
        default=loses_default,
        prefixes=tuple(sorted(used)),
        variables=by_variable and not later.variables,
    )


def _with_containers(
    node: ConfiguredRuntime, ask: PodQuestions, handlers: set[str], booted: float
) -> Iterator[tuple[Sandbox, tuple[Container, ...]]]:
    """Pods that count, each with the newest container of each name, because a container that has
    ended may start again. If the list shows handlers, only pods of `handlers` are taken."""
    ready = {pod.id: pod for pod in ask.sandboxes() if pod.ready or 0 < pod.created < booted}
    if node.adapter.lists_handlers:
        ready = {key: pod for key, pod in ready.items() if pod.handler in handlers}
    newest: dict[str, dict[str, Container]] = {}
    for item in ask.containers() if ready else ():
        known = newest.setdefault(item.sandbox, {})
        if item.name not in known or known[item.name].attempt < item.attempt:
            known[item.name] = item
    for key, pod in ready.items():
        yield pod, tuple(newest.get(key, {}).values())


def _with_handler(node: ConfiguredRuntime, ask: PodQuestions, pod: Sandbox) -> Sandbox:
    if node.adapter.lists_handlers:
        return pod
    return replace(pod, handler=node.adapter.pod_handler(ask.sandbox_info(pod.id)))


def _ready_pods(node: ConfiguredRuntime) -> list[Sandbox]:
    """The pods that are ready, with their handlers. Raises Unreachable."""
    with _questions(node.runtime) as ask:
        return [_with_handler(node, ask, pod) for pod in ask.sandboxes() if pod.ready]


def _our_handlers(running: Effective) -> set[str]:
    """The handlers of ours; "" is one if the default runtime is ours."""
    ours = {name for name, table in running.runtimes.items() if is_ours(name, table)}
    return ours | ({""} if is_ours(running.default, running.table(running.default)) else set())


def _handler_users(
    host: HostRoot, node: ConfiguredRuntime, after: Effective, called: tuple[str, ...],
    config: ToolkitConfig | None,
) -> tuple[tuple[str, ...], str]:  # fmt: skip
    """Pods of handlers whose state (see `ConfiguredRuntime.pod_states`) would change, and what
    would become of these handlers, in words. `called` are the low-level runtimes that NVIDIA's
    runtime will call, `config` is that of `gpu_service`. Raises Unreachable."""
    below_later = low_level.first_existing(host, called)
    below = low_level.first_existing(host, config.runtimes) if config else None
    now = node.pod_states(node.running(), below or below_later)
    later = node.pod_states(after, below_later or below)
    changed = {name for name, state in now.items() if name not in later or later[name] != state}
    users = [pod for pod in _ready_pods(node) if pod.handler in changed] if changed else []
    what = []
    if any(pod.handler not in later for pod in users):
        what.append("handlers that would go")
    if any(pod.handler in later for pod in users):
        what.append("handlers of which the low-level runtime or its state would move")
    return pod_names(users), ", ".join(what)


def apply_refusal(
    settings: Settings, host: HostRoot, node: ConfiguredRuntime, after: Files,
    called: tuple[str, ...],
) -> Refused | None:  # fmt: skip
    """The refusal of an apply that running pods would not survive, None if they would.

    `after` are the files as they will be, and `called` are the low-level runtimes that NVIDIA's
    runtime will call. Raises Unreachable."""
    config = _toolkit_config(settings, host)
    used, what = _handler_users(host, node, node.effective(after), called, config)
    return _refusal("apply", used, what) if used else None


def revert_refusal(
    settings: Settings, host: HostRoot, node: ConfiguredRuntime, after: Files
) -> Refused | None:
    """The refusal of a revert that running pods would not survive, None if they would. `after`
    are the files as they will be. Raises Unreachable."""
    config, restored = _toolkit_config(settings, host), node.effective(after)
    called = config.runtimes if config else ()
    used, moved = _handler_users(host, node, restored, called, config)
    before, later = (gpu_service(node, item, config) for item in (node.running(), restored))
    lost = _needs(node, before, later, frozenset())
    what = [moved] if used else []
    if lost is not None:
        what += ["the default runtime that would go"] if lost.default else []
        what += [f"annotations {prefix} that nothing would answer" for prefix in lost.prefixes]
    users = tuple(dict.fromkeys((*used, *(lost.pods if lost else ()))))
    return _refusal("revert", users, ", ".join(what)) if users else None


def low_level_kept(
    settings: Settings, host: HostRoot, node: ConfiguredRuntime | None, called: tuple[str, ...]
) -> tuple[tuple[str, ...], str | None]:
    """The low-level runtimes that NVIDIA's runtime is to call, and a warning if running pods
    keep the present one in place. Another one would not find these pods. Raises Unreachable."""
    config = _toolkit_config(settings, host)
    now = low_level.first_existing(host, config.runtimes) if config and node else None
    later = low_level.first_existing(host, called)
    if node is None or not now or not later or os.path.basename(now) == os.path.basename(later):
        return called, None
    ours = _our_handlers(node.running())
    used = pod_names(pod for pod in _ready_pods(node) if pod.handler in ours)
    if not used:
        return called, None
    return tuple(dict.fromkeys((now, *called))), (
        f"kept for running pods: {now} below NVIDIA's runtime, where {later} would be called; it "
        f"would not find them: {_shown_names(used)}"
    )


def toolkit_refusal(
    host: HostRoot, node: ConfiguredRuntime, directories: tuple[str, ...]
) -> Refused | None:
    """The refusal to remove the programs in a directory (its host paths), None if no pod runs by
    them. Raises Unreachable.

    The present default runtime does not matter. containerd remembers for each pod the program that
    runs its containers. In CRI-O the program is that of the pod's handler, and the command line of
    each container's monitor names the program of the time when it was started.
    """
    running = node.running()
    used: list[Sandbox] = []
    with _questions(node.runtime) as ask:
        for pod in (pod for pod in ask.sandboxes() if pod.ready):
            info = ask.sandbox_info(pod.id)
            if not node.adapter.lists_handlers:
                pod = replace(pod, handler=node.adapter.pod_handler(info))
            found = node.adapter.pod_programs(info, running, pod.handler)
            if any(is_below(path, *directories) for path in found):
                used.append(pod)
    users = pod_names(used)
    known = {(pod.namespace, pod.name) for pod in used}
    users += tuple(sorted(set(_monitors(host, directories, known))))
    return _refusal("revert", users, f"programs in {directories[0]}") if users else None


def _monitors(
    host: HostRoot, directories: tuple[str, ...], known: set[tuple[str, str]]
) -> Iterator[str]:
    """What the monitors with a program in these directories watch: pods that are not `known`, and
    other containers."""
    for pid, line in process.command_lines(host):
        is_monitor = os.path.basename(line[0]).startswith("conmon")
        if not is_monitor or not any(is_below(word, *directories) for word in line[1:]):
            continue
        pod = client.monitored(line)
        if pod is None:
            yield f"the container of {line[0]} with pid {pid}"
        elif pod not in known:
            yield "/".join(pod)


def pod_names(found: Iterable[Sandbox]) -> tuple[str, ...]:
    """Pods as people name them, each once."""
    shown = {f"{pod.namespace}/{pod.name} ({pod.handler or 'default'})" for pod in found}
    return tuple(sorted(shown))


def _refusal(purpose: str, users: tuple[str, ...], what: str) -> Refused:
    return Refused(
        f"cannot {purpose}: pods use {what}: {_shown_names(users)}; their containers could not be "
        "stopped, could not start again, or would have no GPU then; delete these pods first, and "
        f"wait until their containers have ended{_of_operator(users)}"
    )


def _of_operator(users: tuple[str, ...]) -> str:
    """What to do about pods of gpu-operator, whose DaemonSets create them again; "" without any."""
    pods = [user.partition("/")[2] for user in users]
    labels = dict.fromkeys(
        f"nvidia.com/gpu.deploy.{label}=false"
        for name, label in _OPERANDS.items()
        if any(pod == name or pod.startswith((f"{name}-", f"{name} ")) for pod in pods)
    )
    if not labels and not any(user.startswith("gpu-operator/") for user in users):
        return ""
    which = " ".join(labels) or "nvidia.com/gpu.deploy.operator-validator=false"
    return (
        "; those of gpu-operator come back until its labels on the node say otherwise: "
        f"`kubectl label node NODE --overwrite {which}`, and see deploy/README"
    )


def _shown_names(users: tuple[str, ...]) -> str:
    return ", ".join(users[:_SHOWN]) + (" and others" if len(users) > _SHOWN else "")


def _toolkit_config(settings: Settings, host: HostRoot) -> ToolkitConfig | None:
    return read_config(programs.directory(settings, host).agent)


def _questions(runtime: Runtime) -> AbstractContextManager[PodQuestions]:
    return client.pod_questions(runtime.socket.agent, runtime.socket.host, _TIMEOUT)
