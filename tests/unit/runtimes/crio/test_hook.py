"""The directories of CRI-O's OCI hooks are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from agent.host.paths import HostPath, HostRoot
from agent.runtimes.crio import command_line, hook, load, merge
from agent.runtimes.crio.adapter import CrioNode

TEXT = """{"version": "1.0.0", "hook": {"path": "/usr/bin/nvidia-container-runtime-hook"},
"when": {"always": true}, "stages": ["prestart"]}"""
# As OpenShift has them.
OPENSHIFT = "/run/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"
USUAL = "/usr/share/containers/oci/hooks.d"
DROP_IN = f"[crio.runtime]\nhooks_dir = {list(OPENSHIFT)}\n".replace("'", '"')


def node(host: HostRoot, words: tuple[str, ...], variables: dict[str, str],
         read: tuple[str, ...] = ()) -> CrioNode:  # fmt: skip
    """A CRI-O that was started so; `read` is what it says itself, nothing for what files say."""
    overrides = command_line.parse(("crio", *words), variables)
    files = load.load(host, "/etc/crio/crio.conf", "/etc/crio/crio.conf.d")
    later = merge.hooks_dirs(files, overrides)
    ours = HostPath(host.agent_path(f"{USUAL}/oci-nvidia-hook.json"), f"{USUAL}/x.json")
    nothing = cast("Any", None)
    return CrioNode(host, nothing, files, None, ours, nothing, "", ours, read or later, later)


@pytest.mark.parametrize(
    ("drop_in", "words", "variables", "read", "looked"),
    [("", (), {}, (), (USUAL,)), (DROP_IN, (), {}, (), OPENSHIFT),
     (DROP_IN, (), {}, (USUAL,), (USUAL, *OPENSHIFT)),
     (DROP_IN, ("--hooks-dir", "/a,/b", "--hooks-dir=/c"), {}, (), ("/a", "/b", "/c")),
     ("", (), {"CONTAINER_HOOKS_DIR": "/var/run/containers/oci/hooks.d"}, (), OPENSHIFT[:1])],
    ids=["usual", "OpenShift", "not restarted yet", "flags", "variable"],
)  # fmt: skip
def test_every_directory_is_looked_through(
    tmp_path: Path, drop_in: str, words: tuple[str, ...], variables: dict[str, str],
    read: tuple[str, ...], looked: tuple[str, ...],
) -> None:  # fmt: skip
    """Those that it reads now, and those that it reads after a restart; no others."""
    etc = tmp_path / "etc/crio/crio.conf.d"
    etc.mkdir(parents=True)
    (etc / "00-default").write_text(drop_in)
    (tmp_path / "var").mkdir()
    (tmp_path / "var/run").symlink_to("/run")
    for number, name in enumerate((USUAL, *OPENSHIFT, "/a", "/b", "/c")):
        (tmp_path / name[1:]).mkdir(parents=True)
        (tmp_path / name[1:] / f"{number}.json").write_text(TEXT)
    host = HostRoot(str(tmp_path))
    found = hook.of_nvidia(node(host, words, variables, read))
    assert sorted(Path(one.path.host).parent.as_posix() for one in found) == sorted(looked)
    assert all(one.for_all for one in found)
