"""One configuration file of a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from agent.host.files import FileState
from agent.host.paths import HostPath
from agent.toml import text as tomltext
from agent.toml.edit import Data

if TYPE_CHECKING:
    from agent.toml.masking import Source

Overlay: TypeAlias = Mapping[str, FileState | None]  # by host path: files as they will be


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """One loaded file. `name` is the path that the daemon uses, `path` the one without links. Where
    the file does not exist (only a root file may not), `state` is None and `data` is {}. `unread`
    is the reason why we cannot parse it, although the runtime may; then `data` is {} too."""

    name: str
    path: HostPath
    state: FileState | None
    data: Data
    unread: str = ""

    @property
    def version(self) -> int | None:
        found = self.data.get("version")
        return found if isinstance(found, int) else None

    @property
    def source(self) -> Source:
        """What a message about the file is explained with."""
        from agent.toml.masking import Source  # needed only where something fails

        text = tomltext.decoded(self.state.data) if self.state else ""
        return Source(self.path.host, text, self.data)
