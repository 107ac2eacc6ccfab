"""The shape of a spec: its fields and their types.

Invariant: the result has only the fields and types of this table, so that rules need not check them
again. A value that does not fit is left out, and is a problem. Types are those of the structs of
the CDI library (specs-go/config.go of 0.3 to 1.1). A value fits if Go's JSON reader accepts it:
names of fields in any case, numbers for strings, null for a missing value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from agent.cdi.specs.scalar import Plain, go_text, quoted

if TYPE_CHECKING:
    from agent.cdi.specs.read import Value

Impact = Literal["file", "use", "nothing"]
_NO_SPEC = "this is no CDI spec: name another file, or move this one out of the spec directory"


@dataclass(frozen=True)
class Problem:
    """A problem of a spec: where it is, what it is, and what to do about it.

    `impact`: "file" if a runtime ignores the whole file; "use" if containers that request this part
    of the file are not created or not started; "nothing" if the problem has no effect. `unsure`:
    the impact depends on the exact build of the runtime, which is unknown.
    """

    impact: Impact
    where: str
    what: str
    remedy: str
    unsure: bool = False

    @property
    def effect(self) -> str | None:
        """The effect in a runtime as a clause; None if there is none."""
        effects = {"file": "the runtime takes nothing from the file",
                   "use": "containers with it are not created or not started"}  # fmt: skip
        return effects.get(self.impact)

    @property
    def severity(self) -> Literal["error", "warning"]:
        return "warning" if self.impact == "nothing" else "error"


class Problems(list[Problem]):
    """The problems of one file, a limited number for each impact."""

    MOST = 5_000

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, int] = {}
        self._parts: set[str] = set()

    def add(self, problem: Problem) -> None:
        """Add a problem, unless MOST of its impact are there. The first problem of each device is
        always added, because it decides the state of the device."""
        count = self._counts[problem.impact] = self._counts.get(problem.impact, 0) + 1
        part = f"{problem.impact} {problem.where.partition('.')[0]}"
        if count <= self.MOST or part not in self._parts:
            self.append(problem)
        self._parts.add(part)


@dataclass(frozen=True)
class Number:
    """An integer field and its bounds."""

    name: str
    low: int
    high: int


@dataclass(frozen=True)
class ListOf:
    """A list. With `pointers`, Go accepts null as an item, but crashes when it uses the item."""

    item: Type
    pointers: bool = False


Type: TypeAlias = "Literal['string', 'bool', 'texts'] | Number | ListOf | Mapping[str, Type]"

_INT64 = Number("a 64-bit integer", -(1 << 63), (1 << 63) - 1)
_UINT32 = Number("an integer from 0 to 4294967295", 0, (1 << 32) - 1)
_STRINGS = ListOf("string")

_EDITS: Mapping[str, Type] = {
    "env": _STRINGS,
    "deviceNodes": ListOf({
        "path": "string", "hostPath": "string", "type": "string", "major": _INT64,
        "minor": _INT64, "fileMode": _UINT32, "permissions": "string", "uid": _UINT32,
        "gid": _UINT32,
    }, pointers=True),
    "netDevices": ListOf({"hostInterfaceName": "string", "name": "string"}, pointers=True),
    "hooks": ListOf({
        "hookName": "string", "path": "string", "args": _STRINGS, "env": _STRINGS,
        "timeout": _INT64,
    }, pointers=True),
    "mounts": ListOf({
        "hostPath": "string", "containerPath": "string", "options": _STRINGS, "type": "string",
    }, pointers=True),
    "intelRdt": {
        "closID": "string", "l3CacheSchema": "string", "memBwSchema": "string",
        "schemata": _STRINGS, "enableMonitoring": "bool", "enableCMT": "bool", "enableMBM": "bool",
    },
    "additionalGids": ListOf(_UINT32),
}  # fmt: skip
_SPEC: Mapping[str, Type] = {
    "cdiVersion": "string",
    "kind": "string",
    "annotations": "texts",
    "devices": ListOf({"name": "string", "annotations": "texts", "containerEdits": _EDITS}),
    "containerEdits": _EDITS,
}


def fit_to_shape(value: Value) -> tuple[dict[str, Any], Problems]:
    """The part of a file's data that fits the table, and the problems of the other values."""
    shaper = _Shaper()
    if isinstance(value, Mapping):
        return shaper.struct(value, _SPEC, ""), shaper.problems
    text = f"it is {_kind(value)}, not a mapping with cdiVersion, kind and devices"
    text = "the file is empty" if _is_null(value) else text
    shaper.problems.add(Problem("file", "", text, _NO_SPEC))
    return {}, shaper.problems


def fold(name: str) -> str:
    """The name of a field as Go folds it to compare names without case."""
    return name.replace("\u017f", "s").lower()


def _is_null(value: Value) -> bool:
    return isinstance(value, Plain) and value.value is None


def _kind(value: Value) -> str:
    found = value.value if isinstance(value, Plain) else value
    kinds = {bool: "a boolean", int: "a number", float: "a number", type(None): "nothing",
             str: "text", list: "a list", dict: "a mapping"}  # fmt: skip
    return kinds[type(found)]


class _Shaper:
    """Reduces data to the table, and collects problems."""

    def __init__(self) -> None:
        self.problems = Problems()

    def _wrong(self, where: str, value: Value, expected: str) -> None:
        """Add the problem that a value has another type than `expected`."""
        text = f"it is {_kind(value)}, not {expected}"
        self.problems.add(Problem("file", where, text, "correct it"))

    def struct(
        self, value: Mapping[str, Any], fields: Mapping[str, Type], at: str
    ) -> dict[str, Any]:
        """The fields of a mapping that are in the table and whose values fit. `at` is the mapping's
        place, for problems."""
        names = {fold(name): name for name in fields}
        found: dict[str, Any] = {}
        for key in sorted(value):  # Go takes the last of several spellings
            where = f"{at}.{key}" if at else key
            name = names.get(fold(key))
            if name is None:
                remedy = f"remove it, or spell it as one of {', '.join(fields)}"
                text = f"there is no field {quoted(key)} here"
                self.problems.add(Problem("file", at, text, remedy))
                continue
            if name != key:
                text = f"the field is called {name}"
                self.problems.add(Problem("nothing", where, text, f"spell it {name}"))
            if not _is_null(value[key]):
                fitting = self._value(value[key], fields[name], where)
                found |= {} if fitting is None else {name: fitting}
        return found

    def _value(self, value: Value, kind: Type, where: str) -> Any:
        """The value, if it has that type; else None, and a problem is added."""
        if isinstance(kind, ListOf):
            return self._list(value, kind, where)
        if isinstance(kind, Number):
            return self._number(value, kind, where)
        if kind == "string":
            return self._string(value, where)
        if kind == "bool":
            if isinstance(value, Plain) and isinstance(value.value, bool):
                return value.value
            self._wrong(where, value, "true or false")
            return None
        if not isinstance(value, Mapping):
            self._wrong(where, value, "a mapping")
            return None
        if kind == "texts":
            return self._texts(value, where)
        assert isinstance(kind, Mapping)
        return self.struct(value, kind, where)

    def _list(self, value: Value, kind: ListOf, where: str) -> list[Any] | None:
        if not isinstance(value, list):
            self._wrong(where, value, "a list")
            return None
        found: list[Any] = []
        for number, item in enumerate(value):
            if _is_null(item):
                found.append(None if kind.pointers else _zero(kind.item))
            elif (fitting := self._value(item, kind.item, f"{where}[{number}]")) is not None:
                found.append(fitting)
        return found

    def _number(self, value: Value, kind: Number, where: str) -> int | None:
        number = value.value if isinstance(value, Plain) else None
        if isinstance(number, float) and number.is_integer() and abs(number) < 1e21:
            number = int(number)  # Go converts YAML to JSON, which writes 5.0 as 5
        if type(number) is not int:
            self._wrong(where, value, kind.name)
            return None
        if not kind.low <= number <= kind.high:
            text = f"{number} is not {kind.name}"
            self.problems.add(Problem("file", where, text, "correct it"))
            return None
        return number

    def _string(self, value: Value, where: str) -> str | None:
        if isinstance(value, str):
            return value
        if not isinstance(value, Plain) or value.value is None:
            self._wrong(where, value, "text")
            return None
        text = go_text(value.value)
        if text != value.text:
            what = f"without quotes it is {_kind(value)}, which the runtime writes as {text}"
            self.problems.add(Problem("nothing", where, what, "put it in quotes"))
        return text

    def _texts(self, value: Mapping[str, Any], where: str) -> dict[str, str]:
        found = {}
        for key, item in value.items():
            text = "" if _is_null(item) else self._string(item, f"{where}.{key}")
            if text is not None:
                found[key] = text
        return found


def _zero(kind: Type) -> Any:
    """The value that Go takes for null in a list."""
    return "" if kind == "string" else 0 if isinstance(kind, Number) else {}


def edits(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, content) of every containerEdits of a spec."""
    yield "containerEdits", spec.get("containerEdits", {})
    for number, device in enumerate(spec.get("devices", ())):
        yield f"devices[{number}].containerEdits", device.get("containerEdits", {})
