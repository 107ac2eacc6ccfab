"""The demo: one private node, made right and put back, with every command and its real output.

What a step shows is checked too: the exit status is 0 only if all of it was as it should be. The
node goes away with the demo, also on an error or a signal.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.conformance import cri
from tests.doubles.runtime.install import make_fake_containerd
from tests.doubles.runtime.supervisor import Supervisor
from tests.doubles.toolkit.source import make_sources
from tests.tools import runtimes
from tests.tools.driver import make_driver
from tests.tools.mounts import PrivateMounts
from tests.tools.runtimes import Runtime

_SCRIPTED_VERSION = "2.1.9"
_CONFIG = """\
# This file belongs to the administrator of the node.
version = {version}
{addresses}
[plugins."{section}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."{section}".containerd.runtimes.runc.options]
    SystemdCgroup = true # as the kubelet's cgroupDriver says
"""
_ADDRESSES = """
root = "{directory}/var/lib/containerd"
state = "{directory}/run/containerd"
[grpc]
  address = "{directory}/run/containerd/containerd.sock"
[ttrpc]
  address = "{directory}/run/containerd/containerd.sock.ttrpc"
"""


class NotAsItShouldBeError(Exception):
    """A step of the demo went wrong; the message says how."""


@dataclass(frozen=True)
class Node:
    """The node of the demo. `root` is put before its paths: empty where it has the usual ones.

    `prefix` is put before every command, `env` is all that a command gets of an environment, of
    which `options` are the settings of the agent; `socket` is the CRI socket as we reach it.
    """

    root: str
    prefix: Sequence[str]
    env: Mapping[str, str]
    options: Mapping[str, str]
    socket: Path
    supervisor: Supervisor

    def run(self, *words: str, code: int = 0) -> str:
        """Show a command and its output; NotAsItShouldBeError for another exit code than `code`."""
        print(f"\n$ {shlex.join(words)}", flush=True)
        done = subprocess.run(
            [*self.prefix, *words],
            env={**self.env, **self.options},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        print(done.stdout.rstrip(), flush=True)
        check(done.returncode == code, f"{words[0]} ended with {done.returncode}, not {code}")
        return done.stdout

    def agent(self, *words: str, code: int = 0) -> str:
        """Show a command of the agent."""
        return self.run("toolkit-agent", *words, code=code)


def check(holds: bool, otherwise: str) -> None:
    """Go on if it holds."""
    if not holds:
        raise NotAsItShouldBeError(otherwise)


@contextmanager
def open_node() -> Iterator[Node]:
    """A node with a real containerd; where that cannot be had, with the scripted one."""
    found = [runtime for runtime in runtimes.load().runtimes if runtime.usable]
    with ExitStack() as stack:
        # Short, because the name of a socket has at most 107 bytes.
        directory = Path(tempfile.mkdtemp(prefix="demo-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        for name in ("etc/containerd", "run/nvidia/driver", "var/lib"):
            (directory / name).mkdir(parents=True)
        if os.geteuid() != 0:
            why = "not root"
        elif not found:
            why = runtimes.load().reason(runtimes.WANTED[-1])
        else:
            mounts = PrivateMounts(directory, default_config=True)
            try:
                prefix = stack.enter_context(mounts).prefix
            except (OSError, subprocess.SubprocessError) as error:
                why = f"no private mounts here: {error}"
            else:
                yield _real_node(stack, directory, prefix, found[-1])
                return
        print(f"NOTE: no real containerd ({why}).")
        print("A scripted one stands in: it reads its configuration and answers as a captured")
        print(f"containerd {_SCRIPTED_VERSION} did. It runs no containers.")
        yield _scripted_node(stack, directory)


def _real_node(stack: ExitStack, directory: Path, prefix: Sequence[str], runtime: Runtime) -> Node:
    """The newest containerd on its usual paths, which are private to it and to the agent."""
    print(f"A real containerd {runtime.version}, unpacked from the distribution's package.")
    old = runtime.generation.startswith("1.")
    section = "io.containerd.grpc.v1.cri" if old else "io.containerd.cri.v1.runtime"
    text = _CONFIG.format(version=2 if old else 3, section=section, addresses="")
    (directory / "etc/containerd/config.toml").write_text(text, encoding="utf-8")
    make_driver(directory / "run/nvidia/driver")
    path = f"{Path(sys.executable).parent}:{runtime.runc.parent}:{os.defpath}"
    env = {"PATH": path, "LC_ALL": "C.UTF-8"}
    options = {
        "HOST_ROOT_MOUNT": "/",
        "TOOLKIT_SOURCE_ROOT": str(make_sources(directory / "packages")),
        "TOOLKIT_INSTALL_DIR": "/opt/nvidia",
        "RUNTIME_RESTART_MODE": "signal",
    }
    argv = [*prefix, str(runtime.executable)]
    supervisor = stack.enter_context(Supervisor(argv, env, directory))
    socket = directory / "run/containerd/containerd.sock"
    return Node("", prefix, env, options, socket, supervisor)


def _scripted_node(stack: ExitStack, directory: Path) -> Node:
    """The scripted containerd, on paths below a directory."""
    text = _CONFIG.format(
        version=3,
        section="io.containerd.cri.v1.runtime",
        addresses=_ADDRESSES.format(directory=directory),
    )
    config = directory / "etc/containerd/config.toml"
    config.write_text(text, encoding="utf-8")
    program = make_fake_containerd(directory / "bin", _SCRIPTED_VERSION, sys.executable)
    socket = directory / "run/containerd/containerd.sock"
    env = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "LC_ALL": "C.UTF-8"}
    options = {
        "HOST_ROOT_MOUNT": "/",
        "TOOLKIT_SOURCE_ROOT": str(make_sources(directory / "packages")),
        "TOOLKIT_INSTALL_DIR": f"{directory}/opt/nvidia",
        "RUNTIME_RESTART_MODE": "signal",
        "RUNTIME_SOCKET": str(socket),
        "RUNTIME_EXECUTABLE_PATH": str(program),
        "OUTPUT_DIR": f"{directory}/run/nvidia/validations",
        "AGENT_STATE_DIR": f"{directory}/var/lib/toolkit-agent",
        "CDI_OUTPUT_DIR": "",  # without a driver there is nothing to describe
    }
    supervisor = Supervisor([str(program), "-c", str(config)], env, directory)
    return Node(str(directory), (), env, options, socket, stack.enter_context(supervisor))


def heading(text: str) -> None:
    """Begin a step."""
    print(f"\n{'=' * 78}\n{text}\n{'=' * 78}")


def checksums(node: Node) -> str:
    """Show every file of the configuration with its checksum, mode and owner."""
    where = f"{node.root}/etc/containerd"
    listed = node.run("find", where, "-printf", r"%M %U:%G %p\n")
    summed = node.run("find", where, "-type", "f", "-exec", "sha256sum", "{}", "+")
    return listed + summed


def times(node: Node) -> str:
    """Show when each file of the configuration, the state and the status was written, and the
    runtime's pid."""
    places = ("etc/containerd", "run/nvidia/validations", "var/lib/toolkit-agent")
    where = [f"{node.root}/{place}" for place in places]
    written = node.run("find", *where, "-type", "f", "-printf", r"%TT  %p\n")
    pid = f"containerd's pid: {node.supervisor.pid}"
    print(pid)
    return written + pid


def show(node: Node) -> None:
    """The steps, on a node whose runtime has been started."""
    check(cri.wait(node.socket) is not None, "the runtime does not serve the CRI")
    print("Its configuration, toolkit and driver are made up. It is started again when it ends, as")
    print("systemd would do. The agent's settings, for all commands below:\n")
    for key, value in node.options.items():
        print(f"    {key}={value}")
    config = f"{node.root}/etc/containerd/config.toml"
    node.run("cat", config)
    before = checksums(node)

    heading("plan: what would be done, and why. It changes nothing; exit 1 says: changes")
    node.agent("plan", code=1)

    heading("apply: install the toolkit, check, write, restart, prove, publish")
    node.agent("apply")
    toolkit = f"{node.options['TOOLKIT_INSTALL_DIR']}/toolkit"
    node.run("ls", "-l", toolkit)
    handlers = cri.wait(node.socket)
    check(handlers is not None and "nvidia" in handlers.runtimes, "there is no handler nvidia")

    heading("the decision, for the device plugin: toolkit-ready")
    ready = node.run("cat", f"{node.root}/run/nvidia/validations/toolkit-ready")
    check("\nTOOLKIT_NATIVE_CDI=" in ready, "the decision is not in toolkit-ready")

    if "CDI_OUTPUT_DIR" not in node.options:
        heading("the CDI spec for tools of the node itself, as containerd reads it")
        spec = node.run("cat", "/var/run/cdi/management.nvidia.com-gpu.yaml")
        check('path: "/dev/nvidiactl"' in spec, "the spec has no device nodes")

    heading("apply again: the node is right, so no file is written and nothing is restarted")
    first = times(node)
    check("Nothing to do" in node.agent("apply"), "the second apply did something")
    check(times(node) == first, "the second apply touched something")
    check(node.supervisor.starts == 2, "the runtime was restarted more than once")

    heading("status: what is")
    node.agent("status")

    heading("revert: back to the files of before, restarted on them and proven")
    node.agent("revert")
    check(checksums(node) == before, "the files are not as they were")
    gone = cri.wait(node.socket)
    check(gone is not None and "nvidia" not in gone.runtimes, "the handler nvidia is still there")
    print("\nThe same files, byte for byte, with the modes and owners of before.")

    heading("revert --toolkit: nothing needs the toolkit any more, so that it can go too")
    node.agent("revert", "--toolkit")
    node.run("ls", toolkit, code=2)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    """Show it; exit 0 if all of it was as it should be."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    heading("a private node")
    try:
        with open_node() as node:
            show(node)
    except (NotAsItShouldBeError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"\ndemo: NOT as it should be: {error}")
    print("\ndemo: all of it was as it should be.")


if __name__ == "__main__":
    main()
