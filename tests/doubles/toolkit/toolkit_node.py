"""A private node for pods that has packages of the scripted toolkit, and a driver that is loaded.

with ToolkitNode(runtime) as node, Pods(node) as pods:
    checks.done(node.agent("apply"))
    made = node.start(pods.create(annotations={"cdi.k8s.io/x": "vendor.example/gpu=0"}))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from tests.doubles.toolkit import modules
from tests.doubles.toolkit.runtime import LOG
from tests.doubles.toolkit.source import make_sources
from tests.tools.pods import Container, PodNode
from tests.tools.runtimes import Runtime

_DEFAULT_KIND = "management.nvidia.com/gpu"  # as gpu-operator has it


@dataclass(frozen=True)
class Made:
    """A running container: what its OCI runtime was told, and what its process has.

    `chosen` are the devices that an nvidia-container-runtime put in, in that `mode`; both are None
    where none was at work.
    """

    spec: Mapping[str, Any]
    environment: list[str]
    dev: Path
    chosen: list[str] | None
    mode: str | None

    @property
    def devices(self) -> list[str]:
        """The paths of device nodes of the driver, as often as they are named."""
        named = [device["path"] for device in self.spec["linux"].get("devices") or ()]
        return [path for path in named if "nvidia" in path]

    def has_device(self, name: str) -> bool:
        """Whether it really is in the container."""
        return (self.dev / name).is_char_device()

    @property
    def hooks(self) -> list[str]:
        """The words of each hook of NVIDIA's, joined."""
        found = (self.spec.get("hooks") or {}).values()
        hooks = [hook for hooks in found for hook in hooks]
        return [" ".join(h.get("args") or ()) for h in hooks if "nvidia" in h["path"]]


class ToolkitNode(PodNode):
    """Such a node; `variables` are for the program under test.

    `on_host`: the packages are installed in /usr/bin of the node instead.
    """

    def __init__(self, runtime: Runtime, *, on_host: bool = False) -> None:
        super().__init__(runtime)
        self.shape = replace(self.shape, binaries=())
        self.source = self.directory / "source"
        self.on_host = on_host
        self.variables: dict[str, str] = {}
        self._log = self.directory / "run/toolkit.log"
        self.modules = self.directory / "modules"

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            if modules.PROC.exists():
                self._mount("--bind", str(self.modules / modules.FILE), str(modules.PROC))
            if self.on_host:
                both = f"lowerdir={self.source}/deb/usr/bin:/usr/bin"
                self._mount("-t", "overlay", "-o", both, "overlay", "/usr/bin")
        except BaseException:
            self.__exit__()
            raise
        return self

    def load_driver(self, *, loaded: bool = True) -> None:
        """Make the kernel say so, or the opposite."""
        modules.load(self.modules, loaded=loaded)

    def calls(self) -> list[dict[str, Any]]:
        """What the toolkit's programs noted, oldest first."""
        if not self._log.exists():
            return []
        lines = self._log.read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def start(self, container: Container) -> Made:
        """Start it, and look at what was made of it."""
        container.start()
        state = self.directory / "run/containerd/io.containerd.runtime.v2.task/k8s.io"
        spec = json.loads((state / container.id / "config.json").read_bytes())
        process = Path("/proc") / str(container.status().pid)
        command = "".join(f"{word}\0" for word in spec["process"]["args"])
        # It is started when the runtime has said so to runc's process, which is then replaced.
        container.wait(lambda _: (process / "cmdline").read_text("utf-8") == command)
        calls = (c for c in self.calls() if container.id in c["argv"] and "mode" in c)
        mine = next(calls, {})
        return Made(
            spec=spec,
            environment=(process / "environ").read_text("utf-8").split("\0"),
            dev=process / "root/dev",
            chosen=mine.get("devices"),
            mode=mine.get("mode"),
        )

    def forget_calls(self) -> None:
        """Have noted nothing."""
        self._log.unlink(missing_ok=True)

    def describe(self, name: str, spec: object) -> Path:
        """Put a CDI spec of somebody else's where the runtime looks; gives its file."""
        self.cdi_directory.mkdir(exist_ok=True)
        draft = self.cdi_directory / f"{name}.new"
        draft.write_text(json.dumps(spec), encoding="utf-8")
        return draft.rename(self.cdi_directory / name)

    def _mount(self, *words: str) -> None:
        result = self.inside(["mount", *words])
        assert result.returncode == 0, result.stderr

    def _make_files(self) -> None:
        super()._make_files()
        make_sources(self.source)
        self.modules.mkdir()
        modules.make(self.modules)

    def _options(self) -> list[str]:
        kind = f"--nvidia-container-runtime.modes.cdi.default-kind={_DEFAULT_KIND}"
        source = [] if self.on_host else [f"--toolkit-source-root={self.source}"]
        return [*super()._options(), *source, kind]

    def _environment(self) -> dict[str, str]:
        seen = modules.variables(self.modules)
        return {**super()._environment(), **seen, LOG: str(self._log), **self.variables}
