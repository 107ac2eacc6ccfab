"""The user and the password in a URL.

Invariant: pure; whatever stands between `://` and the last `@` of a word is taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "…"
_USERINFO = re.compile(r"""(://)[^\s"'<>`]*@""")


def without_userinfo(text: str) -> str:
    """A text in which no URL names a user or a password any more."""
    return _USERINFO.sub(rf"\1{HIDDEN}@", text) if "@" in text else text


def public(value: Any) -> Any:
    """Plain data (texts, lists, mappings and what is in them) without users and passwords in URLs.
    Tuples become lists."""
    if isinstance(value, str):
        return without_userinfo(value)
    if isinstance(value, Mapping):
        return {key: public(item) for key, item in value.items()}
    return [public(item) for item in value] if isinstance(value, list | tuple) else value
