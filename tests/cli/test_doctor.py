"""`doctor` names the cause of a planted fault, and its remedy, in its first three lines.

Most nodes were never touched by this agent: somebody has them from another installer, or by hand.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, fails, shows
from tests.conformance import checks, statusfile
from tests.conformance.trees import snapshot, touched
from tests.tools import documents

_V2 = 'plugins."io.containerd.grpc.v1.cri"'
_V3 = 'plugins."io.containerd.cri.v1.runtime"'


def head(node: CliNode, *options: str) -> str:
    """The first three lines, with the paths of the node shortened."""
    done = node.agent("doctor", *options)
    assert done.returncode == done.stdout.startswith("fault: "), checks.said(done)
    assert done.stderr == ""
    return "\n".join(done.stdout.splitlines()[:3]).replace(str(node.directory), "@")


def table(name: str, section: str, binary: object, more: str = "") -> str:
    """The table of a handler."""
    return f"""
[{section}.containerd.runtimes.{name}]
  runtime_type = "io.containerd.runc.v2"
  [{section}.containerd.runtimes.{name}.options]
    BinaryName = "{binary}"
    {more}
"""


def base(node: CliNode, *, default: str = "runc", section: str = "") -> str:
    """A right configuration with runc and NVIDIA's handler, as another installer writes it."""
    section = section or node.section
    return (
        f'[{section}.containerd]\n  default_runtime_name = "{default}"\n'
        + table("runc", section, "/bin/true")
        + table("nvidia", section, node.toolkit / "nvidia-container-runtime")
    )


def replace(path: Path, old: str, new: str) -> None:
    """Edit a file, as somebody would."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def restart(node: CliNode, text: str) -> None:
    """The runtime runs on that configuration."""
    node.write(text)
    node.restart()


@dataclass(frozen=True)
class Fault:
    """A fault: how it is planted on a running node, and what the first lines say. `version` is
    that of the runtime, `options` are of the command."""

    plant: Callable[[CliNode], None]
    says: tuple[str, ...]
    version: str = "2.1.9"
    options: tuple[str, ...] = ()


def names_the_cause(place: Path, fault: Fault) -> None:
    """The first lines name the fault, once it is planted, and nothing on the node is touched."""
    with CliNode(place, fault.version) as node:
        node.write(base(node))
        fault.plant(node)
        before = snapshot(node.etc), snapshot(node.validations), snapshot(node.toolkit)
        said = head(node, *(word.replace("@", str(place)) for word in fault.options))
        assert said.startswith(("fault: ", "warning: ")), said
        for words in fault.says:
            assert words in " ".join(said.split()), said
        after = snapshot(node.etc), snapshot(node.validations), snapshot(node.toolkit)
        assert [touched(*pair) for pair in zip(before, after, strict=True)] == [[], [], []]


_CONFIG = ("--config=@/etc/config.toml",)  # no process says it
_SPECS = ("--cdi-output-dir=@/cdi",)


def _no_toml(node: CliNode) -> None:
    node.write("[broken\n")


def _missing_import(node: CliNode) -> None:
    replace(node.config, "[grpc]", f'imports = ["{node.etc}/gone.toml"]\n[grpc]')


def _higher_drop_in(node: CliNode) -> None:
    """NVIDIA/aicr#1688: the drop-in has a version that the node's containerd does not read."""
    (node.etc / "conf.d").mkdir()
    node.drop_in.write_text("version = 4\n")
    replace(node.config, "[grpc]", f'imports = ["{node.etc}/conf.d/*.toml"]\n[grpc]')
    node.__exit__()


def _disabled(node: CliNode) -> None:
    replace(node.config, "[grpc]", 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]')
    node.supervisor.send(signal.SIGTERM)
    node.supervisor.wait_until(lambda s: s.starts > 1)


def _default_of_nothing(node: CliNode) -> None:
    """METR/hawk#273: the drop-in lost the default, or names a handler that is not there."""
    restart(node, base(node))
    replace(node.config, 'default_runtime_name = "runc"', 'default_runtime_name = "gone"')


def _no_binary(node: CliNode) -> None:
    restart(node, base(node))
    (node.toolkit / "nvidia-container-runtime").unlink()


def _empty_type(node: CliNode) -> None:
    text = base(node).replace('runtime_type = "io.containerd.runc.v2"', 'runtime_type = ""', 1)
    restart(node, text)


def _two_spellings(node: CliNode) -> None:
    """NVIDIA/gpu-operator#1374."""
    restart(node, base(node) + '    binaryName = "/usr/local/bin/runc"\n')


def _not_imported(node: CliNode) -> None:
    """nvidia-container-toolkit#1404: the file is written, and nothing imports it."""
    restart(node, table("runc", node.section, "/bin/true"))
    (node.etc / "conf.d").mkdir()
    text = "version = 3\n" + table("nvidia", node.section, "/bin/true")
    node.drop_in.write_text(text)


def _overridden(node: CliNode) -> None:
    restart(node, table("runc", node.section, "/bin/true"))
    replace(node.config, "[grpc]", f'imports = ["{node.etc}/conf.d/*.toml"]\n[grpc]')
    assert node.agent("apply").returncode == 0
    later = node.etc / "conf.d/zz-site.toml"
    later.write_text("version = 3\n" + table("nvidia", node.section, "/bin/true"))
    node.restart()


def _another_program(node: CliNode) -> None:
    restart(node, base(node).replace(f"{node.toolkit}/nvidia-container-runtime", "/bin/true"))


def _switched_off(node: CliNode) -> None:
    assert node.agent("apply").returncode == 0
    replace(node.config, "enable_cdi = true", "enable_cdi = false")
    node.restart()


def _deadly_spec(node: CliNode) -> None:
    directory = node.directory / "cdi"
    directory.mkdir()
    switch = f'[{node.section}]\n  enable_cdi = true\n  cdi_spec_dirs = ["{directory}"]\n'
    restart(node, switch + base(node))
    (directory / "site.yaml").write_text("cdiVersion: 0.5.0\nkind: v/gpu\ndevices: []\n")


def _spec_dir(node: CliNode, name: str) -> Path:
    directory = node.directory / name
    directory.mkdir()
    restart(node, f'[{node.section}]\n  cdi_spec_dirs = ["{directory}"]\n' + base(node))
    return directory


def _spec(kind: str, edits: str) -> str:
    return (
        f"cdiVersion: 0.5.0\nkind: {kind}\ndevices:\n- name: all\n  containerEdits:\n    {edits}\n"
    )


def _unread_specs(node: CliNode) -> None:
    """dra-driver#736: specs are written where the runtime does not look."""
    _spec_dir(node, "read")
    other = node.directory / "cdi"
    other.mkdir()
    (other / "nvidia.yaml").write_text(_spec("nvidia.com/gpu", "env: [A=b]"))


def _broken_spec(node: CliNode) -> None:
    (_spec_dir(node, "cdi") / "nvidia.yaml").write_text("kind: nvidia.com/gpu\ncdiVersion: 9.9\n")


def _stale_spec(node: CliNode) -> None:
    """Case 27: the driver was upgraded, and the spec was not made anew."""
    gone = node.directory / "libEGL_nvidia.so.535.161.07"
    mount = f"mounts: [{{hostPath: {gone}, containerPath: /x, options: [ro, bind]}}]"
    (_spec_dir(node, "cdi") / "nvidia.yaml").write_text(_spec("nvidia.com/gpu", mount))


def _no_hook(node: CliNode) -> None:
    hook = "hooks: [{hookName: createContainer, path: /usr/bin/no-such-hook}]"
    (_spec_dir(node, "cdi") / "nvidia.yaml").write_text(_spec("nvidia.com/gpu", hook))


def _conflict(node: CliNode) -> None:
    directory = _spec_dir(node, "cdi")
    for name in ("a.yaml", "nvidia.yaml"):
        (directory / name).write_text(_spec("nvidia.com/gpu", "env: [A=b]"))


def _old_boot(node: CliNode) -> None:
    assert node.agent("apply").returncode == 0
    for name in (statusfile.TWIN, statusfile.READY):
        path = node.validations / name
        lines = path.read_text("ascii").splitlines(keepends=True)
        path.write_text("".join(
            "TOOLKIT_BOOT_ID=old\n" if line.startswith("TOOLKIT_BOOT_ID") else line
            for line in lines
        ))  # fmt: skip


def _failed_change(node: CliNode) -> None:
    restart(node, table("runc", node.section, "/bin/true"))
    node.script(die_when={"handler": "nvidia"})
    assert node.agent("apply").returncode != 0


def _changed(node: CliNode) -> None:
    """The file was changed after the start, by somebody who waits for a restart."""
    restart(node, table("runc", node.section, "/bin/true"))
    node.write(base(node))


def _no_wrapped_program(node: CliNode) -> None:
    """The wrapper of NVIDIA's installer is there, and what it runs is not."""
    program = node.toolkit / "nvidia-container-runtime"
    program.write_text(f'#!/bin/sh\nexec {program}.real "$@"\n', encoding="ascii")
    restart(node, base(node))


def _no_low_level(node: CliNode) -> None:
    """Case 24: NVIDIA's runtime looks for runc where this distribution has none."""
    _toolkit_config(node, '[nvidia-container-runtime]\nruntimes = ["/usr/libexec/none/runc"]\n')


def _toolkit_config(node: CliNode, text: str) -> None:
    path = node.toolkit / ".config/nvidia-container-runtime/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    restart(node, base(node))


def _restart_pending(node: CliNode) -> None:
    """The switch is on in the file, and nobody restarted the runtime."""
    restart(node, base(node))
    replace(node.config, f"[{node.section}.containerd]", f"[{node.section}]\n  enable_cdi = true\n"
            f"[{node.section}.containerd]")  # fmt: skip


def _no_spec_dirs(node: CliNode) -> None:
    restart(node, f"[{node.section}]\n  cdi_spec_dirs = []\n" + base(node))


def _version_at_the_end(node: CliNode) -> None:
    """Case 09: `echo version = 2 >> config.toml`."""
    restart(node, base(node))
    text = node.config.read_text("utf-8")
    first, _, rest = text.partition("\n")
    node.config.write_text(f"{rest.rstrip()}\n{first}\n", encoding="utf-8")


def _empty_runc_table(node: CliNode) -> None:
    """Case 10: a vendor's drop-in has an empty table of runc, and takes all of the section."""
    (node.etc / "conf.d").mkdir()
    tables = table("nvidia", node.section, "/bin/true").replace("/bin/true", str(
        node.toolkit / "nvidia-container-runtime"))  # fmt: skip
    (node.etc / "conf.d/nvidia_gpu.toml").write_text(
        f'[{node.section}.containerd]\ndefault_runtime_name = "nvidia"\n{tables}'
        f"[{node.section}.containerd.runtimes.runc]\n"
    )
    node.write(base(node))
    replace(node.config, "[grpc]", f'imports = ["{node.etc}/conf.d/*.toml"]\n[grpc]')
    node.restart()


def _written_by_others(node: CliNode) -> None:
    restart(node, base(node))
    node.config.chmod(0o666)


def _socket_of_nobody(node: CliNode) -> None:
    node.supervisor.__exit__(None, None, None)
    with socket.socket(socket.AF_UNIX) as server:
        node.socket.unlink(missing_ok=True)
        server.bind(str(node.socket))


def _wrong_prefix(node: CliNode) -> None:
    """k8s-device-plugin#481: the plugin's annotations have a prefix that nobody answers."""
    restart(node, table("runc", node.section, "/bin/true"))
    assert node.agent("apply").returncode == 0
    config = node.toolkit / ".config/nvidia-container-runtime/config.toml"
    replace(config, '"nvidia.cdi.k8s.io/"', '"vendor.example/"')


def _default_taken_back(node: CliNode) -> None:
    """Without native CDI only the default runtime brings GPUs to pods without a class."""
    restart(node, table("runc", node.section, "/bin/true"))
    assert node.agent("apply").returncode == 0
    replace(node.config, 'default_runtime_name = "nvidia"', 'default_runtime_name = "runc"')
    node.restart()


def _k3s(node: CliNode) -> None:
    """The generated file of a k3s has NVIDIA's handler, and its program went away."""
    _no_binary(node)
    text = node.config.read_text("utf-8")
    node.config.write_text(f"# File generated by k3s. DO NOT EDIT. Use config.toml.tmpl\n{text}")


FAULTS = {
    "no toml": Fault(_no_toml, ("config.toml", "repair")),
    "missing import": Fault(_missing_import, ("imports @/etc/gone.toml", "remove the import")),
    "drop-in of a higher version": Fault(
        _higher_drop_in, ("99-nvidia.toml says version 4",), options=_CONFIG
    ),
    "higher than root on 1.7": Fault(
        _higher_drop_in, ("99-nvidia.toml says version 4",), "1.7.24", _CONFIG
    ),
    "CRI disabled": Fault(_disabled, ("disabled_plugins", "grpc.v1.cri", "take"), options=_CONFIG),
    "default of nothing": Fault(_default_of_nothing, ("gone", "no such handler")),
    "no binary": Fault(_no_binary, ("handler nvidia runs @/nvidia/toolkit",)),
    "empty type": Fault(_empty_type, ("handler runc has no runtime_type",)),
    "two spellings": Fault(_two_spellings, ("handler nvidia names its program twice",)),
    "not imported": Fault(_not_imported, ("conf.d/99-nvidia.toml is there", "does not load")),
    "overridden": Fault(_overridden, ("zz-site.toml is read after",)),
    "another program": Fault(_another_program, ("handler nvidia runs /bin/true",)),
    "CDI switched off": Fault(
        _switched_off, ("CDI is switched off", "enable_cdi = true"), version="1.7.24"
    ),
    "deadly spec": Fault(_deadly_spec, ("cdi/site.yaml", "kind v/gpu"), "1.7.24", _SPECS),
    "unread specs": Fault(_unread_specs, ("does not read @/cdi",), options=_SPECS),
    "broken spec": Fault(_broken_spec, ("cdi/nvidia.yaml",), options=_SPECS),
    "stale spec": Fault(
        _stale_spec, ("libEGL_nvidia.so.535.161.07", "missing on the host"), options=_SPECS
    ),
    "no hook": Fault(_no_hook, ("hook binary", "/usr/bin/no-such-hook"), options=_SPECS),
    "conflict": Fault(
        _conflict, ("nvidia.com/gpu=all", "too", "remove one of the files"), options=_SPECS
    ),
    "status of an old boot": Fault(_old_boot, ("written before this boot",)),
    "failed change": Fault(_failed_change, ("failed",)),
    "changed since the start": Fault(_changed, ("handler nvidia", "restart")),
    "no wrapped program": Fault(_no_wrapped_program, ("nvidia-container-runtime.real",)),
    "no low-level runtime": Fault(_no_low_level, ("none of the low-level", "none/runc")),
    "restart pending": Fault(_restart_pending, ("restart the runtime",), "1.7.24"),
    "no spec directories": Fault(_no_spec_dirs, ("cdi_spec_dirs is empty",)),
    "version at the end": Fault(_version_at_the_end, ("`version` on line", "top"), "1.7.24"),
    "empty runc table": Fault(_empty_runc_table, ("handler runc has no runtime_type",), "1.7.24"),
    "written by others": Fault(_written_by_others, ("written by others", "chmod go-w")),
    "socket of nobody": Fault(_socket_of_nobody, ("connection refused", "start the runtime")),
    "wrong prefix": Fault(
        _wrong_prefix, ("nobody answers annotations nvidia.cdi.k8s.io/", "prefix"), "1.6.20"
    ),
    "default taken back": Fault(
        _default_taken_back, ("nobody answers annotations", "is not the default"), "1.6.20"
    ),
    "k3s": Fault(_k3s, ("handler nvidia runs @/nvidia/toolkit",)),
}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for a node with a short name, as real ones are."""
    with tempfile.TemporaryDirectory(prefix="d") as name:
        yield Path(name)


@pytest.mark.parametrize("name", FAULTS)
def test_first_three_lines_name_the_cause(place: Path, name: str) -> None:
    """And nothing on the node is touched."""
    names_the_cause(place, FAULTS[name])


def test_dead_runtime_whose_files_are_right(place: Path) -> None:
    """The socket is what is wrong, and not a part that nothing has to do with it."""
    with CliNode(place) as node:
        restart(node, base(node))
        node.supervisor.__exit__(None, None, None)
        assert "c.sock" in head(node)


@pytest.mark.parametrize("version", ["1.7.24", "2.1.9"])
def test_right_node_has_no_fault(place: Path, version: str) -> None:
    """Configured by this agent."""
    with CliNode(place, version) as node:
        restart(node, table("runc", node.section, "/bin/true"))
        assert node.agent("apply").returncode == 0
        found = shows(node.agent("doctor", "-o", "json"), "Doctor")
        assert found["healthy"]
        worse = [item for item in found["findings"] if item["severity"] != "info"]
        assert worse == []


def test_nothing_at_all(place: Path) -> None:
    """A node without a runtime, a toolkit or a driver."""
    node = CliNode(place)
    (node.toolkit / "nvidia-container-runtime").unlink()
    before = snapshot(place)
    assert head(node).startswith("fault: ")
    assert {name for name in touched(before, snapshot(place)) if "bin" not in name} <= {"."}


def test_lines_fit_a_terminal(place: Path) -> None:
    """Only a word that is longer than the line is not broken."""
    with CliNode(place) as node:
        _no_binary(node)
        done = node.agent("doctor")
        for line in done.stdout.splitlines():
            assert len(line) <= 80 or len(line.split()) == 1 or str(place) in line, line


def test_bundle_has_no_secret_and_is_root_s_alone(place: Path) -> None:
    """It is written once, with the redaction of the commands, and without contents of files."""
    with CliNode(place) as node:
        secret = "hunter2-s3cret"  # noqa: S105 (what must not be shown)
        mirror = f'[plugins."x.y".registry]\n  password = "{secret}"\n'
        restart(node, mirror + table("runc", node.section, "/bin/true"))
        path = place / "report.tar.gz"
        node.agent("doctor", f"--bundle={path}")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with tarfile.open(path) as archive:
            texts = {
                os.path.basename(item.name): archive.extractfile(item).read().decode()  # type: ignore[union-attr]
                for item in archive
            }
        assert set(texts) == {
            "config.json", "doctor.json", "plan.json", "status.json", "version.json",
        }  # fmt: skip
        for text in texts.values():
            assert secret not in text
            documents.check_output(text)
        before = path.read_bytes()
        fails(node.agent("doctor", f"--bundle={path}"), 3, str(path), "exists")
        assert path.read_bytes() == before


def test_another_program_at_the_socket_is_no_traceback(place: Path) -> None:
    """A socket of somebody who does not speak the CRI."""
    node = CliNode(place)
    node.socket.touch()
    assert "not a socket" in head(node)
