"""Inputs that want more memory than a process may have.

The attacker writes a file into a spec directory, owns the runtime's socket, or wrote a library
cache into a driver's root. The real program reads his input in a process of its own: it stays below
128 MiB, a third of the limit of the pod, names the input in one line, and keeps the rest of the
node right.
"""

from __future__ import annotations

import json
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent._cri import api_pb2
from agent.cdi.driver import loader
from agent.cdi.specs import read
from agent.host import budget
from tests.cli.gpu_host import GPU, MANAGEMENT, GpuHost
from tests.conformance import checks
from tests.doubles.nvml.nvml import FakeGpu
from tests.security import hostile
from tests.unit.support.gpu_node import MARKS

MIB = 1 << 20
_SPEC = b"cdiVersion: 0.5.0\nkind: vendor.com/device\n"
_DEVICE = b'{"name": "x", "containerEdits": {"env": ["A=B"]}}'

SPECS = {
    "list of numbers": _SPEC + b"devices: [" + b"1," * 450_000 + b"1]",
    "list of mappings": _SPEC + b"devices: [" + b"{}," * 300_000 + b"{}]",
    "many devices": _SPEC + b"devices:\n" + b"- {name: x, containerEdits: {env: [A=B]}}\n" * 20_000,
    "many unknown keys": _SPEC + b"".join(b"x%d: 1\n" % n for n in range(24_000)),
    "many mistakes": _SPEC + b"devices:\n" + b"- {}\n" * 49_000,
    "merged again and again": _SPEC + b"a: &a {" + b"".join(b"k%d: 1, " % n for n in range(10_000))
    + b"}\nb: [" + b"{<<: *a}, " * 10_000 + b"]\n",
    "aliases of lists": _SPEC + b"a: &a [" + b"1," * 20_000 + b"]\nb: ["
    + b"*a," * 20_000 + b"]\n",
    "wide characters": _SPEC + b'x: "' + "\U0001f600".encode() * 900_000 + b'"\n',
    "one device, long": _SPEC + b"devices: [" + _DEVICE + b"]\n#" + b"x" * (5 * MIB),
    "json": b'{"kind": "vendor.com/device", "devices": [' + (_DEVICE + b",") * 19_000 + _DEVICE
    + b"]}",
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A spec directory with a good spec beside what the attacker puts there."""
    directory = tmp_path / "cdi"
    directory.mkdir()
    (directory / "good.json").write_bytes(
        b'{"cdiVersion": "0.5.0", "kind": "good.com/x", "devices": [' + _DEVICE + b"]}"
    )
    return directory


@pytest.mark.parametrize("name", SPECS)
def test_oversized_foreign_spec_is_reported_beside_a_good_one(name: str, place: Path) -> None:
    """It is told, and the good one beside it is had."""
    (place / "bad.yaml").write_bytes(SPECS[name])
    words = ("--socket=/nowhere/x.sock", f"--cdi-output-dir={place}", "--host-root=/")
    for command in (("cdi", "list", "-o", "json"), ("cdi", "validate", str(place / "bad.yaml"))):
        done = hostile.agent(*command, *words)
        done.fits()
        assert done.code in (0, 1)
        assert "Traceback" not in done.err
        assert "bad.yaml" in done.out
    found = json.loads(hostile.agent("cdi", "list", "-o", "json", *words).out)
    mine = [one for one in found["devices"] if one["file"] == str(place / "good.json")]
    assert [one["name"] for one in mine] == ["good.com/x=x"]


def test_specs_together_have_a_limit(place: Path) -> None:
    """Two hundred of them: what is parsed together has a limit too."""
    for number in range(200):
        (place / f"bad{number}.yaml").write_bytes(
            _SPEC + b"devices:\n" + b"- {name: x, containerEdits: {env: [A=B]}}\n" * 4_000
        )
    done = hostile.agent(
        "cdi", "list", "-o", "json", "--socket=/nowhere/x.sock", f"--cdi-output-dir={place}",
        "--host-root=/", timeout=120,
    )  # fmt: skip
    done.fits()
    assert done.code == 0
    assert "was not looked at" in done.out or "values" in done.out


@pytest.mark.parametrize("name", SPECS)
def test_kind_is_found_in_little_memory(name: str) -> None:
    """Whether a file kills the runtime is asked of each; the file is not built up for it."""
    tracemalloc.start()
    try:
        before = time.process_time()
        kinds = read.kinds(SPECS[name])
        used = time.process_time() - before
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        read.kinds.cache_clear()
    assert kinds == ("vendor.com/device",)
    assert peak < 30 * MIB
    assert used < 20  # tracemalloc makes it several times slower


def test_spec_of_a_large_node_is_within_the_budget() -> None:
    """Sixteen GPUs with seven MIG devices each, and 2,048 IMEX channels."""
    gpus = [
        {"name": f"{gpu}:{mig}", "containerEdits": {"deviceNodes": [
            {"path": f"/dev/nvidia{gpu}"}, {"path": f"/dev/nvidia-caps/nvidia-cap{mig}"},
            {"path": f"/dev/nvidia-caps/nvidia-cap{mig + 1}"}, {"path": f"/dev/dri/card{gpu}"}]}}
        for gpu in range(16) for mig in range(7)
    ]  # fmt: skip
    channels = [
        {"name": str(number), "containerEdits": {"deviceNodes": [{"path": f"/dev/c/{number}"}]}}
        for number in range(2048)
    ]
    for devices in (gpus, channels):
        spec = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}
        assert read.document(json.dumps(spec).encode()).values < budget.SPEC.values / 2


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GpuHost]:
    """A node with a GPU, whose own specs are to be written."""
    with tempfile.TemporaryDirectory(prefix="n") as place, GpuHost(Path(place), FakeGpu(0)) as node:
        checks.done(node.agent("apply"))
        for name in node.specs():
            (node.cdi / name).unlink()
        yield node


@MARKS[0]
@MARKS[1]
def test_own_specs_are_written_beside_hostile_ones(host: GpuHost) -> None:
    """Whatever else lies in the directories, ours are written, the rest is told."""
    for number, data in enumerate(SPECS.values()):
        (host.cdi_etc / f"bad{number}.yaml").write_bytes(data)
    done = hostile.agent("apply", *host.options(), timeout=120)
    done.fits()
    assert done.code == 0, done.err
    assert "bad" in done.err
    assert {MANAGEMENT, GPU} <= set(host.specs())


@MARKS[0]
@MARKS[1]
def test_oversized_spec_of_our_kind_is_reported(host: GpuHost) -> None:
    """The runtime may read it. Ours in the same directory would cancel it: it is told, and nothing
    is written for that kind."""
    theirs = host.cdi / "nvidia.yaml"
    theirs.write_bytes(SPECS["many devices"].replace(b"vendor.com/device", b"nvidia.com/gpu"))
    done = hostile.agent("apply", *host.options(), timeout=120)
    done.fits()
    assert done.code == 0, done.err
    assert "the runtime may not read it" in done.err
    assert set(host.specs()) == {MANAGEMENT, "nvidia.yaml"}


def cache(entries: int, value: int, text: bytes) -> bytes:
    """A cache of which every entry has the same string."""
    head = b"glibc-ld.so.cache1.1" + struct.pack("<II", entries, len(text)) + bytes(20)
    return head + struct.pack("<iIIIQ", 0x0303, value, value, 0, 0) * entries + text


def test_library_cache_with_shared_paths_costs_little_memory() -> None:
    """65,536 entries with one path of 16 KB were 1 GB."""
    text = b"/" + b"x" * 16_000 + b"\0"
    data = cache(65_536, 48 + 24 * 65_536, text)
    tracemalloc.start()
    try:
        assert len(loader.cached_paths(data)) < 1_000
        assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    finally:
        tracemalloc.stop()


# ---- a runtime


def _status(config: bytes = b"{}") -> bytes:
    answer = api_pb2.StatusResponse(info={"config": config.decode()})
    answer.status.conditions.add(type="RuntimeReady", status=True)
    return bytes(answer.SerializeToString())


def field(number: int, data: bytes) -> bytes:
    """A field of protobuf that has a length."""
    size, length = bytearray(), len(data)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + data


_MIRRORS = json.dumps({
    "containerd": {"runtimes": {"runc": {"runtimeType": "io.containerd.runc.v2"}},
                   "defaultRuntimeName": "runc"},
    "enableCDI": True, "cdiSpecDirs": ["/etc/cdi"],
    "registry": {"mirrors": {f"r{n}.example": {"endpoint": [f"https://r{n}.example"]}
                             for n in range(1000)}},
}).encode()  # fmt: skip

# Made where they are needed: tens of megabytes.
STATUSES: dict[str, Callable[[], bytes]] = {
    "16 MB of text": lambda: _status(b'{"a": "' + b"x" * (16 * MIB - 100) + b'"}'),
    "empty lists": lambda: _status(b'{"a": [' + b"[]," * 600_000 + b"[]]}"),
    "empty handlers": lambda: field(3, b"") * 900_000,
    "empty conditions": lambda: field(1, field(1, b"") * 900_000),
    "empty pairs": lambda: b"".join(field(2, field(1, b"%d" % n)) for n in range(150_000)),
    "deep config": lambda: _status(b'{"a": ' + b"[" * 99_000 + b"]" * 99_000 + b"}"),
    "long number": lambda: _status(b'{"containerd": ' + b"1" * 5_000 + b"}"),
    "half a pair": lambda: _status(b'{"containerd": {"defaultRuntimeName": "\\ud800"}}'),
    "no message": lambda: b"\xff" * 1000,
    "cut short": lambda: _status(_MIRRORS)[:-10],
}


def _options(directory: Path, socket: Path) -> list[str]:
    given = {
        "host-root": "/", "socket": socket, "runtime": "containerd", "state-dir": directory / "st",
        "status-dir": directory / "status", "toolkit-install-dir": directory / "toolkit",
        "driver-root": directory / "none", "cdi-output-dir": "",
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in given.items()]


@pytest.mark.parametrize("name", STATUSES)
def test_oversized_status_ends_with_one_line(name: str, tmp_path: Path) -> None:
    """`plan` ends with one line, or as if the runtime showed nothing: then it names what `apply`
    would miss."""
    socket = tmp_path / "s"
    with hostile.runtime(socket, {"Status": STATUSES[name]()}):
        done = hostile.agent("plan", *_options(tmp_path, socket))
    done.fits()
    assert done.code in (1, 4), done.err
    assert "Traceback" not in done.err
    said = done.err.splitlines()[-1] if done.code == 4 else done.out
    assert "cannot " in said
    assert not (tmp_path / "st").exists()


def test_status_with_a_thousand_mirrors_is_within_the_budget(tmp_path: Path) -> None:
    """It is far below every limit."""
    data = _status(_MIRRORS)
    assert len(data) < budget.STATUS.size / 4
    assert budget.json_value(_MIRRORS, budget.INFO)
    assert sum(map(_MIRRORS.decode().count, ",:[{")) < budget.INFO.values / 4


def _pods(count: int, size: int) -> dict[str, bytes]:
    """Pods with one container each, both with an annotation."""
    containers = api_pb2.ListContainersResponse()
    pods = []
    for number in range(count):
        pair = field(1, b"a") + field(2, b"x" * size)
        pods.append(field(1, field(1, b"p%d" % number) + field(6, pair)))  # not in our description
        containers.containers.add(
            id=f"c{number}", pod_sandbox_id=f"p{number}", annotations={"a": "x" * size}
        )
    return {"ListPodSandbox": b"".join(pods), "ListContainers": containers.SerializeToString()}


LISTS: dict[str, Callable[[], dict[str, bytes]]] = {
    "large annotations": lambda: _pods(500, 15_000),
    "20 MB": lambda: _pods(500, 40_000),
    "empty pods": lambda: {"ListPodSandbox": field(1, b"") * 4_000_000,
                   "ListContainers": field(1, b"") * 4_000_000},
    "many pods": lambda: _pods(60_000, 1),
    "many annotations": lambda: {
        "ListPodSandbox": b"\xff",
        "ListContainers": field(1, b"".join(field(9, field(1, b"%d" % n)) for n in range(90_000))),
    },
}  # fmt: skip

_ASK = """
import resource, sys
from agent.errors import Unreachable
from agent.cri import client
found = []
with client.pod_questions(sys.argv[1], "the runtime") as ask:
    for question in (ask.sandboxes, ask.containers):
        try:
            found.append(question())
        except Unreachable as error:
            print(error.message)
print(sum(map(len, found)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("name", LISTS)
def test_oversized_list_of_pods_is_one_error_line(name: str, tmp_path: Path) -> None:
    """500 pods with much in their annotations are read; what is more is an error in one line."""
    socket = tmp_path / "s"
    with hostile.runtime(socket, LISTS[name]()):
        done = hostile.python("-c", _ASK, str(socket))
    assert done.code == 0, done.err
    *said, last = done.out.splitlines()
    assert int(last.split()[0]) == (1000 if name == "large annotations" else 0) or said
    assert all(line.startswith("cannot ") for line in said)
    assert (said == []) == (name == "large annotations")
    assert "Traceback" not in done.err
    # Beside what a convergence needs otherwise, of which this process has a half.
    assert done.peak < hostile.LIMIT * 0.75, f"{done.peak >> 10} MiB"
