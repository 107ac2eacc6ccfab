"""The faults of the scripted CRI-O: those of the scripted containerd, and its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from tests.doubles.crio.generation import Table
from tests.doubles.runtime.script import Script, read_faults


@dataclass(frozen=True)
class CrioScript(Script):
    """How the runtime misbehaves: as the scripted containerd, but for its switch for CDI.

    `http_status` other than 200 is what HTTP answers; `by_key` merges a handler's keys over those
    of an earlier file (see `load`); `no_reload` does nothing on SIGHUP; `broken_handlers` run no
    pod ("" is the default); with `removes_pods` somebody removes each pod at once.
    """

    runtime_name: str = "cri-o"
    http_status: int = 200
    by_key: bool = False
    no_reload: bool = False
    broken_handlers: tuple[str, ...] = ()
    removes_pods: bool = False

    def __post_init__(self) -> None:
        if self.enable_cdi is not None:
            raise TypeError("CRI-O has no enable_cdi")

    def disguise(self, config: Table) -> Table:
        """Give the configuration as it is to be shown."""
        if not self.drop_handler and self.default is None:
            return config
        shown = copy.deepcopy(config)
        if self.drop_handler:
            shown["runtime"]["runtimes"].pop("nvidia", None)
        if self.default is not None:
            shown["runtime"]["default_runtime"] = self.default
        return shown


def read_script() -> CrioScript:
    """Read the file that the environment names; TypeError for a key that is no fault."""
    return read_faults(CrioScript)
