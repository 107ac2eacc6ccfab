"""The readers of foreign input that `fuzz.py` feeds, with well-formed examples.

A reader of files reads a file in a private directory; one of a socket talks to a thread that says
the input and hangs up.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agent import status
from agent._cri import api_pb2
from agent.cdi.driver import kernel, loader, majors, nvml
from agent.cdi.make import tegra
from agent.cdi.specs import crashes, installed, own_specs, read
from agent.cri import client as cri
from agent.cri import process, protobuf
from agent.errors import AgentError, Refused, Unreachable
from agent.host import budget, paths
from agent.host.paths import HostPath, HostRoot
from agent.runtimes import command, registry
from agent.runtimes.config_file import ConfigFile, check_shape
from agent.runtimes.containerd import faults, handlers, load, merge
from agent.runtimes.containerd.generations import GENERATIONS
from agent.runtimes.crio import command_line, config_request, hook
from agent.runtimes.crio import merge as crio
from agent.runtimes.desired_state import Desired, Effective
from agent.state.store import Store
from agent.systemd import systemctl
from agent.systemd.dbus import Bus, BusError, NoBus
from agent.toml import document
from agent.toolkit import config, tree
from tests.bench.fuzz import Reader
from tests.unit.support.ld_cache import make_cache

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
_PLACE = tempfile.TemporaryDirectory(prefix="fuzz-")
PLACE = Path(_PLACE.name)
HOST = HostRoot("/")

_TOMLS = [
    path.read_bytes()
    for path in sorted((*DATA.rglob("*.toml"), *DATA.rglob("*.conf")))
    if path.stat().st_size < 20_000
]
_INFOS = [path.read_bytes() for path in sorted(DATA.rglob("status-info-config.json"))]
_PODS = [path.read_bytes() for path in sorted(DATA.rglob("with-pods.json"))]
_SPEC = b"""---
# Written by toolkit-agent; changes are overwritten.
cdiVersion: 0.5.0
kind: nvidia.com/gpu
annotations: {"a.b/c": "d"}
devices:
- name: "0"
  containerEdits: &edits
    deviceNodes:
    - path: /dev/nvidia0
      hostPath: /dev/nvidia0
      type: c
      major: 195
      minor: 0
      fileMode: 438
      permissions: rw
    additionalGids: [1, 2]
- {name: all, containerEdits: *edits}
containerEdits:
  env: [NVIDIA_VISIBLE_DEVICES=void]
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib]
  mounts:
  - <<: {type: bind}
    hostPath: /bin/nvidia-smi
    containerPath: /usr/bin/nvidia-smi
    options: [ro, nosuid, nodev, bind]
  intelRdt: {closID: a, enableCMT: yes}
"""
_SPEC_JSON = json.dumps({
    "cdiVersion": "0.6.0", "kind": "a.com/b",
    "devices": [{"name": "x", "containerEdits": {"env": ["A=B"]}}],
}).encode()  # fmt: skip

# What a value may become in a text of JSON.
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1 << 63, 10**400, 1.5, 1e308, float("inf"), float("nan"), "", "x", "/", "..",
    "\0", "\ud800", "\udcff", "a" * 5000, "/a" * 3000, [], {}, [[]], [None], {"": None}, [1, 2, 3],
    {"a": {"b": {}}}, "nvidia", "2.1.9",
)  # fmt: skip


def json_changed(rng: random.Random, data: bytes) -> bytes:
    """The same JSON with other values, names and nesting here and there."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    for _ in range(rng.randint(1, 4)):
        value = _changed(rng, value)
    text = json.dumps(value)
    if rng.random() < 0.03:
        depth = rng.choice((50, 200, 2000, 100_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode()


def _changed(rng: random.Random, value: Any) -> Any:
    """A value in which one place is another."""
    if rng.random() < 0.2 or not isinstance(value, dict | list) or not value:
        return rng.choice(_VALUES)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        if rng.random() < 0.15:
            return value[:at] + value[at + 1 :]
        return [*value[:at], _changed(rng, value[at]), *value[at + 1 :]]
    key = rng.choice(list(value))
    if rng.random() < 0.15:
        return {name: item for name, item in value.items() if name != key}
    return {**value, key: _changed(rng, value[key])}


def _file(name: str, data: bytes) -> Path:
    path = PLACE / name
    path.write_bytes(data)
    return path


# ---- the CRI


def _status(config: bytes) -> bytes:
    answer = api_pb2.StatusResponse(
        info={"config": config.decode("utf-8", "replace"), "golang": '"go1.22"'}
    )
    answer.status.conditions.add(type="RuntimeReady", status=True)
    answer.runtime_handlers.add(name="nvidia")
    return bytes(answer.SerializeToString())


def _status_changed(rng: random.Random, data: bytes) -> bytes:
    answer = api_pb2.StatusResponse.FromString(data)
    config = json_changed(rng, answer.info["config"].encode())
    answer.info["config"] = config.decode("utf-8", "replace")
    return bytes(answer.SerializeToString())


def _read_status(data: bytes) -> None:
    answer = protobuf.parsed(data, api_pb2.StatusResponse, budget.STATUS)
    for name in ("containerd", "cri-o"):
        version = api_pb2.VersionResponse(runtime_name=name, runtime_version="1.7.24")
        _read_answer(cri.answer_of(version, answer))


def _read_answer(found: cri.Answer) -> None:
    """What is asked of an answer before anything is decided."""
    registry.shown_handler_names(found)
    registry.shows_nvidia(found)
    table = {"runtime_type": "io.containerd.runc.v2", "options": {"BinaryName": "/x"}}
    for default in ("nvidia", "runc"):
        registry.adapter_of(found).unproven(
            Desired({"nvidia": table, "runc": table}, default, True, ("old",)), found
        )
    handlers.shown_features(found, ("io.containerd.runtime.v1.linux",))
    [*registry.adapter("crio").evidence(found)]
    registry.adapter("containerd").evidence(found)


class _Questions(cri.PodQuestions):
    """Every question has the same bytes as its answer."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def ask(self, method: str, request: Any) -> Any:
        """As a session on a channel."""
        kind = getattr(api_pb2, f"{method}Response")
        return protobuf.parsed(self._data, kind, budget.PODS)


_NOTHING = Effective("", {}, None, {})


def _read_pods(data: bytes) -> None:
    questions = _Questions(data)
    for ask in (questions.sandboxes, questions.containers):
        with suppress(ValueError):
            ask()
    for about in (questions.sandbox_info, questions.container_info):
        with suppress(ValueError):
            info = about("id")
            registry.adapter("crio").pod_handler(info)
            registry.adapter("containerd").pod_programs(info, _NOTHING, "")
            cri.asks_by_variable(info)


def _pod_examples() -> Iterator[bytes]:
    listed = api_pb2.ListPodSandboxResponse()
    containers = api_pb2.ListContainersResponse()
    for number in range(3):
        listed.items.add(id=f"s{number}", runtime_handler="nvidia", created_at=1 << 60)
        listed.items[-1].metadata.name = "pod"
        containers.containers.add(id="c", annotations={"cdi.k8s.io/x": "nvidia.com/gpu=0"})
    yield listed.SerializeToString()
    yield containers.SerializeToString()
    for text in _PODS:
        info = json.dumps({"runtimeSpec": {"annotations": {}, "process": {"env": ["A=B"]}},
                           "runtimeOptions": {"a": "b"}, "more": len(text)})  # fmt: skip
        yield api_pb2.PodSandboxStatusResponse(info={"info": info}).SerializeToString()


# ---- configurations


def _read_toml(data: bytes) -> None:
    parsed = document.parse(data, "file")
    if len(data) > 20_000:
        return
    text = document.decoded(data, "file")
    repr(document.without_empty(parsed))
    path = ("plugins", "io.containerd.grpc.v1.cri", "containerd", "runtimes", "nvidia")
    with suppress(Refused):
        document.edit(text, [document.Set(path, {"runtime_type": "x"})], "file")
    with suppress(Refused):
        document.edit(text, [document.Append(("imports",), "/x"), document.Unset(path)], "file")


def _config(data: bytes) -> ConfigFile:
    from agent.host import files

    place = HostPath("/etc/file", "/etc/file")
    return ConfigFile("/etc/file", place, files.new_state(data), document.parse(data, "file"))


def _read_containerd(data: bytes) -> None:
    file = _config(data)
    check_shape(file, load.SHAPE)
    for gen in GENERATIONS:
        with suppress(AgentError):
            merge.effective(gen, (file,))
            faults.fatal_fault(gen, (file,))
            faults.disabling_entry(gen, (file,))
            faults.hidden_settings(gen, (file,))
            for pattern in file.data.get("imports", []):
                load.matches(load.import_pattern(gen, file.name, pattern) or "", "/x/y")


def _read_crio(data: bytes) -> None:
    file = _config(data)
    check_shape(file, crio.SHAPE)
    for version in ((1, 30, 0), (1, 37, 0)):
        found = crio.rules(version)
        crio.effective(found, (file,))


# ---- specs and libraries


def _read_spec(data: bytes) -> None:
    installed.examine("/etc/cdi/x.yaml", data, HOST)
    crashes.crash_cause(data)
    crashes.has_kind(data, "nvidia.com/gpu")
    own_specs.is_ours(data)
    read.kinds.cache_clear()


def _elf() -> bytes:
    """A library with one segment, its dynamic section and a soname."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0,
                                                            64, 56, 2, 0, 0, 0)  # fmt: skip
    at = 64 + 2 * 56
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 400, 400, 4096)
    dynamic = struct.pack("<IIQQQQQQ", 2, 6, at, at, at, 48, 48, 8)
    entries = struct.pack("<QQQQQQ", 14, 1, 5, at + 48, 0, 0)
    return head + load + dynamic + entries + b"\0libcuda.so.1\0"


# ---- /proc


def _read_proc(data: bytes) -> None:
    """The input is each file of a process in turn."""
    base = PLACE / "proc/7"
    base.mkdir(parents=True, exist_ok=True)
    stat = b"7 (containerd) S " + b"1 " * 18 + b"4242 0\n"
    for name in ("stat", "cmdline", "cgroup", "comm", "environ"):
        for other in ("stat", "cmdline", "cgroup", "comm", "environ"):
            (base / other).write_bytes(data if other == name else stat)
        found = process.inspect(7, str(PLACE / "proc"))
        if found is not None:
            process.is_kind(found, "containerd")
            variables = process.environment(found)
            command_line.parse(found.command, variables or {})
            cri.monitored_pod(found.command)
    majors.parsed(data.decode("ascii", "replace"))
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        kernel._information(str(_file("information", line.encode("utf-8", "surrogateescape"))))
        break


def _read_mounts(data: bytes) -> None:
    path = _file("mountinfo", data)
    paths.parse_mountinfo(budget.lines(str(path), budget.MOUNTS))


# ---- files of ours that somebody else may have written


_STATUS = (
    b"TOOLKIT_STATUS_VERSION=1\nTOOLKIT_BOOT_ID=b\nTOOLKIT_TIMESTAMP=1\n"
    b"TOOLKIT_CDI_SPEC_DIRS=/etc/cdi,/var/run/cdi\nDEVICE_LIST_STRATEGY=cdi-cri\n"
)


def _read_status_file(data: bytes) -> None:
    _file(status.TWIN, data).chmod(0o644)
    status.read_valid(HOST, str(PLACE), "b")


_ORIGINAL = {
    "digest": "d", "mode": 420, "uid": 0, "gid": 0, "written": "w", "edited": False, "made": 1,
    "keys": {'["a", "b"]': 1}, "text": "x",
}  # fmt: skip
_MEMORY = {
    "format": 1, "files": {"/etc/containerd/config.toml": _ORIGINAL}, "default": "runc",
    "enabled_cdi": True, "cdi_refused": None, "proven": ["boot", 1, 2], "moved": ["/usr/x"],
}  # fmt: skip
_JOURNAL = {
    "format": 1, "purpose": "apply", "boot_id": "b", "stage": "written",
    "entries": [{"host": "/etc/x", "before": None, "after": "a", "mode": 420, "uid": 0, "gid": 0,
                 "made": 0, "outside": "/var/x", "keys": {}, "text": None}],
    "wanted": {}, "before": [{}], "process": [1, 2], "kind": "containerd", "socket": "/run/x",
    "restart": ["systemd", "containerd.service"], "memory": _MEMORY, "old_memory": _MEMORY,
    "fingerprint": "f", "twin": "eA==", "barrier": None, "switch": None, "executable": "/usr/bin/x",
    "stuck": ["a", "b"],
}  # fmt: skip
_FAILED = {"format": 1, "candidates": {"a": {"why": "x", "at": 1.0}, "b": "text"}}


def _state_reader(name: str, load: Callable[[Store], object]) -> Callable[[bytes], object]:
    def read_state(data: bytes) -> object:
        _file(name, data)
        return load(Store(str(PLACE)))

    return read_state


def _read_list(data: bytes) -> None:
    _file(tree.LIST, data)
    tree.read_list(str(PLACE))


def _read_answers(data: bytes) -> None:
    config.read_config_file(str(_file("toolkit.toml", data)))


# ---- programs and sockets


@contextmanager
def _said(data: bytes, sock: socket.socket, *, greedy: bool = True) -> Iterator[None]:
    """Say it to whoever connects, or to the other end of a pair, and hang up."""

    def talk() -> None:
        with suppress(OSError):
            client = sock.accept()[0] if greedy else sock
            with client:
                client.settimeout(5)
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        thread.join()


_LISTENERS: dict[int, socket.socket] = {}


def _read_http(data: bytes) -> object:
    path = PLACE / f"crio-{os.getpid()}.sock"
    if os.getpid() not in _LISTENERS:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        _LISTENERS[os.getpid()] = listener
    with _said(data, _LISTENERS[os.getpid()]):
        found = config_request.effective_config(str(path), 4.0)
    _read_answer(cri.Answer("cri-o", "1.30.0", True, None, ("nvidia",), found))
    return found


def _read_bus(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with _said(data, theirs, greedy=False), Bus(ours, private=True, timeout=4.0) as bus:
        bus.call("/", "org.freedesktop.DBus.Peer", "Ping")


def _bus_example() -> bytes:
    from jeepney.low_level import HeaderFields
    from jeepney.wrappers import DBusAddress, new_method_call, new_method_return

    address = DBusAddress("/", bus_name="a.b", interface="a.b")
    call = new_method_call(address, "Ping")
    call.header.serial = 1
    answer = new_method_return(call, "sa(ss)u", ("text", [("a", "b")], 7))
    answer.header.fields.pop(HeaderFields.destination, None)
    return bytes(answer.serialise(serial=1))


def _read_log(data: bytes) -> None:
    for line in data.decode("utf-8", "replace").splitlines()[:100]:
        command.entry(line)
    text = data.decode("utf-8", "replace")
    systemctl._parse("x.service", text)


def _read_hook(data: bytes) -> None:
    hook._read(HostPath("/x.json", "/x.json"), data)


_HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: application/toml\r\n"
_NVML = json.dumps({
    "gpus": [{"index": 0, "uuid": "GPU-1", "minor": 0, "bus": "0000:01:00.0", "name": "x",
              "migs": []}],
    "warnings": ["w"], "error": "",
}).encode()  # fmt: skip

READERS = (
    Reader("cri-status", _read_status, [_status(text) for text in _INFOS], (ValueError,),
           _status_changed),
    Reader("cri-pods", _read_pods, [*_pod_examples()], (Unreachable,)),
    Reader("toml", _read_toml, _TOMLS, (Refused,)),
    Reader("containerd", _read_containerd, _TOMLS, (Refused,)),
    Reader("crio", _read_crio, _TOMLS, (Refused,)),
    Reader("spec-yaml", _read_spec, [_SPEC]),
    Reader("spec-json", _read_spec, [_SPEC_JSON], (), json_changed),
    Reader("ld-cache", loader.cached_paths, [
        make_cache([f"/usr/lib/x86_64-linux-gnu/lib{n}.so.{n}" for n in range(40)])]),
    Reader("csv", lambda data: list(tegra._lines(data.decode("utf-8", "replace"))), [
        b"dev, /dev/nvhost-*\nlib, /usr/lib/nvidia/libcuda.so.1.1\r\n# sym, /x\n dir , /a,b\n"]),
    Reader("elf", lambda data: loader.soname(str(_file("lib.so", data))), [_elf()]),
    Reader("proc", _read_proc, [
        b"/usr/bin/crio\0--config=/etc/crio/crio.conf\0-d\0/x\0--hooks-dir\0a,b\0",
        b"7 (containerd) S " + b"1 " * 18 + b"4242 0\n",
        b"0::/system.slice/containerd.service\n1:name=systemd:/a/b.service\n",
        b"CONTAINER_CONFIG=/x\0CONTAINER_RUNTIMES=a:b\0",
        b"Character devices:\n195 nvidia-frontend\n237 nvidia-caps\n"]),
    Reader("mountinfo", _read_mounts, [Path("/proc/self/mountinfo").read_bytes()[:8000]],
           (budget.OverBudget,)),
    Reader("status-file", _read_status_file, [_STATUS], (Refused,)),
    Reader("memory", _state_reader("memory.json", Store.memory), [json.dumps(_MEMORY).encode()],
           (Refused,), json_changed),
    Reader("journal", _state_reader("journal.json", Store.journal),
           [json.dumps(_JOURNAL).encode()], (Refused,), json_changed),
    Reader("failed", _state_reader("failed.json", Store.failures), [json.dumps(_FAILED).encode()],
           (Refused,), json_changed),
    Reader("toolkit-list", _read_list, [json.dumps({
        "copies": {"a": {"sha256": "x", "size": 1, "time": 2, "source": [1, 2, 3, 4, 5]}},
        "others": ["b"], "made": 1}).encode()], (Refused,), json_changed),
    Reader("toolkit-config", _read_answers, [
        path.read_bytes() for path in DATA.rglob("toolkit-config.toml")], (Refused,)),
    Reader("crio-http", _read_http, [
        _HTTP + b"Content-Length: 20\r\n\r\n[crio]\nlog_level='x'\n",
        _HTTP + b"Transfer-Encoding: chunked\r\n\r\n7\r\n[crio]\n\r\n0\r\n\r\n",
        _HTTP + b"\r\n[crio.runtime]\ndefault_runtime='runc'\n"]),
    Reader("bus", _read_bus, [_bus_example()], (NoBus, BusError)),
    Reader("program-log", _read_log, [
        b'time="2026-01-01T00:00:00Z" level=fatal msg="failed: \\"x\\"" error="a\\nb"\n',
        b'{"level": "error", "msg": "x", "n": 1}\ncontainerd: no\n',
        b"LoadState=loaded\nActiveState=active\nInvocationID=0123abcd\nMainPID=7\nJob=0\n"]),
    Reader("oci-hook", _read_hook, [json.dumps({
        "version": "1.0.0", "hook": {"path": "/usr/bin/x", "args": ["a"]},
        "when": {"always": True, "commands": [".*"]}, "stages": ["prestart"]}).encode()],
        (), json_changed),
    Reader("nvml", nvml._parsed, [_NVML], (), json_changed),
)  # fmt: skip
