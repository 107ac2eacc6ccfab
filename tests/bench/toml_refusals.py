"""How often an edit of TOML is refused, and what one costs: `toml_refusals.py [DOCUMENTS]`.

Random documents in every spelling (5,000 by default, each from its number as seed), with edits as
the agent does them; each result is checked as in the property tests. Then times on a file with
1,000 registry mirrors: what a look that changes nothing has to do, and real edits.
"""

from __future__ import annotations

import random as randoms
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIRRORS = 1000


def refusals(count: int) -> None:
    """Edit that many documents and print what came of it."""
    from agent.toml import edit as tomledit
    from tests.unit.support.toml_documents import document, operations
    from tests.unit.toml.test_edit_properties import attempt, check

    refused: Counter[str] = Counter()
    wrong: list[str] = []
    edits, documents, asked = 0, 0, 0
    with_tomlkit = tomledit._with_tomlkit

    def counted(text: str, op: tomledit.Op) -> str | None:
        nonlocal asked
        asked += 1
        return with_tomlkit(text, op)

    tomledit._with_tomlkit = counted
    for seed in range(count):
        random = randoms.Random(seed)  # noqa: S311 (the same documents each time)
        found, bad = document(random), False
        for op in operations(random, found.data):
            edits += 1
            after = attempt(found, op)
            if after is None:
                bad = True
                refused[f"{type(op).__name__} {op.path[-1]}"] += 1
                continue
            try:
                check(found, op, after)
            except AssertionError:
                wrong.append(f"{seed}: {op}")
        documents += bad
    print(f"documents: {count}, with a refused edit: {documents}")
    print(f"edits: {edits}, refused: {refused.total()}, wrong: {len(wrong)}, by tomlkit: {asked}")
    for what, number in refused.most_common():
        print(f"refused {number} times: {what}")
    for what in wrong:
        print(f"wrong: {what}")


def timed(what: str, work: Callable[[], object]) -> None:
    """Print the best of five."""
    best = min(_once(work) for _ in range(5))
    print(f"{what}: {best * 1000:.1f} ms")


def _once(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def mirrors() -> str:
    """Return a file with many registry mirrors."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    text = f"version = 2\n\n[{cri}.containerd]\n  snapshotter = 'overlayfs'\n"
    text += f'\n[{cri}.containerd.runtimes.runc]\n  runtime_type = "io.containerd.runc.v2"\n'
    for number in range(MIRRORS):
        name = f"r{number}.example:5000"
        text += f'\n[{cri}.registry.mirrors."{name}"]\n  endpoint = ["https://{name}"] # site\n'
    return text


def times() -> None:
    """Print what reading and editing a big file costs."""
    import tomlkit

    from agent.toml import edit as tomledit
    from agent.toml.edit import Append, Op, Set

    text = mirrors()
    section = ("plugins", "io.containerd.grpc.v1.cri")
    handler = (*section, "containerd", "runtimes", "nvidia")
    table = {"runtime_type": "io.containerd.runc.v2", "options": {"BinaryName": "/n"}}
    ops: list[Op] = [
        Set((*section, "enable_cdi"), True),
        Set(handler, table),
        Append(("imports",), "/x"),
    ]
    done = tomledit.edit(text, ops, "f")
    print(f"with {MIRRORS} mirrors ({len(text) // 1024} KiB):")
    timed(
        "read it (all that a look without changes does)", lambda: tomledit.parse(done.encode(), "")
    )
    timed("three edits that change nothing", lambda: tomledit.edit(done, ops, "f"))
    timed("one edit", lambda: tomledit.edit(text, ops[:1], "f"))
    timed("three edits", lambda: tomledit.edit(text, ops, "f"))
    timed("tomlkit alone, to parse it", lambda: tomlkit.parse(text))


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    refusals(int(sys.argv[1]) if sys.argv[1:] else 5000)
    times()
