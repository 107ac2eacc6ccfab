"""The parser for protobuf messages of other programs, within a budget.

Invariant: fields are counted by the descriptor of the message before the message is parsed, because
the library takes a hundred bytes of memory for an empty message of two bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from agent.host.budget import Budget, OverBudget, too_large, too_many

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

_Message = TypeVar("_Message", bound="Message")
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types; proto3 has no others
_TEXT = (9, 12)  # field types string and bytes


def parsed(data: bytes, kind: type[_Message], budget: Budget) -> _Message:
    """The message of the class `kind` in `data`. Raises ValueError if there is none, and OverBudget
    if it exceeds the budget. The text of the error is the end of a sentence."""
    from google.protobuf.message import DecodeError

    if len(data) > budget.size:
        raise OverBudget(too_large(budget))
    try:
        description: Any = kind.DESCRIPTOR  # one of two classes of the library
        if _fields(data, description, budget.values) > budget.values:
            raise OverBudget(too_many(budget, "fields"))
        return kind.FromString(data)
    except (IndexError, DecodeError) as error:
        raise ValueError("it is not a message of the CRI") from error


def _fields(data: bytes, kind: Descriptor, most: int) -> int:
    """The number of fields of a message, also in nested messages; counting ends above `most`.
    Raises IndexError if the message is cut short."""
    count = 0
    todo: list[tuple[int, int, Descriptor]] = [(0, len(data), kind)]
    while todo:
        at, end, kind = todo.pop()
        while at < end and count <= most:
            count += 1
            tag, at = _varint(data, at)
            wire = tag & 7
            size = 0
            if wire == _VARINT:
                _, at = _varint(data, at)
            elif wire == _LENGTH:
                size, at = _varint(data, at)
                field = kind.fields_by_number.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    todo.append((at, at + size, field.message_type))
                elif field is not None and field.type not in _TEXT:  # packed
                    count += size
            elif wire in (_FIXED64, _FIXED32):
                size = 8 if wire == _FIXED64 else 4
            else:
                raise IndexError
            at += size
            if at > end:
                raise IndexError
    return count


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise IndexError
