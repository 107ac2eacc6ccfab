"""The CDI specs that a daemon with CDI reads when it starts, and those that it dies of.

As seen with 1.7.24 and 2.1.9 on the spellings in `tests/conformance/test_foreign.py`; what else is
wrong with a spec is simplified to whether it can be parsed and has a version that is known.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.doubles.containerd.generation import Generation, Table
from tests.doubles.containerd.load import Node

_DEADLY = re.compile(r"[A-Za-z]/.+|[A-Za-z][\w.-]*[A-Za-z0-9]/[A-Za-z]", re.ASCII)


def deadly(generation: Generation, document: Table, node: Node) -> str | None:
    """Say what a daemon with this configuration panics of, if it does."""
    section = document["plugins"].get(generation.cri, {})
    if generation.since >= (2, 4) or not section.get("enable_cdi"):
        return None
    for name in section["cdi_spec_dirs"]:
        for path in _loaded(Path(node.real(name))):
            if _is_deadly(path):
                return f"runtime error: slice bounds out of range [1:0] ({path})"
    return None


def _loaded(directory: Path) -> list[Path]:
    if directory.is_symlink() or not directory.is_dir():
        return []
    found = (path for path in directory.iterdir() if path.is_file())
    return sorted(path for path in found if path.name.endswith((".json", ".yaml")))


def _is_deadly(path: Path) -> bool:
    import yaml  # late: few tests have a spec

    try:
        data = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        return False
    if not isinstance(data, dict):
        return False
    values = {str(key).lower(): value for key, value in data.items()}
    version = re.fullmatch(r"0\.\d+\.\d+", str(values.get("cdiversion")))
    return bool(version and _DEADLY.fullmatch(str(values.get("kind"))))
