"""A made-up host with a toolkit, and the context of a run on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from agent.cdi.driver import driver
from agent.cdi.driver.root import DriverRoot
from agent.decide import Decision, Evidence, Question, Switch, decide
from agent.host.paths import HostRoot, Mount
from agent.options.settings import Entry, resolve
from agent.plan.context import Context
from agent.state.store import Store
from agent.status import Publisher
from agent.toolkit import install
from agent.toolkit.install import ToolkitProposal
from tests.unit.support.recorded_log import RecordedLog

ALL = (
    "nvidia-container-runtime", "nvidia-container-runtime.cdi", "nvidia-container-runtime.legacy",
    "nvidia-container-runtime-hook", "nvidia-container-cli", "nvidia-ctk", "nvidia-cdi-hook",
)  # fmt: skip
LIBRARIES = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")
TOOLKIT = "/usr/local/nvidia/toolkit"
DRIVER = "/run/nvidia/driver"

# One question for every row of the decision that installs something.
ROWS = {
    1: Question(cdi=False, version="1.7.24"),
    2: Question(cdi=False, runtime="cri-o", version="1.33.0"),
    3: Question(version="2.1.9", evidence=(Evidence("cri-status", Switch.TRUE, ("/etc/cdi",)),)),
    4: Question(version="1.7.24", evidence=(Evidence("cri-status", Switch.FALSE),)),
    5: Question(version="1.7.24", evidence=(Evidence("cri-status", Switch.FALSE),),
                may_enable=False),
    6: Question(version="1.6.20", evidence=(Evidence("cri-status", Switch.ABSENT, None),)),
    7: Question(version="2.5.0", evidence=(Evidence("cri-status", Switch.ABSENT, ("/a", "/b")),)),
    8: Question(runtime="cri-o", version="1.33.0"),
}  # fmt: skip


def decision(row: int) -> Decision:
    """The decision of a row."""
    found = decide(ROWS[row])
    assert found.row == row
    return found


class Host:
    """The host's root, as a container sees it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.root = directory, directory / "host"
        self.root.mkdir()
        self.log = RecordedLog()

    def make(self, entries: Mapping[str, str], below: str = "") -> None:
        """Files by their paths: `-> x` is a link, `x` a program, anything else its text."""
        for name, text in entries.items():
            path = self.at(f"{below}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                path.symlink_to(text.removeprefix("-> "))
            else:
                path.write_text(text)
                path.chmod(0o644 if text == "text" else 0o755)

    def at(self, path: str) -> Path:
        """Where a host path lies."""
        return self.root / path.lstrip("/")

    def context(
        self, env: Mapping[str, str] | None = None, mounts: Iterable[Mount] = (),
        entry: Entry = "toolkit-agent",
    ) -> Context:  # fmt: skip
        """A run with these variables."""
        settings = resolve({}, env or {}, entry)
        root = HostRoot(str(self.root), tuple(mounts)).with_mounts_of(*settings.option_paths)
        root = root.with_view(str(self.directory), str(self.directory))
        return Context(
            settings=settings,
            host=root,
            store=Store(str(self.directory / "state"), root),
            publisher=Publisher(str(self.directory / "status"), host=root),
            log=self.log,
        )


def programs(directory: str, names: Iterable[str] = ALL) -> dict[str, str]:
    """Programs in one directory, for `Host.make`."""
    return {f"{directory}/{name}": name for name in names}


def packages(directory: str = "/usr/lib64") -> dict[str, str]:
    """A whole tree of packages, with its libraries in a directory."""
    files = programs("/usr/bin")
    for name in LIBRARIES:
        files[f"{directory}/{name}.17.0"] = "text"
        files[f"{directory}/{name}"] = f"-> {name}.17.0"
    return files


def driver_root(ctx: Context) -> DriverRoot | None:
    """Where the driver is, as a run finds it."""
    return driver.likely_root(ctx.host, ctx.settings)


def proposed(
    ctx: Context, wanted: Decision, runtimes: tuple[str, ...] = ("runc",)
) -> ToolkitProposal:
    """The toolkit's directory for a decision."""
    return install.propose(
        ctx.settings,
        ctx.host,
        install.find_toolkit(ctx.settings, ctx.host),
        wanted,
        runtimes,
        driver_root(ctx),
    )
