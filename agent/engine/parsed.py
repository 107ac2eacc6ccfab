"""Large configuration files as they were parsed, so that a node with a thousand registry mirrors is
looked at as quickly as one with none.

Invariant: what is found here is what parsing these very bytes gives. It is written with a change
only, lies where the originals do (it may hold credentials as they do), and where it is lost or
damaged, files are parsed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agent import tomledit
from agent.engine.state import Store
from agent.errors import AgentError
from agent.host import files
from agent.runtimes.containerd import ConfigFile
from agent.tomledit import Data

_NAME = "parsed.json"
_SMALL = 1 << 14  # bytes; below, parsing costs a few milliseconds


def parser(store: Store) -> Callable[[bytes, str], Data]:
    """`tomledit.parse` that knows the large files of the last change."""

    def parse(data: bytes, name: str) -> Data:
        if len(data) > _SMALL:
            found = _known(store).get(files.digest(data))
            if isinstance(found, dict):
                return found
        return tomledit.parse(data, name)

    return parse


def keep(store: Store, loaded: tuple[ConfigFile, ...]) -> None:
    """Remember how these files were parsed; nothing depends on it."""
    known = {
        file.state.digest: file.data
        for file in loaded
        if file.state and len(file.state.data) > _SMALL and _survives(file.data)
    }
    try:
        if known:
            content = files.new_state(json.dumps(known).encode(), 0o600)
            files.write(store.path(_NAME), content)
        else:
            forget(store)
    except OSError:
        return


def forget(store: Store) -> None:
    """Nothing is remembered any more. Raises OSError."""
    files.discard(store.path(_NAME))


def _known(store: Store) -> dict[str, Any]:
    try:
        found = store.read(_NAME)
        known = json.loads(found.data) if found else {}
    except (AgentError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _survives(data: Data) -> bool:
    """Is it the same as JSON, which has no dates?"""
    try:
        return repr(json.loads(json.dumps(data))) == repr(data)
    except (TypeError, ValueError, RecursionError):
        return False
