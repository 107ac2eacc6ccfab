"""The documents for people: short where that was promised, and true about what lies where."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", ".github", "agent", "deploy", "tests")
    for path in (ROOT / folder).glob("*.md")
)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
_PATH = re.compile(r"`([\w{][\w./{},-]*(?:\.py|/[\w./{},-]*))`")


def prose(text: str) -> str:
    """The text without blocks of code: they show paths of nodes."""
    return "\n".join(line for line in text.split("\n") if not line.startswith("    "))


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = (line.lstrip("#").strip().lower() for line in text.split("\n") if line[:1] == "#")
    return {"#" + re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}


def spelled_out(path: str) -> list[str]:
    """The paths that braces stand for."""
    parts = re.split(r"\{([^}]*)\}", path)
    choices = [part.split(",") if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    """To a file of the tree, and to a heading that it has."""
    text = (ROOT / name).read_text("utf-8")
    for target, anchor in _LINK.findall(text):
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text("utf-8")), f"{target}{anchor}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_are_named_are_there(name: str) -> None:
    """A module that was moved is moved in the documents, too. Paths are relative to the tree, to
    the document's folder or to the agent's; one that begins with no folder of these is a node's."""
    places = (ROOT, (ROOT / name).parent, ROOT / "agent")

    def there(path: str) -> bool:
        if path.endswith(".py") and "/" not in path:
            return any(next((ROOT / top).rglob(path), None) for top in ("agent", "tests"))
        return any((place / path).exists() for place in places)

    named = _PATH.findall(prose((ROOT / name).read_text("utf-8")))
    paths = {path for found in named for path in spelled_out(found)}
    ours = {path for path in paths if path.endswith(".py") or there(path.partition("/")[0])}
    assert {path for path in ours if not there(path)} == set()


def test_readme_is_short() -> None:
    """It is for a person who wants to know what this is."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 180


def test_glossary_is_short() -> None:
    """Twenty words of our own are as many as somebody can learn."""
    text = (ROOT / "agent/README.md").read_text("utf-8")
    glossary = text.split("\n## Glossary\n")[1].split("\n## ")[0]
    rows = [line for line in glossary.splitlines() if line.startswith("| ")]
    assert 10 < len(rows) - 1 <= 20
