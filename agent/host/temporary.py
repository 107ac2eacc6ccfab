"""What something is called, beside its place, before it gets its own name.

Invariant: such a name says which one it was to be, ends in `~`, which no reader of configuration or
specs takes, and is nobody else's.
"""

from __future__ import annotations

import os
import re

_NAME = re.compile(r"\.(.+)\.[0-9a-f]{12}~")


def name_for(base: str) -> str:
    """A name for what is to become `base`."""
    return f".{base}.{os.urandom(6).hex()}~"


def base_of(entry: str) -> str | None:
    """The name that something was to get; None where it has no temporary one."""
    found = _NAME.fullmatch(entry)
    return found[1] if found else None
