"""A reader of `toolkit-ready` as its consumers write one, and what a right file says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.conformance.cri import Answer
from tests.conformance.shapes import Row

READY = "toolkit-ready"
TWIN = ".toolkit-ctr-ready"
ERROR = ".toolkit-ctr-error"

_LINE = re.compile(r"([A-Z_][A-Z0-9_]*)=([A-Za-z0-9_./:,@%+=-]*)")
ORDER = (
    "TOOLKIT_STATUS_VERSION",
    "TOOLKIT_BOOT_ID",
    "TOOLKIT_TIMESTAMP",
    "TOOLKIT_CONTAINER_RUNTIME",
    "TOOLKIT_CONTAINER_RUNTIME_VERSION",
    "TOOLKIT_CRI_SOCKET",
    "TOOLKIT_CDI_ENABLED",
    "TOOLKIT_NATIVE_CDI",
    "TOOLKIT_NATIVE_CDI_SOURCE",
    "TOOLKIT_NATIVE_CDI_REASON",
    "TOOLKIT_CDI_SPEC_DIRS",
    "TOOLKIT_CRI_CDI_FIELD",
    "TOOLKIT_RUNTIME_NAME",
    "TOOLKIT_RUNTIME_MODE",
    "TOOLKIT_RUNTIME_IS_DEFAULT",
    "TOOLKIT_CONFIG_HASH",
    "DEVICE_LIST_STRATEGY",
    "CDI_ANNOTATION_PREFIX",
    "NVIDIA_CDI_HOOK_PATH",
    "NVIDIA_DRIVER_ROOT",
    "NVIDIA_DEV_ROOT",
)


# Where the runtime reads no specs, nvidia-container-runtime reads its own default directories.
SPEC_DIRS = ("/etc/cdi", "/var/run/cdi")


def parse(text: str) -> dict[str, str]:
    """The values by key, in the file's order; ValueError for a line that no reader takes."""
    if not text.endswith("\n"):
        raise ValueError("the last line does not end")
    values: dict[str, str] = {}
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if not found or found[1] in values:
            raise ValueError(f"not a line of a status file: {line!r}")
        values[found[1]] = found[2]
    return values


def expected(
    row: Row, answer: Answer, socket: Path, hook: Path | None, driver: Path | None
) -> Mapping[str, str]:
    """What the file of a right node says, without what differs from run to run.

    `hook` is the CDI hook of the toolkit, `driver` the root of the driver and of its device nodes;
    None where there is none.
    """
    values = {
        "TOOLKIT_STATUS_VERSION": "1",
        "TOOLKIT_BOOT_ID": Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip(),
        "TOOLKIT_CONTAINER_RUNTIME": "containerd",
        "TOOLKIT_CONTAINER_RUNTIME_VERSION": re.sub(r"[^A-Za-z0-9_./:,@%+=-]", "_", answer.version),
        "TOOLKIT_CRI_SOCKET": str(socket),
        "TOOLKIT_CDI_ENABLED": "true",
        "TOOLKIT_NATIVE_CDI": _bool(row.native),
        "TOOLKIT_NATIVE_CDI_SOURCE": "cri-status",
        "TOOLKIT_NATIVE_CDI_REASON": row.reason,
        "TOOLKIT_CDI_SPEC_DIRS": ",".join(answer.spec_dirs or SPEC_DIRS),
        "TOOLKIT_CRI_CDI_FIELD": _bool(row.native),
        "TOOLKIT_RUNTIME_NAME": "nvidia",
        "TOOLKIT_RUNTIME_MODE": "cdi",
        "TOOLKIT_RUNTIME_IS_DEFAULT": _bool(row.is_default),
        "DEVICE_LIST_STRATEGY": row.strategy,
        "CDI_ANNOTATION_PREFIX": row.prefix,
    }
    paths = {
        "NVIDIA_CDI_HOOK_PATH": hook,
        "NVIDIA_DRIVER_ROOT": driver,
        "NVIDIA_DEV_ROOT": driver,
    }
    return values | {key: str(path) for key, path in paths.items() if path is not None}


def in_order(keys: Mapping[str, str]) -> bool:
    """Whether the keys are those of the contract, in its order; paths may be missing."""
    wanted = [key for key in ORDER if key in keys or not key.startswith("NVIDIA_")]
    return list(keys) == wanted


def _bool(value: bool) -> str:
    return "true" if value else "false"
