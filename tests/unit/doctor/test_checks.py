"""Each check, on a healthy node with one thing changed.

`cli/test_doctor.py` has nodes with such faults.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.cdi.specs.installed import Device, SpecFile
from agent.cdi.specs.readers import UNKNOWN_READER
from agent.cdi.specs.shape import Problem
from agent.cdi.specs.spec_files import Directory
from agent.cdi.specs.spec_ownership import SpecStatus
from agent.cri.client import Answer
from agent.cri.process import Process, short_socket_path
from agent.decide import Evidence, Switch
from agent.doctor import runtime_checks
from agent.doctor.check import Check, Severity
from agent.doctor.diagnosis import CHECKS, diagnose
from agent.doctor.node import Node
from agent.doctor.surroundings import Driver, Kubelet, Plugin
from agent.doctor.toolkit import Toolkit
from agent.errors import NoToolkit, Refused, Unreachable
from agent.host.files import new_state
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import resolve
from agent.plan.context import Context
from agent.reports.node import LeftOver, Report
from agent.reports.specs import Finding, Inventory
from agent.runtimes import find
from agent.runtimes.base import Defect, Endpoint, RestartHazard, Runtime
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.desired_state import Effective
from agent.state.store import Memory, Store
from agent.status import NOT_PUBLISHED, READY, TWIN, Publisher
from agent.systemd.units import SystemdError, Ties, Unit

DIRS = ("/etc/cdi", "/var/run/cdi")
NVIDIA = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
ROOT, DROP_IN = "/etc/containerd/config.toml", "/etc/containerd/conf.d/99-nvidia.toml"
Change = Callable[[Node], object]


class Systemd:
    """systemd, which knows these units. Those in `bound` go down with the runtime for good."""

    def __init__(self, *units: Unit, bound: tuple[str, ...] = ()) -> None:
        self.units, self.bound = {unit.name: unit for unit in units}, bound

    def unit(self, name: str) -> Unit:
        return self.units[name]

    def ties(self, name: str) -> Ties:
        return Ties(bound=self.bound)

    def reach(self, host: HostRoot, name: str) -> Any:
        """It, and the runtime's unit."""
        return self, Unit(name, "loaded", "active", carries=(*self.units,))


KUBELET_UNIT = Unit("kubelet.service", "loaded", "active")
EFFECTIVE = Effective("runc", {"runc": {}, "nvidia": {"options": {"BinaryName": NVIDIA}}}, None, {})
PUBLISHED = {
    "TOOLKIT_NATIVE_CDI": "true",
    "DEVICE_LIST_STRATEGY": "cdi-cri",
    "CDI_ANNOTATION_PREFIX": "cdi.k8s.io/",
}
REPORT = Report(
    True, None, None, PUBLISHED, None, None, (), None, None, (), None, (), (), (), Memory()
)
DEVICE = Device("nvidia.com/gpu=0", "/var/run/cdi/x.yaml", "toolkit-agent", "resolvable")
PLUGIN = Plugin(9, ("cdi-cri",), "cdi.k8s.io/")
DRIVER = Driver(gpus=1, module="550.54.15", library="550.54.15", root="/")
NRT = "nvidia-container-runtime"
TOOLKIT: Mapping[str, Any] = {
    "accept-nvidia-visible-devices-envvar-when-unprivileged": False,
    NRT: {"modes": {"cdi": {"annotation-prefixes": ["nvidia.cdi.k8s.io/"]}}},
}


def plant(name: str, text: str = "", mode: int = 0o644) -> Change:
    """A file of the host."""

    def change(node: Node) -> None:
        path = Path(node.host.agent_path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    return change


def gone(name: str) -> Change:
    """A file of the host is not there."""
    return lambda node: Path(node.host.agent_path(name)).unlink()


def parts(**values: Any) -> Change:
    """Other parts of the node."""
    return lambda node: node.__dict__.update(values)


def report(**values: Any) -> Change:
    """Another report of what the agent did."""
    return lambda node: parts(report=replace(node.report, **values))(node)


def runtime(**values: Any) -> Change:
    """Another answer of the runtime."""
    return lambda node: parts(
        runtime=replace(node.runtime, answer=replace(node.runtime.answer, **values))
    )(node)


def running(**values: Any) -> Change:
    """Another process of the runtime."""
    return lambda node: parts(
        runtime=replace(
            node.runtime, process=replace(cast("Process", node.runtime.process), **values)
        )
    )(node)


def configured(**values: Any) -> Change:
    """Other files of the runtime."""
    return lambda node: node.configured.__dict__.update(values)


def file(name: str, **data: Any) -> Change:
    """One more file that the runtime loads, with this data."""
    return lambda node: configured(files=(*node.configured.files, loaded(node.host, name, data)))(
        node
    )


def loaded(host: HostRoot, name: str, data: Mapping[str, Any]) -> ConfigFile:
    """A file that the runtime loads."""
    return ConfigFile(name, HostPath(host.agent_path(name), name), new_state(b""), {**data})


def handler(name: str, **table: Any) -> Change:
    """A handler of that name has this table."""
    return lambda node: parts(
        effective=replace(node.effective, runtimes={**node.effective.runtimes, name: table})
    )(node)


NO_NVIDIA = parts(effective=replace(EFFECTIVE, runtimes={"runc": {}}))


def default(name: str) -> Change:
    """The default runtime is that handler."""
    return parts(effective=replace(EFFECTIVE, default=name))


def specs(**values: Any) -> Change:
    """Other CDI specs."""
    return lambda node: parts(specs=replace(node.specs, **values))(node)


def problem(text: str, *, error: bool = True) -> Change:
    """A problem of NVIDIA's spec."""
    found = Problem("file" if error else "nothing", "devices[0]", text, "repair it")
    return specs(findings=(Finding("/etc/cdi/nvidia.yaml", found),), devices=())


def plugin(strategy: str, prefix: str = "cdi.k8s.io/") -> Change:
    """The device plugin runs with these settings, and nobody manages the node."""
    found = Plugin(9, tuple(strategy.split(",")), prefix)

    def change(node: Node) -> None:
        parts(plugins=(found,))(node)
        report(published={})(node)

    return change


def toolkit(**data: Any) -> Change:
    """Other settings of NVIDIA's runtime."""
    return parts(toolkit=Toolkit("/usr/local/nvidia/toolkit/config.toml", {**TOOLKIT, **data}))


def driver(**values: Any) -> Change:
    """Another driver."""
    return parts(driver=replace(DRIVER, **values))


def systemd(*units: Unit, bound: tuple[str, ...] = ()) -> Change:
    """These units go down with the runtime."""
    reach = Systemd(*units, bound=bound).reach
    return lambda node: parts(ctx=replace(node.ctx, reach=reach))(node)


def process(name: str, *env: str) -> Change:
    """A process of the host, as its /proc shows it."""

    def change(node: Node) -> None:
        plant("/proc/4001/cmdline", f"/work/{name}\0")(node)
        plant("/proc/4001/environ", "".join(f"{word}\0" for word in env))(node)
        plant("/proc/4001/stat", f"4001 (x) S {'1 ' * 30}")(node)
        plant("/proc/4001/status", "Uid:\t0\t0\t0\t0\n")(node)

    return change


def listening(name: str) -> Change:
    """Somebody listens at a socket of the host."""

    def change(node: Node) -> None:
        path = Path(node.host.agent_path(name))
        path.parent.mkdir(parents=True)
        server = socket.socket(socket.AF_UNIX)
        with short_socket_path(str(path)) as short:
            server.bind(short)
        server.listen()
        server.detach()  # it listens until this process ends

    return change


def made_context(host: HostRoot) -> Context:
    """The context of a run on this host."""
    settings = resolve({}, {}, "toolkit-agent")
    store = Store("/var/lib/toolkit-agent", host)
    return Context(settings, host, store, Publisher(settings.status_dir, host=host))


def healthy(directory: Path) -> Node:
    """A node on which every check finds nothing, whose host is this directory."""
    host = HostRoot(str(directory))
    node = Node(replace(made_context(host), reach=Systemd(KUBELET_UNIT).reach), REPORT)
    for name in (NVIDIA, "/usr/bin/runc"):
        plant(name, mode=0o755)(node)
    for name in (ROOT, DROP_IN, "/proc/self"):
        plant(name, "nvidia")(node)
    for name in (READY, TWIN):
        plant(f"/run/nvidia/validations/{name}", "A=b\n")(node)
    found = Runtime(
        Endpoint("containerd", HostPath("/c.sock", "/run/containerd/containerd.sock")),
        Process(7, 1, "/usr/bin/containerd", None, "containerd.service", (), f"{directory}/proc"),
        Answer("containerd", "2.1.9", True, None, ("nvidia", "runc")),
    )
    root, drop_in = (loaded(host, name, {}) for name in (ROOT, DROP_IN))
    files = SimpleNamespace(
        adapter=SimpleNamespace(shows_reloaded=False),
        runtime=found,
        files=(root, drop_in),
        root=root,
        drop_in=drop_in.path,
        defects=lambda: (),
        restart_hazard=lambda _: None,
        rendered=lambda: (),
        cgroup_drivers=lambda: {"runc": "systemd", "nvidia": "systemd"},
        own_keys=lambda _, **__: (("handlers", "nvidia"),),
        passes_annotation=lambda _, prefix: prefix == "nvidia.cdi.k8s.io/",
        hook_programs=lambda _: (),
    )
    directories = tuple(Directory(n, HostPath(host.agent_path(n), n)) for n in DIRS)
    parts(
        is_root=True,
        answering=found,
        runtime=found,
        executable="",
        evidence=Evidence("cri-status", Switch.TRUE, DIRS),
        silent_runtime=None,
        refused="",
        configured=files,
        effective=EFFECTIVE,
        start_failure="",
        unloaded="",
        specs=Inventory(UNKNOWN_READER, directories, (), (DEVICE,), ()),
        kubelet=Kubelet("systemd", "/var/lib/kubelet/config.yaml", found.socket.host),
        plugins=(PLUGIN,),
        driver=DRIVER,
    )(node)
    toolkit()(node)
    return node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """The healthy node."""
    return healthy(tmp_path)


class Case:
    """What has to be changed for a check to find something, and words of the finding or its
    remedy."""

    def __init__(self, check: str, severity: Severity, words: str, *changes: Change) -> None:
        self.check, self.severity, self.words, self.changes = check, severity, words, changes


def down(text: str) -> Change:
    """No runtime answers."""
    return parts(answering=Unreachable(f"cannot reach /run/x.sock: {text}"))


def defect(**values: Any) -> Change:
    """The files have a defect."""
    return configured(defects=lambda: (Defect("text", "remedy", **values),))


NO_CDI = parts(evidence=Evidence("cri-status", Switch.FALSE, DIRS))
CDI_UNKNOWN = parts(evidence=Evidence("cri-status", Switch.ABSENT, None))
OTHER_PROGRAM = {"BinaryName": f"/other/{NRT}"}
LOST = file("/a", plugins={"cri": {"runtimes": {"nvidia": {"options": OTHER_PROGRAM}}}})
HAZARD = RestartHazard(HostPath("/s", "/s"), "dies", "remove it", "containerd")
DOCKER = Unit("d.service", "loaded", "inactive")
PROFILES = "/sys/kernel/security/apparmor/profiles"
INSTALLER = process("nvidia-ctk-installer", "ENABLE_NRI_PLUGIN=true")
DRA = plant("/var/lib/kubelet/plugins/gpu.nvidia.com/x")
NRI_SOCKET = plant("/var/run/nri/nri.sock")
VERSION_17 = runtime(version="1.7.24")


def hooks(program: str) -> Change:
    """The runtime reads an OCI hook that runs a program."""
    return configured(hook_programs=lambda _: ((HostPath("/h.json", "/h.json"), program),))


def cgroupfs(name: str) -> Change:
    """A handler uses another cgroup driver than the kubelet."""
    return configured(cgroup_drivers=lambda: {"runc": "systemd", name: "cgroupfs"})


def deleted_executable(node: Node) -> None:
    """The runtime's executable was removed after its start."""
    parts(executable="/usr/bin/containerd")(node)
    link = Path(node.host.agent_path("/proc/7/exe"))
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/bin/containerd (deleted)")


CASES = [
    Case("config-refused", "fault", "mend", parts(refused="cannot read x: bad; mend")),
    Case("config-deadly", "fault", "remedy", defect(deadly=True)),
    Case("config-default", "fault", "gone", default("gone")),
    Case("config-dormant", "fault", "before any", parts(unloaded="/a", start_failure="why")),
    Case("config-dormant", "warning", "why", parts(start_failure="why")),
    Case("spec-crash", "fault", "remove it", configured(restart_hazard=lambda _: HAZARD)),
    Case("runtime-start", "fault", "conmon", down("no"), parts(start_failure="no conmon")),
    Case("runtime-socket", "fault", "start the runtime", down("gone; is the runtime up?")),
    Case("runtime-socket", "fault", "restart the runtime", down("no answer in time")),
    Case("runtime-socket", "warning", "as root", down("permission denied; run as root"),
         parts(is_root=False)),
    Case("runtime-ready", "fault", "not ready", runtime(ready=False)),
    Case("runtime-two", "fault", "--socket=/run/k3s.sock",
         parts(kubelet=Kubelet(socket="/run/k3s.sock"))),
    Case("runtime-two", "warning", "/run/crio/crio.sock", parts(kubelet=Kubelet()),
         listening("/run/crio/crio.sock")),
    Case("runtime-upgrade", "warning", "2.2.0", parts(executable="/usr/bin/containerd")),
    Case("runtime-upgrade", "fault", "not there any more", deleted_executable,
         runtime(version="2.2.0")),
    Case("runtime-process", "info", "--restart-mode", running(unit=None)),
    Case("runtime-process", "info", "hostPID",
         lambda node: parts(runtime=replace(node.runtime, process=None))(node)),
    Case("rights", "info", "root", parts(is_root=False)),
    Case("units", "warning", "start d.service", systemd(DOCKER, bound=("d.service",))),
    Case("units", "info", "kubelet.service stops",
         systemd(KUBELET_UNIT, bound=("kubelet.service",))),
    Case("apparmor", "warning", "site", plant("/proc/7/attr/current", "site (enforce)\n")),
    Case("apparmor", "warning", "aa-complain",
         plant(PROFILES, "nvidia_modprobe (enforce)\n/x/nvidia-ctk (enforce)\n")),
    Case("handler-defect", "fault", "text", defect()),
    Case("handler-defect", "warning", "text", defect(harmful=False)),
    Case("config-override", "fault", "from /b", configured(files=()),
         file(DROP_IN, handlers={"nvidia": {"k": 1}}), file("/b", handlers={"nvidia": {"k": 2}})),
    Case("handler-program", "fault", "/bin/true",
         handler("nvidia", options={"BinaryName": "/bin/true"})),
    Case("handler-program", "fault", "no program", handler("nvidia")),
    Case("handler-binary", "fault", f"{NVIDIA}, which is not there", gone(NVIDIA)),
    Case("handler-binary", "fault", "not executable", plant(NVIDIA, mode=0o644)),
    Case("handler-binary", "warning", "/bin/kata",
         handler("kata", options={"BinaryName": "/bin/kata"})),
    Case("toolkit-config", "fault", "repair", parts(toolkit=Toolkit("/c", broken="bad; repair"))),
    Case("toolkit-config", "fault", "cid", toolkit(**{NRT: {"mode": "cid"}})),
    Case("toolkit-config", "fault", "no Tegra", toolkit(**{NRT: {"mode": "csv"}})),
    Case("toolkit-config", "warning", "cli.root of", toolkit(**{
         "nvidia-container-cli": {"root": "/r"}})),
    Case("toolkit-config", "fault", "ctk.path of", toolkit(**{
         NRT: {"mode": "legacy"}, "nvidia-ctk": {"path": "/r"}})),
    Case("toolkit-config", "warning", "no-cgroups", toolkit(**{
         "nvidia-container-cli": {"no-cgroups": True}})),
    Case("toolkit-calls", "warning", "runc", gone("/usr/bin/runc")),
    Case("toolkit-calls", "fault", "/x", toolkit(**{NRT: {"runtimes": ["/x/runc"]}})),
    Case("handler-cgroup", "fault", "cgroupDriver", cgroupfs("nvidia")),
    Case("handler-cgroup", "fault", "cgroupDriver", cgroupfs("runc"), VERSION_17),
    Case("handler-cgroup", "warning", "cgroupDriver", cgroupfs("runc")),
    Case("config-import", "warning", "conf.d/x.toml",
         plant("/etc/containerd/conf.d/x.toml", "nvidia")),
    Case("config-import", "fault", "conf.d/x.toml",
         plant("/etc/containerd/conf.d/x.toml", "nvidia"), NO_NVIDIA),
    Case("config-import", "info", "conf.d/x.toml", plant("/etc/containerd/conf.d/x.toml")),
    Case("config-import", "warning", "/a.toml", plant("/etc/containerd/a.toml", "nvidia"),
         NO_NVIDIA),
    Case("config-import", "fault", "apply` makes the", NO_NVIDIA,
         lambda node: configured(files=(node.configured.root,))(node)),
    Case("handler-lost", "warning", "/a", LOST),
    Case("handler-lost", "fault", "/a", LOST, NO_NVIDIA),
    Case("handler-missing", "fault", "restart", runtime(handlers=("runc",))),
    Case("handler-missing", "fault", "no runtime for nvidia", NO_NVIDIA),
    Case("handler-missing", "info", "no handler", NO_NVIDIA, report(published={})),
    Case("config-unloaded", "warning", "/a", parts(unloaded="/a")),
    Case("config-reloaded", "warning", "a reload is not enough",
         configured(adapter=SimpleNamespace(shows_reloaded=True))),
    Case("default-nvidia", "warning", "default", default("nvidia")),
    Case("isolation", "info", "any pod", parts(toolkit=Toolkit("/c"))),
    Case("isolation", "warning", "any image", parts(toolkit=Toolkit("/c")), default("nvidia")),
    Case("hook-foreign", "warning", "/h.json", hooks(NVIDIA)),
    Case("hook-foreign", "fault", "/gone", hooks("/gone")),
    Case("handler-sandbox", "warning", "nvidia-x",
         handler("nvidia-x", runtime_type="io.containerd.runsc.v1")),
    Case("config-rendered", "warning", "/t.tmpl",
         configured(rendered=lambda: (("/c", "k3s", "/t.tmpl"),))),
    Case("host-readonly", "warning", "--config", lambda node: configured(root=SimpleNamespace(
         name=ROOT, path=HostPath(node.host.agent_path(f"{NVIDIA}/x"), ROOT)))(node)),
    Case("cdi-off", "fault", "enable_cdi = true", NO_CDI),
    Case("cdi-off", "warning", "enable_cdi", NO_CDI, plugin("envvar")),
    Case("cdi-off", "fault", "enable_cdi", NO_CDI, plugin("envvar"), DRA),
    Case("cdi-off", "fault", "restart the runtime", NO_CDI,
         parts(effective=replace(EFFECTIVE, enable_cdi=True))),
    Case("cdi-directories", "fault", "/x", plant("/x/nvidia.yaml"), lambda node: specs(
         directories=(Directory("/x", HostPath(node.host.agent_path("/x"), "/x"), "no"),))(node)),
    Case("cdi-directories", "fault", "read /etc/cdi", plant("/etc/cdi/nvidia.yaml"),
         specs(directories=())),
    Case("cdi-directories", "fault", "cdi_spec_dirs is empty",
         parts(evidence=Evidence("cri-status", Switch.TRUE, ()))),
    Case("spec-invalid", "fault", "no kind", problem("no kind")),
    Case("spec-conflict", "fault", "/b",
         problem("/b defines x too, and the runtime uses it from none of these files")),
    Case("spec-stale", "fault", "made for driver 535.1.2, and driver 550.54.15",
         problem("mount source '/libcuda.so.535.1.2' is missing on the host")),
    Case("spec-stale", "fault", "nvidia-modprobe",
         problem("device node '/dev/nvidia0' is missing on the host")),
    Case("spec-hook", "fault", "'/x'", problem("hook binary '/x' is missing on the host")),
    Case("spec-doubt", "info", "large", problem("it is large", error=False)),
    Case("spec-doubt", "warning", "cannot be read",
         problem("the directory cannot be read: x", error=False)),
    Case("spec-open", "fault", "/etc/cdi/x.yaml", plant("/etc/cdi/x.yaml", mode=0o666),
         specs(files=(SpecFile("/etc/cdi/x.yaml"),))),
    Case("spec-name", "warning", "/etc/cdi/n.yml",
         plant("/etc/cdi/n.yml", "cdiVersion: nvidia.com/gpu"), specs(devices=())),
    Case("spec-none", "fault", "no CDI spec", specs(devices=())),
    Case("cdi-nobody", "fault", "not the default", plugin("cdi-annotations", "nvidia.cdi.k8s.io/")),
    Case("cdi-nobody", "fault", "slash", plugin("cdi-annotations", "cdi.k8s.io")),
    Case("cdi-nobody", "fault", "another prefix", plugin("cdi-annotations", "other.io/")),
    Case("cdi-nobody", "fault", "by variable", plugin("envvar")),
    Case("cdi-nobody", "fault", "cdi-annotations", plugin("cdi-cri"), NO_CDI),
    Case("plugin-strategy", "fault", "needs cdi-cri", parts(plugins=(Plugin(9, ("envvar",)),))),
    Case("plugin-strategy", "fault", "/h", parts(plugins=(replace(PLUGIN, hook="/h"),))),
    Case("plugin-strategy", "fault", "NVIDIA_DRIVER_ROOT=/d", driver(root="/d")),
    Case("cdi-twice", "warning", "twice", configured(passes_annotation=lambda *_: True),
         parts(toolkit=Toolkit("/c"))),
    Case("cdi-twice", "warning", "both", plugin("envvar,cdi-cri")),
    Case("nri", "fault", "no NRI socket", INSTALLER),
    Case("nri", "warning", "by NRI", INSTALLER, NRI_SOCKET),
    Case("nri", "info", "10-x", plant("/opt/nri/plugins/10-x")),
    Case("cdi-unsupported", "warning", "knows no CDI", CDI_UNKNOWN),
    Case("cdi-unsupported", "info", "knows no CDI", CDI_UNKNOWN, default("nvidia")),
    Case("cdi-unsupported", "fault", "DRA driver", CDI_UNKNOWN, DRA),
    Case("agent-unfinished", "fault", "apply", report(unfinished="apply (written)")),
    Case("agent-failed", "fault", "no answer", report(failed="no answer")),
    Case("agent-failed", "warning", "cannot write", report(error="cannot write")),
    Case("driver-module", "fault", "nvidia-modprobe", driver(module="")),
    Case("driver-module", "fault", "nouveau", driver(other="nouveau")),
    Case("driver-mismatch", "fault", "535.1", driver(module="535.1")),
    Case("driver", "fault", "install", driver(problem="cannot make a CDI spec: none; install")),
    Case("driver", "info", "none", driver(problem="none", gpus=0)),
    Case("driver", "warning", "WSL2", driver(problem="none", platform="WSL2")),
    Case("driver-nodes", "fault", "nvidiactl", driver(missing_nodes=("/dev/nvidiactl",))),
    Case("agent-refuses", "fault", "do z", report(problem=Refused("cannot x: y; do z"))),
    Case("agent-refuses", "info", "no toolkit", report(problem=NoToolkit("no toolkit"))),
    Case("status-stale", "fault", "old boot", report(not_published="cannot trust f: old boot")),
    Case("status-stale", "fault", "is not there", gone(f"/run/nvidia/validations/{READY}")),
    Case("status-stale", "fault", "differs from",
         plant(f"/run/nvidia/validations/{READY}", "A=c\n")),
    Case("status-missing", "fault", "no decision", report(not_published=f"f: {NOT_PUBLISHED}")),
    Case("status-missing", "info", "never", report(published={})),
    Case("agent-drift", "warning", "a is missing", report(drift=("a is missing",))),
    Case("agent-drift", "fault", "nvidia", report(drift=("running runtime: no nvidia",))),
    Case("agent-drift", "fault", "apply", report(drift=("a",), specs=(SpecStatus("k"),))),
    Case("installer", "fault", "nvidia-toolkit", process("nvidia-toolkit")),
    Case("left-over", "warning", "/p", report(left_over_files=(LeftOver("/p", "x", "revert"),))),
    Case("selinux", "fault", "restorecon", plant("/sys/fs/selinux/enforce", "1")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.check}-{case.words}")
def test_check_finds_it(case: Case, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own, whatever other checks find."""
    monkeypatch.setattr(find, "executable_version", lambda *_: "2.2.0")
    for change in case.changes:
        change(node)
    found = [item for item in diagnose(node).findings if item.check.id == case.check]
    assert [item.symptom.severity for item in found] == [case.severity]
    assert case.words in f"{found[0].symptom.text} {found[0].remedy}"
    assert found[0].remedy


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_check_finds_nothing_on_a_healthy_node(check: Check, node: Node) -> None:
    """And there is a case that it finds."""
    assert [*check.find(node)] == []
    assert check.id in {case.check for case in CASES}


def test_ids_are_unique() -> None:
    """Scripts name them."""
    names = [check.id for check in CHECKS]
    assert len(set(names)) == len(names)


def test_missing_part_is_a_reason_and_no_result(node: Node) -> None:
    """A check that needs it is not one that passed, and the others go on."""
    for name in ("configured", "effective", "toolkit", "unloaded"):
        del node.__dict__[name]
    parts(_files=(None, "no file; repair it"))(node)
    found = diagnose(node)
    skipped = {check.id: why for check, why in found.skipped}
    assert skipped["handler-binary"] == "no file"
    assert "driver" not in skipped
    assert found.findings == ()


def test_node_without_a_runtime_is_no_error(tmp_path: Path) -> None:
    """Every check says why it did not look, or finds nothing but that."""
    ctx = made_context(HostRoot(str(tmp_path)))
    found = diagnose(Node(ctx, replace(REPORT, published={}, problem=Unreachable("cannot"))))
    assert [item.check.id for item in found.faults] == ["runtime-socket"]
    skipped = {why for _, why in found.skipped}
    assert skipped == {"no runtime answers"}
    assert len(found.skipped) > 20


def test_the_worst_comes_first_and_causes_before_what_follows(node: Node) -> None:
    """A missing default explains a socket without an answer."""
    for change in (default("gone"), parts(unloaded="/a", is_root=False), down("gone")):
        change(node)
    ids = [item.check.id for item in diagnose(node).findings]
    assert ids == ["config-default", "runtime-socket", "config-unloaded", "rights"]


@pytest.mark.parametrize("unit", [None, "containerd.service"])
def test_systemd_that_cannot_be_asked_is_a_reason(node: Node, unit: str | None) -> None:
    """And so is a runtime that no unit runs."""

    def fails(*_: object) -> Any:
        raise SystemdError("no bus")

    for change in (running(unit=unit), parts(ctx=replace(node.ctx, reach=fails))):
        change(node)
    skipped = [check.id for check, _ in diagnose(node).skipped]
    assert skipped == ["units"]


def test_unit_that_does_not_exist_goes_down_with_nothing(node: Node) -> None:
    """A unit can name one that nobody installed."""
    systemd(Unit("gone.service", "not-found", "inactive"), bound=("gone.service",))(node)
    assert diagnose(node).findings == ()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("/usr/bin/nvidia-ctk (enforce)", ["/usr/bin/nvidia-ctk"]),
        ("snap.x (kill)", ["snap.x"]),
        ("runc (unconfined)", []),
        ("site (complain)", []),
        ("/usr/bin/man//filter (enforce)", []),
        ("unconfined", []),
        ("", []),
    ],
)
def test_profiles_in_force_are_told_from_others(line: str, names: list[str]) -> None:
    """As the kernel writes them."""
    assert list(runtime_checks._enforced(line)) == names
