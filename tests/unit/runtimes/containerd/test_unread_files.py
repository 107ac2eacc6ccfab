"""A file that cannot be parsed is refused, unless a dump shows that it sets none of our keys."""

from __future__ import annotations

import tomllib
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.errors import Refused
from agent.host.files import new_state
from agent.host.paths import HostPath
from agent.runtimes.command import _excerpt
from agent.runtimes.config_file import ConfigFile, unread_warnings
from agent.runtimes.containerd import preflight

_DUMP = """\
imports = ['/a.toml']
version = 3

[plugins]
[plugins.'io.containerd.cri.v1.images']
[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'r.example']
endpoint = ['https://m.example']

[plugins.'io.containerd.cri.v1.runtime']
enable_cdi = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = 'runc'

[plugins.'io.containerd.cri.v1.runtime-other']
enable_cdi = false

[[proxy_plugins]]
address = '/x'
"""


def test_missing_executable_is_refused_with_the_option() -> None:
    """The refusal says that nothing shows its effect, and which option helps."""
    path = HostPath("/a.toml", "/a.toml")
    file = ConfigFile(path.host, path, new_state(b"x"), {}, "it is nested more than 64 levels deep")
    node = cast("Any", SimpleNamespace(executable=None))
    with pytest.raises(Refused, match=r"^cannot use /a\.toml: it is nested .*--executable-path"):
        preflight.require_harmless(node, (file,))
    preflight.require_harmless(node, ())
    assert [text.partition(" ")[0] for text in unread_warnings((file,))] == ["/a.toml"]


def test_part_of_a_dump_has_the_named_tables_alone() -> None:
    """What stands above all tables, and the tables of the named plugins alone."""
    name = "io.containerd.cri.v1.runtime"
    section = {"enable_cdi": True, "containerd": {"default_runtime_name": "runc"}}
    found = tomllib.loads(_excerpt(_DUMP.encode(), [name]).decode())
    assert found == {"imports": ["/a.toml"], "version": 3, "plugins": {name: section}}
