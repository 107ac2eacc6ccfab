"""How often an edit of TOML is refused, and what one costs: `toml_refusals.py [DOCUMENTS]`.

Random documents in every spelling (5,000 by default, each from its number as seed), with edits as
the agent does them; each result is checked as in the property tests. Then the files of all shapes
of nodes, and the texts of the unit tests. For both: the share of the changes that each way of
`agent.toml.place` did; names that begin with "tomlkit" say that it wrote every key and value. Then
times on a file with 1,000 registry mirrors: what a look that changes nothing has to do, and edits.
"""

from __future__ import annotations

import random as randoms
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIRRORS = 1000


def refusals(count: int) -> None:
    """Edit that many documents and print what came of it."""
    from tests.unit.support.toml_documents import operations, random_document
    from tests.unit.toml.test_document_properties import attempt, check

    refused: Counter[str] = Counter()
    wrong: list[str] = []
    edits, documents = 0, 0
    for seed in range(count):
        random = randoms.Random(seed)  # noqa: S311 (the same documents each time)
        found, bad = random_document(random), False
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
    print(f"edits: {edits}, refused: {refused.total()}, wrong: {len(wrong)}")
    for what, number in refused.most_common():
        print(f"refused {number} times: {what}")
    for what in wrong:
        print(f"wrong: {what}")


def known_texts() -> Iterator[tuple[str, str]]:
    """Give the files of all shapes of nodes, and the texts of the tests, with names."""
    from agent.toml import dialect
    from tests.generations.shapes import SHAPES
    from tests.unit.support.odd_toml import DOCUMENTS
    from tests.unit.toml.test_document import BROKEN, SPELLINGS

    for shape in SHAPES:
        texts = getattr(shape, "texts", None) or {
            path.name: dialect.decoded(path.read_bytes())
            for path in sorted(
                (ROOT / "tests/data/shapes" / (shape.files or shape.name)).rglob("*")
            )
            if path.is_file()
        }
        yield from ((f"{shape.name} {name}", text) for name, text in texts.items())
    yield from ((name, text) for name, (text, _) in BROKEN.items())
    yield from ((name, text) for name, (text, _, _) in SPELLINGS.items())
    unsafe = ("CR", "one CR", "two CR", "Latin-1 in a string", "Latin-1 in a key")
    for odd in DOCUMENTS:
        if odd.readers and odd.name not in unsafe:  # those are refused, as README says
            yield odd.name, dialect.decoded(odd.document)


def known_edits() -> None:
    """Do all edits of the agent, each by itself, on all known texts; print what is refused."""
    from agent.errors import Refused
    from agent.toml import dialect, document
    from tests.unit.support.toml_documents import operations

    edits, refused = 0, 0
    for number, (name, text) in enumerate(known_texts()):
        try:
            data = dialect.loads(text)
        except ValueError:
            continue  # a shape of which the agent has to say so
        random = randoms.Random(number)  # noqa: S311 (the same edits each time)
        for op in (op for _ in range(5) for op in operations(random, data)):
            edits += 1
            try:
                wanted = document.apply(data, [op])
                after = dialect.loads(document.edit(text, [op], "f"))
                assert document.without_empty(after) == document.without_empty(wanted), name
            except Refused as error:
                refused += 1
                print(f"refused: {name}: {error.message}")
    print(f"edits of known texts: {edits}, refused: {refused}")


def shares(what: str, ways: Counter[str]) -> None:
    """Print how often each way was taken."""
    total = ways.total()
    print(f"{what}: {total} changes of a text")
    for way, number in ways.most_common():
        print(f"  {number / max(total, 1):6.1%} {way}")


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

    from agent.toml import document
    from agent.toml.document import Append, Op, Set

    text = mirrors()
    section = ("plugins", "io.containerd.grpc.v1.cri")
    handler = (*section, "containerd", "runtimes", "nvidia")
    table = {"runtime_type": "io.containerd.runc.v2", "options": {"BinaryName": "/n"}}
    ops: list[Op] = [
        Set((*section, "enable_cdi"), True),
        Set(handler, table),
        Append(("imports",), "/x"),
    ]
    done = document.edit(text, ops, "f")
    print(f"with {MIRRORS} mirrors ({len(text) // 1024} KiB):")
    timed(
        "read it (all that a look without changes does)", lambda: document.parse(done.encode(), "")
    )
    timed("three edits that change nothing", lambda: document.edit(done, ops, "f"))
    timed("one edit", lambda: document.edit(text, ops[:1], "f"))
    timed("three edits", lambda: document.edit(text, ops, "f"))
    timed("tomlkit alone, to parse it", lambda: tomlkit.parse(text))


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    from tests.unit.toml.test_document_properties import counted_ways

    with counted_ways() as counted:
        refusals(int(sys.argv[1]) if sys.argv[1:] else 5000)
    shares("random documents", counted)
    with counted_ways() as counted:
        known_edits()
    shares("known texts", counted)
    times()
