"""What is checked of each document."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.tools import documents

VERSION = {
    "apiVersion": documents.API, "kind": "Version", "agent": "1", "cri": "x", "documents": "x",
    "python": "x", "kernel": "x", "machine": "x",
}  # fmt: skip


def parts(rules: Any) -> list[dict[str, Any]]:
    """Every object in a schema."""
    if isinstance(rules, list):
        return [found for item in rules for found in parts(item)]
    if not isinstance(rules, dict):
        return []
    return [rules, *(found for item in rules.values() for found in parts(item))]


def test_schema_is_complete() -> None:
    """Every object names its fields and takes no other, and most of them are always there."""
    objects = [rules for rules in parts(documents.schema()) if "properties" in rules]
    assert len(objects) > 20
    for rules in objects:
        assert rules["additionalProperties"] is False
        assert len(rules["properties"]) - len(rules["required"]) <= 1


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("cri"),
        lambda data: data.update(more=1),
        lambda data: data.update(agent=1),
        lambda data: data.update(apiVersion="toolkit-agent/v2"),
        lambda data: data.update(kind="Versions"),
    ],
    ids=["a field less", "a field more", "another type", "another version", "another kind"],
)
def test_other_document_is_found(change: Callable[[dict[str, Any]], object]) -> None:
    """It fails the test that saw it."""
    documents.check(VERSION)
    other = dict(VERSION)
    change(other)
    with pytest.raises(AssertionError, match=r"documents\.json"):
        documents.check(other)


def test_other_output_is_no_document() -> None:
    """A table, a spec and a document whose end could not be written are let through."""
    for text in ("", "Runtime: x\n", '{"cdiVersion": "0.5.0"}', json.dumps(VERSION)[:-5]):
        documents.check_output(text)
    with pytest.raises(AssertionError):
        documents.check_output(json.dumps({**VERSION, "more": 1}))
