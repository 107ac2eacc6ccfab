"""Who reads what of TOML: the real containerd is asked about each document of a table."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conformance import checks
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME, Shape
from tests.conformance.trees import touched
from tests.tools.runtimes import Runtime
from tests.unit.support.odd_toml import DOCUMENTS, MARKER, ONE, TWO

pytestmark = pytest.mark.real


@pytest.mark.parametrize("generation", ["1.6", "1.7", "2.1"])
def test_containerd_reads_odd_toml_as_the_table_says(
    generation: str, runtime: Runtime, place: Path
) -> None:
    """A fact about containerd, which the program relies on."""
    reader = ONE if generation.startswith("1") else TWO
    wrong = []
    for odd in DOCUMENTS:
        (place / "config.toml").write_bytes(odd.document)
        done = subprocess.run(
            [runtime.executable, "-c", place / "config.toml", "config", "dump"],
            env={"PATH": os.defpath},
            capture_output=True,
            check=False,
        )
        read = done.returncode == 0 and MARKER.encode() in done.stdout
        if read != (reader in odd.readers):
            wrong.append(odd.name)
    assert wrong == []


# What comes to lie there while containerd runs on something else, and what it is called.
_MARK = (b"\xef\xbb\xbf", "begins with a byte order mark")
_COMMENT = (b"# \xa4\xb5\n", "line 1 is not UTF-8")
_COMMA = (b"x = { a = 1, }\n", "trailing comma in an inline table, line 1")


@pytest.mark.parametrize(
    ("shape", "generation", "first"),
    [
        (BY_NAME["kubeadm-v3"], "2.1", _MARK),
        (BY_NAME["kubeadm-v3"], "2.1", _COMMENT),
        (BY_NAME["kubeadm-v2"], "1.7", _COMMA),
    ],
    ids=["byte order mark", "GBK", "comma"],
)
def test_file_on_which_containerd_would_not_start_is_refused(
    shape: Shape, generation: str, first: tuple[bytes, str], runtime: Runtime
) -> None:
    """It is refused by its name, with who reads it and what to do; nothing is touched, and `status`
    tells it too."""
    with PrivateNode(runtime, shape) as node:
        path = node.etc / "containerd/config.toml"
        path.write_bytes(first[0] + path.read_bytes())
        before = node.whole()
        for command in ("plan", "apply", "apply"):
            result = node.agent(command)
            checks.tells(command, result, 3, first[1])
            told = result.stdout + result.stderr
            assert "do not start on it" in told or "does not start on it" in told
            assert "the running one was started on another content" in told
        status = node.agent("status")
        assert status.returncode == 1
        assert first[1] in status.stdout
        paths = touched(before, node.whole())
        assert [p for p in paths if not p.startswith(("validations", "state"))] == []
        assert node.supervisor.starts == 1
