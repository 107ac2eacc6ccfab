"""What of a spec is wanted, where a person asks for one.

Invariant: data only; as it is by default, everything is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.cdi.model import Spec


@dataclass(frozen=True, slots=True)
class Choice:
    """`ids` are the devices that are wanted: indices, UUIDs, all, or none; `merged`: with a device
    `all`; `several`: a Tegra can have more than one GPU; `groups`: with the groups of device
    nodes; `vendor` and `name` are the parts of the kind, "" for those of the mode."""

    ids: tuple[str, ...] = ("all",)
    merged: bool = True
    several: bool = True
    groups: bool = True
    vendor: str = ""
    name: str = ""

    def named(self, spec: Spec) -> Spec:
        """The spec with the kind that is wanted."""
        vendor, _, name = spec.kind.partition("/")
        return replace(spec, kind=f"{self.vendor or vendor}/{self.name or name}")


EVERYTHING = Choice()
EMPTY = "none"  # the id of a device that brings nothing
