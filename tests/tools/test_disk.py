"""Nothing waits for a disk, and a wrong descriptor is still an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tools import disk


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
def test_wrong_descriptor_cannot_be_synced(sync: object, tmp_path: Path) -> None:
    assert sync is disk._check
    opened = os.open(tmp_path, os.O_RDONLY)
    disk._check(opened)
    os.close(opened)
    with pytest.raises(OSError, match="Bad file"):
        disk._check(opened)
    path = os.open(tmp_path, os.O_PATH)
    with pytest.raises(OSError, match="Bad file"):
        disk._check(path)
    os.close(path)
