"""What we publish, against the rules of NVIDIA's device plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import status
from agent.cdi.driver import driver
from agent.errors import AgentError
from agent.host.paths import HostRoot
from agent.options import table
from agent.options.settings import resolve
from tests.deploy.plugin_rules import STRATEGIES, Invalid
from tests.deploy.plugin_rules import start as start_plugin
from tests.tools.driver import VERSION, make_driver, make_nodes, remove_driver
from tests.tools.runtimes import ROOT
from tests.tools.shells import SHELLS, start
from tests.tools.waiting import SOON, wait_until
from tests.unit.support.published import DECISION, PATHS, lines

_BOOT = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
_LIBRARY = f"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{VERSION}"
_FILE = "run/nvidia/validations/.toolkit-ctr-ready"
_CONTAINER = "run/nvidia/driver"
_DEFAULTS = resolve({}, {}, "toolkit-agent")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes: run it as root")


def test_strategies_are_the_plugin_s() -> None:
    """Every word that can be published is one that the plugin knows."""
    assert set(table.STRATEGIES) <= STRATEGIES


def _publish(host: Path) -> None:
    """Write the decision of a node whose host root this is, as the agent does."""
    try:
        found = driver.find(HostRoot(str(host)), _DEFAULTS)
    except AgentError:
        root, dev = None, None
    else:
        root, dev = driver.published_roots(found)
    paths = {**PATHS, "NVIDIA_DRIVER_ROOT": root, "NVIDIA_DEV_ROOT": dev}
    directory = (host / _FILE).parent
    directory.mkdir(parents=True, exist_ok=True)
    status.Publisher(str(directory)).publish(lines(boot=_BOOT, paths=paths))


class _Plugin:
    """A plugin behind the component's entrypoint, in a pod that has the host's / at `host`."""

    def __init__(self, said: Path, command: list[str], env: dict[str, str]) -> None:
        self._said, self._command, self._env = said, command, env
        self.process = subprocess.Popen(command, env=env)

    def made_anew(self) -> None:
        """The container ends well, and the kubelet makes another one."""
        assert self.process.wait(SOON) == 0
        self.process = subprocess.Popen(self._command, env=self._env)

    def says(self, count: int) -> object:
        """What the `count`-th start of the plugin came to."""
        wait_until(lambda: len(self._lines()) >= count, self._lines)
        return json.loads(self._lines()[count - 1])

    def says_nothing(self, besides: int = 0) -> bool:
        """It is not started for some looks at the decision, after `besides` starts."""
        time.sleep(0.7)
        return len(self._lines()) == besides

    def _lines(self) -> list[str]:
        return self._said.read_text("utf-8").splitlines() if self._said.exists() else []


@contextmanager
def _plugin(shell: tuple[str, ...], host: Path) -> Iterator[_Plugin]:
    said = host.parent / "said"
    command = [
        *start(shell), str(ROOT / "deploy/device-plugin/entrypoint.sh"),
        sys.executable, str(ROOT / "tests/deploy/plugin_rules.py"), str(said),
    ]  # fmt: skip
    env = {
        "PATH": os.defpath, "HOST_ROOT_MOUNT": str(host), "TOOLKIT_DECISION_INTERVAL": "0.1",
        "TOOLKIT_DECISION_FILE": str(host / _FILE),
        # What a chart or an admin may have set for another node.
        "NVIDIA_DRIVER_ROOT": "/elsewhere", "DRIVER_ROOT_CTR_PATH": "/driver-root",
    }  # fmt: skip
    plugin = _Plugin(said, command, env)
    try:
        yield plugin
    finally:
        plugin.process.terminate()
        plugin.process.wait(20)


def _served(root: str, dev: str) -> dict[str, object]:
    return {
        "strategies": ["cdi-cri"],
        "prefix": DECISION.annotation_prefix,
        "hook": PATHS["NVIDIA_CDI_HOOK_PATH"],
        "library": f"{root}{_LIBRARY}",
        "node": f"{dev}dev/nvidia0",
    }


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The host's /, as the plugin's pod sees it."""
    path = tmp_path / "host"
    path.mkdir()
    return path


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
def test_plugin_gets_the_driver_of_the_host(shell: tuple[str, ...], host: Path) -> None:
    """The driver in the host's own /."""
    make_driver(host)
    _publish(host)
    with _plugin(shell, host) as plugin:
        assert plugin.says(1) == _served("/", "/")


def test_plugin_gets_the_driver_container(host: Path) -> None:
    """The driver and its nodes in the root of a driver container."""
    make_driver(host / _CONTAINER)
    _publish(host)
    with _plugin(SHELLS[0], host) as plugin:
        assert plugin.says(1) == _served("/run/nvidia/driver/", "/run/nvidia/driver/")


def test_plugin_gets_host_nodes_beside_a_driver_container(host: Path) -> None:
    """The nodes are made in the host's /dev only: the published root of nodes says so."""
    make_driver(host / _CONTAINER, nodes=False)
    make_nodes(host)
    roots = driver.published_roots(
        driver.find(HostRoot(str(host)), resolve({}, {}, "toolkit-agent"))
    )
    assert roots == ("/run/nvidia/driver", "/")


def test_container_is_made_anew_when_the_driver_moves(host: Path) -> None:
    """From the host's packages to a driver container: the container is made anew, because what the
    runtime put into it is of the old driver."""
    make_driver(host)
    _publish(host)
    with _plugin(SHELLS[0], host) as plugin:
        assert plugin.says(1) == _served("/", "/")
        remove_driver(host)
        make_driver(host / _CONTAINER)
        _publish(host)
        plugin.made_anew()
        assert plugin.says(2) == _served("/run/nvidia/driver/", "/run/nvidia/driver/")


def test_plugin_starts_once_there_is_a_driver(host: Path) -> None:
    """The plugin would end at once, whatever FAIL_ON_INIT_ERROR says, and its pod crash over and
    over: it is started when there is a driver, in a container that has it, and with no root of
    another node's."""
    host.joinpath("dev").mkdir()
    _publish(host)
    with _plugin(SHELLS[0], host) as plugin:
        assert plugin.says_nothing()
        make_driver(host)
        _publish(host)
        plugin.made_anew()
        assert plugin.says(1) == _served("/", "/")


def test_plugin_stops_while_its_driver_is_replaced(host: Path) -> None:
    """A driver container that is upgraded has no driver for a while. The plugin, whose own spec
    names the old files, is stopped meanwhile and started on the new driver."""
    make_driver(host / _CONTAINER)
    _publish(host)
    with _plugin(SHELLS[0], host) as plugin:
        plugin.says(1)
        remove_driver(host / _CONTAINER)
        _publish(host)
        assert plugin.says_nothing(besides=1)
        make_driver(host / _CONTAINER, "560.1.1")
        _publish(host)
        plugin.made_anew()
        new = _served("/run/nvidia/driver/", "/run/nvidia/driver/")
        new["library"] = str(new["library"]).replace(VERSION, "560.1.1")
        assert plugin.says(2) == new


def test_plugin_is_not_started_beside_a_dev_without_nodes(host: Path) -> None:
    """The driver's root has a directory dev, and the nodes are in the host's. The plugin looks in
    that directory alone. It is not started: it would register GPUs that no CDI spec describes."""
    make_driver(host / _CONTAINER, nodes=False)
    make_nodes(host)
    empty = host / _CONTAINER / "dev"
    empty.mkdir()
    _publish(host)
    root = {"DEVICE_LIST_STRATEGY": "cdi-cri", "CONTAINER_DRIVER_ROOT": str(host / _CONTAINER)}
    assert start_plugin(root).node is None
    with _plugin(SHELLS[0], host) as plugin:
        assert plugin.says_nothing()
        make_nodes(host / _CONTAINER)
        assert plugin.says(1)


def test_plugin_finds_nvml_where_the_runtime_injects_it(host: Path) -> None:
    """Why the component asks the runtime for the driver (runtime class, NVIDIA_VISIBLE_DEVICES):
    releases before 0.18.1 find NVML in the container only, and links of Debian's packages lead out
    of the host's / as the plugin sees it."""
    make_driver(host)
    env = {"DEVICE_LIST_STRATEGY": "cdi-cri", "CONTAINER_DRIVER_ROOT": str(host)}
    library = host / _LIBRARY
    assert start_plugin(env).library == f"/{_LIBRARY}"
    with pytest.raises(Invalid, match="only supported on NVML"):
        start_plugin(env, (0, 17, 4))
    assert start_plugin(env, (0, 17, 4), library).library == f"/{_LIBRARY}"
    name = library.with_name("libnvidia-ml.so.1")
    name.unlink()
    name.symlink_to("/etc/alternatives/glx--libnvidia-ml.so.1-x86_64-linux-gnu")
    with pytest.raises(Invalid, match="only supported on NVML"):
        start_plugin(env)
    assert start_plugin(env, injected=library).library == f"/{_LIBRARY}"


def test_plugin_goes_on_when_the_status_directory_is_made_anew(host: Path) -> None:
    """The status directory is removed and made again, as by a driver container that starts: the
    plugin goes on, and sees the next decision."""
    make_driver(host)
    _publish(host)
    with _plugin(SHELLS[0], host) as plugin:
        plugin.says(1)
        (host / _FILE).parent.rename(host / "old")
        make_driver(host / _CONTAINER)
        _publish(host)
        plugin.made_anew()
        assert plugin.says(2) == _served("/run/nvidia/driver/", "/run/nvidia/driver/")
