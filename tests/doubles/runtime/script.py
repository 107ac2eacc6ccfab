"""The faults that a test asks for, read from a JSON file again at each start and each call.

For example `{"delay_start_s": 1.5, "die_when": {"handler": "nvidia"}}`. No file, no faults; an
unknown key is an error, so that a misspelt fault cannot pass for a runtime that is well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.doubles.containerd.generation import Generation, Table

# Names the file with the faults.
VARIABLE = "DOUBLE_SCRIPT"
# Set in a process that was started apart from the node, with directories of its own (--root).
TRIAL_VARIABLE = "DOUBLE_IN_TRIAL"
# What kind of runtime it is, which is no fault and holds in a trial start too.
_NATURE = ("by_key", "runtime_name", "version_name")


@dataclass(frozen=True)
class Condition:
    """What a loaded configuration may look like; holds if everything that is set is so."""

    handler: str | None = None
    default: str | None = None
    enable_cdi: bool | None = None

    def holds(self, generation: Generation, document: Table) -> bool:
        """Whether the effective configuration of containerd is so."""
        section = document["plugins"].get(generation.cri, {})
        containerd = section.get("containerd", {})
        return self.matches(
            containerd.get("runtimes", {}),
            containerd.get("default_runtime_name"),
            section.get("enable_cdi"),
        )

    def matches(
        self, handlers: Iterable[str], default: str | None, enable_cdi: bool | None = None
    ) -> bool:
        """Whether a configuration of any runtime is so."""
        return (
            self.handler in {None, *handlers}
            and self.default in {None, default}
            and self.enable_cdi in {None, enable_cdi}
        )


@dataclass(frozen=True)
class Pod:
    """A pod that the runtime lists, with one container unless `bare`; an empty handler is the
    default. `binary` is what containerd runs its containers by, where that is not its own choice.
    `annotations` (of the pod, too) and `env` are the container's. `age` are seconds, 0 for longer
    than anybody knows; `started` is false where the container is in CREATED."""

    name: str
    namespace: str = "default"
    handler: str = ""
    ready: bool = True
    binary: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    env: tuple[str, ...] = ()
    bare: bool = False
    age: float = 0.0
    started: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)


def made_pod(data: Mapping[str, Any]) -> Pod:
    """Make a pod from JSON."""
    return Pod(**{**data, "env": tuple(data.get("env", ()))})


@dataclass(frozen=True)
class Script:
    """How the runtime misbehaves.

    `in_trial` has the faults of a trial start, which has no others.
    At start: `die_when` exits with 2 if the configuration is so, `delay_start_s` waits before the
    socket is there, `crash_after_s` exits with 2 that long after.
    At each call: `silent` never answers, `unimplemented` has no CRI, the first `fail_first` calls
    of a process end with `fail_code`; else the answers deviate: `drop_handler` shows no nvidia
    handler whatever the files say, `enable_cdi` and `default` show these values, `no_verbose` gives
    no `info`, `runtime_ready`, `runtime_name` and `version_name` are reported, `pods` are listed,
    `images` are on the node.
    `log_calls` is a file that gets the name of each call.
    """

    die_when: Condition | None = None
    delay_start_s: float = 0.0
    crash_after_s: float | None = None
    silent: bool = False
    unimplemented: bool = False
    fail_first: int = 0
    fail_code: str = "UNKNOWN"
    drop_handler: bool = False
    enable_cdi: bool | None = None
    default: str | None = None
    no_verbose: bool = False
    runtime_ready: bool = True
    runtime_name: str = "containerd"
    version_name: str | None = None
    pods: tuple[Pod, ...] = field(default=())
    images: tuple[str, ...] = ()
    log_calls: str | None = None

    def disguise(self, config: Table) -> Table:
        """Give `info["config"]` as it is to be shown."""
        containerd = dict(config["containerd"])
        if self.drop_handler:
            containerd["runtimes"] = {
                name: handler
                for name, handler in containerd["runtimes"].items()
                if name != "nvidia"
            }
        if self.default is not None:
            containerd["defaultRuntimeName"] = self.default
        shown = {**config, "containerd": containerd}
        return shown if self.enable_cdi is None else {**shown, "enableCDI": self.enable_cdi}


Kind = TypeVar("Kind", bound=Script)


def read_script() -> Script:
    """Read the faults of a containerd."""
    return read_faults(Script)


def read_faults(kind: type[Kind]) -> Kind:
    """Read the file that the environment names; TypeError for a key that is no fault."""
    name = os.environ.get(VARIABLE)
    if not name or not Path(name).exists():
        return kind()
    given: dict[str, Any] = json.loads(Path(name).read_text(encoding="utf-8"))
    in_trial = given.pop("in_trial", {})
    if TRIAL_VARIABLE in os.environ:
        given = {**{key: given[key] for key in _NATURE if key in given}, **in_trial}
    if "die_when" in given:
        given["die_when"] = Condition(**given["die_when"])
    given["pods"] = tuple(made_pod(pod) for pod in given.get("pods", ()))
    return kind(**given)
