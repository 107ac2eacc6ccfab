"""Every document that a test sees is one that `tests/data/documents.json` describes.

A field that a command prints and the schema does not have fails the test, and so does a field that
the schema requires and the command leaves out.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parents[1] / "data/documents.json"
API = "toolkit-agent/v1"


@functools.cache
def schema() -> dict[str, Any]:
    """The schema of all kinds."""
    found: dict[str, Any] = json.loads(SCHEMA.read_text("utf-8"))
    return found


@functools.cache
def _validator(kind: str) -> Any:
    import jsonschema  # it takes longer than many a test

    assert kind in schema()["$defs"], f"{SCHEMA.name} has no kind {kind}"
    rules = {"$ref": f"#/$defs/{kind}", "$defs": schema()["$defs"]}
    jsonschema.Draft202012Validator.check_schema(rules)
    return jsonschema.Draft202012Validator(rules)


def check(data: dict[str, Any]) -> None:
    """Fail unless it is a document of its kind."""
    errors = _validator(data["kind"]).iter_errors(data)
    found = [f"{error.json_path}: {error.message}" for error in errors]
    assert found == [], f"{data['kind']} is not as {SCHEMA.name} says: {found}"


def check_output(text: str) -> None:
    """The same for what a program printed, if that is a document as JSON."""
    if not text.startswith("{") or '"toolkit-agent/v' not in text[:100]:
        return
    try:
        data = json.loads(text)
    except ValueError:
        return  # its end could not be written
    check(data)
