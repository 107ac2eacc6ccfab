"""Specs as data are valid, have the lowest version that carries them, and fixed bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cdi import model
from agent.cdi.model import ContainerEdits, Device, DeviceNode, Hook, Mount, Spec, to_data
from agent.cdi.specs import own_specs, rules
from agent.cdi.specs.read import document
from agent.cdi.specs.shape import fit_to_shape
from agent.errors import Refused
from tests.tools.runtimes import ROOT

NODE = ContainerEdits(device_nodes=(DeviceNode("/dev/null"),))
PLAIN = Spec("vendor.example/gpu", (Device("gpu0", NODE),))


def with_edits(**values: object) -> Spec:
    return replace(PLAIN, container_edits=ContainerEdits(**values))  # type: ignore[arg-type] # a table of keywords


@pytest.mark.parametrize(
    ("spec", "version"),
    [
        (PLAIN, "0.3.0"),
        (with_edits(mounts=(Mount("/a", "/b", ("rbind",)),)), "0.3.0"),
        (with_edits(device_nodes=(DeviceNode("/dev/a", "/host/a"),)), "0.5.0"),
        (replace(PLAIN, devices=(Device("0", NODE),)), "0.5.0"),
        (replace(PLAIN, devices=(Device("1:0", NODE),)), "0.5.0"),
        (replace(PLAIN, kind="vendor.example/gpu.x"), "0.6.0"),
        (with_edits(additional_gids=(44,)), "0.7.0"),
    ],
)
def test_spec_has_the_lowest_version_that_carries_it(spec: Spec, version: str) -> None:
    """containerd 1.7 reads up to 0.8.0, and older tools less."""
    assert model.minimum_version(spec) == version
    assert model.problems(spec) == []


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (replace(PLAIN, kind="gpu"), "VENDOR/CLASS"),
        (replace(PLAIN, kind="v/gpu"), "single character"),
        (replace(PLAIN, kind="vendor.example/x"), "single character"),
        (replace(PLAIN, kind="1vendor/gpu"), "no name"),
        (replace(PLAIN, kind="vendor-/gpu"), "no name"),
        (replace(PLAIN, devices=()), "no devices"),
        (replace(PLAIN, devices=PLAIN.devices * 2), "twice"),
        (replace(PLAIN, devices=(Device("-a", NODE),)), "no device name"),
        (replace(PLAIN, devices=(Device("a", ContainerEdits()),)), "brings nothing"),
        (with_edits(env=("NOVALUE",)), "NAME=value"),
        (with_edits(env=("A=b\nC=d",)), "NAME=value"),
        (with_edits(hooks=(Hook("sometimes", "/bin/x"),)), "does not exist"),
        (with_edits(hooks=(Hook("poststop", "bin/x"),)), "absolute"),
        (with_edits(hooks=(Hook("poststop", "/x", env=("A",)),)), "hook environment"),
        (with_edits(mounts=(Mount("a", "/b"),)), "absolute"),
        (with_edits(device_nodes=(DeviceNode("null"),)), "absolute"),
        (with_edits(device_nodes=(DeviceNode("/dev/a", permissions="x"),)), "permissions"),
    ],
)
def test_what_is_not_valid_gets_no_bytes(spec: Spec, says: str) -> None:
    """It would never be read, or worse."""
    assert says in "; ".join(model.problems(spec))
    with pytest.raises(Refused, match="cannot write a CDI spec"):
        model.text(spec)


def test_zero_is_left_out_where_it_says_nothing() -> None:
    """A minor number of 0 is what no number means; a mode of 0 is a mode."""
    node = DeviceNode("/dev/a", major=195, file_mode=0, gid=0)
    data = to_data(with_edits(device_nodes=(node,)), "0.3.0")
    assert data["containerEdits"]["deviceNodes"] == [
        {"path": "/dev/a", "major": 195, "fileMode": 0, "gid": 0}
    ]


def test_keys_are_in_the_order_of_the_go_structs() -> None:
    """So that a person can compare files of different writers."""
    edits = ContainerEdits(
        ("A=b",), NODE.device_nodes, (Hook("poststop", "/x", ("x",)),),
        (Mount("/a", "/b", ("ro",)),), (1,),
    )  # fmt: skip
    data = to_data(replace(PLAIN, container_edits=edits), "0.7.0")
    assert list(data) == ["cdiVersion", "kind", "devices", "containerEdits"]
    assert list(data["containerEdits"]) == [
        "env", "deviceNodes", "hooks", "mounts", "additionalGids",
    ]  # fmt: skip
    assert list(data["containerEdits"]["mounts"][0]) == ["hostPath", "containerPath", "options"]


_TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\n\r\x85\u2028\u2029"), max_size=9
)
_VALUES = st.builds(lambda text: f"A={text}", _TEXT)


@given(st.lists(_VALUES, max_size=4), st.lists(_TEXT, max_size=4))
def test_any_text_survives(env: list[str], args: list[str]) -> None:
    """JSON is read back by the standard library; every YAML scalar is a JSON string. What judges
    the files of others reads both as the same spec, and finds nothing wrong with it."""
    spec = with_edits(env=tuple(env), hooks=(Hook("poststop", "/x", tuple(args)),))
    if model.problems(spec):
        return
    assert json.loads(model.text(spec, "json")) == to_data(spec, "0.3.0")
    for form in ("yaml", "json"):
        found, problems = fit_to_shape(document(model.text(spec, form).encode()).data)
        assert (found, problems) == (to_data(spec, "0.3.0"), [])
        assert list(rules.check(found)) == []
    for line in model.text(spec).splitlines()[2:]:
        value = line.removeprefix("- ").strip().removeprefix("- ")
        scalar = value.partition(": ")[2] if not value.startswith('"') else value
        if scalar and not value.endswith(":"):
            json.loads(scalar)


def test_our_file_is_known_again() -> None:
    """Also by who looks at the first bytes only; NVIDIA's is not ours."""
    assert own_specs.is_ours(model.text(PLAIN).encode())
    assert not own_specs.is_ours(b"---\ncdiVersion: 0.5.0\nkind: management.nvidia.com/gpu\n")


def test_data_model_is_small() -> None:
    """The whole schema stays readable at a glance."""
    text = Path(ROOT / "agent/cdi/model.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
