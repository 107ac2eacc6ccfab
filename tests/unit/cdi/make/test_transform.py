"""From what was found to what is written: figures of NVIDIA's own tests (pkg/nvcdi/transform), and
what must hold for any findings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.cdi import model
from agent.cdi.make.transform import finish, joined
from agent.cdi.model import ContainerEdits, Device, DeviceNode, Hook, Mount, Spec, to_data

pytestmark = pytest.mark.timeout(600)  # thousands of examples in a long run

CHMOD = Hook(
    "createContainer",
    "/usr/bin/nvidia-cdi-hook",
    ("nvidia-cdi-hook", "chmod", "--mode", "755", "--path", "/dev/dri"),
)
OPTIONS = ("bind", "ro")
Edits = ContainerEdits


def device(name: str, **edits: Any) -> Device:
    return Device(name, Edits(**edits))


def spec(*devices: Device, **edits: Any) -> Spec:
    return Spec("nvidia.com/gpu", devices, Edits(**edits))


def nodes(*paths: str) -> tuple[DeviceNode, ...]:
    return tuple(map(DeviceNode, paths))


def mounts(*paths: str) -> tuple[Mount, ...]:
    return tuple(Mount("", path) for path in paths)


@pytest.mark.parametrize(
    ("found", "written"),
    [
        (Edits(device_nodes=nodes("/dev/gpu0") * 2), Edits(device_nodes=nodes("/dev/gpu0"))),
        (Edits(hooks=(CHMOD, CHMOD)), Edits(hooks=(CHMOD,))),
        (
            # Equal in everything is the same; one option more, and it is another mount.
            Edits(mounts=(
                Mount("/host/mount1", "/mount1", (*OPTIONS, "rw")),
                Mount("/host/mount1", "/mount1", (*OPTIONS, "rw")),
                Mount("/host/mount1", "/mount1", OPTIONS),
            )),
            Edits(mounts=(
                Mount("/host/mount1", "/mount1", (*OPTIONS, "rw")),
                Mount("/host/mount1", "/mount1", OPTIONS),
            )),
        ),
        (
            Edits(env=("ENV1=VAL1", "ENV1=VAL1", "ENV2=ONE_VALUE", "ENV2=ANOTHER_VALUE")),
            Edits(env=("ENV1=VAL1", "ENV2=ONE_VALUE", "ENV2=ANOTHER_VALUE")),
        ),
        (Edits(additional_gids=(44, 7, 44)), Edits(additional_gids=(7, 44))),
    ],
)  # fmt: skip
def test_duplicates_go(found: Edits, written: Edits) -> None:
    """In what all share, and in a device."""
    assert finish(Spec("a/b", (), found)).container_edits == written
    done = finish(spec(Device("device0", found)), with_all=False)
    assert done.devices == (Device("device0", written),)


def test_what_all_share_is_said_once() -> None:
    """And stays with a device that would bring nothing without it: that would not be valid."""
    both = spec(device("device0", env=("FOO=BAR",), device_nodes=nodes("/dev/gpu0")),
                env=("FOO=BAR",))  # fmt: skip
    assert finish(both, with_all=False).devices == (
        device("device0", device_nodes=nodes("/dev/gpu0")),
    )
    only = spec(device("device0", env=("FOO=BAR",)), env=("FOO=BAR",))
    assert finish(only, with_all=False) == only


def test_groups_alone_are_nothing() -> None:
    """A device whose only own thing is a group keeps the rest."""
    found = spec(device("d0", env=("FOO=BAR",), additional_gids=(44,)), env=("FOO=BAR",))
    assert finish(found, with_all=False) == found


def test_devices_nodes_and_mounts_are_in_order() -> None:
    """Devices by name, nodes and mounts from the outside in; hooks and environment as found."""
    again = replace(CHMOD, args=("a",))
    done = finish(
        spec(
            device("device2", device_nodes=nodes("/dev/nvidia0/another", "/dev/nvidia0")),
            device("device1", mounts=mounts("/lib/nvidia0/another", "/lib/nvidia0"),
                   env=("B=1", "A=1"), hooks=(CHMOD, again)),
        ),
        with_all=False,
    )  # fmt: skip
    assert done.devices == (
        device("device1", mounts=mounts("/lib/nvidia0", "/lib/nvidia0/another"),
               env=("B=1", "A=1"), hooks=(CHMOD, again)),
        device("device2", device_nodes=nodes("/dev/nvidia0", "/dev/nvidia0/another")),
    )  # fmt: skip


def test_all_is_every_device() -> None:
    """Each thing once; what has such a device keeps it."""
    done = finish(spec(device("gpu0", env=("GPU=0",)), device("gpu1", env=("GPU=1",))))
    assert done.devices[0] == device("all", env=("GPU=0", "GPU=1"))
    hooks = finish(spec(device("gpu0", hooks=(CHMOD,)), device("gpu1", hooks=(CHMOD,))))
    assert hooks.devices[0] == device("all", hooks=(CHMOD,))
    assert [one.name for one in hooks.devices] == ["all", "gpu0", "gpu1"]
    own = spec(device("all", env=("GPU=0",)), device("gpu1", env=("GPU=1",)))
    assert finish(own) == own
    assert finish(spec()) == spec()


_words = st.text("abcXYZ019_-.", min_size=1, max_size=6)
_paths = st.lists(_words, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
_texts = st.text(max_size=12).map(lambda text: text.replace("\0", "").replace("\n", ""))
_nodes = st.builds(
    DeviceNode, _paths, st.just("") | _paths, st.integers(0, 4095), st.integers(0, 1 << 20),
    st.none() | st.integers(0, 0o777), st.sampled_from(["", "rwm"]),
    st.none() | st.integers(0, 65535),
)  # fmt: skip
_hooks = st.builds(
    Hook, st.just("createContainer"), _paths, st.lists(_texts, max_size=3).map(tuple),
    st.just(("NVIDIA_CTK_DEBUG=false",)),
)  # fmt: skip
_mounts = st.builds(  # without "rbind" no container would start
    Mount, _paths, _paths, st.lists(_words, max_size=3).map(lambda words: ("rbind", *words))
)
_edits = st.builds(
    Edits,
    st.lists(_texts.map(lambda text: f"NAME={text}"), max_size=3).map(tuple),
    st.lists(_nodes, max_size=3).map(tuple),
    st.lists(_hooks, max_size=3).map(tuple),
    st.lists(_mounts, max_size=3).map(tuple),
    st.lists(st.integers(1, 65535), max_size=3).map(tuple),
)
_full = _edits.filter(lambda edits: replace(edits, additional_gids=()) != Edits())
_names = st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9_.:-]{0,8}[A-Za-z0-9])?\Z")
_devices = st.lists(
    st.builds(Device, _names, _full), min_size=1, max_size=4, unique_by=lambda d: d.name
)
_specs = st.builds(Spec, st.just("nvidia.com/gpu"), _devices.map(tuple), _edits)


@given(_specs)
def test_any_findings_survive_a_round_trip(found: Spec) -> None:
    """What is written is valid and says the same in both forms; finishing twice changes nothing."""
    done = finish(found)
    assert model.problems(done) == []
    assert finish(done) == done
    data = to_data(done, model.minimum_version(done))
    assert json.loads(model.text(done, "json")) == data
    assert yaml.safe_load(model.text(done)) == data


@given(_specs, st.randoms(use_true_random=False))
def test_order_of_devices_makes_no_difference(found: Spec, chance: Any) -> None:
    """Of those that are asked for one by one; `all` lists things in the order of names."""
    mixed = list(found.devices)
    chance.shuffle(mixed)
    assert finish(replace(found, devices=tuple(mixed))) == finish(found)


@given(_specs)
def test_nobody_gets_less(found: Spec) -> None:
    """A device and what all share are together what they were, whoever asks for it."""
    done = finish(found)
    by_name = {one.name: one.container_edits for one in done.devices}
    for one in found.devices:
        before = joined(found.container_edits, one.container_edits)
        after = joined(done.container_edits, by_name[one.name])
        assert set(before.device_nodes) == set(after.device_nodes)
        assert set(before.mounts) == set(after.mounts)
        assert set(before.hooks) == set(after.hooks)
        assert set(before.env) == set(after.env)
        assert before.additional_gids == after.additional_gids
    every = joined(done.container_edits, by_name.get("all", Edits()))
    if "all" not in {one.name for one in found.devices}:
        assert {n for one in found.devices for n in one.container_edits.device_nodes} <= set(
            every.device_nodes
        )
