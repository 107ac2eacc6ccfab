"""The device plugin's scripts: what it is started with, and when it is started anew."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tools.runtimes import ROOT
from tests.tools.shells import SHELLS, shellcheck, start
from tests.tools.waiting import SOON, wait_until

SCRIPTS = ROOT / "deploy/device-plugin"
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
PLUGIN = """\
#!/bin/sh
trap 'echo ended >>"$OUT"; exit 7' TERM
trap 'echo reloaded >>"$OUT"' HUP
echo "$DEVICE_LIST_STRATEGY ${CDI_ANNOTATION_PREFIX-none} ${NVIDIA_CDI_HOOK_PATH-none} $*" >>"$OUT"
while :; do sleep 0.05; done
"""
SHELL_FILES = [
    *SCRIPTS.glob("*.sh"),
    *(
        ROOT / name
        for name in (
            "deploy/lock",
            "deploy/device-plugin/post-render",
            "deploy/demo",
            "tests/run",
            ".ci/run",
        )
    ),
]


def decision(**changed: str) -> str:
    values = {
        "TOOLKIT_STATUS_VERSION": "1",
        "TOOLKIT_BOOT_ID": BOOT,
        "TOOLKIT_CONFIG_HASH": "sha256:aa",
        "DEVICE_LIST_STRATEGY": "cdi-cri",
        "CDI_ANNOTATION_PREFIX": "cdi.k8s.io/",
        "NVIDIA_CDI_HOOK_PATH": "/opt/hook",
        "NVIDIA_DRIVER_ROOT": "/",
        **changed,
    }
    return "".join(f"{key}={value}\n" for key, value in values.items() if value)


class Plugin:
    """The entrypoint of a plugin that writes down how it was started."""

    def __init__(self, directory: Path, shell: list[str]) -> None:
        self.file, self.out = directory / "decision", directory / "out"
        program = directory / "plugin"
        program.write_text(PLUGIN, encoding="ascii")
        program.chmod(0o755)
        self.command = [*shell, str(SCRIPTS / "entrypoint.sh"), str(program), "argument"]
        self.env = {
            "PATH": os.defpath, "OUT": str(self.out), "TOOLKIT_DECISION_INTERVAL": "0.1",
            "TOOLKIT_DECISION_FILE": str(self.file), "DEVICE_LIST_STRATEGY": "envvar",
            "HOST_ROOT_MOUNT": str(directory / "host"),
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> None:
        self.process = subprocess.Popen(self.command, env={**self.env, **env})

    def write(self, text: str) -> None:
        """Replace the decision, as the agent does."""
        new = self.file.with_suffix(".new")
        new.write_text(text, encoding="ascii")
        new.rename(self.file)

    def said(self) -> list[str]:
        return self.out.read_text("ascii").splitlines() if self.out.exists() else []

    def until(self, holds: Callable[[list[str]], bool]) -> list[str]:
        wait_until(lambda: holds(self.said()), self.said)
        return self.said()

    def stays(self) -> bool:
        """Nothing happens for some looks at the file."""
        before = self.said()
        time.sleep(0.5)
        assert self.process is not None
        return self.said() == before and self.process.poll() is None

    def end(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SOON)


@pytest.fixture(params=SHELLS, ids=lambda words: words[0])
def plugin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plugin]:
    found = Plugin(tmp_path, start(request.param))
    yield found
    if found.process is not None:
        found.process.terminate()
        found.process.wait(SOON)


def test_waits_then_starts_with_the_decision(plugin: Plugin) -> None:
    """The manifest's own DEVICE_LIST_STRATEGY gives way; the plugin's end is the container's."""
    plugin.start()
    assert plugin.stays()
    assert plugin.said() == []
    plugin.write(decision())
    assert plugin.until(bool) == ["cdi-cri cdi.k8s.io/ /opt/hook argument"]
    assert plugin.stays()
    assert plugin.end() == 7
    assert plugin.said()[-1] == "ended"


def test_override_wins(plugin: Plugin) -> None:
    """Whoever sets one means it."""
    plugin.write(decision())
    plugin.start(DEVICE_LIST_STRATEGY_OVERRIDE="envvar", NVIDIA_CDI_HOOK_PATH_OVERRIDE="/mine")
    assert plugin.until(bool) == ["envvar cdi.k8s.io/ /mine argument"]


def test_starts_anew_when_the_decision_changes(plugin: Plugin) -> None:
    """And what the new one does not say is not said any more."""
    plugin.write(decision())
    plugin.start(CDI_ANNOTATION_PREFIX="stale/")
    plugin.until(bool)
    plugin.write(
        decision(
            TOOLKIT_CONFIG_HASH="sha256:bb", DEVICE_LIST_STRATEGY="envvar",
            CDI_ANNOTATION_PREFIX="", NVIDIA_CDI_HOOK_PATH="",
        )
    )  # fmt: skip
    said = plugin.until(lambda lines: len(lines) == 3)
    assert said[1:] == ["ended", "envvar none none argument"]


@pytest.mark.parametrize(
    "override",
    [
        {"DEVICE_LIST_STRATEGY_OVERRIDE": "envvar"},
        {"NVIDIA_DRIVER_ROOT_OVERRIDE": "/opt/driver"},
        {"CONTAINER_DRIVER_ROOT_OVERRIDE": "/driver-root"},
    ],
    ids=lambda words: next(iter(words)),
)
def test_override_waits_for_no_driver(plugin: Plugin, override: dict[str, str]) -> None:
    """Who says where the driver is, or that no CDI is wanted, waits for no driver."""
    plugin.write(decision(NVIDIA_DRIVER_ROOT=""))
    plugin.start(**override)
    assert len(plugin.until(bool)) == 1


def test_plugin_without_cdi_waits_for_no_driver(plugin: Plugin) -> None:
    """Other strategies work without NVML (Tegra), and the plugin waits by itself."""
    plugin.write(decision(NVIDIA_DRIVER_ROOT="", DEVICE_LIST_STRATEGY="envvar"))
    plugin.start()
    assert len(plugin.until(bool)) == 1


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "TOOLKIT_STATUS_VERSION=1\n",
        decision(TOOLKIT_CONFIG_HASH="sha256:bb", TOOLKIT_BOOT_ID="another"),
        decision(TOOLKIT_CONFIG_HASH="sha256:bb", TOOLKIT_STATUS_VERSION="2"),
        decision(TOOLKIT_CONFIG_HASH="sha256:bb") + "A=$(touch evil)\n",
        decision(TOOLKIT_CONFIG_HASH="sha256:bb") + "touch evil\n",
    ],
    ids=["gone", "empty", "cut", "old boot", "newer version", "code", "command"],
)
def test_no_decision_is_no_change(plugin: Plugin, text: str | None) -> None:
    """A running plugin goes on; nothing of the file is ever executed."""
    plugin.write(decision())
    plugin.start()
    plugin.until(bool)
    if text is None:
        plugin.file.unlink()
    else:
        plugin.write(text)
    assert plugin.stays()
    assert not (plugin.file.parent / "evil").exists()


def test_signals_are_passed_on(plugin: Plugin) -> None:
    """SIGHUP makes the plugin read its own configuration again."""
    plugin.write(decision())
    plugin.start()
    plugin.until(bool)

    def is_reloaded(lines: list[str]) -> bool:
        # The first signal can come before the entrypoint knows the pid of the plugin that runs.
        assert plugin.process is not None
        plugin.process.send_signal(signal.SIGHUP)
        return "reloaded" in lines

    plugin.until(is_reloaded)
    plugin.until(lambda _: plugin.stays())
    assert set(plugin.said()[1:]) == {"reloaded"}


def test_stops_while_waiting(plugin: Plugin) -> None:
    """A pod without a decision can be deleted at once."""
    plugin.start()
    assert plugin.stays()
    assert plugin.end() == 0


def test_no_signal_is_lost(plugin: Plugin) -> None:
    """Whenever it comes. While bash waits for a command substitution it can lose one."""
    plugin.write("TOOLKIT_STATUS_VERSION=1\n")  # looked at again and again
    for number in range(15):
        plugin.start(TOOLKIT_DECISION_INTERVAL="0.01")
        time.sleep(0.05 + number * 0.007)
        assert plugin.end() in (0, -signal.SIGTERM)  # before it could say what it does then


def test_wait_script_needs_a_decision_of_this_boot(tmp_path: Path) -> None:
    """Goes on only with a decision of this boot."""
    file = tmp_path / "decision"
    file.write_text(decision(), encoding="ascii")
    env = {"PATH": os.defpath, "TOOLKIT_DECISION_FILE": str(file)}
    words = ["sh", str(SCRIPTS / "wait.sh")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True, timeout=10)
    assert done.stdout == decision()
    file.write_text(decision(TOOLKIT_BOOT_ID="another"), encoding="ascii")
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(words, env=env, capture_output=True, check=False, timeout=0.5)


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path: Path) -> None:
    """Finds nothing."""
    assert shellcheck(path) == ""
