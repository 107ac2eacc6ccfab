"""The project's image: what is in it, and that it does its work as a pod on a node.

The pod is as the DaemonSet makes it: privileged, among the processes of the node, with the node's
root directory at /host, read-only but for what the manifests name. The node is private; where it
shows this machine's files it takes the writes away from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agent import __version__
from tests.conformance import statusfile
from tests.conformance.shapes import OURS
from tests.conformance.trees import contents
from tests.image import build
from tests.image.build import Image
from tests.operator import environment as operator
from tests.sampling import sampled_params
from tests.tools.driver import make_driver
from tests.tools.image_tools import Unavailable, image_tools
from tests.tools.lending import Lending
from tests.tools.pods import Container, Mount, PodNode, Pods
from tests.tools.runtimes import ROOT, Runtime

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

# Runs in the image, by its own Python.
_LOOK = """
import importlib.util, json, os, sys
import agent.cli, agent.transaction.converge, agent.cri.client
cached = {name: getattr(module, "__cached__", None) for name, module in sys.modules.items()}
settings = "/etc/pip.conf"
root = os.stat("/").st_dev
setuid = []
for directory, below, names in os.walk("/"):
    below[:] = [name for name in below if os.lstat(os.path.join(directory, name)).st_dev == root]
    paths = [os.path.join(directory, name) for name in names]
    setuid += [path for path in paths if os.lstat(path).st_mode & 0o6000]
print(json.dumps({
    "pip": importlib.util.find_spec("pip") is not None,
    "uncompiled": sorted(n for n, path in cached.items() if path and not os.path.exists(path)),
    "toolkit": [os.access(f"/artifacts/{p}/usr/bin/nvidia-container-runtime", os.X_OK)
                for p in ("deb", "rpm")],
    "setuid": setuid,
    "settings": os.path.exists(settings) and open(settings).read(),
}))
"""


@pytest.fixture(scope="session")
def image() -> Image:
    """The image, built where the cache does not have it."""
    if not build.CONTAINERFILE.exists():
        pytest.skip("there is no Containerfile: run this in a whole checkout")
    try:
        tools = image_tools()
    except Unavailable as error:
        pytest.skip(str(error))
    return build.build(tools)


def daemonset_mounts() -> list[Mount]:
    """What the DaemonSet mounts of the host, each from the place that its name below /host says."""
    files = ("base", "overlays/containerd")
    text = "".join((ROOT / f"deploy/{name}/daemonset.yaml").read_text("utf-8") for name in files)
    # A path, and the words about it up to the next item or the end of the list.
    found = re.findall(r"mountPath: (\S+)\n((?:\s+(?:readOnly|mountPropagation): \S+\n)*)", text)
    mounts = [
        Mount(
            host=path.removeprefix("/host") or "/",
            container=path,
            readonly="readOnly: true" in words,
            shared="HostToContainer" in words,
        )
        for path, words in found
        if path.startswith("/host")
    ]
    hosts = re.findall(r"hostPath:\n\s+path: (\S+)", text)
    assert mounts
    assert sorted(hosts) == sorted(str(mount.host) for mount in mounts)
    return mounts


@contextmanager
def node_with(image: Image, runtime: Runtime) -> Iterator[PodNode]:
    """A node that has the image, the toolkit's programs and a driver."""
    with PodNode(runtime) as node:
        layer = node.directory / "layers/local"
        options = f"lowerdir=/usr/local,upperdir={layer}/new,workdir={layer}/work"
        for words in (
            ["mkdir", "-p", f"{layer}/new", f"{layer}/work"],
            ["mount", "-t", "overlay", "overlay", "-o", options, "/usr/local"],
            ["rm", "-rf", "/usr/local/nvidia"],  # what this machine has is not the node's
            ["cp", "-r", str(node.directory / "usr/local/nvidia"), "/usr/local/nvidia"],
            # As systemd does on a node: a pod can be told of mounts that come later.
            ["mount", "--make-rshared", "/"],
        ):
            done = node.inside(words)
            assert done.returncode == 0, done.stderr
        make_driver(node.directory / "run/nvidia/driver")
        node.import_image(image.path, build.NAME)
        yield node


# What a pod writes on its node, beside the runtime's configuration.
_WRITTEN = (
    *("/usr/local/nvidia", "/var/lib/toolkit-agent", "/run/cdi", "/run/entrypoint.sh"),
    *("/run/nvidia/toolkit", "/run/nvidia/validations"),
)


def look(node: PodNode) -> object:
    """What a test puts back."""
    script = 'find "$@" ! -type d -printf "%p %m %s %l\\n" 2>&- | sort'
    written = node.inside(["sh", "-c", script, "sh", *_WRITTEN]).stdout
    return contents(node.tree()), written, set(node.status().runtimes)


def put_back(node: PodNode) -> None:
    """Undo what a pod did, without its help."""
    node.write_config()
    for words in (
        ["rm", "-rf", *_WRITTEN],
        ["cp", "-r", str(node.directory / "usr/local/nvidia"), "/usr/local/nvidia"],
    ):
        done = node.inside(words)
        assert done.returncode == 0, done.stderr
    node.restart()


@pytest.fixture
def node(
    generation: str, runtime: Runtime, image: Image, shared: Lending[PodNode]
) -> Iterator[PodNode]:
    """The one of the test's generation."""
    with shared.lend(generation, lambda: node_with(image, runtime), look) as found:
        yield found


def run_once(pods: Pods, *command: str) -> Container:
    """Run a command in a container of the image, to its end."""
    container = pods.create(build.NAME, command=command)
    container.start()
    container.wait(lambda c: c.status().state == "EXITED")
    return container


@pytest.mark.parametrize("generation", ["2.1"])
def test_image_has_both_programs_and_no_build_tools(
    generation: str, node: PodNode, image: Image
) -> None:
    """Both programs answer, modules are compiled, and nothing is left of the build."""
    print(f"the image has {image.size / 1e6:.0f} MB")
    with Pods(node) as pods:
        for program in ("toolkit-agent", "nvidia-toolkit"):
            assert program in run_once(pods, program, "--help").log()
        version = run_once(pods, "toolkit-agent", "--version").log()
        assert __version__ in version
        found = json.loads(run_once(pods, "python3", "-c", _LOOK).log())
        assert not found["pip"]
        assert found["uncompiled"] == []
        assert found["toolkit"] == [True, True]
        assert found["setuid"] == []
        assert not found["settings"]  # where something was mounted there is an empty file
    assert image.environment["NVIDIA_VISIBLE_DEVICES"] == "void"
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == __version__


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, __name__))
def test_pod_of_the_image_makes_its_node_right(generation: str, node: PodNode) -> None:
    """It makes its node right, outlives the restart that this takes, and leaves the node so."""
    with Pods(node) as pods:
        ready = node.directory / "run/nvidia/validations" / statusfile.READY
        starts = node.supervisor.starts
        mounts = daemonset_mounts()
        node.inside(["mkdir", "-p", *(str(mount.host) for mount in mounts)])
        # Here these are mounts of their own, which a read-only / does not cover.
        layers = ("/etc", "/opt", "/usr/local", "/var/lib")
        covered = [Mount(path, f"/host{path}", readonly=True) for path in layers]
        container = pods.create(
            build.NAME,
            args=["run"],
            env={"RUNTIME": "containerd", "RUNTIME_RESTART_MODE": "signal"},
            mounts=[*mounts, *covered],
            privileged=True,
            readonly_root=True,
            host_pid=True,
        )
        container.start()
        started = container.status()
        container.wait(lambda _: ready.exists())
        node.wait()
        assert node.supervisor.starts == starts + 1
        assert container.status() == started
        answer = node.status()
        assert set(OURS) <= set(answer.runtimes)
        assert answer.cdi
        values = statusfile.parse(ready.read_text("ascii"))
        assert values["TOOLKIT_NATIVE_CDI"] == "true"

        before = node.tree()
        container.stop()
        ended = container.status()
        assert (ended.state, ended.exit_code) == ("EXITED", 0), container.log()
        assert node.tree() == before
        assert node.supervisor.starts == starts + 1
    put_back(node)


# On this node nothing but a signal restarts the runtime; the rest is what the operator sends.
_OPERATOR = {
    **operator.ALWAYS,
    **operator.CDI,
    **operator.CONTAINERD,
    "RUNTIME_RESTART_MODE": "signal",
}


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, __name__))
def test_pod_of_gpu_operator_runs_the_image(generation: str, node: PodNode) -> None:
    """Its script, its mounts and its variables; the signal that ends the pod reaches us."""
    with Pods(node) as pods:
        run = node.directory / "run"
        (run / "nvidia/validations").mkdir(parents=True)
        ready = run / "nvidia/validations/driver-ready"
        ready.write_text(operator.driver_ready(operator.DRIVER_CONTAINER), encoding="ascii")
        script = run / "entrypoint.sh"
        script.write_text(operator.SCRIPT, encoding="ascii")
        script.chmod(0o700)
        binds = (*operator.MOUNTS, *operator.CONTAINERD_MOUNTS)
        node.inside(["mkdir", "-p", *(bind.host for bind in binds)])
        container = pods.create(
            build.NAME,
            command=["/bin/sh", "-c"],
            args=["/bin/entrypoint.sh"],
            env=_OPERATOR,
            mounts=[
                Mount("/", "/host", readonly=True, shared=True),
                *(Mount(bind.host, bind.pod) for bind in binds),
                Mount("/run/entrypoint.sh", "/bin/entrypoint.sh", readonly=True),
            ],
            privileged=True,
            host_pid=True,
        )
        starts = node.supervisor.starts
        container.start()
        twin = ready.with_name(statusfile.TWIN)
        container.wait(lambda _: twin.exists())
        node.wait()
        assert node.supervisor.starts == starts + 1
        assert set(OURS) <= set(node.status().runtimes)
        pid = run / "nvidia/toolkit/toolkit.pid"
        assert pid.read_text("ascii") == f"{container.status().pid}\n"
        before = node.tree()
        container.stop()
        ended = container.status()
        assert (ended.state, ended.exit_code) == ("EXITED", 0), container.log()
        assert not pid.exists()
        assert node.tree() == before
        assert twin.exists()
        assert not ready.with_name(statusfile.READY).exists()
    put_back(node)
