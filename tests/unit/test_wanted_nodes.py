"""What handlers inherit on nodes that somebody else's tool, or nobody's runc, has shaped."""

from __future__ import annotations

from agent.runtimes.merge import Cri
from agent.tomledit import Data
from tests.unit.test_wanted import BINARIES, ROW6, RUNC, RUNTIME, TYPE, cri, handler, want


def test_handler_with_another_shim_is_no_base() -> None:
    """kata's shim knows no BinaryName: our binary would never run, and all would look right."""
    kata: Data = {"runtime_type": "io.containerd.kata.v2", "options": {"ConfigPath": "/k.toml"}}
    found = want(cri({"kata": kata, "runc": RUNC}, "kata"))
    assert found.handlers["nvidia"] == {
        **RUNC,
        "options": {"BinaryName": RUNTIME, **RUNC["options"]},
    }
    assert found.default is None


def test_default_goes_back_to_another_shim() -> None:
    """What was the default is the default again, whatever it runs."""
    kata: Data = {"runtime_type": "io.containerd.kata.v2"}
    found = want(cri({"kata": kata, "runc": RUNC, "nvidia": handler("/old")}, "nvidia"),
                 remembered="kata")  # fmt: skip
    assert found.default == "kata"
    assert found.handlers["nvidia"]["runtime_type"] == TYPE


def test_only_handler_of_a_node_is_inherited_from_though_it_is_ours() -> None:
    """Its cgroup driver is the node's."""
    only: Data = {"runtime_type": TYPE, "options": {"BinaryName": "/old", "SystemdCgroup": True}}
    found = want(cri({"nvidia": only}, "nvidia"), ROW6)
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
    table = want(cri({"runc": RUNC, "nvidia": stale})).handlers["nvidia"]
    assert table == {
        "runtime_type": TYPE, "privileged_without_host_devices": False, "pod_annotations": [],
        "options": {"BinaryName": RUNTIME, "SystemdCgroup": True, "NoNewKeyring": False},
    }  # fmt: skip


def test_what_an_admin_gave_to_our_handler_stays() -> None:
    """It runs our binary already: whatever else it has was meant."""
    tuned: Data = {**handler(RUNTIME), "pod_annotations": ["a/*"]}
    table = want(cri({"runc": RUNC, "nvidia": tuned})).handlers["nvidia"]
    assert "pod_annotations" not in table


def test_default_goes_back_with_the_options_of_the_node() -> None:
    """A cloud image whose only handler is NVIDIA's: the built-in runc has another cgroup driver."""
    only: Data = {"runtime_type": TYPE, "options": {"BinaryName": "/old", "SystemdCgroup": True}}
    section: Data = {"containerd": {"runtimes": {"nvidia": only}}}
    settings = Cri("nvidia", {"nvidia": only, "runc": {"runtime_type": TYPE}}, True, section)
    found = want(settings)
    assert found.default == "runc"
    assert found.handlers["runc"] == RUNC
    for item in BINARIES:
        options = found.handlers[item.handler]["options"]
        assert options == {"BinaryName": item.path, "SystemdCgroup": True}
    assert "runc" not in want(settings, ROW6).handlers


def test_default_goes_back_with_the_base_spec_of_the_node() -> None:
    """The limits of all containers are in it, and our own handlers keep it too."""
    only: Data = {
        "runtime_type": TYPE, "base_runtime_spec": "/spec.json", "snapshotter": "",
        "container_annotations": ["cdi.k8s.io/*"], "options": {"BinaryName": "/old"},
    }  # fmt: skip
    section: Data = {"containerd": {"runtimes": {"nvidia": only}}}
    settings = Cri("nvidia", {"nvidia": only, "runc": {"runtime_type": TYPE}}, True, section)
    found = want(settings)
    assert found.handlers["runc"] == {
        "runtime_type": TYPE, "base_runtime_spec": "/spec.json", "options": {},
    }  # fmt: skip
    for item in BINARIES:
        assert found.handlers[item.handler]["base_runtime_spec"] == "/spec.json"
