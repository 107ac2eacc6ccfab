"""The shapes as data: complete, valid, and without anything that the comparisons cannot read."""

from __future__ import annotations

import tomllib

import pytest

from tests.conformance.effective import comments, foreign_lines
from tests.conformance.shapes import SHAPES, Shape
from tests.tools.runtimes import ROOT, WANTED

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


def test_every_directory_is_a_shape() -> None:
    """None is forgotten in the table."""
    there = {path.name for path in (ROOT / "tests/data/shapes").iterdir()}
    assert there == {shape.directory.name for shape in SHAPES if shape.directory.exists()}


@shapes
def test_shape_is_valid(shape: Shape) -> None:
    """Its files are TOML unless it says that they are not; its cells are generations, its modes are
    of files that exist."""
    assert set(shape.cells) <= set(WANTED)
    files = {str(p.relative_to(shape.directory)): p for p in shape.directory.rglob("*.toml")}
    assert set(shape.modes) <= set(files)
    assert shape.odd == any(is_odd(path.read_bytes()) for path in files.values())


def is_odd(data: bytes) -> bool:
    """Whether these bytes are not TOML 1.0."""
    try:
        tomllib.loads(data.decode())
    except ValueError:
        return True
    return False


def test_comments_count_as_the_admins_lines() -> None:
    """Comments at the end of a line count; imports and handlers of ours are not the admin's."""
    text = (
        "# one\nversion = 2 # two\nimports = [\n  'a', # three\n]\nroot = '/x'\n"
        "[a.runtimes.nvidia.options]\nBinaryName = '/b'\n[a.runtimes.nvidia-like]\nx = 1\n"
    )
    assert comments(text) == [" one", " two", " three"]
    assert list(foreign_lines(text)) == [
        "version = 2 # two",
        "root = '/x'",
        "[a.runtimes.nvidia-like]",
        "x = 1",
    ]
