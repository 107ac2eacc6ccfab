"""What is remembered of the keys that we wrote."""

from __future__ import annotations

import pytest

from agent.host.files import FileState
from agent.runtimes.key_ownership import HEADER, changed_keys, is_ours_alone
from agent.state.store import Original


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("[a]\nx = 1\n", "[a]\nx = 2\n", {'["a", "x"]': 2}),
        ("[a]\nx = 1\n", "[a]\n", {'["a", "x"]': None}),
        ("[a]\n", "[a.b]\nz = 1\n", {'["a", "b", "z"]': 1}),  # the empty table was not removed
        ("", "[a]\n", {}),  # an empty table says nothing
        ('imports = ["x"]\n', 'imports = ["x", "y"]\n', {'["imports"]': ["y"]}),
    ],
)
def test_only_values_are_remembered_as_changed(
    before: str, after: str, found: dict[str, object]
) -> None:
    assert changed_keys(before.encode(), after.encode(), "/etc/config.toml") == found


def test_empty_table_does_not_make_a_file_somebody_elses() -> None:
    text = f"{HEADER}version = 3\n\n[plugins]\n"
    ours = Original(None, 0o644, 0, 0, "x", keys={'["version"]': 3})
    assert is_ours_alone(ours, FileState(text.encode()))
    assert not is_ours_alone(ours, FileState(f"{text}\n[more]\nkey = 1\n".encode()))
