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

import grpc

from tests.conformance import cri
from tests.doubles.runtime.install import make_fake_containerd
from tests.doubles.runtime.supervisor import Supervisor
from tests.doubles.toolkit.source import make_sources
from tests.tools import pause_image, runtimes
from tests.tools.driver import make_driver
from tests.tools.mounts import PrivateMounts
from tests.tools.pods import call, kill_pods
from tests.tools.runtimes import Runtime

_SCRIPTED_VERSION = "2.1.9"
_CONFIG = """\
# This file belongs to the administrator of the node.
version = {version}
{addresses}
[plugins."{section}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2" # as it was installed
"""
_SECTIONS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
# With it the real runtime can run pods on this machine, whatever rights and registries it has.
_FOR_PODS = {
    2: """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
""",
    3: """
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{image}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
""",
}
# containerd dies of it, although `containerd config dump` does not mind.
_MISTAKE = """
[plugins."io.containerd.grpc.v1.cri"]
  stream_idle_timeout = "soon"
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
    runs_pods: bool = False

    def run(self, *words: str, code: int = 0) -> str:
        """Show a command and its output, without logs and diffs of files; NotAsItShouldBeError for
        another exit code than `code`."""
        print(f"\n$ {shlex.join(words)}", flush=True)
        done = subprocess.run(
            [*self.prefix, *words],
            env={**self.env, **self.options},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        errors = [line for line in done.stderr.splitlines() if not line.startswith("{")]
        for line in (*_without_diffs(done.stdout.rstrip()), *errors):
            print(line, flush=True)
        check(done.returncode == code, f"{words[0]} ended with {done.returncode}, not {code}")
        return done.stdout + done.stderr

    def agent(self, *words: str, code: int = 0) -> str:
        """Show a command of the agent."""
        return self.run("toolkit-agent", *words, code=code)

    def pod(self, handler: str) -> str:
        """Show what becomes of a pod: "" if it runs, else why not. It is removed at once."""
        print(f"\n$ # a pod of the runtime class {handler}, as the kubelet would run it")
        metadata = {"name": "demo", "uid": "demo", "namespace": "default"}
        options = {"network": "NODE", "ipc": "NODE", "pid": "CONTAINER"}
        linux = {"security_context": {"namespace_options": options}}
        pod = {"metadata": metadata, "linux": linux}
        try:
            answer = call(self.socket, "RunPodSandbox", config=pod, runtime_handler=handler)
        except grpc.RpcError as error:
            print(f"error: {error.details()}", flush=True)
            return str(error.details())
        for method in ("StopPodSandbox", "RemovePodSandbox"):
            call(self.socket, method, **answer)
        print("it runs", flush=True)
        return ""


def _without_diffs(text: str) -> Iterator[str]:
    """The lines that are not those of a diff, but for a note of how many there were."""
    hidden = 0
    for line in [*text.splitlines(), ""]:
        if line.startswith(("--- ", "+++ ", "@@ ")) or (hidden and line):
            hidden += 1
            continue
        if hidden:
            yield f"    (a diff of {hidden} lines)"
            hidden = 0
        elif line:
            yield line


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
    version = 2 if runtime.generation.startswith("1.") else 3
    section = _SECTIONS[version]
    text = _CONFIG.format(version=version, section=section, addresses="")
    text += _FOR_PODS[version].format(image=pause_image.NAME)
    (directory / "etc/containerd/config.toml").write_text(text, encoding="utf-8")
    make_driver(directory / "run/nvidia/driver")
    path = f"{Path(sys.executable).parent}:{runtime.runc.parent}:{runtime.executable.parent}"
    env = {"PATH": f"{path}:{os.defpath}", "LC_ALL": "C.UTF-8"}
    options = {
        "HOST_ROOT_MOUNT": "/",
        "TOOLKIT_SOURCE_ROOT": str(make_sources(directory / "packages")),
        "TOOLKIT_INSTALL_DIR": "/opt/nvidia",
        "RUNTIME_RESTART_MODE": "signal",
    }
    argv = [*prefix, str(runtime.executable)]
    supervisor = stack.enter_context(Supervisor(argv, env, directory))
    socket = directory / "run/containerd/containerd.sock"
    stack.callback(kill_pods, os.readlink(prefix[1].partition("=")[2]))
    _import_image(directory, [*prefix, str(runtime.executable.with_name("ctr"))], env, socket)
    return Node("", prefix, env, options, socket, supervisor, runs_pods=True)


def _import_image(
    directory: Path, ctr: Sequence[str], env: Mapping[str, str], socket: Path
) -> None:
    """Give the runtime the image of which each pod has a container."""
    check(cri.wait(socket) is not None, "the runtime does not serve the CRI")
    tar = directory / "run/pause.tar"
    pause_image.write_pause_image(tar)
    words = [*ctr, "-n", "k8s.io", "images", "import", str(tar)]
    subprocess.run(words, env=env, check=True, capture_output=True, timeout=60)
    tar.unlink()


def _scripted_node(stack: ExitStack, directory: Path) -> Node:
    """The scripted containerd, on paths below a directory."""
    text = _CONFIG.format(
        version=3,
        section=_SECTIONS[3],
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
    print(f"\n=== {text}")


def state(node: Node) -> str:
    """Every file of the configuration with its checksum, mode and owner; nothing is shown."""
    where = f"{node.root}/etc/containerd"
    listed = quiet(node, "find", where, "-printf", r"%M %U:%G %p\n")
    return listed + quiet(node, "find", where, "-type", "f", "-exec", "sha256sum", "{}", "+")


def times(node: Node) -> str:
    """When each file of the configuration, the state and the status was written, and the runtime's
    pid; nothing is shown."""
    places = ("etc/containerd", "run/nvidia/validations", "var/lib/toolkit-agent")
    where = [f"{node.root}/{place}" for place in places]
    written = quiet(node, "find", *where, "-type", "f", "-printf", r"%TT  %p\n")
    return f"{written}{node.supervisor.pid}"


def quiet(node: Node, *words: str) -> str:
    """The output of a command that is not shown."""
    argv = [*node.prefix, *words]
    return subprocess.run(argv, env=node.env, check=True, capture_output=True, text=True).stdout


def show(node: Node) -> None:
    """The steps, on a node whose runtime has been started."""
    check(cri.wait(node.socket) is not None, "the runtime does not serve the CRI")
    print(
        "Its configuration, toolkit and driver are made up; whenever it ends, it is started again."
    )
    print(f"The agent's settings: {' '.join(f'{k}={v}' for k, v in node.options.items())}")
    config = f"{node.root}/etc/containerd/config.toml"
    node.run("cat", config)
    before = state(node)

    heading("1. A GPU pod does not run on this node")
    if node.runs_pods:
        check("nvidia" in node.pod("nvidia"), "a pod of the class nvidia runs already")
    else:
        print("(not shown: this runtime runs no pods)")

    heading("2. plan: what would be done, and why. It changes nothing; exit 1 says: changes")
    node.agent("plan", code=1)
    check(state(node) == before, "the plan changed something")

    heading("3. apply: install the toolkit, try, write, restart, prove, publish")
    _show_mistake(node, config)
    node.agent("apply")
    handlers = cri.wait(node.socket)
    check(handlers is not None and "nvidia" in handlers.runtimes, "there is no handler nvidia")
    ready = f"{node.root}/run/nvidia/validations/toolkit-ready"
    lines = node.run("grep", "-E", "NATIVE_CDI=|STRATEGY|PREFIX", ready)
    check("TOOLKIT_NATIVE_CDI=" in lines, "the decision is not in toolkit-ready")

    heading("4. verify: a pod runs under each handler, and a container gets the device")
    found = node.agent("verify", code=0 if node.runs_pods else 3)
    check(not node.runs_pods or "Proven" in found, "the node is not proven")
    if node.runs_pods:
        check(not node.pod("nvidia"), "a pod of the class nvidia does not run")

    heading("5. apply again: nothing to do, so no file is written and nothing is restarted")
    first = times(node)
    check("Nothing to do" in node.agent("apply"), "the second apply did something")
    check(times(node) == first, "the second apply touched something")
    check(node.supervisor.starts == 2, "the runtime was restarted more than once")

    heading("6. revert: back to the files of before, restarted on them and proven")
    node.agent("revert", "--toolkit")
    check(state(node) == before, "the files are not as they were")
    gone = cri.wait(node.socket)
    check(gone is not None and "nvidia" not in gone.runtimes, "the handler nvidia is still there")
    print("The same files, byte for byte, with the modes and owners of before.")


def _show_mistake(node: Node, config: str) -> None:
    """A change on which the runtime would not start again never reaches it."""
    path = Path(config) if node.root else node.socket.parents[2] / "etc/containerd/config.toml"
    print("Somebody made a mistake in config.toml. The running containerd does not know yet:")
    good, pid = path.read_text("utf-8"), node.supervisor.pid
    # Without root there is no trial start, and a mistake of this kind cannot be found.
    path.write_text(good + (_MISTAKE if node.runs_pods else "stream_idle_timeout = soon"), "utf-8")
    broken = state(node)
    check("cannot" in node.agent("apply", code=3), "the mistake was not found")
    check(state(node) == broken and node.supervisor.pid == pid, "a refusal touched something")
    print("Nothing was touched, and containerd runs. The mistake is taken out:")
    path.write_text(good, "utf-8")


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
