"""The running pods that a change would affect, found through the CRI.

Invariant: reads only, and asks nothing if no setting would change on which a pod can depend. A pod
keeps these until it is gone: its handler, its low-level runtime and state directory, the annotation
prefix, and the default runtime that it was created under. A pod that is not ready does not count,
because the kubelet starts no container in it again. Pods of before a recent boot count although
they are not ready, because the kubelet creates them again with their old annotations.
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
# Pods of gpu-operator 26.7 that ask for GPUs: the start of their names, and the node label that
# removes them if it is false. The operator does not change a label that somebody set to false.
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
_STARTING = 600.0  # seconds after a boot in which the kubelet creates the earlier pods again


@dataclass(frozen=True)
class GpuService:
    """The ways in which a node gives GPUs to pods by NVIDIA's runtime.

    `default`: is one of our handlers the default runtime? `prefixes`: the annotation prefixes that
    NVIDIA's runtime answers. `variables`: does it answer environment variables? `known`: are these
    the values of the toolkit's config.toml, not NVIDIA's defaults?"""

    default: bool = False
    prefixes: frozenset[str] = frozenset()
    variables: bool = False
    known: bool = True


def gpu_service(
    node: ConfiguredRuntime, effective: Effective, config: ToolkitConfig | None
) -> GpuService:
    """The service of a node with this effective configuration. `config` is the toolkit's
    config.toml, None if it is missing or cannot be read."""
    answers = config or ToolkitConfig(prefixes=(CDI_PREFIX, NVIDIA_PREFIX))
    prefixes = frozenset(p for p in answers.prefixes if node.passes_annotation(effective, p))
    default = is_ours(effective.default, effective.table(effective.default))
    return GpuService(default, prefixes, answers.variables, config is not None)


def pod_needs(
    settings: Settings, node: ConfiguredRuntime, decision: Decision, booted: float
) -> PodNeeds | None:
    """The running pods that would lose their GPUs by a decision, and the settings that they need;
    None if there are no such pods. `booted` is the result of `recent_boot`.

    Raises Unreachable. Raises Refused if an OCI hook would replace the handlers, because then
    nothing can be kept for the pods.
    """
    now = gpu_service(node, node.running(), _toolkit_config(settings, node.host))
    if settings.accept_envvar is False:  # the options forbid it, so pods that need it do not count
        now = replace(now, variables=False)
    native = frozenset([CDI_PREFIX] if decision.native else [])
    answered = frozenset(decision.prefixes)
    if node.adapter.lists_handlers:  # containerd passes only the annotations in its settings
        answered &= frozenset(decision.pass_prefixes)
    # An OCI hook answers variables, whatever the default runtime is.
    later = GpuService(
        decision.is_default or decision.hook, answered | native, accepts_variables(settings)
    )
    needs = _needs(node, now, later, native, booted)
    if needs is not None and decision.hook:
        raise _refusal("apply", needs.pods, f"annotations {', '.join(needs.prefixes)}")
    return needs


def recent_boot(now: float, uptime: float) -> float:
    """The time of the boot, if it was less than ten minutes ago; else 0. Pods that were created
    before that time count although they are not ready. `now` and the result are in seconds since
    the epoch, `uptime` is in seconds."""
    return now - uptime if uptime < _STARTING else 0.0


def _needs(
    node: ConfiguredRuntime, now: GpuService, later: GpuService, native: frozenset[str],
    booted: float = 0.0,
) -> PodNeeds | None:  # fmt: skip
    """The needs of pods that ask for GPUs and run by one of our handlers, or by the default runtime
    if that is ours. `now` and `later` are the present and the future service. `native` are the
    prefixes that the runtime itself will answer."""
    loses_default = now.default and not later.default
    prefixes = now.prefixes - (native if loses_default else later.prefixes)
    variables = now.variables and (loses_default or (now.known and not later.variables))
    if not prefixes and not variables:
        return None
    ours = _our_handlers(node.running())
    pods: list[Sandbox] = []
    used: set[str] = set()
    by_variable = False
    with _questions(node.runtime) as questions:
        for pod, containers in _pods_with_containers(node, questions, ours, booted):
            keys = {key for item in containers for key in item.annotations}
            lost = {p for p in prefixes if any(key.startswith(p) for key in keys)}
            # No list shows variables. So each container is examined, until there are enough pods
            # for a message.
            asks = variables and not lost and len(pods) <= _SHOWN
            asks = asks and any(
                client.asks_by_variable(questions.container_info(item.id)) for item in containers
            )
            if (lost or asks) and (pod := _with_handler(node, questions, pod)).handler in ours:
                pods.append(pod)
                used |= lost
                by_variable |= asks
    if not pods:
        return None
    return PodNeeds(
        pod_names(pods),
        default=loses_default,
        prefixes=tuple(sorted(used)),
        variables=by_variable and not later.variables,
    )


def _pods_with_containers(
    node: ConfiguredRuntime, questions: PodQuestions, handlers: set[str], booted: float
) -> Iterator[tuple[Sandbox, tuple[Container, ...]]]:
    """The pods that count, each with the newest container of each name, because a container that
    has ended may start again. If the runtime's list shows handlers, only pods of `handlers`."""
    ready = {pod.id: pod for pod in questions.sandboxes() if pod.ready or 0 < pod.created < booted}
    if node.adapter.lists_handlers:
        ready = {key: pod for key, pod in ready.items() if pod.handler in handlers}
    newest: dict[str, dict[str, Container]] = {}
    for item in questions.containers() if ready else ():
        known = newest.setdefault(item.sandbox, {})
        if item.name not in known or known[item.name].attempt < item.attempt:
            known[item.name] = item
    for key, pod in ready.items():
        yield pod, tuple(newest.get(key, {}).values())


def _with_handler(node: ConfiguredRuntime, questions: PodQuestions, pod: Sandbox) -> Sandbox:
    """The pod with its handler, for which some runtimes have to be asked."""
    if node.adapter.lists_handlers:
        return pod
    return replace(pod, handler=node.adapter.pod_handler(questions.sandbox_info(pod.id)))


def _ready_pods(node: ConfiguredRuntime) -> list[Sandbox]:
    """The pods that are ready, with their handlers. Raises Unreachable."""
    with _questions(node.runtime) as questions:
        return [_with_handler(node, questions, pod) for pod in questions.sandboxes() if pod.ready]


def _our_handlers(running: Effective) -> set[str]:
    """The names of our handlers, and "" if the default runtime is ours."""
    ours = {name for name, table in running.runtimes.items() if is_ours(name, table)}
    return ours | ({""} if is_ours(running.default, running.table(running.default)) else set())


def _handler_users(
    node: ConfiguredRuntime, after: Effective, low_levels: tuple[str, ...],
    config: ToolkitConfig | None,
) -> tuple[tuple[str, ...], str]:  # fmt: skip
    """The pods of handlers whose state (`ConfiguredRuntime.pod_states`) would change, and a
    description of these handlers. `after` is the future configuration. `low_levels` are the
    low-level runtimes that NVIDIA's runtime will call. `config` as in `gpu_service`. Raises
    Unreachable."""
    below_later = low_level.first_existing(node.host, low_levels)
    below = low_level.first_existing(node.host, config.runtimes) if config else None
    now = node.pod_states(node.running(), below or below_later)
    later = node.pod_states(after, below_later or below)
    changed = {name for name, state in now.items() if name not in later or later[name] != state}
    users = [pod for pod in _ready_pods(node) if pod.handler in changed] if changed else []
    handlers = []
    if any(pod.handler not in later for pod in users):
        handlers.append("handlers that would go")
    if any(pod.handler in later for pod in users):
        handlers.append("handlers of which the low-level runtime or its state would move")
    return pod_names(users), ", ".join(handlers)


def apply_refusal(
    settings: Settings, node: ConfiguredRuntime, after: Files, low_levels: tuple[str, ...]
) -> Refused | None:
    """The error for an apply that running pods would not survive, None if they would.

    `after` are the future files, and `low_levels` are the low-level runtimes that NVIDIA's runtime
    will call. Raises Unreachable."""
    config = _toolkit_config(settings, node.host)
    users, handlers = _handler_users(node, node.effective(after), low_levels, config)
    return _refusal("apply", users, handlers) if users else None


def revert_refusal(settings: Settings, node: ConfiguredRuntime, after: Files) -> Refused | None:
    """The error for a revert that running pods would not survive, None if they would. `after` are
    the future files. Raises Unreachable."""
    config, restored = _toolkit_config(settings, node.host), node.effective(after)
    low_levels = config.runtimes if config else ()
    users, handlers = _handler_users(node, restored, low_levels, config)
    before, later = (gpu_service(node, item, config) for item in (node.running(), restored))
    lost = _needs(node, before, later, frozenset())
    used = [handlers] if users else []
    if lost is not None:
        used += ["the default runtime that would go"] if lost.default else []
        used += [f"annotations {prefix} that nothing would answer" for prefix in lost.prefixes]
        users = tuple(dict.fromkeys((*users, *lost.pods)))
    return _refusal("revert", users, ", ".join(used)) if users else None


def kept_low_level(
    settings: Settings, node: ConfiguredRuntime, low_levels: tuple[str, ...]
) -> tuple[tuple[str, ...], str | None]:
    """The low-level runtimes for NVIDIA's runtime, and a warning or None. They are `low_levels`;
    but if pods of our handlers run, the present one comes first, because no other low-level runtime
    finds these pods. Raises Unreachable."""
    config = _toolkit_config(settings, node.host)
    now = low_level.first_existing(node.host, config.runtimes) if config else None
    later = low_level.first_existing(node.host, low_levels)
    if not now or not later or os.path.basename(now) == os.path.basename(later):
        return low_levels, None
    ours = _our_handlers(node.running())
    used = pod_names(pod for pod in _ready_pods(node) if pod.handler in ours)
    if not used:
        return low_levels, None
    return tuple(dict.fromkeys((now, *low_levels))), (
        f"kept for running pods: NVIDIA's runtime calls {now}, because {later} would not find "
        f"these pods: {_shown_names(used)}"
    )


def toolkit_refusal(node: ConfiguredRuntime, directories: tuple[str, ...]) -> Refused | None:
    """The error if a pod runs by a program in a directory that is to be removed, None if no pod
    does. `directories` are all host paths of that directory. Raises Unreachable.

    The present default runtime does not matter. containerd remembers for each pod the program that
    runs its containers. In CRI-O the program is that of the pod's handler, and the command line of
    each container's monitor has the program with which the container was started.
    """
    running = node.running()
    used: list[Sandbox] = []
    with _questions(node.runtime) as questions:
        for pod in (pod for pod in questions.sandboxes() if pod.ready):
            info = questions.sandbox_info(pod.id)
            if not node.adapter.lists_handlers:
                pod = replace(pod, handler=node.adapter.pod_handler(info))
            paths = node.adapter.pod_programs(info, running, pod.handler)
            if any(is_below(path, *directories) for path in paths):
                used.append(pod)
    users = pod_names(used)
    known = {(pod.namespace, pod.name) for pod in used}
    users += tuple(sorted(set(_monitors(node.host, directories, known))))
    return _refusal("revert", users, f"programs in {directories[0]}") if users else None


def _monitors(
    host: HostRoot, directories: tuple[str, ...], known: set[tuple[str, str]]
) -> Iterator[str]:
    """The names of the pods and other containers whose monitor has a program in these directories
    on its command line, without the pods in `known`."""
    for pid, line in process.command_lines(host):
        is_monitor = os.path.basename(line[0]).startswith("conmon")
        if not is_monitor or not any(is_below(word, *directories) for word in line[1:]):
            continue
        pod = client.monitored_pod(line)
        if pod is None:
            yield f"the container of {line[0]} with pid {pid}"
        elif pod not in known:
            yield "/".join(pod)


def pod_names(pods: Iterable[Sandbox]) -> tuple[str, ...]:
    """The names of pods for a message, `NAMESPACE/NAME (HANDLER)`, sorted and each once."""
    return tuple(
        sorted({f"{pod.namespace}/{pod.name} ({pod.handler or 'default'})" for pod in pods})
    )


def _refusal(purpose: str, users: tuple[str, ...], used: str) -> Refused:
    return Refused(
        f"cannot {purpose}: pods use {used}: {_shown_names(users)}; their containers could not be "
        "stopped, could not start again, or would have no GPU then; delete these pods first, and "
        f"wait until their containers have ended{_operator_hint(users)}"
    )


def _operator_hint(users: tuple[str, ...]) -> str:
    """The end of the message for pods of gpu-operator, whose DaemonSets create them again; "" if
    none of the pods is gpu-operator's."""
    pods = [user.partition("/")[2] for user in users]
    labels = dict.fromkeys(
        f"nvidia.com/gpu.deploy.{label}=false"
        for name, label in _OPERANDS.items()
        if any(pod == name or pod.startswith((f"{name}-", f"{name} ")) for pod in pods)
    )
    if not labels and not any(user.startswith("gpu-operator/") for user in users):
        return ""
    words = " ".join(labels) or "nvidia.com/gpu.deploy.operator-validator=false"
    return (
        "; gpu-operator creates its pods again until labels on the node forbid it: "
        f"`kubectl label node NODE --overwrite {words}`, and see deploy/README"
    )


def _shown_names(users: tuple[str, ...]) -> str:
    return ", ".join(users[:_SHOWN]) + (" and others" if len(users) > _SHOWN else "")


def _toolkit_config(settings: Settings, host: HostRoot) -> ToolkitConfig | None:
    return read_config(programs.directory(settings, host).agent)


def _questions(runtime: Runtime) -> AbstractContextManager[PodQuestions]:
    return client.pod_questions(runtime.socket.agent, runtime.socket.host, _TIMEOUT)
