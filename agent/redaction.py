"""Hiding the user name and the password in URLs.

Invariant: pure. All characters between `://` and the last `@` of a word are hidden.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "…"
_USERINFO = re.compile(r"""(://)[^\s"'<>`]*@""")


def redact_text(text: str) -> str:
    """The text without user names and passwords in its URLs."""
    return _USERINFO.sub(rf"\1{HIDDEN}@", text) if "@" in text else text


def redact(value: Any) -> Any:
    """Plain data (strings, lists, mappings) without user names and passwords in URLs. Tuples become
    lists."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {key: redact(item) for key, item in value.items()}
    return [redact(item) for item in value] if isinstance(value, list | tuple) else value
