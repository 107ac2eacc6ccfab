"""The installed specs: which files count, what wrote them, and which device wins."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from agent.cdi.specs import installed, spec_files
from agent.cdi.specs.own_specs import MARK
from agent.cdi.specs.readers import UNKNOWN_READER, Reader, reader_of
from agent.host.paths import HostRoot
from tests.conformance.foreign_specs import make_root, spec

DIRS = ("/etc/cdi", "/var/run/cdi")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def look(
    root: Path, names: tuple[str, ...] = DIRS, who: Reader = UNKNOWN_READER
) -> tuple[list[installed.SpecFile], list[installed.Device]]:
    host = HostRoot(str(root))
    dirs = spec_files.directories(host, names, who)
    found = installed.specs(host, dirs, who)
    return found, installed.devices(found, dirs)


def states(
    root: Path, names: tuple[str, ...] = DIRS, who: Reader = UNKNOWN_READER
) -> dict[str, str]:
    return {device.file: device.state for device in look(root, names, who)[1]}


def test_files_count_by_their_ending_alone(root: Path) -> None:
    """Dot files and links are loaded; other endings and directories are of no interest."""
    for name in ("a.yaml", ".b.json", ".yaml", "c.yml", "d.yaml.bak", "e.YAML", "f~"):
        (root / "etc/cdi" / name).write_text(spec("ab/cd"))
    (root / "etc/cdi/dir.yaml").mkdir()
    (root / "etc/cdi/z.json").symlink_to("/etc/cdi/c.yml")
    found, devices = look(root)
    assert [file.name for file in found] == [
        "/etc/cdi/.b.json", "/etc/cdi/.yaml", "/etc/cdi/a.yaml", "/etc/cdi/z.json",
    ]  # fmt: skip
    assert {device.state for device in devices} == {"conflicting"}


@pytest.mark.parametrize(
    ("name", "kind", "writer"),
    [("nvidia.yaml", "nvidia.com/gpu", "nvidia-cdi-refresh"),
     ("other.yaml", "nvidia.com/gpu", "nvidia-ctk"),
     ("management.nvidia.com-gpu.yaml", "management.nvidia.com/gpu", "nvidia-ctk-installer"),
     ("a.json", "k8s.device-plugin.nvidia.com/gpu", "nvidia-device-plugin"),
     ("b.json", "k8s.gpu.nvidia.com/claim", "nvidia-dra-driver"),
     ("c.json", "k8s.compute-domain.nvidia.com/channel", "nvidia-dra-driver"),
     ("d.json", "vendor.example/gpu", "vendor.example"), ("e.json", "gpu", "gpu")],
)  # fmt: skip
def test_writer_is_known_by_kinds_or_first_line(
    root: Path, name: str, kind: str, writer: str
) -> None:
    """Each is known by its kinds; ours by its first line, whatever the kind."""
    path = root / "run/cdi" / name
    path.write_text(spec(kind))
    assert look(root)[0][0].writer == writer
    path.write_text(f"---\n{MARK}\n{spec(kind)}")
    assert look(root)[0][0].writer == "toolkit-agent"


def test_later_directory_wins(root: Path) -> None:
    """And what is broken does not count."""
    for name in ("etc", "run"):
        (root / name / "cdi/a.yaml").write_text(spec("ab/cd"))
    assert states(root) == {"/etc/cdi/a.yaml": "shadowed", "/var/run/cdi/a.yaml": "resolvable"}
    swapped = (DIRS[1], DIRS[0])
    assert states(root, swapped)["/etc/cdi/a.yaml"] == "resolvable"
    (root / "run/cdi/a.yaml").write_text(spec("ab/cd") + "foo: 1\n")
    assert states(root) == {"/etc/cdi/a.yaml": "resolvable", "/var/run/cdi/a.yaml": "invalid"}


def test_conflict_takes_later_directories_along(root: Path) -> None:
    """As the library has it: the name is taken out of all."""
    for name in ("etc/cdi/a", "etc/cdi/b", "run/cdi/c"):
        (root / f"{name}.yaml").write_text(spec("ab/cd"))
    _, devices = look(root)
    assert [device.state for device in devices] == ["conflicting"] * 3
    assert devices[0].why == "/etc/cdi/b.yaml defines it too"
    assert "/etc/cdi/a.yaml and /etc/cdi/b.yaml cancel each other" in devices[2].why


def test_linked_directory_is_not_read(root: Path) -> None:
    """One that is a link is not read, links above it are; the same twice counts once."""
    (root / "run/cdi/a.yaml").write_text(spec("ab/cd"))
    (root / "link").symlink_to("run/cdi")
    assert states(root, ("/link",)) == {"/link/a.yaml": "unread"}
    assert states(root, ("/var/run/cdi", "/run//cdi/")) == {"/run/cdi/a.yaml": "resolvable"}
    assert states(root, ("/none", "/etc/passwd/x", "/link/a.yaml")) == {}
    host = HostRoot(str(root))
    dirs = spec_files.directories(host, ("/link", "/run/cdi/a.yaml", "/none"), UNKNOWN_READER)
    texts = [problem.what for _, problem in spec_files.unreadable(dirs)]
    assert len(texts) == 2
    assert "is a link" in texts[0]
    assert "not a directory" in texts[1]


@pytest.mark.parametrize(
    ("who", "why"),
    [(reader_of("containerd", "1.6.20"), "knows no CDI"),
     (reader_of("containerd", "1.7.24", enabled=False), "switched off")],
)  # fmt: skip
def test_runtime_without_cdi_resolves_nothing(root: Path, who: Reader, why: str) -> None:
    """Nothing is resolvable where nobody resolves."""
    (root / "run/cdi/a.yaml").write_text(spec("ab/cd"))
    _, [device] = look(root, who=who)
    assert device.state == "unread"
    assert why in device.why


def test_files_of_other_types_are_told_and_never_opened(root: Path) -> None:
    """Pipes, sockets, links that lead nowhere or out of the host root: told, never opened."""
    place = root / "etc/cdi"
    os.mkfifo(place / "pipe.yaml")
    (place / "dangling.yaml").symlink_to("nowhere")
    (place / "out.yaml").symlink_to("../../../etc/passwd")
    (place / "circle.yaml").symlink_to("circle.yaml")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(place)
        try:
            listener.bind("s.yaml")
        finally:
            os.chdir(here)
    with (place / "large.yaml").open("wb") as file:
        file.truncate(spec_files.LIMIT + 1)
    found = {os.path.basename(f.name): f.problems[0].what for f in look(root)[0]}
    for name, text in (("pipe", "waits for ever"), ("dangling", "dangling"), ("out", "leads out"),
                       ("circle", "too many links"), ("s", "not a regular file"),
                       ("large", "larger than 4 MiB")):  # fmt: skip
        assert text in found.pop(f"{name}.yaml")
    assert found == {}


def test_only_the_device_that_lacks_something_is_blamed(root: Path) -> None:
    """Its neighbours in the file are well."""
    text = spec("ab/cd").replace(
        "devices: [", "devices: [{name: x, containerEdits: {deviceNodes: [{path: /dev/no}]}}, "
    )
    (root / "run/cdi/a.yaml").write_text(text)
    first, second = look(root)[1]
    assert (first.name, first.state, second.state) == ("ab/cd=x", "incomplete", "resolvable")
    assert "'/dev/no' is missing" in first.why
