"""Each check, on a healthy node with one fact changed.

`cli/test_doctor.py` has nodes with such faults.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from agent.doctor.check import Check, Severity, diagnose
from agent.doctor.facts import (
    MISSING,
    AgentFacts,
    ConfigFacts,
    DefectFacts,
    Down,
    DriverFacts,
    Facts,
    HandlerFacts,
    KubeletFacts,
    MachineFacts,
    Part,
    PluginFacts,
    RuntimeFacts,
    SpecFacts,
    SpecProblem,
    ToolkitFacts,
    UnitFacts,
)
from agent.doctor.table import CHECKS
from agent.status import NOT_PUBLISHED

DIRS = ("/etc/cdi", "/var/run/cdi")
NVIDIA = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
DEVICE = ("nvidia.com/gpu=0", "/var/run/cdi/x.yaml", "toolkit-agent", "resolvable", "")
RUNTIME = RuntimeFacts(
    "containerd", "2.1.9", "/run/containerd/containerd.sock", process="7",
    unit="containerd.service", executable="/usr/bin/containerd", next_version="2.1.9",
    default="runc", handlers=("nvidia", "runc"), spec_dirs=DIRS,
)  # fmt: skip
HANDLERS = {
    "runc": HandlerFacts("runc", cgroups="systemd"),
    "nvidia": HandlerFacts("nvidia", nvidia=True, programs=(NVIDIA,), cgroups="systemd"),
}
CONFIG = ConfigFacts(
    "/etc/containerd/config.toml",
    ("/etc/containerd/config.toml", "/etc/containerd/conf.d/99-nvidia.toml"),
    "/etc/containerd/conf.d/99-nvidia.toml",
    handlers=HANDLERS,
    passes={"cdi.k8s.io/": False, "nvidia.cdi.k8s.io/": True},
)
PUBLISHED = {
    "TOOLKIT_NATIVE_CDI": "true",
    "DEVICE_LIST_STRATEGY": "cdi-cri",
    "CDI_ANNOTATION_PREFIX": "cdi.k8s.io/",
}
AGENT = AgentFacts(managed=True, published=PUBLISHED)
TOOLKIT = ToolkitFacts("/usr/local/nvidia/toolkit/config.toml", ("nvidia.cdi.k8s.io/",))
PLUGIN = PluginFacts(9, ("cdi-cri",), "cdi.k8s.io/")
DRIVER = DriverFacts(gpus=1, module="550.54.15", library="550.54.15", root="/")
HEALTHY = Facts(
    runtime=Part(RUNTIME),
    config=Part(CONFIG),
    specs=Part(SpecFacts(DIRS, devices=(DEVICE,))),
    agent=Part(AGENT),
    toolkit=Part(TOOLKIT),
    kubelet=Part(KubeletFacts("systemd", "/var/lib/kubelet/config.yaml", RUNTIME.socket)),
    plugins=Part((PLUGIN,)),
    driver=Part(DRIVER),
    units=Part((UnitFacts("kubelet.service", "kubelet.service is active"),)),
)

_PARTS: dict[str, Any] = {
    "runtime": RUNTIME, "config": CONFIG, "agent": AGENT, "toolkit": TOOLKIT, "driver": DRIVER,
}  # fmt: skip


def changed(part: str, **values: Any) -> Facts:
    """The healthy node with other values in one part."""
    found: dict[str, Any] = {part: Part(replace(_PARTS[part], **values))}
    return replace(HEALTHY, **found)


def handler(name: str, **values: Any) -> Facts:
    """The healthy node with another handler of that name."""
    table = replace(HANDLERS.get(name, HandlerFacts(name)), **values)
    return changed("config", handlers={**HANDLERS, name: table})


def spec(problem: SpecProblem) -> Facts:
    """The healthy node with a problem of a spec."""
    return replace(HEALTHY, specs=Part(SpecFacts(DIRS, (problem,))))


def plugin(strategy: str, prefix: str = "cdi.k8s.io/", facts: Facts = HEALTHY) -> Facts:
    """A node whose device plugin runs with these settings, and which nobody manages."""
    found = PluginFacts(9, tuple(strategy.split(",")), prefix)
    return replace(facts, plugins=Part((found,)), agent=Part(AgentFacts()))


def problem(text: str, *, error: bool = True) -> SpecProblem:
    """A problem of NVIDIA's spec."""
    return SpecProblem("/etc/cdi/nvidia.yaml", "nvidia-ctk", text, "repair it", "devices[0]", error)


@dataclass(frozen=True)
class Case:
    """Facts that a check has to find, and words of the finding or its remedy."""

    check: str
    facts: Facts
    severity: Severity
    words: str


DEFECT = DefectFacts("t", "r")
DOWN = Down("cannot reach /run/x.sock: no such file or directory; is the runtime up?")
NO_CDI = replace(RUNTIME, switch="false")
CASES = [
    Case("config-refused", replace(HEALTHY, refused="cannot read x: bad; mend"), "fault", "mend"),
    Case("config-deadly", changed("config", defects=(DefectFacts("v", "r", True),)), "fault", "r"),
    Case("config-default", changed("config", default="gone"), "fault", "gone"),
    Case("config-dormant", changed("config", unloaded="/a", dormant="why"), "fault", "why"),
    Case("spec-crash", changed("config", hazard=("/s", "/s dies; remove")), "fault", "remove"),
    Case("runtime-start", replace(HEALTHY, down=replace(DOWN, reason="no conmon")), "fault", "no"),
    Case("runtime-socket", replace(HEALTHY, down=DOWN), "fault", "start the runtime"),
    Case("runtime-socket", replace(HEALTHY, down=replace(DOWN, denied=True)), "warning", "reach"),
    Case("runtime-ready", changed("runtime", ready=False), "fault", "not ready"),
    Case("runtime-two", replace(HEALTHY, kubelet=Part(KubeletFacts(socket="/run/k3s.sock"))),
         "fault", "--socket=/run/k3s.sock"),
    Case("runtime-two", replace(HEALTHY, kubelet=Part(KubeletFacts()),
                                machine=MachineFacts(runtimes=("/run/crio/crio.sock",))),
         "warning", "/run/crio/crio.sock"),
    Case("runtime-upgrade", changed("runtime", next_version="2.2.0"), "warning", "2.2.0"),
    Case("runtime-process", changed("runtime", process=""), "info", "hostPID"),
    Case("runtime-process", changed("runtime", unit=""), "info", "--restart-mode"),
    Case("rights", replace(HEALTHY, machine=MachineFacts(root=False)), "info", "root"),
    Case("handler-defect", changed("config", defects=(DEFECT,)),
         "fault", "t"),
    Case("handler-defect", changed("config", defects=(replace(DEFECT, harmful=False),)), "warning",
         "t"),
    Case("config-override", changed("config", overrides=(("k", "/a", "/b"),)), "fault", "/b"),
    Case("handler-program", handler("nvidia", programs=("/bin/true",)), "fault", "/bin/true"),
    Case("handler-program", handler("nvidia", programs=()), "fault", "no program"),
    Case("handler-binary", handler("nvidia", missing=((NVIDIA, "no file"),)), "fault", NVIDIA),
    Case("handler-binary", handler("kata", missing=(("/bin/kata", MISSING),)), "warning",
         "/bin/kata"),
    Case("handler-lost", changed("config", lost=(("nvidia", "/a", "plugins.cri"),)), "warning",
         "/a"),
    Case("handler-lost", changed("config", handlers={"runc": HANDLERS["runc"]},
                                 lost=(("nvidia", "/a", "plugins.cri"),)), "fault", "/a"),
    Case("config-dormant", changed("config", dormant="why"), "warning", "why"),
    Case("runtime-upgrade", changed("runtime", gone=True), "fault", "not there any more"),
    Case("spec-open", replace(HEALTHY, specs=Part(SpecFacts(DIRS, devices=(DEVICE,),
                                                            open=("/etc/cdi/x.yaml",)))),
         "fault", "/etc/cdi/x.yaml"),
    Case("agent-drift", changed("agent", drift=("a",), specs_gone=True), "fault", "apply"),
    Case("spec-stale", spec(problem("device node '/dev/nvidia0' is missing on the host")), "fault",
         "nvidia-modprobe"),
    Case("config-reloaded", changed("config", reloaded="/a"), "warning", "a reload is not enough"),
    Case("config-import", changed("config", handlers={"runc": HANDLERS["runc"]}, aside=("/a",)),
         "warning", "/a"),
    Case("config-import", changed("config", handlers={"runc": HANDLERS["runc"]},
                                  strays=((CONFIG.drop_in, True),)), "fault", "apply` has it"),
    Case("toolkit-config", changed("toolkit", broken="cannot read /c: x; repair it"), "fault",
         "repair"),
    Case("toolkit-config", changed("toolkit", mode="cid"), "fault", "cid"),
    Case("toolkit-config", changed("toolkit", mode="csv"), "fault", "no Tegra"),
    Case("toolkit-config", changed("toolkit", absent=(("nvidia-container-cli.root", "/r"),)),
         "warning", "/r"),
    Case("toolkit-config", changed("toolkit", mode="legacy", absent=(("nvidia-ctk.path", "/r"),)),
         "fault", "/r"),
    Case("toolkit-config", changed("toolkit", no_cgroups=True), "warning", "no-cgroups"),
    Case("units", replace(HEALTHY, units=Part((UnitFacts("d.service", "d.service is failed", False,
                                                         True),))), "warning", "start d.service"),
    Case("units", replace(HEALTHY, units=Part((UnitFacts("d.service", "", bound=True),))), "info",
         "d.service stops"),
    Case("apparmor", replace(HEALTHY, machine=MachineFacts(confined="site")), "warning", "site"),
    Case("apparmor",
         replace(HEALTHY, machine=MachineFacts(profiles=("nvidia_modprobe", "/x/nvidia-ctk"))),
         "warning", "aa-complain"),
    Case("nri", replace(HEALTHY, machine=MachineFacts(nri_asked=("x (process 1)",))), "fault",
         "no NRI socket"),
    Case("nri", replace(HEALTHY, machine=MachineFacts(nri=True, nri_asked=("x (process 1)",))),
         "warning", "by NRI"),
    Case("nri", replace(HEALTHY, machine=MachineFacts(nri_plugins=("10-x",))), "info", "10-x"),
    Case("spec-name", replace(HEALTHY, specs=Part(SpecFacts(DIRS, misnamed=("/etc/cdi/n.yml",)))),
         "warning", "/etc/cdi/n.yml"),
    Case("spec-doubt", spec(problem("the directory cannot be read: x", error=False)), "warning",
         "cannot be read"),
    Case("plugin-strategy", changed("driver", root="/run/nvidia/driver"), "fault",
         "NVIDIA_DRIVER_ROOT=/run/nvidia/driver"),
    Case("cdi-off", replace(plugin("envvar", facts=replace(HEALTHY, runtime=Part(NO_CDI))),
                            machine=MachineFacts(dra="/d")), "fault", "enable_cdi"),
    Case("cdi-unsupported", replace(changed("runtime", switch="absent", spec_dirs=None),
                                    machine=MachineFacts(dra="/d")), "fault", "DRA driver"),
    Case("status-stale", changed("agent", barrier="toolkit-ready is not there"), "fault", "not"),
    Case("runtime-socket", replace(HEALTHY, down=Down("cannot reach /x: no answer in time")),
         "fault", "restart it"),
    Case("handler-cgroup", handler("nvidia", cgroups="cgroupfs"), "fault", "cgroupDriver"),
    Case("handler-cgroup", handler("runc", cgroups="cgroupfs"), "fault", "cgroupDriver"),
    Case("handler-cgroup", replace(handler("runc", cgroups="cgroupfs"),
                                   runtime=Part(replace(RUNTIME, tells_cgroups=True))),
         "warning", "cgroupDriver"),
    Case("config-import", changed("config", strays=(("/etc/containerd/conf.d/x.toml", True),)),
         "warning", "x.toml"),
    Case("config-import", changed("config", handlers={"runc": HANDLERS["runc"]},
                                  strays=(("/etc/containerd/conf.d/x.toml", True),)),
         "fault", "x.toml"),
    Case("handler-missing", changed("runtime", handlers=("runc",)), "fault", "restart"),
    Case("handler-missing", changed("config", handlers={"runc": HANDLERS["runc"]}), "fault",
         "no runtime for nvidia"),
    Case("config-unloaded", changed("config", unloaded="/a"), "warning", "/a"),
    Case("default-nvidia", changed("config", default="nvidia"), "warning", "default"),
    Case("hook-foreign", changed("config", hooks=(("/h.json", "/usr/bin/nvidia-hook", True),)),
         "warning", "/h.json"),
    Case("hook-foreign", changed("config", hooks=(("/h.json", "/gone", False),)), "fault", "/gone"),
    Case("handler-sandbox", handler("nvidia-x", sandbox=True), "warning", "nvidia-x"),
    Case("config-rendered", changed("config", rendered=(("/c", "k3s", "/t.tmpl"),)), "warning",
         "/t.tmpl"),
    Case("host-readonly", changed("config", locked="read-only; x"), "warning", "--config"),
    Case("cdi-off", changed("runtime", switch="false"), "fault", "enable_cdi = true"),
    Case("cdi-off", plugin("envvar", facts=replace(HEALTHY, runtime=Part(NO_CDI))), "warning",
         "enable_cdi"),
    Case("cdi-directories",
         replace(HEALTHY, specs=Part(SpecFacts(("/run/cdi",), unread=(("/x", ("nvidia.yaml",)),)))),
         "fault", "/x"),
    Case("spec-invalid", spec(problem("no kind")), "fault", "no kind"),
    Case("spec-conflict", spec(problem("/b defines x too, and the runtime takes it from none")),
         "fault", "/b"),
    Case("spec-stale", spec(problem("mount source '/libcuda.so.535.1.2' is missing on the host")),
         "fault", "made for driver 535.1.2, and driver 550.54.15"),
    Case("spec-hook", spec(problem("hook binary '/x' is missing on the host")), "fault", "'/x'"),
    Case("spec-doubt", spec(problem("it is large", error=False)), "info", "large"),
    Case("cdi-nobody", plugin("cdi-annotations", "nvidia.cdi.k8s.io/"), "fault", "not the default"),
    Case("cdi-nobody", plugin("cdi-annotations", "cdi.k8s.io"), "fault", "slash"),
    Case("cdi-nobody", plugin("cdi-annotations", "other.io/"), "fault", "another prefix"),
    Case("cdi-nobody", plugin("envvar"), "fault", "by variable"),
    Case("cdi-nobody", plugin("cdi-cri", facts=replace(HEALTHY, runtime=Part(NO_CDI))), "fault",
         "cdi-annotations"),
    Case("plugin-strategy", replace(HEALTHY, plugins=Part((PluginFacts(9, ("envvar",)),))), "fault",
         "needs cdi-cri"),
    Case("plugin-strategy",
         replace(HEALTHY, plugins=Part((replace(PLUGIN, hook="/h", hook_missing=True),))), "fault",
         "/h"),
    Case("spec-none", replace(HEALTHY, specs=Part(SpecFacts(DIRS))), "fault", "no CDI spec"),
    Case("cdi-directories", changed("runtime", spec_dirs=()), "fault", "cdi_spec_dirs is empty"),
    Case("toolkit-calls", changed("toolkit", calls=("runc",), callable=False), "warning", "runc"),
    Case("toolkit-calls", changed("toolkit", calls=("/x/runc",), callable=False), "fault", "/x"),
    Case("isolation", changed("toolkit", variables=True), "info", "any pod"),
    Case("isolation", replace(changed("config", default="nvidia"),
                              toolkit=Part(replace(TOOLKIT, variables=True))), "warning",
         "any image"),
    Case("cdi-twice", replace(
        changed("config", passes={"cdi.k8s.io/": True}),
        toolkit=Part(replace(TOOLKIT, prefixes=("cdi.k8s.io/",)))), "warning", "twice"),
    Case("cdi-twice", plugin("envvar,cdi-cri"), "warning", "both"),
    Case("cdi-unsupported", changed("runtime", switch="absent", spec_dirs=None), "warning",
         "knows no CDI"),
    Case("agent-unfinished", changed("agent", unfinished="apply (written)"), "fault", "apply"),
    Case("agent-failed", changed("agent", failed="no answer"), "fault", "no answer"),
    Case("agent-failed", changed("agent", error="cannot write"), "warning", "cannot write"),
    Case("driver-module", changed("driver", module=""), "fault", "nvidia-modprobe"),
    Case("driver-module", changed("driver", other="nouveau"), "fault", "nouveau"),
    Case("driver-mismatch", changed("driver", module="535.1"), "fault", "535.1"),
    Case("driver", changed("driver", problem="cannot make a CDI spec: none; install"), "fault",
         "install"),
    Case("driver", changed("driver", problem="none", gpus=0), "info", "none"),
    Case("driver", changed("driver", problem="none", platform="WSL2"), "warning", "WSL2"),
    Case("driver-nodes", changed("driver", missing_nodes=("/dev/nvidiactl",)), "fault",
         "nvidiactl"),
    Case("agent-refuses", changed("agent", problem="cannot x: y; do z"), "fault", "do z"),
    Case("agent-refuses", changed("agent", problem="no toolkit", code="NO_TOOLKIT"), "info",
         "no toolkit"),
    Case("status-stale", changed("agent", not_published="cannot trust f: old boot"), "fault",
         "old boot"),
    Case("status-missing", changed("agent", not_published=f"f: {NOT_PUBLISHED}"), "fault",
         "no decision"),
    Case("status-missing", changed("agent", managed=False), "info", "never"),
    Case("agent-drift", changed("agent", drift=("a is missing",)), "warning", "a is missing"),
    Case("agent-drift", changed("agent", drift=("running runtime: no nvidia",)), "fault", "nvidia"),
    Case("installer", replace(HEALTHY, machine=MachineFacts(installers=("nvidia-toolkit",))),
         "fault", "nvidia-toolkit"),
    Case("left-over", changed("agent", left=(("/p", "toolkit", "revert"),)), "warning", "/p"),
    Case("selinux", replace(HEALTHY, machine=MachineFacts(enforcing=True),
                            toolkit=Part(replace(TOOLKIT, labelled=False))), "fault",
         "restorecon"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.check}-{case.words}")
def test_check_finds_it(case: Case) -> None:
    """By its own, whatever other checks find."""
    found = [item for item in diagnose(case.facts, CHECKS).findings if item.check.id == case.check]
    assert [item.found.severity for item in found] == [case.severity]
    assert case.words in f"{found[0].found.text} {found[0].remedy}"
    assert found[0].remedy


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_check_finds_nothing_on_a_healthy_node(check: Check) -> None:
    """And there is a case that it finds."""
    assert [*check.find(HEALTHY)] == []
    assert check.id in {case.check for case in CASES}


def test_ids_are_unique() -> None:
    """Scripts name them."""
    names = [check.id for check in CHECKS]
    assert len(set(names)) == len(names)


def test_missing_facts_are_a_reason_and_no_result() -> None:
    """A check that needs them is not one that passed, and the others go on."""
    facts = replace(HEALTHY, config=Part(why="no runtime answers"))
    found = diagnose(facts, CHECKS)
    skipped = {check.id: why for check, why in found.skipped}
    assert skipped["handler-binary"] == "no runtime answers"
    assert "driver" not in skipped
    assert found.findings == ()


def test_nothing_gathered_at_all_is_no_error() -> None:
    """Every check says why it did not look, or finds nothing."""
    found = diagnose(Facts(), CHECKS)
    assert found.faults == ()
    assert len(found.skipped) > 30


def test_the_worst_comes_first_and_causes_before_what_follows() -> None:
    """A missing default explains a socket without an answer."""
    facts = replace(
        changed("config", default="gone", unloaded="/a"),
        down=DOWN,
        machine=MachineFacts(root=False),
    )
    ids = [item.check.id for item in diagnose(facts, CHECKS).findings]
    assert ids == ["config-default", "runtime-socket", "config-unloaded", "rights"]
