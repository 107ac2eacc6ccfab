"""Faults that nobody reported: `doctor` names each in its first three lines.

Each was planted by hand, and was not named at first, or not by its cause.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import crio
from tests.cli.cli_node import CliNode
from tests.cli.hosted import HostedNode
from tests.cli.test_doctor import Fault, base, names_the_cause, replace, restart, table
from tests.cli.test_doctor_nodes import crio_handler
from tests.cli.test_doctor_nodes import head as any_head
from tests.conformance import checks, statusfile
from tests.doubles.containerd.sample import SECTIONS
from tests.doubles.crio.crio_node import CrioNode

_NVIDIA = "nvidia-container-runtime"


def program(data: bytes, mode: int = 0o755) -> Callable[[CliNode], None]:
    """NVIDIA's runtime has this content."""

    def plant(node: CliNode) -> None:
        restart(node, base(node))
        (node.toolkit / _NVIDIA).write_bytes(data)
        (node.toolkit / _NVIDIA).chmod(mode)

    return plant


def settings(text: str) -> Callable[[CliNode], None]:
    """NVIDIA's config.toml says this."""

    def plant(node: CliNode) -> None:
        path = node.toolkit / ".config/nvidia-container-runtime/config.toml"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        restart(node, base(node))

    return plant


def other_text(old: str, new: str) -> Callable[[CliNode], None]:
    """The configuration has something else; `@` is NVIDIA's directory, `%` the section."""

    def plant(node: CliNode) -> None:
        before, after = (t.replace("@", str(node.toolkit)).replace("%", node.section)
                         for t in (old, new))  # fmt: skip
        text = base(node)
        assert before in text
        restart(node, text.replace(before, after))

    return plant


def spec(name: str, mode: int, edits: str) -> Callable[[CliNode], None]:
    """A spec of this name, mode and content."""

    def plant(node: CliNode) -> None:
        directory = node.directory / "cdi"
        directory.mkdir()
        restart(node, f'[{node.section}]\n  cdi_spec_dirs = ["{directory}"]\n' + base(node))
        text = f"cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: all\n  {edits}\n"
        (directory / name).write_text(text, encoding="utf-8")
        (directory / name).chmod(mode)

    return plant


def _dangling(node: CliNode) -> None:
    restart(node, base(node))
    (node.toolkit / _NVIDIA).unlink()
    (node.toolkit / _NVIDIA).symlink_to("gone.real")


def _no_base_spec(node: CliNode) -> None:
    path = node.etc / "base.json"
    path.write_text('{"ociVersion": "1.0.2", "process": {"cwd": "/"}, "linux": {}}')
    text = f'.runc]\n  base_runtime_spec = "{path}"\n'
    restart(node, base(node).replace(".runc]\n", text, 1))
    path.unlink()


def _other_ending(node: CliNode) -> None:
    """conf.d is imported, for *.toml only."""
    (node.etc / "conf.d").mkdir()
    (node.etc / "conf.d/nvidia.conf").write_text(f"version = 3\n{base(node)}")
    node.write(table("runc", node.section, "/bin/true"))
    replace(node.config, "[grpc]", f'imports = ["{node.etc}/conf.d/*.toml"]\n[grpc]')
    node.restart()


def _hidden(node: CliNode) -> None:
    """containerd 1.x takes the whole section from the file of somebody who wanted a mirror."""
    (node.etc / "conf.d").mkdir()
    text = f'version = 2\n[{node.section}.registry]\nconfig_path = "/etc/containerd/certs.d"\n'
    (node.etc / "conf.d/50-mirror.toml").write_text(text)
    node.write(base(node))
    replace(node.config, "[grpc]", f'imports = ["{node.etc}/conf.d/*.toml"]\n[grpc]')
    node.restart()


def _rewritten(node: CliNode) -> None:
    """A configuration management tool writes its own file again (gpu-operator#598)."""
    restart(node, table("runc", node.section, "/bin/true"))
    checks.done(node.agent("apply"))
    restart(node, table("runc", node.section, "/bin/true"))


def _open_barrier(node: CliNode) -> None:
    checks.done(node.agent("apply"))
    (node.validations / statusfile.READY).chmod(0o666)


def _garbled_drop_in(node: CliNode) -> None:
    checks.done(node.agent("apply"))
    node.drop_in.write_text("[x")


_RUNC = '  runtime_type = "io.containerd.runc.v2"\n  [%.containerd.runtimes.nvidia.options]\n'
_CALLS = f'[{_NVIDIA}]\nruntimes = ["/bin/true"]\n'
_SPECS = ("--cdi-output-dir=@/cdi",)
_ARM = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x28\x00" + bytes(44)

PLANTED = {
    "mode of the program": Fault(program(b"", 0o644), ("not executable", "install the program")),
    "dangling program": Fault(_dangling, ("runs a dangling link", "install the program")),
    "interpreter": Fault(
        program(b"#!/bin/gone-sh\n"), ("runs a script without its interpreter /bin/gone-sh",)
    ),
    "wrapped elsewhere": Fault(
        program(b'#!/bin/sh\nexec /opt/gone/x.real "$@"\n'), ("/opt/gone/x.real, which is not",)
    ),
    "other processor": Fault(program(_ARM), ("runs a program for another processor",)),
    "base specification": Fault(_no_base_spec, ("base_runtime_spec", "write that file")),
    "shim": Fault(
        other_text(_RUNC, _RUNC.replace("runc.v2", "nvrunc.v2")),
        ("io.containerd.nvrunc.v2, whose shim", "install that shim"),
    ),
    "program as shim": Fault(
        other_text(_RUNC, f'  runtime_path = "@/{_NVIDIA}"\n{_RUNC}'),
        ("has runtime_path =", "BinaryName"),
    ),
    "section of another version": Fault(
        other_text("%.containerd.runtimes.nvidia", f"{SECTIONS[2]}.containerd.runtimes.nvidia"),
        ("handler nvidia in @/etc/config.toml has no effect", "section"),
    ),
    "other ending": Fault(_other_ending, ("conf.d/nvidia.conf is there", "does not load")),
    "hidden by a mirror": Fault(
        _hidden, ("handler nvidia in @/etc/config.toml has no effect", "read last"), "1.7.24"
    ),
    "rewritten": Fault(_rewritten, ("99-nvidia.toml is there", "`toolkit-agent apply`")),
    "rewritten in place": Fault(
        _rewritten, ("no handler of NVIDIA's", "`toolkit-agent apply`"), "1.7.24"
    ),
    "barrier of others": Fault(_open_barrier, (f"{statusfile.READY}: it can be written",)),
    "garbled drop-in": Fault(_garbled_drop_in, ("99-nvidia.toml", "apply` writes it again")),
    "no TOML for NVIDIA's runtime": Fault(settings("[x\n"), ("config.toml", "repair")),
    "unknown mode": Fault(settings(f'{_CALLS}mode = "cid"\n'), ("the mode cid", "set it to auto")),
    "csv without Tegra": Fault(settings(f'{_CALLS}mode = "csv"\n'), ("csv", "no Tegra")),
    "command line tool": Fault(
        settings(f'{_CALLS}mode = "legacy"\n[nvidia-container-cli]\npath = "/gone/cli"\n'),
        ("nvidia-container-cli.path", "/gone/cli, which is not there"),
    ),
    "no cgroups": Fault(
        settings(f"{_CALLS}[nvidia-container-cli]\nno-cgroups = true\n"), ("no-cgroups = true",)
    ),
    "calls itself": Fault(
        settings(f'[{_NVIDIA}]\nruntimes = ["/usr/bin/{_NVIDIA}"]\n'), ("none of the low-level",)
    ),
    "spec of another name": Fault(
        spec("nvidia.yml", 0o644, "containerEdits: {env: [A=b]}"),
        ("nvidia.yml is a spec", "rename it"), options=_SPECS,
    ),
    "spec of everybody": Fault(
        spec("nvidia.yaml", 0o666, "containerEdits: {env: [A=b]}"),
        ("can be changed by others", "go-w"), options=_SPECS,
    ),
    "spec with nothing in it": Fault(
        spec("nvidia.yaml", 0o644, "containerEdits: {}"), ("brings nothing",), options=_SPECS
    ),
    "slow runtime": Fault(
        lambda node: node.script(silent=True), ("no answer in time", "restart the runtime")
    ),
}  # fmt: skip


@pytest.mark.cases(6)
@pytest.mark.parametrize("name", PLANTED)
def test_first_three_lines_name_what_was_planted(place: Path, name: str) -> None:
    """And nothing on the node is touched."""
    names_the_cause(place, PLANTED[name])


def _write_later(node: CrioNode, text: str) -> None:
    """Write the drop-in so that it is newer than the process: by 0.1 s at least."""
    time.sleep(0.3)
    node.drop_in.write_text(text)


def _no_conmon(node: CrioNode) -> None:
    """Case 24: nvidia-ctk's drop-in has no monitor_path, and conmon is not in the PATH."""
    (node.bin / "conmon").rename(node.directory / "conmon")
    _write_later(node, crio_handler("nvidia", node.toolkit / _NVIDIA))


def _backup(node: CrioNode) -> None:
    """CRI-O reads a backup too, and it wins."""
    node.drop_in.write_text(crio_handler("nvidia", node.toolkit / _NVIDIA))
    text = crio_handler("nvidia", node.bin / "runc")
    (node.drop_ins / "99-nvidia.conf.bak").write_text(text)
    node.restart()


def _wrong_table(node: CrioNode) -> None:
    text = crio_handler("nvidia", node.toolkit / _NVIDIA).replace("crio.runtime.", "crio.")
    node.drop_in.write_text(text)
    node.restart()


def _unread_root(node: CrioNode) -> None:
    """gpu-operator's default name of the file, which CRI-O does not read."""
    (node.etc / "config.toml").write_text(crio_handler("nvidia", node.toolkit / _NVIDIA))


def _only_reloaded(node: CrioNode) -> None:
    _write_later(node, crio_handler("nvidia", node.toolkit / _NVIDIA))
    node.supervisor.send(signal.SIGHUP)
    while "nvidia" not in node.answer().runtimes:
        time.sleep(0.05)


CRIO = {
    "no conmon": (_no_conmon, ("would not come back", "99-nvidia.conf before")),
    "backup": (_backup, ("99-nvidia.conf.bak is read after", "remove the key")),
    "wrong table": (_wrong_table, ("handler nvidia in", "has no effect")),
    "unread root file": (_unread_root, ("config.toml is there", "does not load")),
    "only reloaded": (_only_reloaded, ("have reloaded it", "restart the runtime")),
}


@pytest.mark.parametrize("name", CRIO)
def test_first_three_lines_name_what_was_planted_on_crio(place: Path, name: str) -> None:
    """And nothing on the node is touched."""
    plant, says = CRIO[name]
    with crio.make(place) as node:
        plant(node)
        said = any_head(node)
        assert said.startswith(("fault: ", "warning: ")), said
        for words in says:
            assert words in said, said


def test_crio_set_up_by_hand_has_no_fault(place: Path) -> None:
    """Nobody who did it right is told otherwise."""
    with crio.make(place) as node:
        node.drop_in.write_text(crio_handler("nvidia", node.toolkit / _NVIDIA))
        node.restart()
        assert any_head(node).startswith("ok: no fault was found")


def process(node: HostedNode, name: str, *env: str) -> None:
    """A process of the host, as its /proc shows it."""
    place = node.host / "proc/4001"
    place.mkdir()
    (place / "cmdline").write_bytes(f"/work/{name}\0".encode())
    (place / "environ").write_bytes("".join(f"{word}\0" for word in env).encode())
    (place / "stat").write_text(f"4001 (x) S {'1 ' * 30}")
    (place / "status").write_text("Uid:\t0\t0\t0\t0\n")


def _profile(node: HostedNode) -> None:
    """And Ubuntu's own of nvidia-modprobe, which is no fault."""
    path = node.host / "sys/kernel/security/apparmor/profiles"
    path.parent.mkdir(parents=True)
    path.write_text("nvidia_modprobe (enforce)\n/usr/bin/nvidia-cdi-hook (enforce)\n")


def _dra(node: HostedNode) -> None:
    (node.host / "var/lib/kubelet/plugins/gpu.nvidia.com").mkdir(parents=True)


HOSTED: dict[str, tuple[Callable[[HostedNode], None], str, tuple[str, ...]]] = {
    "AppArmor": (_profile, "2.1.9", ("AppArmor confines", "nvidia-cdi-hook", "aa-complain")),
    "DRA without CDI": (_dra, "1.6.20", ("knows no CDI", "DRA driver", "upgrade the runtime")),
    "DRA with CDI off": (_dra, "1.7.24", ("CDI is switched off", "enable_cdi = true")),
    "NRI is off": (
        lambda node: process(node, "nvidia-ctk-installer", "ENABLE_NRI_PLUGIN=true"),
        "2.1.9", ("no NRI socket", "switch NRI on"),
    ),
    "strategy that nobody answers": (
        lambda node: process(node, "nvidia-device-plugin", "DEVICE_LIST_STRATEGY=envvar"),
        "2.1.9", ("by variable", "DEVICE_LIST_STRATEGY=cdi-cri"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTED)
def test_first_three_lines_name_what_was_planted_on_the_host(place: Path, name: str) -> None:
    """Of processes, of the kernel, of the kubelet's directories."""
    plant, version, says = HOSTED[name]
    with HostedNode(place, version) as node:
        for path in ("bin/true", "usr/bin/runc"):
            (node.host / path).parent.mkdir(parents=True, exist_ok=True)
            (node.host / path).touch(0o755)
        with node.config.open("a") as file:
            file.write(base(node).replace(str(node.host), ""))
        node.restart()
        plant(node)
        said = any_head(node)
        for words in says:
            assert words in said, said
