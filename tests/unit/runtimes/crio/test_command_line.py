"""Settings of CRI-O's flags and environment are read, and the file that keeps them is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cri.process import Process
from agent.host.paths import HostRoot
from agent.runtimes.crio import command_line
from agent.runtimes.crio.command_line import parse, setting_file
from agent.runtimes.crio.merge import Overrides, Setting

CAPTURES = Path(__file__).resolve().parents[3] / "data/captures"

# Observed on 1.37 with the packaged unit, each beside what `GET /config` showed then.
GIVEN = [
    ("crio --default-runtime=runc --default-runtime crun", {}, "default", ("crun",)),
    ("crio --default-runtime crun", {"CONTAINER_DEFAULT_RUNTIME": "runc"}, "default", ("crun",)),
    ("crio", {"CONTAINER_DEFAULT_RUNTIME": "runc"}, "default", ("runc",)),
    ("crio", {"CONTAINER_DEFAULT_RUNTIME": ""}, "default", ("",)),
    ("crio --default-runtime=", {}, "default", ("",)),
    ("crio -default-runtime runc", {}, "default", ("runc",)),
    ("crio --enable-metrics --default-runtime runc", {}, "default", ("runc",)),
    ("crio --pids-limit -1 --default-runtime runc", {}, "default", ("runc",)),
    ("crio --hooks-dir /a,/b", {}, "hooks_dirs", ("/a", "/b")),
    ("crio --hooks-dir /a --hooks-dir=/b", {"CONTAINER_HOOKS_DIR": "/c"}, "hooks_dirs",
     ("/a", "/b")),
    ("crio", {"CONTAINER_HOOKS_DIR": "/c, rel/d"}, "hooks_dirs", ("/c", "rel/d")),
    ("crio", {"CONTAINER_HOOKS_DIR": ""}, "hooks_dirs", ("",)),
    ("crio", {"CONTAINER_CDI_SPEC_DIRS": ""}, "spec_dirs", ("",)),
    ("crio --config=", {"CONTAINER_CONFIG": "/x"}, "config", ("",)),
    ("crio -c /a -c /b", {}, "config", ("/b",)),
    ("crio", {"CONTAINER_CONFIG": "/x", "CONFIG": "/y"}, "config", ("/x",)),
    ("crio -d opt/c.d", {}, "directory", ("opt/c.d",)),
    ("crio", {"CONTAINER_CONFIG_DIR": ""}, "directory", ("",)),
]  # fmt: skip


@pytest.mark.parametrize(("line", "variables", "field", "values"), GIVEN)
def test_flags_win_over_variables_and_the_last_flag_counts(
    line: str, variables: dict[str, str], field: str, values: tuple[str, ...]
) -> None:
    """Flags before variables, the last of two, all of a list; an empty value is one."""
    found = parse(tuple(line.split()), variables)
    setting = getattr(found, field)
    assert setting.values == values
    assert setting.value == values[-1]
    assert setting.source.startswith("--" if "-" in line else "CONTAINER_")
    assert found == replace(Overrides(), **{field: setting})


@pytest.mark.parametrize("line", ["", "crio", "crio --log-level debug", "crio -- -c /x", "crio -c"])
def test_similar_flag_sets_nothing(line: str) -> None:
    """A name that only looks like a flag of ours is none."""
    assert parse(tuple(line.split()), {"CONTAINER_LOG_LEVEL": "debug"}) == Overrides()


@pytest.mark.parametrize("version", ["1.30.14", "1.37"])
def test_captured_configuration_follows_from_the_captured_start(version: str) -> None:
    """What was captured of a real CRI-O is what these settings make of it."""
    cases = json.loads((CAPTURES / f"cri-o-{version}" / "flags.json").read_text())
    assert len(cases) == 4
    for name, case in cases.items():
        variables = dict(pair.split("=", 1) for pair in case["environ"])
        found = parse(tuple(case["args"]), variables)
        assert (found.default.value if found.default else "crun") == case["default_runtime"], name
        assert (found.directory is not None) == bool(case["handlers_gone"]), name


def test_handlers_of_a_flag_are_read_as_documented() -> None:
    """Whole tables, by the order of the fields that CRI-O documents."""
    value = "a:/a:/run/a,b:/b:/run/b:vm:true:/etc/b.toml:20MiB"
    found = parse(("crio", f"--runtimes={value}"), {})
    assert found.handlers == {
        "a": {"runtime_path": "/a", "runtime_root": "/run/a"},
        "b": {
            "runtime_path": "/b", "runtime_root": "/run/b", "runtime_type": "vm",
            "privileged_without_host_devices": True, "runtime_config_path": "/etc/b.toml",
            "container_min_memory": "20MiB",
        },
    }  # fmt: skip
    assert found.flags == tuple(f"--runtimes={text}" for text in value.split(","))
    assert parse(("crio", "--default-runtime="), {}).flags == ("--default-runtime=",)


def made(tmp_path: Path, pid: int = 7, unit: str | None = "crio.service") -> Process:
    """Return a process in a made /proc, whose command line and environment are to be written."""
    proc = tmp_path / "proc" / str(pid)
    proc.mkdir(parents=True)
    (proc / "environ").write_bytes(b"")
    (proc / "cwd").symlink_to("/srv")
    return Process(pid, 1, "/usr/bin/crio", None, unit, ("crio",), str(tmp_path / "proc"))


def test_relative_paths_begin_where_the_process_works(tmp_path: Path) -> None:
    """The first of two variables with one name counts, as for getenv in Go."""
    running = replace(made(tmp_path), command=("crio", "-c", "etc/crio.conf", "--hooks-dir=h,/i/"))
    environ = b"CONTAINER_CONFIG_DIR=d\0CONTAINER_CONFIG_DIR=e\0SECRET\0"
    (tmp_path / "proc/7/environ").write_bytes(environ)
    found = command_line.overrides(running)
    assert found.environment
    assert found.config == Setting(("/srv/etc/crio.conf",), "--config")
    assert found.directory == Setting(("/srv/d",), "CONTAINER_CONFIG_DIR")
    assert found.hooks_dirs == Setting(("/srv/h", "/i"), "--hooks-dir")
    (tmp_path / "proc/7/cwd").unlink()
    assert command_line.overrides(running).config == Setting(("etc/crio.conf",), "--config")


def test_environment_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    """So is that of a process that cannot be seen; flags count all the same."""
    running = replace(made(tmp_path), command=("crio", "--default-runtime=runc"))
    (tmp_path / "proc/7/environ").unlink()
    found = command_line.overrides(running)
    assert (found.environment, found.default) == (False, Setting(("runc",), "--default-runtime"))
    assert command_line.overrides(None) == Overrides(environment=False)


PLACES = [
    # files, and what is named for a flag
    ({"etc/sysconfig/crio": 'CRIO_RUNTIME_OPTIONS="--default-runtime=runc"\n'},
     "/etc/sysconfig/crio"),
    ({"etc/sysconfig/crio": "A=--default-runtime-x\n",
      "usr/lib/systemd/system/crio.service": "[Service]\nExecStart=crio --default-runtime runc\n"},
     "/usr/lib/systemd/system/crio.service"),
    ({"etc/systemd/system/crio.service.d/10.conf": "[Service]\nEnvironmentFile=-/etc/crio.env\n",
      "etc/crio.env": "X=--default-runtime=runc\n"}, "/etc/crio.env"),
    ({"etc/systemd/system/crio.service.d/10.conf": "Environment=X=--default-runtime=a\n"},
     "/etc/systemd/system/crio.service.d/10.conf"),
    ({}, "the unit crio.service or a file that it reads"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "place"), PLACES)
def test_file_that_keeps_a_flag_is_named(tmp_path: Path, files: dict[str, str], place: str) -> None:
    """In the file that whoever is to take it out has to edit."""
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    (tmp_path / "root").mkdir(exist_ok=True)
    host = HostRoot(str(tmp_path / "root"))
    assert setting_file(host, made(tmp_path), "--default-runtime") == place
    running = replace(made(tmp_path / "x", unit=None), pid=7)
    if not files:
        assert setting_file(host, running, "--default-runtime") == "what starts CRI-O"
