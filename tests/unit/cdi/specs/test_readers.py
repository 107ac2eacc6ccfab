"""An executable tells which CDI it reads where its version does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cdi.specs import readers
from agent.cdi.specs.readers import Reader

EDITS, GROUPS, NETWORK = (
    b"..\x0eContainerEdits..",
    b"..\x0eAdditionalGIDs..",
    b"\x11HostInterfaceName",
)
# OCI's own field, and a function of containerd's.
OTHERS = b'\x0eAdditionalGidsjson:"additionalGids,omitempty" oci.WithAdditionalGIDs netDevices'
OLD, NEW = Reader("c", "0.5.0", "0.8.0"), Reader("c", "1.0.0", "1.1.0")


@pytest.mark.parametrize(
    ("who", "data", "newest", "limit"),
    [
        (OLD, EDITS + OTHERS, "0.5.0", "0.6.0"),
        (OLD, EDITS + GROUPS, "0.7.0", "0.8.0"),
        (NEW, EDITS + GROUPS, "1.0.0", "1.0.0"),
        (NEW, EDITS + GROUPS + NETWORK, "1.1.0", "1.1.0"),
        (Reader("c"), EDITS + OTHERS, None, "0.6.0"),
        (Reader("c"), EDITS + GROUPS + NETWORK, None, None),
        (OLD, OTHERS + GROUPS, "0.5.0", "0.8.0"),
        (OLD, b"#!/bin/sh\n", "0.5.0", "0.8.0"),
        (OLD, b"", "0.5.0", "0.8.0"),
    ],
)
def test_executable_tells_its_cdi_by_field_names(
    who: Reader, data: bytes, newest: str | None, limit: str | None, tmp_path: Path
) -> None:
    """By the names of fields; what is no program with CDI in it tells nothing."""
    (tmp_path / "program").write_bytes(data)
    found = readers.with_executable(who, str(tmp_path / "program"))
    assert (found.newest, found.limit) == (newest, limit)
    assert readers.can_read(found, "0.3.0")
    assert readers.can_read(found, "1.1.0") == (newest == "1.1.0" or limit is None)


def test_unreadable_executable_tells_nothing(tmp_path: Path) -> None:
    """Nothing more is known."""
    assert readers.with_executable(OLD, str(tmp_path / "none")) == OLD
    assert readers.with_executable(OLD, str(tmp_path)) == OLD
