"""How much of an input of somebody else's is read: bytes, values, levels and names.

Invariant: every reader of foreign input takes its limits from this table, and no input within them
brings a process above 128 MiB, a third of the pod's limit, or takes longer than five seconds.
What exceeds a limit is an error that names the input and the limit, and only that input is lost.

The waiting supervisor imports nothing of ours; its limits are in `agent.daemon.supervisor`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one kind of input: `size` in bytes, `values` that it may consist of, and levels
    of nesting; 0 where a limit has no meaning for the kind."""

    size: int
    values: int = 0
    depth: int = 0


# The comments say what real inputs of the kind have.

# Eight GPUs with seven MIG devices each: 3,000 values, 60 KB. 2,048 IMEX channels: 20,000 values.
SPEC = Budget(size=4 << 20, values=50_000, depth=100)
# All specs of a directory together, in memory at the same time.
SPECS = Budget(size=8 << 20, values=150_000)
SPEC_DEVICES = 10_000  # devices of a spec, each of which is shown
DEVICE_COST = 8  # values as which a device counts, because of what is made of it
SPEC_FILES = 2_000  # files in it: a node with DRA has one for each claim
# A file that the runtime reads. A thousand registry mirrors: 100 KB, 16,000 tokens.
TOML = Budget(size=1 << 20, values=100_000, depth=64)
TOML_LINES = 15_000  # of a file that is edited
# The files of one runtime together. A drop-in for each handler makes a dozen.
CONFIG = Budget(size=4 << 20, values=500)
# What a runtime's executable prints: all files merged.
DUMP = Budget(size=2 << 20)
SAID = Budget(size=1 << 16)  # on its standard error: some lines
LINE = Budget(size=1 << 13, values=1_000)  # a line of a log
# Version and Status: 20 to 200 KB, most of it the configuration with its mirrors.
STATUS = Budget(size=2 << 20, values=20_000)
# 500 pods with 16 KB of annotations each; the values are fields of protobuf.
PODS = Budget(size=8 << 20, values=200_000)
# The JSON in a verbose answer: the configuration, or what is known of one pod.
INFO = Budget(size=2 << 20, values=100_000)
# GET /config of CRI-O 1.37: 6 KB.
RUNTIME_CONFIG = Budget(size=1 << 20)
# An answer of systemd: some hundred bytes.
BUS = Budget(size=1 << 20)
# The journal has the texts that we write, and names of files.
STATE = Budget(size=8 << 20, values=200_000)
ORIGINAL = Budget(size=8 << 20)  # a file of before, whole
STATUS_FILE = Budget(size=1 << 16)
# What other processes of ours answer: GPUs and their MIG devices.
CHILD = Budget(size=1 << 20, values=100_000)
HOOK = Budget(size=1 << 20, values=10_000)  # an OCI hook: 300 bytes
# 5,000 libraries: 500 KB.
LD_CACHE = Budget(size=4 << 20, values=16_384)
ELF = Budget(size=1 << 16, values=4_096)  # a header; program headers and dynamic entries: dozens
CSV = Budget(size=1 << 19, values=5_000)  # what containers get on a Tegra: 320 lines, 20 KB
PROC = Budget(size=1 << 20, values=20_000)  # one file of a process: its command line, environment
# A node with 500 pods has 10,000 mounts.
MOUNTS = Budget(size=32 << 20, values=50_000)
DIRECTORY = Budget(size=0, values=100_000)  # names: /usr/lib has 5,000
NESTED = Budget(size=0, depth=32)  # directories below a directory of drop-ins


class OverBudget(ValueError):
    """An input exceeds its budget; the message is part of a sentence: "it has more than …"."""


def too_large(budget: Budget) -> str:
    """The words for an input that has too many bytes."""
    return f"it is larger than {budget.size} bytes"


def too_many(budget: Budget, what: str = "values") -> str:
    """The words for an input that consists of too many parts."""
    return f"it has more than {budget.values} {what}"


def too_deep(depth: int) -> str:
    """The words for an input that is nested too deeply."""
    return f"it is nested more than {depth} levels deep"


# Each value but the first in a list or mapping has a comma before it, each key a colon behind it.
_MARKS = ",:[{"
JSON_DEPTH = 100  # levels; an answer of a runtime has a dozen
_SURROGATE = re.compile("[\ud800-\udbff\ude00-\udfff\udc00-\udc7f]")


def json_value(data: bytes | str, budget: Budget) -> Any:
    """The value of a JSON text. Raises ValueError where it is none or exceeds the budget: before
    parsing, values are counted by their marks, those in strings included.

    A half of a UTF-16 pair is U+FFFD, as to Go; those that stand for a byte in a path stay.
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
    return _repaired(value) if "\\u" in text else value


def refuse_deep(value: Any, depth: int) -> None:
    """Raise OverBudget where lists and mappings are nested more than `depth` levels deep: whoever
    walks through the value may call itself that often."""
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


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_repaired(item) for item in value]
    if isinstance(value, dict):
        return {_repaired(key): _repaired(item) for key, item in value.items()}
    return value


def names(directory: str | int, budget: Budget = DIRECTORY) -> list[str]:
    """The names in a directory, a path or a descriptor. Raises OSError, and OverBudget after
    looking at one name too many."""
    found, more = some_names(directory, budget)
    if more:
        raise OverBudget(too_many(budget, "names"))
    return found


def some_names(directory: str | int, budget: Budget) -> tuple[list[str], bool]:
    """As many names in a directory as the budget has values, and whether there are more. Raises
    OSError."""
    with os.scandir(directory) as entries:
        found = [entry.name for entry in islice(entries, budget.values + 1)]
    return found[: budget.values], len(found) > budget.values


def lines(path: str, budget: Budget, errors: str = "surrogateescape") -> Iterator[str]:
    """The lines of a file of the kernel's, without their ends. Raises OSError and OverBudget."""
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
