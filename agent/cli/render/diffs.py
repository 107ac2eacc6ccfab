"""The diff of a configuration file, for a person.

Any value of a file can be a secret, and so can a comment. No list of keys with secrets would be
complete: `headers`, `env`, a registry's name. So this module uses the opposite list, the keys that
our edits set (`is_public`).

Invariant: pure. The values of these keys are shown, and all lines of files that are entirely ours.
Every other value and every comment is shown as `…`. Keys are shown, without users and passwords in
the names of hosts.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from agent.redaction import HIDDEN, redact_text
from agent.runtimes.key_ownership import is_public
from agent.toml import dialect, scan
from agent.toml.dialect import BOM
from agent.toml.masking import safe_key
from agent.toml.scan import Entry, Statement
from agent.toml.write import Path

if TYPE_CHECKING:
    from agent.host.files import Change

# The first line of files that are entirely ours, and the comment above our drop-in.
_OURS_ALONE = "# Written by toolkit-agent, which overwrites it.\n"
_OUR_COMMENTS = "# Written by toolkit-agent", "# `toolkit-agent plan` shows what is in force"
_WRITTEN_WHOLE = (".json", ".yaml")  # the OCI hook and CDI specs


def diff(change: Change) -> str:
    """The unified diff of one file, with hidden values. Lines are compared before values are
    hidden, so a change of a hidden value is shown too."""
    before = _text(change.before.data) if change.before else ""
    after = _text(change.after.data) if change.after else ""
    ours = change.path.host.endswith(_WRITTEN_WHOLE) or after.startswith(_OURS_ALONE)
    new = _lines(after) if ours else _shown(after)
    public = frozenset(_lines(after)) if ours else frozenset()
    old = _shown(before, public)
    names = (change.path.host if state else "/dev/null" for state in (change.before, change.after))
    return "\n".join(_unified(_lines(before), _lines(after), old, new, *names))


def _unified(
    before: list[str], after: list[str], old: list[str], new: list[str], name: str, other: str
) -> Iterator[str]:
    """The unified diff of the lines `before` and `after`, in which these lines are replaced by
    `old` and `new`."""
    groups = list(difflib.SequenceMatcher(None, before, after).get_grouped_opcodes(3))
    if groups:
        yield from (f"--- {name}", f"+++ {other}")
    for group in groups:
        first, last = group[0], group[-1]
        yield f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@"
        for kind, i, j, k, m in group:
            if kind == "equal":
                yield from (f" {line}" for line in new[k:m])
            else:
                yield from (f"-{line}" for line in old[i:j])
                yield from (f"+{line}" for line in new[k:m])


def _range(start: int, end: int) -> str:
    """A range of lines in the header of a hunk, in POSIX's form."""
    length = end - start
    begin = start + 1 if length else start
    return f"{begin}" if length == 1 else f"{begin},{length}"


def _text(data: bytes) -> str:
    try:
        return dialect.decoded(data).removeprefix(BOM)
    except dialect.NotText:
        return data.decode("utf-8", "replace")


def _lines(text: str) -> list[str]:
    return [_printable(line) for line in _split(text)]


def _split(text: str) -> list[str]:
    """The lines of a TOML text, without LF or CRLF at their ends."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in line)


def _shown(text: str, public: Collection[str] = ()) -> list[str]:
    """The lines of a file that may have values of others, with these values hidden. Lines in
    `public` are shown unchanged."""
    lines = _split(text)
    shown = [line if line in public else _comment(line) for line in lines]
    try:
        for one in scan.statements(text):
            first = text.count("\n", 0, one.start)
            for number, line in enumerate(_statement(text, one), first):
                if lines[number] not in public:
                    shown[number] = line
    except (scan.Unreadable, ValueError, RecursionError):
        shown = [line if line in public or not line.strip() else HIDDEN for line in lines]
    return [_printable(line) for line in shown]


def _comment(line: str) -> str:
    """A line outside all statements, with its comment hidden unless it is ours."""
    if not line.strip() or line.startswith(_OUR_COMMENTS):
        return line
    return f"{line[: len(line) - len(line.lstrip())]}# {HIDDEN}"


def _statement(text: str, one: Statement) -> list[str]:
    """The lines of a statement, with values hidden that are not public."""
    indent = text[one.start : one.code]
    rest = "  # " + HIDDEN if "#" in text[one.value.stop : one.end] else ""
    if one.kind != "key":
        left, right = ("[[", "]]") if one.kind == "array" else ("[", "]")
        return [f"{indent}{left}{_key(one.raw)}{right}{rest}"]
    value = _value(text, one.value, one.path)
    first, *inner = f"{indent}{_key(one.raw)} = {value}{rest}".split("\n")
    hidden = text.count("\n", one.value.start, one.value.stop) - len(inner)
    return [first, *inner, *[HIDDEN] * hidden]


def _key(raw: Path) -> str:
    """A key as the file writes it, without users and passwords."""
    return ".".join(_part(part) for part in raw)


def _part(part: str) -> str:
    if part[0] not in "\"'":
        return part
    inside = safe_key(scan.name(part))
    return part if inside == scan.name(part) else f'"{inside}"'


def _value(text: str, value: slice, path: Path) -> str:
    """A value as it is shown: the value of a public key, the keys of an inline table, else `…`."""
    raw = text[value]
    if raw.startswith("{") and "\n" not in raw:
        entries = scan.entries(text, value)
        pairs = (_entry(text, entry, path) for entry in entries)
        return f"{{ {', '.join(pairs)} }}" if entries else "{}"
    if not is_public(path) or "#" in raw or '"""' in raw or "'''" in raw:
        return HIDDEN
    return redact_text(raw)


def _entry(text: str, entry: Entry, above: Path) -> str:
    return f"{_key(entry.raw)} = {_value(text, entry.value, (*above, *entry.path))}"
