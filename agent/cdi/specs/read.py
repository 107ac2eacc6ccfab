"""Parses the bytes of a spec as runtimes do.

Invariant: the result equals that of Go's YAML 1.1 parser (yaml.v2, strict), for which JSON is YAML:
only the first document counts; `1:0` is a string and `y` a boolean; a key that is both merged and
set is an error. Any bytes give data or raise Broken, in bounded time and depth. This is the only
module that imports yaml. It uses only PyYAML's parser: its composer refuses a second anchor of the
same name, and keeps all nodes with their positions in memory.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import yaml

from agent.cdi.specs.scalar import Plain, go_text, plain_value, quoted
from agent.cdi.specs.shape import fold
from agent.host import budget

_LIMITS = budget.SPEC
_EXPANDED = 4 * _LIMITS.values  # aliases expanded, because each value is checked
# yaml.v2 refuses a document with a larger part of its values from aliases, unless there are few.
_FEW_ALIASED, _SMALL, _MOST_ALIASED = 100, 1000, 0.99
_MERGE = "tag:yaml.org,2002:merge"
_TAG = "tag:yaml.org,2002:"
_TYPES = {"bool": bool, "int": int, "float": float, "null": type(None)}

# An escape of JSON that libyaml accepts and Go's parser refuses.
_SLASHES = rb"\\\0?/"
_SLASH = re.compile(r"(?<!\\)(?:\\\\)*\\/")


class Broken(Exception):
    """The bytes cannot be parsed; `text` says why, as a part of a sentence."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.text = text if line is None else f"{text} (line {line})"


class TooLarge(Broken):
    """The file exceeds the agent's budget. A runtime may still read it."""


Value: TypeAlias = "str | Plain | list[Any] | dict[str, Any]"


@dataclass(frozen=True)
class Document:
    """The first document of a file, and the number of its values. `more`: further documents follow,
    which runtimes ignore."""

    data: Value
    more: bool = False
    values: int = 0


def document(data: bytes) -> Document:
    """The first document in the content of a file. Raises Broken."""
    return _Builder(data).document()


@lru_cache(maxsize=1024)  # called several times for each file
def kinds(data: bytes) -> tuple[str, ...]:
    """The kinds in the content of a spec: several if the key occurs in several spellings, none if
    the file is no spec or cannot be parsed. Of a document that exceeds the budget, only the
    beginning counts."""
    builder = _Builder(data)
    try:
        found = builder.document().data
    except TooLarge:
        found = builder.top
    except Broken:
        return ()
    items = found.items() if isinstance(found, dict) else ()
    values = [value for key, value in items if fold(key) == "kind"]
    texts = (value.text if isinstance(value, Plain) else value for value in values)
    return tuple(dict.fromkeys(text for text in texts if isinstance(text, str)))


def _events(data: bytes) -> Iterator[Any]:
    """The events of PyYAML's parser. Raises Broken for content that only Go's parser refuses.
    libyaml is preferred, because Go's parser is a translation of it; PyYAML's own parser is slower
    and stricter."""
    text = _text_of(data) if re.search(_SLASHES, data) else ""
    for event in yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.DocumentStartEvent) and event.version not in (None, (1, 1)):
            raise Broken("it is neither YAML nor JSON: %YAML is not 1.1", 1)
        if text and isinstance(event, yaml.ScalarEvent) and event.style == '"':
            start, end = event.start_mark, event.end_mark
            if start and end and _SLASH.search(text[start.index : end.index]):
                why = "it is neither YAML nor JSON: runtimes do not know the escape \\/"
                raise Broken(why, start.line + 1)
        yield event


def _text_of(data: bytes) -> str:
    """The characters of a file, to which the positions of events refer."""
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if wide else "utf-8-sig", "replace")


class _Builder:
    """Builds the first document from events. `top` is its outermost mapping as far as it has been
    read."""

    def __init__(self, data: bytes) -> None:
        self.top: dict[str, Any] = {}
        self._events = _events(data)
        self._anchors: dict[str, tuple[Value, int] | None] = {}  # None while the value is read
        # Counts: values in the file, values with aliases expanded, values that come from aliases.
        self._read = self._size = self._aliased = 0

    def document(self) -> Document:
        """The first document. Raises Broken."""
        try:
            next(self._events)  # the start of the stream
            if isinstance(next(self._events), yaml.StreamEndEvent):
                return Document(Plain(None, ""))
            value = self._value(next(self._events), 0)
            next(self._events)  # the end of the document
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            raise Broken(_problem(error), mark.line + 1 if mark else None) from error
        except ValueError as error:
            raise Broken("it is neither YAML nor JSON") from error
        many = self._aliased > _FEW_ALIASED and self._size > _SMALL
        if many and self._aliased / self._size > _MOST_ALIASED:
            raise Broken("nearly all of its values come from aliases")
        return Document(value, self._follows(), self._size)

    def _follows(self) -> bool:
        try:
            return isinstance(next(self._events, None), yaml.DocumentStartEvent)
        except yaml.YAMLError:
            return True

    def _value(self, event: Any, depth: int) -> Any:
        """The value that begins with this event, inside `depth` lists and mappings."""
        self._read += 1
        if self._read > _LIMITS.values:
            raise TooLarge(budget.too_many(_LIMITS))
        before = self._size
        self._add(1)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor)
        if event.anchor:
            self._anchors[event.anchor] = None
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif depth >= _LIMITS.depth:
            raise Broken(budget.too_deep(_LIMITS.depth))
        elif isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(depth)
        else:
            value = []
            while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
                value.append(self._value(item, depth + 1))
        if event.anchor:
            self._anchors[event.anchor] = value, self._size - before
        return value

    def _add(self, count: int) -> None:
        self._size += count
        if self._size > _EXPANDED:  # merged values are copied
            raise TooLarge(f"it has more than {_EXPANDED} values, those behind aliases included")

    def _alias(self, anchor: str | None) -> Value:
        if anchor is None or anchor not in self._anchors:
            raise Broken("an alias stands for nothing")
        found = self._anchors[anchor]
        if found is None:
            raise Broken("an anchor contains itself")
        value, size = found
        self._aliased += size
        self._add(size)
        return value

    def _mapping(self, depth: int) -> dict[str, Any]:
        """A mapping. Raises Broken if a key, merged keys included, occurs twice."""
        found: dict[str, Any] = {}
        if depth == 0:
            self.top = found
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            value = self._value(next(self._events), depth + 1)
            if not _is_merge(event):
                _set(found, _key(key), value)
                continue
            for part in reversed(value) if isinstance(value, list) else [value]:
                if not isinstance(part, dict):
                    raise Broken("the value of << is not a mapping")
                for name, item in part.items():
                    _set(found, name, item)
        return found


def _problem(error: yaml.YAMLError) -> str:
    """The parser's message, masked, because it can quote secrets in the file."""
    from agent.toml.masking import masked  # rarely needed

    message = getattr(error, "problem", None) or getattr(error, "reason", None)
    return f"it is neither YAML nor JSON: {masked(str(message))}"


def _is_merge(key: Any) -> bool:
    is_plain = isinstance(key, yaml.ScalarEvent) and (key.implicit[0] or key.tag == _MERGE)
    return is_plain and key.value == "<<"


def _set(mapping: dict[str, Any], key: str, value: Any) -> None:
    if key in mapping:
        raise Broken(f"the key {quoted(key)} is there twice")
    mapping[key] = value


def _key(key: Any) -> str:
    if isinstance(key, Plain) and key.value is not None:
        return go_text(key.value)
    if not isinstance(key, str):
        raise Broken("a key is a list, a mapping or null")
    return key


def _scalar(event: yaml.ScalarEvent) -> str | Plain:
    """A single value, checked against its tag. Raises Broken."""
    text = str(event.value)
    name = event.tag.removeprefix(_TAG) if event.tag else ""
    if name == "binary":
        try:
            plain = base64.b64decode(re.sub(r"[\r\n]", "", text), validate=True)
        except ValueError as error:
            raise Broken("a value with the tag !!binary is not base64") from error
        return plain.decode("utf-8", "replace")
    if name not in _TYPES:
        return text if name or not event.implicit[0] else plain_value(text)
    found = plain_value(text)
    value = found.value if isinstance(found, Plain) else found
    if name == "float" and type(value) is int:
        return Plain(float(value), text)
    if type(value) is not _TYPES[name]:
        raise Broken(f"a value with the tag !!{name} has another type")
    return found
