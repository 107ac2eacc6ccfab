"""Parses the bytes of a spec as runtimes do.

Invariant: the result is that of Go's YAML 1.1 parser (yaml.v2, strict), for which JSON is YAML: the
first document only; `1:0` is a string and `y` a boolean; a key that is both merged and set is an
error. Any bytes give data or raise Broken, in bounded time and depth. The only module that imports
yaml.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import yaml

from agent.cdi.specs.scalar import Plain, go_text, plain_value, quoted
from agent.host import budget

_LIMITS = budget.SPEC
_EXPANDED = 4 * _LIMITS.values  # with aliases expanded, because each value is looked at
_FEW_ALIASED = 100  # yaml.v2 does not mind
_MERGE = "tag:yaml.org,2002:merge"
_TAG = "tag:yaml.org,2002:"
_BINARY = f"{_TAG}binary"

# An escape of JSON that libyaml accepts and Go's parser refuses.
_SLASHES = rb"\\\0?/"
_SLASH = re.compile(r"(?<!\\)(?:\\\\)*\\/")


class Broken(Exception):
    """The bytes cannot be parsed; `text` says why, as a part of a sentence."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.text = text if line is None else f"{text} (line {line})"


class TooLarge(Broken):
    """The file exceeds our budget; a runtime may read it."""


Value: TypeAlias = "str | Plain | list[Any] | dict[str, Any]"


@dataclass(frozen=True)
class Document:
    """The first document, with the number of its values. `more`: further documents follow, which
    runtimes do not read."""

    data: Value
    more: bool = False
    values: int = 0


def document(data: bytes) -> Document:
    """The data of a file. Raises Broken."""
    try:
        return _Builder(_events(_loader(), data)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise Broken(_problem(error), mark.line + 1 if mark else None) from error
    except yaml.YAMLError as error:
        raise Broken(_problem(error)) from error
    except (ValueError, RecursionError) as error:
        raise Broken("it is neither YAML nor JSON") from error


def _loader() -> Any:
    """libyaml, from which Go's parser was translated. PyYAML's own parser is slower and
    stricter."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _problem(error: yaml.YAMLError) -> str:
    """The parser's message without the content of the file, which may be secret."""
    from agent.toml.masking import masked  # rarely needed

    message = getattr(error, "problem", None) or getattr(error, "reason", None)
    return f"it is neither YAML nor JSON: {masked(str(message))}"


def _events(loader: Any, data: bytes) -> Iterator[yaml.Event]:
    reader = loader(data)
    text = _text_of(data) if re.search(_SLASHES, data) else ""
    try:
        while reader.check_event():
            event = reader.get_event()
            if isinstance(event, yaml.DocumentStartEvent) and event.version not in (None, (1, 1)):
                raise Broken("it is neither YAML nor JSON: %YAML is not 1.1", 1)
            if text and isinstance(event, yaml.ScalarEvent) and event.style == '"':
                _refuse_slash(text, event)
            yield event
    finally:
        reader.dispose()


def _refuse_slash(text: str, event: yaml.Event) -> None:
    start, end = event.start_mark, event.end_mark
    if start and end and _SLASH.search(text[start.index : end.index]):
        text = "it is neither YAML nor JSON: runtimes do not know the escape \\/"
        raise Broken(text, start.line + 1)


def _text_of(data: bytes) -> str:
    """The characters of a file, as the positions of events count them."""
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if wide else "utf-8-sig", "replace")


class _Open:
    """A list or a mapping whose end is not read yet; `size` counts its values, `aliased` those that
    come from aliases."""

    def __init__(self, *, is_list: bool, anchor: str | None, merges: bool = False) -> None:
        self.is_list = is_list
        self.anchor = anchor
        self.items: list[Any] = []
        self.merges = merges
        self.size, self.aliased = 1, 0


class _Merge:
    """The key `<<`."""


class _Builder:
    """Builds data from events, without recursion, so that deep nesting cannot exhaust the stack."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int] | None] = {}
        self._read = self._expanded = 0

    def document(self) -> Document:
        """The first document, and whether more documents follow."""
        for event in self._events:
            if isinstance(event, yaml.DocumentEndEvent):
                break
            if isinstance(event, yaml.StreamEndEvent):
                return Document(Plain(None, ""))
            self._take(event)
        return Document(self._result, self._follows(), self._expanded)

    def _follows(self) -> bool:
        try:
            return isinstance(next(self._events, None), yaml.DocumentStartEvent)
        except yaml.YAMLError:
            return True

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._count()
            self._add(_scalar(event), event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            self._count()
            self._alias(event)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            self._count()
            if len(self._open) >= _LIMITS.depth:
                raise Broken(budget.too_deep(_LIMITS.depth))
            is_list = isinstance(event, yaml.SequenceStartEvent)
            if event.anchor:
                self._anchors[event.anchor] = None
            self._open.append(_Open(is_list=is_list, anchor=event.anchor))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            done = self._open.pop()
            value = done.items if done.is_list else _mapping(done.items)
            self._add(value, done.anchor, done.size, done.aliased)

    def _count(self) -> None:
        self._read += 1
        if self._read > _LIMITS.values:
            raise TooLarge(budget.too_many(_LIMITS))

    def _alias(self, event: yaml.AliasEvent) -> None:
        if event.anchor not in self._anchors:
            raise Broken("an alias stands for nothing")
        found = self._anchors[event.anchor]
        if found is None:
            raise Broken("an anchor contains itself")
        value, size = found
        self._add(value, None, size + 1, size)

    def _add(self, value: Any, anchor: str | None, size: int = 1, aliased: int = 0) -> None:
        """Add a complete value to the innermost open list or mapping, or make it the result."""
        if anchor:
            self._anchors[anchor] = (value, size)
        if self._open:
            above = self._open[-1]
            above.items.append(value)
            above.size += size
            above.aliased += aliased
            if above.size > _EXPANDED:  # merged values are copied
                raise TooLarge(
                    f"it has more than {_EXPANDED} values, those behind aliases included"
                )
            return
        if aliased > _FEW_ALIASED and size > 1000 and aliased / size > _allowed(size):
            raise Broken("its aliases stand for far more than is written")
        if isinstance(value, _Merge):
            value = "<<"
        self._result, self._expanded = value, size


def _allowed(size: int) -> float:
    """The part of the values that may come from aliases (yaml.v2)."""
    low, high = 400_000, 4_000_000
    return 0.99 - 0.89 * min(max((size - low) / (high - low), 0.0), 1.0)


def _mapping(items: list[Any]) -> dict[str, Any]:
    """Pairs as a mapping, in which each key comes once, merged keys included."""
    found: dict[str, Any] = {}
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, _Merge):
            _set(found, _key(key), value)
            continue
        parts = reversed(value) if isinstance(value, list) else [value]
        for part in parts:
            if not isinstance(part, Mapping):
                raise Broken("what << merges is no mapping")
            for name, item in part.items():
                _set(found, name, item)
    return found


def _set(found: dict[str, Any], key: str, value: Any) -> None:
    if key in found:
        raise Broken(f"the key {quoted(key)} is there twice")
    found[key] = "<<" if isinstance(value, _Merge) else value


def _key(key: Any) -> str:
    if isinstance(key, Plain) and key.value is not None:
        return go_text(key.value)
    if not isinstance(key, str):
        raise Broken("a list, a mapping or nothing is used as a key")
    return key


def _scalar(event: yaml.ScalarEvent) -> Any:
    tag, text = event.tag, str(event.value)
    if text == "<<" and (event.implicit[0] or tag == _MERGE):
        return _Merge()
    if tag is None and not event.implicit[0]:
        return text
    if tag == _BINARY:
        try:
            return base64.b64decode(re.sub(r"[\r\n]", "", text), validate=True).decode(
                "utf-8", "replace"
            )
        except ValueError as error:
            raise Broken("a value with the tag !!binary is not base64") from error
    if tag not in (None, *(f"{_TAG}{name}" for name in ("bool", "int", "float", "null"))):
        return text
    return _converted(plain_value(text), tag)


def _converted(found: Any, tag: str | None) -> Any:
    """A value, checked against its tag. Raises Broken."""
    if tag is None:
        return found
    value = found.value if isinstance(found, Plain) else found
    name = tag.removeprefix(_TAG)
    if name == "float" and type(value) is int:
        return Plain(float(value), found.text)
    types = {"bool": bool, "int": int, "float": float, "null": type(None)}
    if type(value) is not types[name]:
        raise Broken(f"a value with the tag !!{name} is none")
    return found


@lru_cache(maxsize=1024)  # called several times for each file
def kinds(data: bytes) -> tuple[str, ...]:
    """The kind of a spec: several if the key is there several times, none if it is no spec.

    Only the first document is read, and of a document that exceeds the budget only the beginning.
    """
    reader = _Kinds()
    events = _loader()(data)
    try:
        while not reader.done and events.check_event():
            reader.take(events.get_event())
    except (yaml.YAMLError, ValueError, RecursionError):
        return ()
    finally:
        events.dispose()
    return tuple(reader.result)


_Found: TypeAlias = "dict[str, None]"
_NONE: _Found = {}
_MOST_KINDS = 100


class _Part:
    """A mapping or a list whose end is not read yet. `own` are the values of a mapping's key
    `kind`; `merged` are those of the mappings that `<<` merges, and of all mappings in a list.
    `key` is the text of the last key without a value yet, None for a list or a mapping."""

    def __init__(self, *, is_list: bool, anchor: str | None) -> None:
        self.is_list = is_list
        self.anchor = anchor
        self.own: _Found = {}
        self.merged: _Found = {}
        self.has_key = False
        self.key: str | None = None
        self.merges = False

    def add(self, text: str | None, tag: str | None, found: _Found) -> None:
        """Add a value: its text (None for a list or a mapping), or the kinds in it."""
        if len(self.own) + len(self.merged) > _MOST_KINDS:
            return  # nested merges would take too long
        if self.is_list:
            self.merged |= found
        elif not self.has_key:
            self.has_key, self.key, self.merges = True, text, tag == _MERGE
        else:
            self.has_key = False
            if self.merges:
                self.merged |= found
            elif text is not None and self.key is not None and self.key.casefold() == "kind":
                self.own[text] = None


class _Kinds:
    """Finds the kinds in a document from its events. Only open parts and anchors are kept, so that
    memory does not grow with the document."""

    def __init__(self) -> None:
        self._open: list[_Part] = []
        self._anchors: dict[str, tuple[str | None, str | None, _Found]] = {}
        self._read = 0
        self.result: _Found = {}
        self.done = False

    def take(self, event: yaml.Event) -> None:
        """Read the next event. Raises ValueError for an alias without an anchor."""
        self._read += 1
        if isinstance(event, yaml.ScalarEvent):
            plain = event.value == "<<" and event.tag is None and event.implicit[0]
            self._add(_text(event), _MERGE if plain else event.tag, _NONE, event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise ValueError
            self._add(*self._anchors[event.anchor], None)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            is_list = isinstance(event, yaml.SequenceStartEvent)
            if event.anchor:
                self._anchors[event.anchor] = None, None, _NONE
            self._open.append(_Part(is_list=is_list, anchor=event.anchor))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            part = self._open.pop()
            self._add(None, None, part.own or part.merged, part.anchor, is_list=part.is_list)
        elif isinstance(event, yaml.StreamEndEvent):
            self.done = True
        if self._read > 4 * _LIMITS.values and self._open:
            self.result, self.done = self._open[0].own, True

    def _add(
        self, text: str | None, tag: str | None, found: _Found, anchor: str | None,
        *, is_list: bool = False,
    ) -> None:  # fmt: skip
        if anchor:
            self._anchors[anchor] = text, tag, found
        if self._open:
            self._open[-1].add(text, tag, found)
        else:
            self.result = _NONE if is_list else found
            self.done = True


def _text(event: yaml.ScalarEvent) -> str:
    text = str(event.value)
    if event.tag != _BINARY:
        return text
    try:
        return base64.b64decode(text).decode("utf-8", "replace")
    except binascii.Error:
        return text
