"""Reads TOML files of the host, and edits them in place, behind a guard.

Invariant: a file that no runtime can read is refused; the error names the file and shows none of
its values. The text that `edit` returns parses, with the standard library, to exactly the desired
data, and has every comment of the original text, still above the same key or header. If no way of
writing achieves that, the edit is refused.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterable, Iterator

from agent.errors import Refused
from agent.host import budget
from agent.toml import dialect
from agent.toml.dialect import BOM, Data, encoded
from agent.toml.ops import Append, Op, Set, Unset, apply, deep_merge, get, identical, without_empty
from agent.toml.write import Path, dotted, render, scalar

__all__ = [
    "Append", "Data", "Op", "Path", "Set", "Unset", "apply", "decoded", "deep_merge", "dotted",
    "edit", "encoded", "get", "has_comments", "parse", "render", "scalar", "without_empty",
]  # fmt: skip

_MOST_PARTS = 100  # single edits for one table; each reads the whole text

# The scanner does not treat a lone carriage return as a line end, and a value with a byte that is
# not UTF-8 cannot be written back unchanged.
_EDITABLE = {*dialect.GO_TOML_1, *dialect.GO_TOML_2} - {"carriage return", "encoding"}


def parse(data: bytes, name: str) -> Data:
    """The data in a file's bytes; `name` is the file's path, for errors. Deviations from TOML 1.0
    that a runtime accepts are no error (see `dialect.oddities`). Raises Refused with the file and
    the place of the error."""
    return _parsed(decoded(data, name), name)


def decoded(data: bytes, name: str) -> str:
    """The editable text of a file's bytes, from which `encoded` makes the same bytes. Raises
    Refused."""
    try:
        return dialect.decoded(data)
    except dialect.NotText as error:
        raise Refused(f"cannot read {name}: {error}") from error


def _parsed(text: str, name: str) -> Data:
    try:
        return dialect.loads(text)
    except tomllib.TOMLDecodeError as error:
        from agent.toml.masking import masked  # needed only if something failed

        why = masked(str(error))  # the message can contain values
        raise Refused(f"cannot read {name}: it is not valid TOML: {why}; repair it") from error
    except budget.OverBudget as error:
        raise Refused(f"cannot read {name}: {error}; make it smaller") from error


def has_comments(text: str) -> bool:
    """Has the text any comment?"""
    from agent.toml import scan

    return bool(scan.comments(text))


def edit(text: str, ops: Iterable[Op], name: str) -> str:
    """The text after the operations; the same text if they change nothing. `name` is the file's
    path, for errors.

    `text` comes from `decoded`; deviations from TOML 1.0 stay in it. Raises Refused if no safe way
    to write the result is found.
    """
    mark, text = text[: text.startswith(BOM)], text.removeprefix(BOM)
    crlf = "\r\n" in text and text.count("\r\n") == text.count("\n")
    text = text.replace("\r\n", "\n") if crlf else text
    current = _parsed(text, name)
    for op in ops:
        desired = apply(current, [op])
        if not identical(desired, current):
            _refuse_unsafe(text, name)
            text, current = _propose(text, op, current, desired, name)
    return mark + (text.replace("\n", "\r\n") if crlf else text)


def _refuse_unsafe(text: str, name: str) -> None:
    """Raise Refused for a text with too many lines, with uncertain places of keys, or with a value
    that cannot be written back unchanged."""
    if text.count("\n") > budget.TOML_LINES:
        raise Refused(
            f"cannot edit {name}: it has more than {budget.TOML_LINES} lines; make it smaller"
        )
    if odd := dialect.first_rejected(text, _EDITABLE):
        raise Refused(f"cannot edit {name}: {odd.words} ({odd.readers}); {odd.remedy}")


def _propose(text: str, op: Op, data: Data, desired: Data, name: str) -> tuple[str, Data]:
    """The first proposed text that passes the guard, and its data. Raises Refused if none does."""
    for _, proposal in _proposals(text, op, data, desired):
        found = _guarded(text, proposal, op, data, desired)
        if found is not None:
            return proposal, found
    odd = next((f"; {o.words}" for o in dialect.oddities(text) if "1.1" in o.words), "")
    raise Refused(
        f"cannot edit {name}: no safe way to set {dotted(op.path)} in its spelling was found{odd}; "
        "write that table with plain [headers] and try again"
    )


def _proposals(text: str, op: Op, data: Data, desired: Data) -> Iterator[tuple[str, str]]:
    """(name of the way of writing, proposed text) in the order of preference."""
    from agent.toml import place  # with tomlkit; needed only if a file changes

    old, new = get(data, op.path), get(desired, op.path)
    if isinstance(old, dict) and isinstance(new, dict):
        parts = list(_parts(op.path, old, new))
        if len(parts) <= _MOST_PARTS:
            with contextlib.suppress(Refused):
                yield "part by part", edit(text, parts, "")
    else:
        for way, write in place.ways(text, op.path, desired):
            with contextlib.suppress(*place.ERRORS):
                proposal = write()
                if proposal is not None:
                    yield way, proposal
    if old is not None and new is not None:
        with contextlib.suppress(Refused):
            yield "out and in", edit(text, [Unset(op.path), Set(op.path, new)], "")


def _guarded(text: str, proposal: str, op: Op, data: Data, desired: Data) -> Data | None:
    """The data of a proposed text; None if it is not the desired data, or if a comment is lost or
    moved."""
    from agent.toml import scan

    try:
        found = dialect.loads(proposal)
        lost = scan.comments(text) - scan.comments(proposal)
        moved = scan.comments_above(text, op.path) - scan.comments_above(proposal, op.path)
    except ValueError:
        return None
    right = identical(found, desired)
    if isinstance(op, Unset):
        right = identical(without_empty(found), without_empty(desired))
    if isinstance(op, Unset) or isinstance(get(data, op.path), dict):
        lost -= scan.comments_behind(text, op.path)
    return found if right and not lost and not moved else None


def _parts(path: Path, old: Data, new: Data) -> Iterator[Op]:
    """The edits of single keys that turn the table `old` into `new`."""
    for key, value in new.items():
        below = (*path, key)
        if isinstance(old.get(key), dict) and isinstance(value, dict):
            yield from _parts(below, old[key], value)
        else:
            yield Set(below, value)
    for key in old:
        if key not in new:
            yield Unset((*path, key))
    if not new:
        yield Set(path, {})
