"""Nodes on which gpu-operator's toolkit pod runs: real containerds, and the scripted CRI-O."""

from __future__ import annotations

import http.client
import os
import socket as sockets
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.conformance import cri, statusfile
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BINARIES, HOOK, Shape
from tests.doubles.runtime.install import make_program
from tests.doubles.runtime.supervisor import Supervisor
from tests.operator.environment import Env, driver_ready
from tests.tools.driver import make_driver
from tests.tools.mounts import PrivateMounts
from tests.tools.runtimes import Runtime
from tests.tools.waiting import wait_until

SPEC = "management.nvidia.com-gpu.yaml"
PROGRAMS = "/usr/local/nvidia/toolkit"
_NAMES = (*BINARIES.values(), HOOK, "nvidia-container-runtime-hook")


class Places:
    """What the operator's pods share on a node, seen from here, where its /run is `run`."""

    def __init__(self, run: Path) -> None:
        self.validations = run / "nvidia/validations"
        self.pid_file = run / "nvidia/toolkit/toolkit.pid"
        self.spec = run / "cdi" / SPEC

    @property
    def ready(self) -> Path:
        """The barrier, which the validator makes."""
        return self.validations / statusfile.READY

    @property
    def twin_path(self) -> Path:
        """What is ours."""
        return self.validations / statusfile.TWIN

    def validated(self, driver: Env) -> None:
        """The validator has seen the driver."""
        self.validations.mkdir(parents=True, exist_ok=True)
        path = self.validations / "driver-ready"
        path.with_suffix(".tmp").write_text(driver_ready(driver), encoding="ascii")
        path.with_suffix(".tmp").rename(path)

    def validate_toolkit(self) -> None:
        """What the validator does once a pod with the handler ran: a new file, and empty."""
        self.ready.unlink(missing_ok=True)
        self.ready.touch()

    def twin(self) -> dict[str, str]:
        """What we publish; empty where nothing is."""
        path = self.twin_path
        return dict(statusfile.parse(path.read_text("ascii"))) if path.exists() else {}

    def refilled(self) -> bool:
        """The barrier is there, and says what the twin says."""
        try:
            return self.ready.read_bytes() == self.twin_path.read_bytes() != b""
        except FileNotFoundError:
            return False


class OperatorNode(PrivateNode):
    """A node with a containerd of the default places, a driver container's driver and, in
    /usr/local/nvidia, the toolkit."""

    TOOLKIT = True

    def __init__(self, runtime: Runtime) -> None:
        version = 2 if runtime.generation.startswith("1.") else 3
        super().__init__(runtime, Shape(f"operator-v{version}", {}, False, f"../pods/v{version}"))
        self.places = Places(self.directory / "run")

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._prepare()
        except BaseException:
            self._stack.close()
            raise
        return self

    @property
    def prefix(self) -> Sequence[str]:
        """Words that, before an argument list, run it inside."""
        return self._mounts.prefix

    def output(self, *argv: str) -> str:
        """What a program prints that runs among the node's mounts."""
        return inside(self.prefix, *argv)

    def answer(self) -> cri.Answer:
        """What the runtime answers, once it does."""
        found = self.wait()
        assert found is not None
        return found

    def _prepare(self) -> None:
        make_local(self.prefix, self.directory, toolkit=self.TOOLKIT)
        make_driver(self.directory / "run/nvidia/driver")


class K3sNode(OperatorNode):
    """The same where k3s has its containerd's files and socket, made from those of /etc and, where
    the admin's template has it, with an import of our drop-in."""

    _ROOT = "/var/lib/rancher/k3s/agent/etc/containerd"
    IMPORTS = 'imports = ["/etc/containerd/conf.d/99-nvidia*.toml"]'
    _MADE = (
        f"mkdir -p {_ROOT}; cd {_ROOT}; "
        '{ echo "$0"; cat /etc/containerd/config.toml; } >config.toml; cd /; exec "$@"'
    )

    def __init__(self, runtime: Runtime, first: str = IMPORTS) -> None:
        super().__init__(runtime)
        self.wrapper = ("sh", "-c", self._MADE, first)

    @property
    def socket(self) -> Path:
        """The CRI socket, under the name that the runtime uses."""
        return Path("/run/k3s/containerd/containerd.sock")

    def _containerd(self) -> list[str]:
        root = f"{self._ROOT}/config.toml"
        return [str(self.runtime.executable), "-c", root, "--address", str(self.socket)]


class CrioOperatorNode:
    """A node with a scripted CRI-O of the default places, and a `systemctl` that restarts it.

    Seen from here its /etc/crio is `etc`, which a mount makes the node's.
    """

    def __init__(self, directory: Path, version: str = "1.37.0") -> None:
        self.directory = directory
        self.version = version
        self.etc = directory / "etc/crio"
        self.drop_in = self.etc / "crio.conf.d/99-nvidia.conf"
        self.hook = directory / "hooks.d/oci-nvidia-hook.json"
        self.socket = directory / "run/crio/crio.sock"
        self.systemctl_log = directory / "log/systemctl.log"
        self.places = Places(directory / "run")
        self.program = directory / "bin/crio"
        for name in ("etc/containerd", "run", "var/lib", "etc/crio/crio.conf.d", "hooks.d", "log"):
            (directory / name).mkdir(parents=True)
        self._mounts = PrivateMounts(directory, default_config=False)
        self._stack = ExitStack()
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self._mounts)
            self._prepare()
            argv = [*self.prefix, str(self.program)]
            self._supervisor = self._stack.enter_context(
                Supervisor(argv, self._environment(), self.directory)
            )
            wait_until(lambda: bool(self.handlers()))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def prefix(self) -> Sequence[str]:
        """Words that, before an argument list, run it inside."""
        return self._mounts.prefix

    @property
    def restarts(self) -> int:
        """How often systemd was asked for one."""
        log = self.systemctl_log
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        return sum(line.startswith("restart ") for line in lines)

    def handlers(self) -> dict[str, Any]:
        """The handlers of the running daemon; empty while it does not answer."""
        try:
            return dict(get_config(self.socket)["runtime"]["runtimes"])
        except OSError:
            return {}

    def _prepare(self) -> None:
        make_local(self.prefix, self.directory)
        make_driver(self.directory / "run/nvidia/driver")
        for name in ("crun", "runc", "conmon"):
            path = self.directory / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("#!/bin/sh\nexit 0\n", encoding="ascii")
            path.chmod(0o755)
        make_program(self.program, sys.executable, _CRIO.format(version=self.version))
        words = f"'/run/crio/crio.sock', {str(self.systemctl_log)!r}, sys.argv[1:]"
        control = make_program(
            self.directory / "bin/systemctl", sys.executable, _SYSTEMCTL.format(words=words)
        )
        (self.etc / "crio.conf").write_text(_CONFIG.format(directory=self.directory), "utf-8")
        for words_of in (
            ("mkdir", "-p", "/etc/crio", "/usr/local/sbin"),
            ("mount", "--bind", str(self.etc), "/etc/crio"),
            ("cp", str(control), "/usr/local/sbin/systemctl"),
        ):
            inside(self.prefix, *words_of)

    def _environment(self) -> dict[str, str]:
        return {"PATH": f"{self.directory}/bin:{os.defpath}"}


_CRIO = "from tests.doubles.crio.command import crio\n\nsys.exit(crio({version!r}, sys.argv[1:]))"
_SYSTEMCTL = "from tests.doubles.systemd.systemctl import systemctl\n\nsys.exit(systemctl({words}))"
# Private places, where the defaults are not private by the mounts.
_CONFIG = """\
[crio]
root = "{directory}/storage"
log_dir = "{directory}/log-pods"
clean_shutdown_file = "{directory}/clean.shutdown"
[crio.runtime]
conmon = "{directory}/bin/conmon"
hooks_dir = ["{directory}/hooks.d"]
[crio.runtime.runtimes.crun]
runtime_root = "/run/crun"
"""


def get_config(socket: Path) -> dict[str, Any]:
    """What a CRI-O shows over HTTP of its configuration; an OSError where there is none."""
    with sockets.socket(sockets.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(socket))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = client
        connection.request("GET", "/config")
        text = connection.getresponse().read().decode()
    return dict(tomllib.loads(text)["crio"])


def make_local(prefix: Sequence[str], directory: Path, *, toolkit: bool = True) -> None:
    """Cover the node's /usr/local by a layer, with the toolkit in it."""
    layer = directory / "layers/local"
    options = f"lowerdir=/usr/local,upperdir={layer}/new,workdir={layer}/work"
    for words in (
        ("mkdir", "-p", f"{layer}/new", f"{layer}/work"),
        ("mknod", f"{layer}/new/nvidia", "c", "0", "0"),  # what this machine has is not the node's
        ("mount", "-t", "overlay", "overlay", "-o", options, "/usr/local"),
    ):
        inside(prefix, *words)
    if toolkit:
        files = [f"{PROGRAMS}/{name}" for name in _NAMES]
        inside(prefix, "mkdir", "-p", PROGRAMS)
        inside(prefix, "touch", *files)
        inside(prefix, "chmod", "0755", *files)


def inside(prefix: Sequence[str], *argv: str) -> str:
    """Run a program among a node's mounts; gives what it prints."""
    words = [*prefix, *argv]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
