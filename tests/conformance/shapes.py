"""What nodes look like before, and what the agent must make of them.

A shape is a directory of files below tests/data/shapes and a few facts; `SHAPES` is the table.
Which row of the decision applies follows from what containerd says of CDI: 1.6 knows no such
setting (row 6), 1.7 has it and it is off (row 4), 2.x has it and it is on (row 3), unless the files
say else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from tests.tools.runtimes import ROOT

_DATA = ROOT / "tests" / "data" / "shapes"

OURS = ("nvidia", "nvidia-cdi", "nvidia-legacy")
BINARIES = {
    "nvidia": "nvidia-container-runtime",
    "nvidia-cdi": "nvidia-container-runtime.cdi",
    "nvidia-legacy": "nvidia-container-runtime.legacy",
}
HOOK = "nvidia-cdi-hook"


@dataclass(frozen=True)
class Row:
    """One row of the decision: what the runtime says before, what it and the status file say after.

    `cdi_before` and `cdi_after` are `enableCDI`; None means that there is no such setting.
    """

    number: int
    cdi_before: bool | None
    cdi_after: bool | None
    native: bool
    reason: str
    strategy: str
    prefix: str
    is_default: bool
    annotations: tuple[str, ...] = ()


ROW3 = Row(3, True, True, True, "enabled", "cdi-cri", "cdi.k8s.io/", False)
ROW4 = Row(4, False, True, True, "enabled-by-agent", "cdi-cri", "cdi.k8s.io/", False)
_WRAPPED = ("nvidia.cdi.k8s.io/*", "cdi.k8s.io/*")
ROW5 = Row(
    5, False, False, False, "disabled", "cdi-annotations", "nvidia.cdi.k8s.io/", True, _WRAPPED
)
ROW6 = Row(
    6, None, None, False, "unsupported", "cdi-annotations", "nvidia.cdi.k8s.io/", True, _WRAPPED
)


@dataclass(frozen=True)
class Refused:
    """The agent must end with `code`, say a line that starts with "cannot" and contains `names`,
    and touch nothing. `answers` tells whether the runtime has a CRI to begin with."""

    code: int
    names: str
    answers: bool = True


Expected = Row | Refused


@dataclass(frozen=True)
class Shape:
    """One shape of a node; its files are in the directory `files`, by default that of its name.

    `cells` maps a containerd generation to what must come of it; a missing one does not apply.
    `explicit`: containerd runs with `-c` and private paths, else with its default ones.
    `handlers` and `default` are what the runtime says before; `base` is the handler whose options
    ours inherit. `stale` are handlers that run an nvidia-container-runtime under other names than
    ours. `carried`: runc is made or repaired, to be the default with the options of `base`.
    `removed` are handlers that go; `strange` are options of `base` that nobody knows.
    `odd`: its files are not TOML 1.0, and some containerd reads them all the same.
    `options` go to the agent; `binaries` are the handler binaries that the node has.
    """

    name: str
    cells: Mapping[str, Expected]
    explicit: bool = True
    files: str = ""
    handlers: tuple[str, ...] = ("runc",)
    default: str = "runc"
    base: str = "runc"
    stale: tuple[str, ...] = ()
    carried: bool = False
    removed: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    binaries: tuple[str, ...] = (*BINARIES.values(), HOOK)
    modes: Mapping[str, int] = field(default_factory=dict)
    odd: bool = False

    @property
    def directory(self) -> Path:
        """Where its files are; there is none where a node has no files."""
        return _DATA / (self.files or self.name)

    @property
    def handlers_after(self) -> tuple[str, ...]:
        """Handlers of ours that a right node has: those whose binary is there."""
        return tuple(name for name, binary in BINARIES.items() if binary in self.binaries)

    @property
    def ours(self) -> tuple[str, ...]:
        """Handlers that are the agent's to change."""
        return (*OURS, *self.removed, *(("runc",) if self.carried else ()))

    def default_after(self, row: Row) -> str:
        """The default runtime of a right node: ours in rows 5 and 6, else what was, if not ours."""
        if row.is_default:
            return "nvidia"
        if self.carried:
            return "runc"
        return self.base if self.default in (*OURS, *self.stale) else self.default


class Sole(TypedDict):
    """Fields of a shape."""

    handlers: tuple[str, ...]
    default: str
    base: str
    carried: bool


_ALL = {"1.6": ROW6, "1.7": ROW4, "2.1": ROW3}
_OLD = {"1.6": ROW6, "1.7": ROW4}
_NEW = {"2.1": ROW3}
_SWITCHED_OFF = {"1.6": ROW6, "1.7": ROW4, "2.1": ROW4}
_LOCKED = {"1.6": ROW6, "1.7": ROW5, "2.1": ROW5}
_NO_BINARY = Refused(3, "nvidia-container-runtime")
_NO_CRI = Refused(4, "disabled_plugins", answers=False)
_KEEP_CDI = ("--enable-cdi-in-runtime=false",)

_WITH_NVIDIA = ("nvidia", "runc")
_EXP = "nvidia-experimental"
_AKS = "nvidia-container-runtime"
# Keywords of a shape whose only handler is NVIDIA's.
_SOLE = Sole(handlers=("nvidia",), default="nvidia", base="nvidia", carried=True)
_NO_TYPE = Refused(3, "it has no runtime_type")
_NO_V1 = Refused(3, "no runtime_type io.containerd.runc.v1")
_CGROUP = Refused(3, "systemd_cgroup")
_RKE2 = ("runc", "runhcs-wcow-process")
_VENDORS = ("crun", "kata", "runc", "runsc")


SHAPES = (
    Shape("no-root-file", _ALL, explicit=False),
    Shape("version-2-only", _ALL, explicit=False),
    Shape("version-3-only", _NEW, explicit=False),
    Shape("stock", _ALL, explicit=False, modes={"config.toml": 0o600}),
    Shape("debian", _ALL, explicit=False),
    Shape("disabled-cri", {"1.6": _NO_CRI, "1.7": _NO_CRI, "2.1": _NO_CRI}, explicit=False),
    Shape("kubeadm-v2", _ALL, modes={"config.toml": 0o640}),
    Shape("kubeadm-v3", _NEW, modes={"config.toml": 0o640}),
    Shape("snapshotter-v2", _ALL),
    Shape("imports-v2", _ALL, handlers=("plain", "runc"), modes={"conf.d/50-runtime.toml": 0o600}),
    Shape("imports-v3", _NEW, handlers=("plain", "runc")),
    Shape("late-default-v2", _ALL, handlers=("runc", "site"), default="site", base="site"),
    Shape("late-default-v3", _NEW, handlers=_WITH_NVIDIA, default="nvidia"),
    Shape("late-cdi-v2", _SWITCHED_OFF),
    Shape("late-cdi-v3", {"2.1": ROW4}),
    Shape("late-handler-v2", _ALL, handlers=_WITH_NVIDIA),
    Shape("late-handler-v3", _NEW, handlers=_WITH_NVIDIA),
    Shape("custom-default-v2", _ALL, handlers=("runc", "site"), default="site", base="site"),
    Shape("custom-default-v3", _NEW, handlers=("runc", "site"), default="site", base="site"),
    Shape("other-vendors-v2", _ALL, handlers=_VENDORS),
    Shape("other-vendors-v3", _NEW, handlers=_VENDORS),
    Shape("stale-upper-v2", _ALL, handlers=_WITH_NVIDIA, default="nvidia"),
    Shape("stale-upper-v3", _NEW, handlers=_WITH_NVIDIA, default="nvidia"),
    Shape("stale-lower-v2", _ALL, handlers=_WITH_NVIDIA, default="nvidia"),
    Shape("stale-lower-v3", _NEW, handlers=_WITH_NVIDIA, default="nvidia"),
    Shape("frozen-v2", _SWITCHED_OFF, handlers=(*OURS, "runc"), default="nvidia"),
    Shape("frozen-v3", _NEW, handlers=(*OURS, "runc"), default="nvidia"),
    Shape("cdi-off-v2", _SWITCHED_OFF),
    Shape("cdi-off-v3", {"2.1": ROW4}),
    Shape("cdi-locked-v2", _LOCKED, files="cdi-off-v2", options=_KEEP_CDI),
    Shape("cdi-locked-v3", {"2.1": ROW5}, files="cdi-off-v3", options=_KEEP_CDI),
    Shape("v1", {**_OLD, "2.1": Refused(3, "config.toml")}),
    Shape("v1-implicit", {**_OLD, "2.1": Refused(3, "config.toml")}),
    Shape(
        "no-binary",
        {"1.6": _NO_BINARY, "1.7": _NO_BINARY, "2.1": _NO_BINARY},
        files="kubeadm-v2",
        binaries=(),
    ),
    Shape("comments-only", {"1.7": ROW4, "2.1": ROW3}, explicit=False),
    Shape("printed-default-1.6", {"1.6": ROW6}, explicit=False),
    Shape("printed-default-1.7", {"1.7": ROW4, "2.1": ROW4}, explicit=False),
    Shape("printed-default-2.1", _NEW, explicit=False),
    Shape("tabs-v2", _OLD),
    Shape("cdi-on-v2", {"1.6": ROW6, "1.7": ROW3}),
    Shape("nested-imports-v2", _OLD),
    Shape("nested-imports-v3", _NEW),
    Shape("empty-drop-in-v2", {"1.7": ROW4}),
    Shape("empty-drop-in-v3", _NEW),
    Shape("frozen-v3-below-v2", _NEW, handlers=(*OURS, "runc"), default="nvidia"),
    Shape("crun-default-v2", _OLD, handlers=("crun", "runc", "spin"), default="crun", base="crun"),
    Shape("crun-default-v3", _NEW, handlers=("crun", "runc", "spin"), default="crun", base="crun"),
    # A machine's shim does not know our binary's option, so its options are not inherited.
    Shape("vm-default-v2", {"1.7": ROW4}, handlers=("kata", "runc"), default="kata"),
    Shape("vm-default-v3", _NEW, handlers=("kata", "runc"), default="kata"),
    Shape(
        "stale-other-name-v2", {"1.7": ROW4}, handlers=(_EXP, "runc"), default=_EXP, stale=(_EXP,)
    ),
    Shape("stale-other-name-v3", _NEW, handlers=(_EXP, "runc"), default=_EXP, stale=(_EXP,)),
    Shape("stale-options-v2", {"1.7": ROW4}, handlers=_WITH_NVIDIA),
    Shape("stale-options-v3", _NEW, handlers=_WITH_NVIDIA),
    Shape("sole-nvidia-v2", _OLD, **_SOLE),
    Shape("data-volume-v2", _OLD, **_SOLE),
    Shape(
        "data-volume-v2-merged",
        {"2.1": ROW4},
        files="data-volume-v2",
        handlers=_WITH_NVIDIA,
        default="nvidia",
        base="nvidia",
        carried=True,
    ),
    Shape(
        "legacy-default-v1",
        {"1.7": ROW4},
        handlers=("default", "runc"),
        default="default",
        base="default",
    ),
    Shape(
        "legacy-default-v2",
        {"1.7": ROW4},
        handlers=("default", "runc"),
        default="default",
        base="default",
    ),
    Shape("one-binary", _ALL, files="kubeadm-v2", binaries=(BINARIES["nvidia"],)),
    # As installers, clouds and packages write them.
    Shape("kubespray-v2", _OLD),
    Shape("kubespray-v3", _NEW),
    Shape("eks-v2", {"1.7": ROW4, "2.1": ROW3}),
    Shape("eks-v3", _NEW, handlers=_WITH_NVIDIA, default="nvidia", base="nvidia", carried=True),
    Shape("gke-v2", _ALL, handlers=("gvisor", "runc")),
    Shape(
        "aks-v2",
        _OLD,
        handlers=(_AKS, "untrusted"),
        default=_AKS,
        base=_AKS,
        stale=(_AKS, "untrusted"),
        carried=True,
    ),
    Shape("kind-v2", _ALL, handlers=("runc", "test-handler")),
    Shape("bottlerocket-v2", _OLD, handlers=("shimpei",), default="shimpei", base="shimpei"),
    Shape("bottlerocket-v3", _NEW, handlers=("runc", "shimpei"), default="shimpei", base="shimpei"),
    Shape("rke2-v3", {"2.1": Refused(3, "config-v3.toml.tmpl")}, handlers=_RKE2),
    Shape("k0s-v2", dict.fromkeys(_ALL, Refused(3, "containerd.d"))),
    Shape("fedora", {"1.7": ROW4, "2.1": ROW3}, explicit=False),
    # A default that cannot run pods, or one to go back to. 1.x makes all of the drop-in's section.
    Shape(
        "empty-runc-v2", _OLD, handlers=_WITH_NVIDIA, default="nvidia", base="nvidia", carried=True
    ),
    Shape(
        "empty-runc-v2-merged", _NEW, files="empty-runc-v2", handlers=_WITH_NVIDIA, default="nvidia"
    ),
    Shape("untyped-v2", {"1.6": ROW6, "1.7": _NO_TYPE, "2.1": _NO_TYPE}),
    Shape("untyped-v3", {"2.1": _NO_TYPE}),
    Shape("runc-v1-v2", {**_OLD, "2.1": _NO_V1}),
    Shape("runc-v1-v3", {"2.1": _NO_V1}),
    Shape("runc-v1-nvidia-v2", _OLD, handlers=_WITH_NVIDIA, default="nvidia"),
    Shape("runc-v1-nvidia-v3", _NEW, handlers=_WITH_NVIDIA, default="nvidia", carried=True),
    # NVIDIA's by what it calls: runc's own name, and the shim before runc's, which names no binary.
    Shape("runc-is-nvidia-v2", _ALL, stale=("runc",), carried=True),
    Shape("runc-is-nvidia-v3", _NEW, stale=("runc",), carried=True),
    Shape(
        "linux-shim-v1",
        _OLD,
        handlers=(_AKS,),
        default=_AKS,
        base=_AKS,
        stale=(_AKS,),
        carried=True,
    ),
    Shape(
        "linux-shim-default-v1",
        _OLD,
        handlers=("default", "nvidia"),
        default="default",
        base="default",
        stale=("default",),
        carried=True,
        removed=("default",),
    ),
    Shape(
        "linux-shim-plugin-v2",
        _OLD,
        handlers=("gpu",),
        default="gpu",
        base="gpu",
        stale=("gpu",),
        carried=True,
    ),
    Shape("linux-engine-v2", _OLD, **_SOLE),
    Shape("linux-cgroup-v2", {"1.6": _CGROUP, "1.7": _CGROUP}, **_SOLE),
    Shape("gvisor-nvidia-v2", dict.fromkeys(("1.6", "1.7", "2.1"), Refused(3, "sandbox"))),
    # What nobody knows, and what NVIDIA's installer writes with nothing in it.
    Shape("strange-keys-v2", _ALL, strange=("Systemd_Cgroup", "version")),
    Shape("strange-keys-v3", _NEW, strange=("Systemd_Cgroup", "version")),
    Shape(
        "version-at-the-end",
        {**_OLD, "2.1": Refused(3, "stands in the table")},
        strange=("version",),
    ),
    Shape("installer-v2", {"1.7": ROW3}, handlers=(*OURS, "runc")),
    Shape("installer-v3", _NEW, handlers=(*OURS, "runc")),
    # Spellings that people use by hand.
    Shape("inline-v2", _ALL),
    Shape("inline-v3", _NEW, handlers=_WITH_NVIDIA, default="nvidia"),
    Shape("dotted-v2", _ALL),
    Shape("crlf-v2", _OLD),
    # What some containerd reads, and TOML 1.0 does not allow.
    Shape("bom-v2", _OLD, odd=True),
    Shape("odd-comments-v2", _OLD, odd=True),
    Shape("cr-v2", dict.fromkeys(_OLD, Refused(3, "line 1 ends with a carriage return")), odd=True),
    Shape("latin1-v2", dict.fromkeys(_OLD, Refused(3, "line 19 is not UTF-8")), odd=True),
    Shape("multiline-v2", _ALL, odd=True),
    Shape("multiline-v3", _NEW, odd=True),
)

BY_NAME = {shape.name: shape for shape in SHAPES}
