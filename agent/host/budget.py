"""Limits of the input that others write: bytes, values, levels of nesting and names.

Invariant: every reader of such input takes its limits from this table. No input within the limits
brings a process above 128 MiB, a third of the pod's limit, or takes longer than five seconds. An
input over a limit is an error that names the input and the limit; all other inputs are still used.

The waiting supervisor imports none of our modules, so its limits are in `agent.daemon.supervisor`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any


@dataclass(frozen=True)
class Budget:
    """The limits of one kind of input: its `size` in bytes, the number of its `values`, and the
    `depth` of nesting; 0 if a limit does not apply."""

    size: int
    values: int = 0
    depth: int = 0


# The comments name the size of real inputs.

# Eight GPUs with seven MIG devices each: 3,000 values, 60 KB. 2,048 IMEX channels: 20,000 values.
SPEC = Budget(size=4 << 20, values=50_000, depth=100)
# All specs of a directory together, in memory at the same time.
SPECS = Budget(size=8 << 20, values=150_000)
SPEC_DEVICES = 10_000  # devices of one spec, each of which is listed
DEVICE_COST = 8  # values as which a device counts
SPEC_FILES = 2_000  # files in a directory: a node with DRA has one for each claim
# A file that the runtime reads. A thousand registry mirrors: 100 KB, 16,000 tokens.
TOML = Budget(size=1 << 20, values=100_000, depth=64)
TOML_LINES = 15_000  # lines of a file that is edited
# The files of one runtime together. A drop-in for each handler makes a dozen.
CONFIG = Budget(size=4 << 20, values=500)
# The standard output of a runtime's executable: all files merged.
DUMP = Budget(size=2 << 20)
STDERR = Budget(size=1 << 16)  # the standard error of that executable: some lines
LINE = Budget(size=1 << 13, values=1_000)  # a line of a log
# Version and Status: 20 to 200 KB, most of it the configuration with its mirrors.
STATUS = Budget(size=2 << 20, values=20_000)
# 500 pods with 16 KB of annotations each; the values are fields of protobuf.
PODS = Budget(size=8 << 20, values=200_000)
# The JSON in a verbose answer: the configuration, or the details of one pod.
INFO = Budget(size=2 << 20, values=100_000)
# GET /config of CRI-O 1.37: 6 KB.
RUNTIME_CONFIG = Budget(size=1 << 20)
# An answer of systemd: some hundred bytes.
BUS = Budget(size=1 << 20)
# The journal holds the texts that we write, and file names.
STATE = Budget(size=8 << 20, values=200_000)
STATUS_FILE = Budget(size=1 << 16)
# The answer of our own child process: GPUs and their MIG devices.
CHILD = Budget(size=1 << 20, values=100_000)
HOOK = Budget(size=1 << 20, values=10_000)  # an OCI hook: 300 bytes
# 5,000 libraries: 500 KB.
LD_CACHE = Budget(size=4 << 20, values=16_384)
ELF = Budget(size=1 << 16, values=4_096)  # a header; program headers and dynamic entries: dozens
CSV = Budget(size=1 << 19, values=5_000)  # the mount list of a Tegra: 320 lines, 20 KB
PROC = Budget(size=1 << 20, values=20_000)  # one file of a process: its command line, environment
# A node with 500 pods has 10,000 mounts.
MOUNTS = Budget(size=32 << 20, values=50_000)
DIRECTORY = Budget(size=0, values=100_000)  # names: /usr/lib has 5,000
NESTED = Budget(size=0, depth=32)  # directories below a directory of drop-ins


class OverBudget(ValueError):
    """An input exceeds its budget. The message is the end of a sentence: "it has more than …"."""


def too_large(budget: Budget) -> str:
    """The message for an input with too many bytes."""
    return f"it is larger than {budget.size} bytes"


def too_many(budget: Budget, what: str = "values") -> str:
    """The message for an input with too many parts."""
    return f"it has more than {budget.values} {what}"


def too_deep(depth: int) -> str:
    """The message for an input that is nested too deeply."""
    return f"it is nested more than {depth} levels deep"


# Characters that precede a value in JSON: the first of a list or mapping follows a bracket, each
# other one a comma, and the value of a key a colon.
_MARKS = ",:[{"
JSON_DEPTH = 100  # levels; an answer of a runtime has a dozen
_SURROGATE = re.compile("[\ud800-\udbff\ude00-\udfff\udc00-\udc7f]")


def json_value(data: bytes | str, budget: Budget) -> Any:
    """The value of a JSON text. Raises ValueError if it is not JSON or exceeds the budget.

    Values are counted before parsing, by their punctuation; punctuation in strings counts too. Half
    of a UTF-16 pair becomes U+FFFD, as in Go, except for the surrogates that stand for bytes in
    Python's paths.
    """
    if len(data) > budget.size:
        raise OverBudget(too_large(budget))
    text = data if isinstance(data, str) else data.decode("utf-8")
    if sum(map(text.count, _MARKS)) > budget.values:
        raise OverBudget(too_many(budget))
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise OverBudget("it is nested too deeply") from error
    refuse_deep(value, JSON_DEPTH)
    return with_strings(value, partial(_SURROGATE.sub, "\ufffd")) if "\\u" in text else value


def refuse_deep(value: Any, depth: int) -> None:
    """Raise OverBudget if lists and mappings are nested more than `depth` levels deep. A recursive
    function can walk through any other value."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            item
            for one in level
            if isinstance(one, (dict, list))
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise OverBudget(too_deep(depth))


def with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """The value, with `change` applied to all strings in it, also to keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [with_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): with_strings(item, change) for key, item in value.items()}
    return value


def some_names(directory: str | int, budget: Budget) -> tuple[list[str], bool]:
    """The first names in a directory, at most `budget.values`, and whether there are more. Raises
    OSError."""
    with os.scandir(directory) as entries:
        first = [entry.name for entry in islice(entries, budget.values + 1)]
    return first[: budget.values], len(first) > budget.values


def names(directory: str | int, budget: Budget = DIRECTORY) -> list[str]:
    """All names in a directory. Raises OSError, also if there are more than `budget.values`."""
    first, more = some_names(directory, budget)
    if more:
        raise OSError(f"{too_many(budget, 'names')}; remove files that are not needed")
    return first


def text(
    path: str, limit: int = 1 << 20, encoding: str = "utf-8", errors: str = "surrogateescape"
) -> str:
    """The text of a file of the kernel, of which `limit` characters are read; "" if it cannot be
    read."""
    try:
        with open(path, encoding=encoding, errors=errors) as file:
            return file.read(limit)
    except OSError:
        return ""


def lines(path: str, budget: Budget, errors: str = "surrogateescape") -> Iterator[str]:
    """The lines of a text file, without line ends. `errors` as in `open`. Raises OSError,
    OverBudget."""
    left = budget.size
    with open(path, encoding="utf-8", errors=errors, newline="\n") as file:
        for number in range(budget.values + 1):
            line = file.readline(left + 1)
            left -= len(line)
            if left < 0:
                raise OverBudget(too_large(budget))
            if not line:
                return
            if number == budget.values:
                raise OverBudget(too_many(budget, "lines"))
            yield line.rstrip("\n")
