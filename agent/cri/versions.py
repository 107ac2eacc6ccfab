"""The versions of runtimes, in all spellings: `1.6.20~ds1`, `2.1.9+unknown`, `v2.0.5-k3s1`."""

from __future__ import annotations

import re
from typing import TypeAlias

Version: TypeAlias = tuple[int, int, int]


def parse_version(text: str) -> Version | None:
    """The numbers (major, minor, patch) of a version with any suffix, None if the text is not a
    version."""
    match = re.match(r"v?(\d{1,5})\.(\d{1,5})(?:\.(\d{1,5}))?", text.strip())
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None
