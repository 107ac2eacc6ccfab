"""Handlers inherit what works from nodes that other tools have configured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from agent.cri.client import Answer
from agent.errors import Refused
from agent.runtimes.containerd import handlers
from agent.runtimes.containerd.handlers import Features, differences
from agent.runtimes.desired_state import Effective
from agent.toml.document import Data
from agent.toolkit.programs import Binary
from tests.unit.runtimes.test_desired_state import (
    BINARIES,
    ROW3,
    ROW6,
    RUNC,
    RUNTIME,
    TYPE,
    cri,
    derive_desired,
    handler,
)
from tests.unit.support.edit_request import edit_request


def test_handler_with_another_shim_is_no_base() -> None:
    """kata's shim knows no BinaryName: our binary would never run, and all would look right."""
    kata: Data = {"runtime_type": "io.containerd.kata.v2", "options": {"ConfigPath": "/k.toml"}}
    found = derive_desired(cri({"kata": kata, "runc": RUNC}, "kata"))
    assert found.handlers["nvidia"] == {
        **RUNC,
        "options": {"BinaryName": RUNTIME, **RUNC["options"]},
    }
    assert found.default is None


def test_default_goes_back_to_another_shim() -> None:
    """What was the default is the default again, whatever it runs."""
    kata: Data = {"runtime_type": "io.containerd.kata.v2"}
    found = derive_desired(cri({"kata": kata, "runc": RUNC, "nvidia": handler("/old")}, "nvidia"),
                 remembered="kata")  # fmt: skip
    assert found.default == "kata"
    assert found.handlers["nvidia"]["runtime_type"] == TYPE


def test_only_handler_of_a_node_is_inherited_from_though_it_is_ours() -> None:
    """Its cgroup driver is the node's."""
    only: Data = {"runtime_type": TYPE, "options": {"BinaryName": "/old", "SystemdCgroup": True}}
    found = derive_desired(cri({"nvidia": only}, "nvidia"), ROW6)
    for item in BINARIES:
        options = found.handlers[item.handler]["options"]
        assert options == {"BinaryName": item.path, "SystemdCgroup": True}


def test_what_an_earlier_tool_gave_besides_is_set_to_nothing() -> None:
    """A drop-in cannot delete; containerd fills in its own sandboxer."""
    stale: Data = {
        "runtime_type": TYPE, "privileged_without_host_devices": True, "sandboxer": "podsandbox",
        "pod_annotations": ["a/*"], "snapshotter": "",
        "options": {"BinaryName": "/usr/bin/nvidia-container-runtime", "NoNewKeyring": True},
    }  # fmt: skip
    table = derive_desired(cri({"runc": RUNC, "nvidia": stale})).handlers["nvidia"]
    assert table == {
        "runtime_type": TYPE, "privileged_without_host_devices": False, "pod_annotations": [],
        "options": {"BinaryName": RUNTIME, "SystemdCgroup": True, "NoNewKeyring": False},
    }  # fmt: skip


def test_what_an_admin_gave_to_our_handler_stays() -> None:
    """It runs our binary already: whatever else it has was meant."""
    tuned: Data = {**handler(RUNTIME), "pod_annotations": ["a/*"]}
    table = derive_desired(cri({"runc": RUNC, "nvidia": tuned})).handlers["nvidia"]
    assert "pod_annotations" not in table


def test_default_goes_back_with_the_options_of_the_node() -> None:
    """A cloud image whose only handler is NVIDIA's: the built-in runc has another cgroup driver."""
    only: Data = {"runtime_type": TYPE, "options": {"BinaryName": "/old", "SystemdCgroup": True}}
    section: Data = {"containerd": {"runtimes": {"nvidia": only}}}
    settings = Effective("nvidia", {"nvidia": only, "runc": {"runtime_type": TYPE}}, True, section)
    found = derive_desired(settings)
    assert found.default == "runc"
    assert found.handlers["runc"] == RUNC
    for item in BINARIES:
        options = found.handlers[item.handler]["options"]
        assert options == {"BinaryName": item.path, "SystemdCgroup": True}
    assert "runc" not in derive_desired(settings, ROW6).handlers


def test_default_goes_back_with_the_base_spec_of_the_node() -> None:
    """The limits of all containers are in it, and our own handlers keep it too."""
    only: Data = {
        "runtime_type": TYPE, "base_runtime_spec": "/spec.json", "snapshotter": "",
        "container_annotations": ["cdi.k8s.io/*"], "options": {"BinaryName": "/old"},
    }  # fmt: skip
    section: Data = {"containerd": {"runtimes": {"nvidia": only}}}
    settings = Effective("nvidia", {"nvidia": only, "runc": {"runtime_type": TYPE}}, True, section)
    found = derive_desired(settings)
    assert found.handlers["runc"] == {
        "runtime_type": TYPE, "base_runtime_spec": "/spec.json", "options": {},
    }  # fmt: skip
    for item in BINARIES:
        assert found.handlers[item.handler]["base_runtime_spec"] == "/spec.json"


LINUX = "io.containerd.runtime.v1.linux"
_PROGRAM = "/usr/bin/nvidia-container-runtime"


def node(
    runtimes: Mapping[str, Data], default: str, section: Data | None = None, linux: str = ""
) -> Effective:
    """Return effective settings in which the files define exactly these handlers."""
    said = {**(section or {}), "containerd": {"runtimes": dict(runtimes)}}
    return Effective(default, runtimes, None, said, linux)


def only(**keys: Any) -> Data:
    """Return NVIDIA's handler of a node without another, with options and more."""
    options = keys.pop("options", {"BinaryName": _PROGRAM, "SystemdCgroup": True})
    return {"runtime_type": TYPE, "options": options, **keys}


@pytest.mark.parametrize(
    "table",
    [
        only(),
        only(options={"binaryname": _PROGRAM, "SystemdCgroup": True}),
        only(runtime_path=_PROGRAM, options={"SystemdCgroup": True}),
        {"runtime_type": LINUX, "runtime_engine": _PROGRAM, "options": {"SystemdCgroup": True}},
        {"runtime_type": LINUX, "options": {"Runtime": _PROGRAM, "SystemdCgroup": True}},
        {"runtime_type": "", "options": {"BinaryName": _PROGRAM, "SystemdCgroup": True}},
    ],
)
@pytest.mark.parametrize("name", ["nvidia", "gpu", "runc"])
def test_runc_is_made_where_only_nvidias_handler_is_left(name: str, table: Data) -> None:
    """Whatever it is called, however it names the program: runc has its options, and no program."""
    found = derive_desired(node({name: table}, name))
    runc = found.handlers["runc"]
    assert found.default == "runc"
    assert runc["runtime_type"] == TYPE
    assert runc["options"].pop("SystemdCgroup") is True
    assert not any(runc["options"].values())
    assert not runc.get("runtime_path")
    assert not runc.get("runtime_engine")
    # In the rows in which ours is the default, nobody needs it; ours have the same options.
    for decision in (ROW3, ROW6):
        ours = derive_desired(node({name: table}, name), decision).handlers["nvidia"]
        assert ours["runtime_type"] == TYPE
        assert ours["options"]["SystemdCgroup"] is True
        assert "runc" not in derive_desired(node({name: table}, name), ROW6).handlers


def test_program_of_the_linux_shim_is_that_of_its_own_settings() -> None:
    """NVIDIA/k8s-device-plugin#182: no handler names a binary; one that does is somebody else's."""
    silent: Data = {"runtime_type": LINUX, "runtime_engine": ""}
    found = derive_desired(node({"x": silent}, "x", linux="nvidia-container-runtime"))
    assert (found.default, found.handlers["runc"]["runtime_type"]) == ("runc", TYPE)
    assert derive_desired(node({"x": silent}, "x", linux="runc")).default is None
    crun: Data = {"runtime_type": LINUX, "options": {"Runtime": "/usr/bin/crun"}}
    assert derive_desired(node({"x": crun}, "x", linux="nvidia-container-runtime")).default is None


def test_handler_called_like_the_program_is_nvidias() -> None:
    """It may name no program at all."""
    name = "nvidia-container-runtime"
    assert derive_desired(node({name: {"runtime_type": TYPE}}, name)).default == "runc"
    sandbox: Data = {"runtime_type": "io.containerd.runsc.v1"}
    assert derive_desired(node({name: sandbox}, name)).default is None


@pytest.mark.parametrize("kind", [LINUX, "io.containerd.runc.v1", "io.containerd.runc.v22", ""])
def test_type_that_is_not_runcs_shim_of_today_is_not_inherited(kind: str) -> None:
    """And nothing that only the old shim takes: with it containerd 1.x serves no CRI."""
    base: Data = {
        "runtime_type": kind, "runtime_engine": "/usr/bin/x", "runtime_root": "/run/x",
        "base_runtime_spec": "/spec.json", "options": {"Runtime": "/usr/bin/runc"},
    }  # fmt: skip
    found = derive_desired(
        node({"runc": base}, "runc", {"systemd_cgroup": kind == LINUX}), ROW6_LINUX[kind]
    )
    table = found.handlers["nvidia"]
    cgroup = {"SystemdCgroup": True} if kind == LINUX else {}
    assert table["options"] == {"BinaryName": RUNTIME, **cgroup}
    assert table["runtime_type"] == TYPE
    assert table["base_runtime_spec"] == "/spec.json"
    assert not {"runtime_engine", "runtime_root"} & set(table)


# In row 6 the default would no longer be of the old shim, which `systemd_cgroup` does not allow.
ROW6_LINUX = {LINUX: ROW3, "io.containerd.runc.v1": ROW3, "io.containerd.runc.v22": ROW6, "": ROW6}


def test_keys_of_the_old_shim_are_taken_from_a_handler_of_ours() -> None:
    """In place: `runtime_engine only works for runtime io.containerd.runtime.v1.linux`."""
    old: Data = {"runtime_type": LINUX, "runtime_engine": RUNTIME, "runtime_root": "/run/x"}
    table = derive_desired(node({"runc": RUNC, "nvidia": old}, "runc")).handlers["nvidia"]
    assert (table["runtime_engine"], table["runtime_root"]) == ("", "")


@pytest.mark.parametrize(
    ("kind", "missing_shims", "why"),
    [
        ("", (), "it has no runtime_type"),
        (None, (), "it has no runtime_type"),
        ("io.containerd.runc.v1", ("io.containerd.runc.v1",), "runtime_type io.containerd.runc.v1"),
        (LINUX, (LINUX,), f"runtime_type {LINUX}"),
        ("io.containerd.runc.v22", (), "runtime_type io.containerd.runc.v22"),
    ],
)
def test_default_that_cannot_run_pods_is_refused(
    kind: str | None, missing_shims: tuple[str, ...], why: str
) -> None:
    """It is somebody else's: not ours to repair. Where ours becomes the default, it is left."""
    table: Data = {"options": {"SystemdCgroup": True}} | ({} if kind is None else {
        "runtime_type": kind})  # fmt: skip
    seen = Features(None, missing_shims)
    settings = node({"runc": table}, "runc")
    with pytest.raises(Refused, match=f"^cannot use runc as default runtime: .*{why}"):
        derive_desired(settings, ROW3, features=seen)
    found = derive_desired(settings, ROW6, features=seen)
    assert found.handlers["nvidia"]["options"] == {"BinaryName": RUNTIME, "SystemdCgroup": True}
    assert set(found.handlers) == {item.handler for item in BINARIES}


@pytest.mark.parametrize(
    ("runtimes", "default", "made"),
    [
        ({"runc": {}, "crun": RUNC}, "crun", False),
        ({"runc": {"runtime_type": ""}, "crun": RUNC}, "crun", False),
        ({"runc": {}}, "runc", True),
        ({"runc": {"runtime_type": "", "options": {"NoNewKeyring": True}}}, "runc", True),
        ({"runc": {"runtime_type": "io.containerd.runc.v1"}}, "runc", True),
        ({"runc": only(options={"BinaryName": _PROGRAM, "NoNewKeyring": True})}, "runc", True),
        ({"runc": {"runtime_type": "io.containerd.runsc.v1"}}, "runc", False),
    ],
)
def test_default_to_go_back_to_can_run_pods(
    runtimes: Mapping[str, Data], default: str, made: bool
) -> None:
    """One that can is taken, else runc is repaired, with its own options where it has any."""
    settings = node({**runtimes, "nvidia": only()}, "nvidia")
    seen = Features(None, ("io.containerd.runc.v1",))
    found = derive_desired(settings, ROW3, features=seen)
    assert found.default == default
    assert ("runc" in found.handlers) is made
    if made:
        options = {k: v for k, v in found.handlers["runc"]["options"].items() if v}
        own = (runtimes["runc"].get("options") or {}).get("NoNewKeyring")
        assert options == ({"NoNewKeyring": True} if own else {"SystemdCgroup": True})


@pytest.mark.parametrize("name", ["nvidia", "nvidia-cdi", "nvidia-legacy"])
@pytest.mark.parametrize("kind", ["io.containerd.runsc.v1", "io.containerd.kata.v2"])
def test_sandbox_under_one_of_our_names_is_refused(name: str, kind: str) -> None:
    """In each row: pods that ask for it would run without a sandbox (google/gvisor#10997)."""
    sandbox: Data = {"runtime_type": kind, "options": {"BinaryName": _PROGRAM, "ConfigPath": "/c"}}
    for decision in (ROW3, ROW6):
        with pytest.raises(Refused, match=rf"^cannot register handler {name}: .*{kind}.*sandbox"):
            derive_desired(node({"runc": RUNC, name: sandbox}, "runc"), decision)


def test_sandbox_is_neither_taken_back_nor_inherited_from() -> None:
    """With another name for ours: as default it stays, and nothing of it is taken over."""
    sandbox: Data = {"runtime_type": "io.containerd.runsc.v1", "pod_annotations": ["dev.gvisor.*"]}
    found = derive_desired(node({"nvidia": sandbox}, "nvidia"), binaries=(Binary("gpu", RUNTIME),))
    assert found.default is None
    assert found.handlers == {
        "gpu": {"runtime_type": TYPE, "options": {"BinaryName": RUNTIME}}
    }  # fmt: skip


def test_cgroup_switch_of_the_old_shim_is_refused() -> None:
    """containerd 1.x serves no CRI with it and a default of another shim; 2.x ignores it."""
    old: Data = {"runtime_type": LINUX, "runtime_engine": _PROGRAM}
    settings = node({"nvidia": old}, "nvidia", {"systemd_cgroup": True})
    for decision in (ROW3, ROW6):
        with pytest.raises(Refused, match=r"^cannot make .* the default runtime: systemd_cgroup"):
            derive_desired(settings, decision)
    seen = Features(None, (LINUX,))
    found = derive_desired(settings, ROW3, features=seen)
    assert found.handlers["runc"]["options"] == {"SystemdCgroup": True}


def test_what_is_zero_is_not_copied() -> None:
    """In options and beside them; where ours has a value, what the base says in so many words
    counts."""
    base: Data = {
        "runtime_type": TYPE, "sandbox_mode": "", "sandboxer": "", "snapshotter": "",
        "cni_max_conf_num": 0, "pod_annotations": [], "privileged_without_host_devices": False,
        "options": {"SystemdCgroup": False, "IoUid": 0, "Root": "", "NoNewKeyring": True},
    }  # fmt: skip
    options = {"BinaryName": RUNTIME, "NoNewKeyring": True}
    table = derive_desired(cri({"runc": base})).handlers["nvidia"]
    assert table == {"runtime_type": TYPE, "options": options}
    more = {"BinaryName": RUNTIME, "SystemdCgroup": True, "ShimCgroup": "/x"}
    mine: Data = {"runtime_type": TYPE, "sandboxer": "podsandbox", "options": more}
    table = derive_desired(cri({"runc": base, "nvidia": mine})).handlers["nvidia"]
    assert table == {"runtime_type": TYPE, "options": {**options, "SystemdCgroup": False}}


def test_sandboxer_of_an_earlier_tool_goes_back_to_containerds_own() -> None:
    """An empty one is the same as none, and as what containerd puts there."""
    stale: Data = {"runtime_type": TYPE, "sandboxer": "shim", "options": {"BinaryName": "/old"}}
    wanted = derive_desired(cri({"runc": {**RUNC, "sandboxer": ""}, "nvidia": stale}))
    assert wanted.handlers["nvidia"]["sandboxer"] == "podsandbox"
    for value in ("", "podsandbox"):
        right = {**wanted.handlers["nvidia"], "sandboxer": value}
        assert differences(wanted, cri({**wanted.handlers, "nvidia": right})) == {}


def answer_with(config: Data | None) -> Answer:
    """An answer of a containerd with this in its Status."""
    return Answer("containerd", "2.1.9", True, config, ())


def test_what_nobody_knows_is_neither_copied_nor_demanded() -> None:
    """Keys that the running containerd does not show, and options that runc's shim has not."""
    config: Data = {
        "containerd": {
            "runtimes": {
                "runc": {
                    "runtimeType": TYPE,
                    "PodAnnotations": None,
                    "options": {},
                    "baseRuntimeSpec": "",
                }
            }
        }
    }
    seen = handlers.shown_features(answer_with(config), ())
    base: Data = {
        **RUNC, "typo": True, "cgroup_writable": True, "base_runtime_spec": "/s",
        "options": {"SystemdCgroup": True, "version": 2, "TypeUrl": "x", "shimcgroup": "/y"},
    }  # fmt: skip
    settings = node({"runc": base}, "runc")
    table = derive_desired(settings, ROW3, features=seen).handlers["nvidia"]
    assert table == {
        "runtime_type": TYPE, "base_runtime_spec": "/s",
        "options": {"BinaryName": RUNTIME, "SystemdCgroup": True, "shimcgroup": "/y"},
    }  # fmt: skip
    told = handlers.unknown_key_warnings(settings, edit_request(ROW3, BINARIES), seen)
    assert [text.partition(" of ")[0] for text in told] == [
        "typo", "cgroup_writable", "options.version", "options.TypeUrl",
    ]  # fmt: skip
    assert handlers.shown_features(answer_with(None), ()) == Features()
    everything = derive_desired(settings).handlers["nvidia"]
    assert everything["typo"] is everything["cgroup_writable"] is True
