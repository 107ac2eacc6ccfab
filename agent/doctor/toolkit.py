"""The config.toml of NVIDIA's toolkit that NVIDIA's handlers read.

Invariant: reads only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.errors import Refused
from agent.host import files
from agent.host.paths import HostRoot
from agent.toml import document
from agent.toml.document import Data, Path, get
from agent.toolkit.config import HOSTS_CONFIG, ToolkitConfig, config_beside, config_of


@dataclass(frozen=True)
class Toolkit:
    """The file with the host path `path`, and its data. `broken` says why it cannot be parsed; ""
    if it can."""

    path: str
    data: Data = field(default_factory=dict)
    broken: str = ""

    @classmethod
    def read(cls, host: HostRoot, programs: Iterable[str]) -> Toolkit | None:
        """The file that these programs (host paths) read; None if there is none. Raises Refused."""
        beside = (config_beside(path) for path in programs if path.startswith("/"))
        for path in (*beside, HOSTS_CONFIG):
            if found := files.read(host.resolve(path).agent, path):
                try:
                    return cls(path, document.parse(found.data, path))
                except Refused as error:
                    return cls(path, broken=error.message)
                except (ValueError, RecursionError):
                    return cls(path, broken="no TOML")
        return None

    @property
    def config(self) -> ToolkitConfig:
        """The settings that NVIDIA's runtime takes from the file; without prefixes if it is
        broken."""
        if self.broken:
            return ToolkitConfig(prefixes=(), variables=False)
        return config_of(self.data)

    def text(self, key: Path, default: str = "") -> str:
        """The value of a key as text; `default` if the key is missing or empty."""
        return str(get(self.data, key, "") or default)
