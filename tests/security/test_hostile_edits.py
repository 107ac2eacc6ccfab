"""Files that a tenant of the node's configuration made to take long to edit.

Each is small enough to be read. Edited as a whole, or key by key, it would take from ten seconds to
many minutes. The edit is right, and takes little time.
"""

from __future__ import annotations

import time
import tomllib

import pytest

from agent.toml import document
from agent.toml.document import Append, Op, Set, Unset

PATHS = [f"/e{number}" for number in range(6_000)]
KEYS = "".join(f"k{number} = 1\n" for number in range(4_000))

# A text and its edit.
HOSTILE: dict[str, tuple[str, Op]] = {
    "long list of which much is taken out": (
        f"imports = {PATHS}\n", Set(("imports",), PATHS[::2]),
    ),
    "long list of which one is taken out": (
        f"imports = {PATHS}\n", Set(("imports",), PATHS[:-1]),
    ),
    "very long list": (f"imports = [{'1,' * 49_000}]\n", Append(("imports",), "/x")),
    "dotted keys in an inline table": (
        f"plugins = {{{', '.join(f'a.b.k{number} = 1' for number in range(10_000))}}}\n",
        Set(("plugins", "a", "b", "x"), 1),
    ),
    "many keys of a handler": (
        f"[plugins.nvidia]\n{KEYS}", Set(("plugins", "nvidia"), {"runtime_type": "r"}),
    ),
    "many tables taken out": (
        "".join(f"[plugins.k{number}]\n\n\n" for number in range(4_900)), Unset(("plugins",)),
    ),
    "empty lines above a comment": ("\n" * 14_000 + "# x\n[plugins]\na = 1\n", Unset(("plugins",))),
    "comments above the first table": ("# x\n" * 14_000 + "\n[a]\n", Set(("version",), 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_edit_takes_little_time(name: str) -> None:
    """Of the processor."""
    text, op = HOSTILE[name]
    before = time.process_time()
    after = document.edit(text, [op], "f")
    assert time.process_time() - before < 5
    assert tomllib.loads(after) == document.apply(tomllib.loads(text), [op])
