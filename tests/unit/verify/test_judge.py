"""What a device brings, and whether it is in a container exactly once."""

from __future__ import annotations

from typing import Any

import pytest

from agent.verify.judge import Effects, effects, effects_of_runtime_spec, problem

SPEC: dict[str, Any] = {
    "containerEdits": {"env": ["A=1", "B=1"], "mounts": [{"containerPath": "/lib/x"}]},
    "devices": [
        {"name": "0", "containerEdits": {"env": ["B=2"], "deviceNodes": [{"path": "/dev/a"}]}},
        {"name": "1", "containerEdits": {"deviceNodes": [{"path": "/dev/b"}]}},
    ],
}
TWICE = "mount /lib/x: more than once in the container"
EXPECTED = Effects(("A=1", "B=2"), ("/dev/a",), ("/lib/x",))


def runtime_spec(env: list[str], devices: list[str], mounts: list[str]) -> dict[str, Any]:
    """The OCI's, with these parts."""
    return {
        "process": {"env": env},
        "linux": {"devices": [{"path": path} for path in devices]},
        "mounts": [{"destination": path} for path in mounts],
    }


def test_a_device_brings_its_own_edits_over_those_of_the_whole_spec() -> None:
    assert effects(SPEC, "0") == EXPECTED
    assert effects(SPEC, "1").nodes == ("/dev/b",)
    assert effects({}, "0") == Effects()


@pytest.mark.parametrize(
    ("env", "devices", "mounts", "words"),
    [
        (["PATH=/", "A=1", "B=2"], ["/dev/a"], ["/proc", "/lib/x"], ""),
        (["A=1", "B=1"], ["/dev/a"], ["/lib/x"], "variable B: not in the container"),
        (["A=1", "B=2"], [], ["/lib/x"], "device node /dev/a: not in the container"),
        (["A=1", "B=2"], ["/dev/a"], ["/lib/x"] * 2, TWICE),
        (["PATH=/"], [], ["/proc"], "the container has nothing of the device"),
    ],
)  # fmt: skip
def test_each_part_has_to_be_there_once(
    env: list[str], devices: list[str], mounts: list[str], words: str
) -> None:
    assert problem(EXPECTED, effects_of_runtime_spec(runtime_spec(env, devices, mounts))) == words


@pytest.mark.parametrize("spec", [None, {}, [], {"process": None, "linux": None}])
def test_a_runtime_that_shows_no_spec_shows_nothing(spec: object) -> None:
    assert effects_of_runtime_spec(spec) == Effects()


def test_a_message_names_three_parts_at_most() -> None:
    many = Effects(nodes=tuple(f"/dev/{number}" for number in range(9)))
    assert problem(many, Effects(nodes=("/dev/0",))).endswith("and 5 more: not in the container")
