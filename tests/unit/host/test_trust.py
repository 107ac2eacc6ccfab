"""Only files that root alone can change are believed."""

from __future__ import annotations

import os
import re

import pytest

from agent.host import trust
from agent.host.files import FileState


@pytest.mark.parametrize(
    ("uid", "mode", "why"),
    [
        (None, 0o600, None),
        (None, 0o755, None),
        (0, 0o644, None),
        (None, 0o664, "written by others .mode 0664.*chmod go-w"),
        (None, 0o646, "written by others .mode 0646.*chmod go-w"),
        (0, 0o1777, "written by others .mode 1777.*chmod go-w"),
        (12345, 0o600, "belongs to user 12345.*chown"),
    ],
)
def test_files_that_others_can_write_are_distrusted(
    uid: int | None, mode: int, why: str | None
) -> None:
    """Root's, or of whoever runs this, and nobody else's to write."""
    owner = os.geteuid() if uid is None else uid
    found = trust.distrust(FileState(b"", mode, owner))
    assert (found is None) == (why is None)
    assert why is None or re.search(why, found or "")
