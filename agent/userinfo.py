"""The user and the password in a URL.

Invariant: pure; whatever stands between `://` and the last `@` of a word is taken for one.
"""

from __future__ import annotations

import re

HIDDEN = "…"
_USERINFO = re.compile(r"""(://)[^\s"'<>`]*@""")


def without_userinfo(text: str) -> str:
    """A text in which no URL names a user or a password any more."""
    return _USERINFO.sub(rf"\1{HIDDEN}@", text) if "@" in text else text
