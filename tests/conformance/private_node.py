"""A node of its own for each test: directories, a mount namespace, a supervised real containerd.

    with PrivateNode(runtime, shape) as node:
        node.agent("apply")
        node.status()

Invariant: nothing outside `node.directory` is written, no default path or socket of the machine is
used, and when the node is left nothing of it runs any more.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.conformance import cri, steps
from tests.conformance.shapes import Shape
from tests.conformance.trees import Tree, snapshot
from tests.doubles.runtime.supervisor import Supervisor
from tests.tools import forked
from tests.tools.driver import make_driver
from tests.tools.mounts import PrivateMounts
from tests.tools.runtimes import ROOT, Runtime

_DEFAULT_CONFIG = Path("/etc/containerd")
_SCRIPT = "#!/bin/sh\nexit 0\n"


class PrivateNode:
    """One node with the files of `shape`; `wrapper` is put before the runtime's command line."""

    def __init__(self, runtime: Runtime, shape: Shape, wrapper: Sequence[str] = ()) -> None:
        self.shape = shape
        self.wrapper = tuple(wrapper)
        # Short, because the name of a socket has at most 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="node-"))
        self.runtime = runtime.for_root(self.directory)
        self.etc = self.directory / "etc"
        self.toolkit = self.directory / "usr/local/nvidia/toolkit"
        self.validations = self.directory / "validations"
        self.driver = self.directory / "driver"
        self._stack = ExitStack()
        self._mounts = PrivateMounts(self.directory, default_config=not shape.explicit)
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self._make_files()
            self._stack.enter_context(self._mounts)
            argv = [*self._mounts.prefix, *self.wrapper, *self._containerd()]
            supervisor = Supervisor(argv, self._environment(), self.directory)
            self._supervisor = self._stack.enter_context(supervisor)
            self.wait()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def supervisor(self) -> Supervisor:
        """What keeps the runtime running."""
        assert self._supervisor is not None
        return self._supervisor

    @property
    def config_directory(self) -> Path:
        """The directory of the root file, under the name that the runtime and the agent use."""
        return self.etc / "containerd" if self.shape.explicit else _DEFAULT_CONFIG

    @property
    def socket(self) -> Path:
        """The CRI socket, under the name that the runtime and the agent use."""
        if self.shape.explicit:
            return self.directory / "run/containerd.sock"
        return Path("/run/containerd/containerd.sock")

    def status(self) -> cri.Answer:
        """What the runtime answers now."""
        return cri.ask(self._reachable_socket())

    def wait(self, timeout: float = 10.0) -> cri.Answer | None:
        """Wait for the runtime; None where it runs without the CRI."""
        return cri.wait(self._reachable_socket(), timeout)

    def restart(self) -> None:
        """Restart the runtime, as somebody else would."""
        starts = self.supervisor.starts
        self.supervisor.send(signal.SIGTERM)
        assert self.supervisor.wait_until(lambda supervisor: supervisor.starts > starts)
        self.wait()

    def settle(self) -> None:
        """Wait for the runtime where it may have been told to end a moment ago."""
        time.sleep(0.15)  # until then the old process can still answer
        self.wait()

    def dump(self) -> Mapping[str, Any]:
        """The effective configuration as the runtime's own binary prints it.

        containerd 1.x prints none where there is no root file: then its built-in one.
        """
        found = self._config_command("dump")
        if found.returncode != 0:
            found = self._config_command("default")
        found.check_returncode()
        return tomllib.loads(found.stdout)

    def tree(self) -> Tree:
        """Every file of the node's configuration."""
        return snapshot(self.etc)

    def whole(self) -> Tree:
        """Every file that the program under test could write: all but the runtime's own."""
        tree = snapshot(self.directory)
        runtimes_own = ("run", "var", "layers", self.supervisor.log.name)
        return {p: e for p, e in tree.items() if p != "." and Path(p).parts[0] not in runtimes_own}

    def agent(
        self, command: str, *options: str, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the program under test inside the node, to its end."""
        return self._run(forked.AGENT, command.split(), options, timeout)

    def start_agent(self, command: str, log: Path) -> forked.Started:
        """Start the program under test inside the node; what it says goes to `log`."""
        return forked.start_logged(
            forked.AGENT,
            [command, *self._options()],
            self._environment(),
            ROOT,
            log,
            prefix=self._mounts.prefix,
        )

    def agent_in_steps(
        self, command: str, *options: str, log: Path, kill_at: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """The same, with each of its steps written to `log`; killed before step `kill_at`."""
        return self._run(steps.PROGRAM, [str(log), str(kill_at), *command.split()], options, 60.0)

    def _run(
        self,
        program: forked.Program,
        words: Sequence[str],
        options: Sequence[str],
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        return forked.run(
            program,
            [*words, *self._options(), *options],
            self._environment(),
            ROOT,
            prefix=self._mounts.prefix,
            timeout=timeout,
        )

    def inside(
        self, argv: Sequence[str], timeout: float = 20.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program among the node's mounts."""
        return subprocess.run(
            [*self._mounts.prefix, *argv],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def _options(self) -> list[str]:
        given = {
            "host-root": "/",
            "runtime": "containerd",
            "socket": self.socket,
            "drop-in-config": self.config_directory / "conf.d/99-nvidia.toml",
            "state-dir": self.directory / "state",
            "status-dir": self.validations,
            "toolkit-install-dir": self.toolkit.parent,
            "driver-root": self.driver,
            "restart-mode": "signal",
            "proof-timeout": "20",
        }
        return [*(f"--{name}={value}" for name, value in given.items()), *self.shape.options]

    def _environment(self) -> dict[str, str]:
        """The only environment that the runtime and the agent get: nothing of the caller's."""
        path = f"{self.runtime.runc.parent}:{self.runtime.executable.parent}:{os.defpath}"
        return {
            "PATH": path, "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000",
        }  # fmt: skip

    def _containerd(self) -> list[str]:
        root = ["-c", str(self.config_directory / "config.toml")] if self.shape.explicit else []
        return [str(self.runtime.executable), *root]

    def _config_command(self, word: str) -> subprocess.CompletedProcess[str]:
        return self.inside([*self._containerd(), "config", word])

    def _reachable_socket(self) -> Path:
        return (
            self.directory
            / "run"
            / self.socket.relative_to(self.directory / "run" if self.shape.explicit else "/run")
        )

    def _make_files(self) -> None:
        for name in ("etc/containerd", "run", "var/lib", "validations"):
            (self.directory / name).mkdir(parents=True)
        make_driver(self.driver)
        self.toolkit.mkdir(parents=True)
        for name in self.shape.binaries:
            (self.toolkit / name).write_text(_SCRIPT, encoding="ascii")
            (self.toolkit / name).chmod(0o755)
        self.write_config()

    def write_config(self) -> None:
        """Write the runtime's configuration as the shape has it, and nothing beside it."""
        for path in (self.etc / "containerd").iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        source = self.shape.directory
        for template in sorted(p for p in source.rglob("*") if p.is_file()):
            name = str(template.relative_to(source))
            target = self.etc / "containerd" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            data = template.read_bytes()  # line ends are part of a shape
            target.write_bytes(data.replace(b"@NODE@", str(self.directory).encode()))
            target.chmod(self.shape.modes.get(name, 0o644))
