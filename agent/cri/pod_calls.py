"""The calls by which `verify` runs and removes its own pods.

Invariant: each pod has a label by which a later run finds and removes it. A pod uses the network of
the node, so no network plugin is needed, and an image that is on the node.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.cri.client import PodQuestions, Sandbox, session

if TYPE_CHECKING:
    from agent._cri import api_pb2

NAMESPACE = "toolkit-agent-verify"
_LABELS = {"toolkit-agent/verify": "true"}


@dataclass(frozen=True)
class DeviceRequest:
    """A container's request for a CDI device. `device` is its qualified name. The request is an
    annotation with `prefix`, or the CRI's field if the prefix is empty."""

    device: str
    prefix: str = ""


class PodCalls(PodQuestions):
    """Calls that run pods. Each raises Unreachable; Rejected if the runtime answers with an error;
    NotFound if it does not know the pod or the container (`PodQuestions` then returns an empty
    answer)."""

    def has_image(self, image: str) -> bool:
        """Is this image on the node?"""
        from agent._cri import api_pb2

        request = api_pb2.ImageStatusRequest(image=api_pb2.ImageSpec(image=image))
        return bool(self.ask("ImageStatus", request).HasField("image"))

    def run(
        self, uid: str, handler: str, cgroup_parent: str
    ) -> tuple[str, api_pb2.PodSandboxConfig]:
        """Run a pod under a handler ("": the default). Returns its id and its configuration."""
        from agent._cri import api_pb2

        security = api_pb2.LinuxSandboxSecurityContext(namespace_options=_namespaces())
        config = api_pb2.PodSandboxConfig(
            metadata=api_pb2.PodSandboxMetadata(
                name=f"verify-{handler or 'default'}", uid=uid, namespace=NAMESPACE
            ),
            labels=_LABELS,
            linux=api_pb2.LinuxPodSandboxConfig(
                cgroup_parent=cgroup_parent, security_context=security
            ),
        )
        request = api_pb2.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return str(self.ask("RunPodSandbox", request).pod_sandbox_id), config

    def create(
        self, sandbox: str, pod: api_pb2.PodSandboxConfig, image: str, asked: DeviceRequest
    ) -> str:
        """Create a container with a device in a pod, without starting it. Returns its id. `pod` is
        the configuration that `run` returned."""
        from agent._cri import api_pb2

        security = api_pb2.LinuxContainerSecurityContext(namespace_options=_namespaces())
        config = api_pb2.ContainerConfig(
            metadata=api_pb2.ContainerMetadata(
                name=f"by-{'annotation' if asked.prefix else 'field'}"
            ),
            image=api_pb2.ImageSpec(image=image, user_specified_image=image),
            labels=_LABELS,
            annotations={f"{asked.prefix}verify": asked.device} if asked.prefix else {},
            linux=api_pb2.LinuxContainerConfig(security_context=security),
            CDI_devices=[] if asked.prefix else [api_pb2.CDIDevice(name=asked.device)],
        )
        request = api_pb2.CreateContainerRequest(
            pod_sandbox_id=sandbox, config=config, sandbox_config=pod
        )
        return str(self.ask("CreateContainer", request).container_id)

    def start(self, container: str) -> None:
        """Start the process of a container."""
        from agent._cri import api_pb2

        self.ask("StartContainer", api_pb2.StartContainerRequest(container_id=container))

    def remove(self, sandbox: str) -> None:
        """Remove a pod with its containers."""
        from agent._cri import api_pb2

        self.ask("StopPodSandbox", api_pb2.StopPodSandboxRequest(pod_sandbox_id=sandbox))
        self.ask("RemovePodSandbox", api_pb2.RemovePodSandboxRequest(pod_sandbox_id=sandbox))

    def pods(self) -> list[Sandbox]:
        """The pods of `verify` in the runtime's list."""
        # The namespace is compared too, because the listed pods are removed.
        return [pod for pod in self.sandboxes(_LABELS) if pod.namespace == NAMESPACE]


def _namespaces() -> Any:
    from agent._cri import api_pb2

    return api_pb2.NamespaceOption(network=api_pb2.NODE, pid=api_pb2.CONTAINER, ipc=api_pb2.NODE)


def pod_calls(
    path: str, name: str, known: tuple[str, ...], timeout: float
) -> AbstractContextManager[PodCalls]:
    """Open a session for calls that run pods; parameters as in `client.session`."""
    return session(PodCalls, path, name, timeout, known)
