"""Frozen dataclasses that are made quickly.

Invariant: to readers and to the type checker this is `dataclasses.dataclass`; what it makes is one
too. Only its methods are shared functions, rather than six that are written and compiled for each
class: for the classes of a single command that took longer than everything it does besides.
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import TYPE_CHECKING

__all__ = ["dataclass", "field", "replace"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import dataclasses

    def dataclass(*, frozen: bool, slots: bool):
        """As `dataclasses.dataclass(frozen=True, slots=True)`; there are no others here. (An
        instance has a dictionary, into which nothing else gets.)"""
        assert frozen
        assert slots
        return _made

    def _made(cls):
        cls.__doc__ = cls.__doc__ or cls.__name__  # or else it is worked out from the signature
        cls = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
        for name, function in _METHODS.items():
            if name not in cls.__dict__:
                setattr(cls, name, function)
        return cls

    def _init(self, *args, **given) -> None:
        fields = self.__dataclass_fields__
        values = dict(zip(fields, args, strict=False))
        if len(args) > len(fields) or given.keys() & values.keys() or given.keys() - fields.keys():
            raise TypeError(f"{type(self).__name__}() takes {', '.join(fields)}, each once")
        values |= given
        for name, known in fields.items():
            if name in values:
                continue
            if known.default is not dataclasses.MISSING:
                values[name] = known.default
            elif known.default_factory is not dataclasses.MISSING:
                values[name] = known.default_factory()
            else:
                raise TypeError(f"{type(self).__name__}() needs {name}")
        self.__dict__.update((name, values[name]) for name in fields)

    def _repr(self) -> str:
        parts = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__qualname__}({parts})"

    def _eq(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(self) is type(other) else NotImplemented

    def _hash(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def _frozen(_: object, name: str, *__: object) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    _METHODS = {
        "__init__": _init, "__repr__": _repr, "__eq__": _eq, "__hash__": _hash,
        "__setattr__": _frozen, "__delattr__": _frozen,
    }  # fmt: skip
