"""The scripted containerd shows the configuration that captured real ones showed."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.doubles.containerd.command import containerd
from tests.doubles.containerd.generation import (
    CAPTURES,
    CRI_IMAGES,
    CRI_RUNTIME,
    Generation,
    Table,
    generation_of,
    reported_version,
)
from tests.doubles.containerd.load import Loaded, built_in
from tests.doubles.containerd.populate import effective
from tests.doubles.containerd.sample import SECTIONS, VERSIONS, compute, handler
from tests.doubles.containerd.status import config_info
from tests.doubles.runtime import toml


@pytest.mark.parametrize("version", VERSIONS)
def test_status_of_a_daemon_without_configuration_is_the_captured_one(version: str) -> None:
    generation = generation_of(version)
    document = effective(generation, Loaded(built_in(generation), ()))

    captured = CAPTURES / f"containerd-{version}" / "status-info-config.json"
    assert json.loads(captured.read_text()) == config_info(generation, document)


@pytest.mark.parametrize("version", VERSIONS[:3])
def test_dump_is_the_captured_one(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The captured daemons ran on a file with nothing but their addresses."""
    config = tmp_path / "run/containerd/config.toml"
    config.parent.mkdir(parents=True)
    own = generation_of(version).config_version
    config.write_text(f'version = {own}\nttrpc.address = "/run/containerd/containerd.sock.ttrpc"\n')

    arguments = ["-c", "/run/containerd/config.toml", "config", "dump"]
    assert containerd(version, str(tmp_path), arguments) == 0

    captured = (CAPTURES / f"containerd-{version}" / "config-dump.toml").read_text()
    assert tomllib.loads(captured) == tomllib.loads(capsys.readouterr().out)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("quote", ["'", '"'])
def test_written_toml_reads_back_the_same(version: str, quote: str) -> None:
    document = generation_of(version).defaults() | {
        "odd": {"a'b": "it's", 'q"': 'say "\\" \t\x7f', "": [], "mixed": [{"a": 1}, 2, 1.5, True]}
    }

    assert document == tomllib.loads(toml.dumps(document, quote))


def test_version_2_keeps_its_image_settings_on_2x(tmp_path: Path) -> None:
    """On 2.1.9 the snapshotter moves only from a section with handlers, the rest always."""
    section = SECTIONS[2]
    text = (
        f"version = 2\n[{section}]\nsandbox_image = 'p:1'\nenable_selinux = true\n"
        f"[{section}.cni]\nbin_dir = '/cni'\n[{section}.containerd]\nsnapshotter = 'native'\n"
    )

    without = compute("2.1.9", {"config.toml": text}, tmp_path)
    document = compute("2.1.9", {"config.toml": text + handler("main", section)}, tmp_path)

    assert isinstance(without, dict)
    assert isinstance(document, dict)
    images, runtime = document["plugins"][CRI_IMAGES], document["plugins"][CRI_RUNTIME]
    assert images["pinned_images"] == {"sandbox": "p:1"}
    assert images["snapshotter"] == "native"
    assert without["plugins"][CRI_IMAGES]["snapshotter"] == "overlayfs"
    assert runtime["enable_selinux"] is True
    assert runtime["cni"]["bin_dirs"] == ["/cni"]


def test_options_of_handlers_are_shown_as_each_version_does(tmp_path: Path) -> None:
    """1.x shows the given options only; 2.x puts them over the built-in handler's."""
    for version, own in (("1.7.24", 2), ("2.1.9", 3)):
        section = SECTIONS[own]
        text = f"version = {own}\n" + handler("runc", section)
        text += f"[{section}.containerd.runtimes.bare]\nruntime_type = 'x'\n"
        document = compute(version, {"config.toml": text}, tmp_path)
        assert isinstance(document, dict)
        shown = config_info(generation_of(version), document)["containerd"]["runtimes"]
        options = {"BinaryName": "/opt/runc"}
        built_in_options = _built_in_options(generation_of(version)) if own == 3 else {}
        assert shown["runc"]["options"] == {**built_in_options, **options}
        assert shown["bare"]["options"] is None
        assert shown["bare"]["sandboxMode" if own == 2 else "sandboxer"] == "podsandbox"


def _built_in_options(generation: Generation) -> Table:
    options: Table = generation.status_config()["containerd"]["runtimes"]["runc"]["options"]
    return options


def test_versions_are_reported_as_real_ones_do() -> None:
    expected = {
        "1.6.20": "1.6.20~ds1",
        "2.1.9": "2.1.9+unknown",
        "2.3.4": "v2.3.4",
        "2.0.11": "v2.0.11",
        "2.4.0-beta.0": "v2.4.0-beta.0",
    }

    assert expected == {version: reported_version(version) for version in expected}
    with pytest.raises(ValueError, match="older"):
        generation_of("1.5.0")


def test_doubles_share_only_the_protocol_with_the_program() -> None:
    """A rule that both got from the same code would be right by definition."""
    tests = Path(__file__).parents[2]
    folders = [tests / "doubles" / name for name in ("runtime", "containerd", "crio")]
    sources = [source for folder in folders for source in folder.glob("*.py")]
    lines = [line for source in sources for line in source.read_text().splitlines()]

    assert {line for line in lines if re.match(r"\s*(from|import) agent\b", line)} == {
        "from agent._cri import api_pb2",
        "from agent._cri import api_pb2, api_pb2_grpc",
    }
