"""A configuration file is shown without its secrets."""

from __future__ import annotations

import json
import tomllib

import pytest

from agent.cli.render import apply as render_apply
from agent.cli.render import base as render
from agent.cli.render import diffs
from agent.cli.render.base import Screen
from agent.host.files import Change, FileState
from agent.host.paths import HostPath
from agent.transaction.revert import Reverted

SECRET = "S3cr3t-Z9"  # noqa: S105 (what must not be shown)
PATH = HostPath("/host/etc/containerd/config.toml", "/etc/containerd/config.toml")


def shown(before: str | None, after: str | None) -> str:
    """Return the diff of a file."""
    old, new = (None if text is None else FileState(text.encode()) for text in (before, after))
    return diffs.diff(Change(PATH, old, new))


# Each holds SECRET, in a place where containerd takes one, in a spelling that TOML allows.
SECRETS = {
    "password": f'password = "{SECRET}"',
    "indented": f'      password = "{SECRET}"',
    "no spaces": f"password='{SECRET}'",
    "quoted key": f'"password" = "{SECRET}"',
    "auth": f'auth = "{SECRET}"',
    "identity token": f'identitytoken = "{SECRET}"',
    "identity_token": f'identity_token = "{SECRET}"',
    "inline table": f'auth = {{ username = "u", password = "{SECRET}" }}',
    "inline table behind others": f'"r.example" = {{ tls = {{}}, auth = {{ a = "{SECRET}" }} }}',
    "inline password behind a name": f'"r.example" = {{ username = "u", password = "{SECRET}" }}',
    "dotted key": f'registry.configs.r.auth.password = "{SECRET}"',
    "dotted key with quotes": f'registry.configs."r.example".auth.password = "{SECRET}"',
    "dotted auth, innocent leaf": f'registry.configs."r.example".auth.x = "{SECRET}"',
    "header": f'Authorization = ["Bearer {SECRET}"]',
    "lower case header": f'authorization = ["Basic {SECRET}"]',
    "header of a registry": f'X-Registry-Token = ["{SECRET}"]',
    "list over lines": f'Authorization = [\n  "Bearer {SECRET}",\n]',
    "string over lines": f'password = """\n{SECRET}\n"""',
    "literal string over lines": f"password = '''\n{SECRET}'''",
    "user in a URL": f'endpoint = ["https://user:{SECRET}@r.example/v2"]',
    "user in a proxy's URL": f'proxy = "http://{SECRET}@proxy.example:3128"',
    "commented out": f'# password = "{SECRET}"',
    "commented out, no space": f'  #password = "{SECRET}"',
}


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("sign", ["context", "gone", "new"])
def test_secret_is_never_shown(name: str, sign: str) -> None:
    """Neither as context of our change nor as a line that goes or comes."""
    text = f"version = 2\n{SECRETS[name]}\n"
    tomllib.loads(text)
    before, after = {
        "context": (text, text + "imports = []\n"),
        "gone": (text, "version = 2\n"),
        "new": (None, text),
    }[sign]
    found = shown(before, after)
    assert found
    assert SECRET not in found


def test_key_stays_readable() -> None:
    """A person has to see which line it is."""
    found = shown(None, f'  password = "{SECRET}"\nendpoint = ["https://u:p@r.example/v2"]\n')
    assert found.splitlines()[3:] == ["+  password = …", "+endpoint = …"]


_CRI = 'plugins."io.containerd.grpc.v1.cri"'
PUBLIC = [
    "version = 2",
    'imports = ["/etc/containerd/conf.d/*.toml"]',
    f'[{_CRI}.registry.configs."r.example:5000".auth]',
    f"[{_CRI}.registry.headers]",
    f"{_CRI}.enable_cdi = true",
    f'{_CRI}.cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]',
    f'{_CRI}.containerd.default_runtime_name = "nvidia"',
    f'{_CRI}.containerd.runtimes.nvidia.runtime_type = "io.containerd.runc.v2"',
    f'  {_CRI}.containerd.runtimes.nvidia.options.BinaryName = "/opt/nvidia-container-runtime"',
    f'{_CRI}.containerd.runtimes.nvidia.container_annotations = ["cdi.k8s.io/*"]',
    f"{_CRI}.containerd.runtimes.nvidia = {{ options = {{ SystemdCgroup = true }} }}",
    'crio.runtime.default_runtime = "crun"',
    'crio.runtime.runtimes.crun.runtime_path = "/usr/bin/crun"',
    "# Written by toolkit-agent: the NVIDIA container runtime for this node.",
    "",
]


@pytest.mark.parametrize("line", PUBLIC)
def test_our_keys_are_shown(line: str) -> None:
    """Old and new values of the keys that our edits set; and all keys."""
    assert shown(None, f"{line}\na = 1\n").splitlines()[3] == f"+{line}"
    assert shown(f"{line}\na = 1\n", None).splitlines()[3] == f"-{line}"


HIDDEN = {
    'sandbox_image = "r.example/pause"': "sandbox_image = …",
    'a = [\n  "x", # y\n  "z",\n]': "a = …\n…\n…\n…",
    "a = 1 # to do": "a = …  # …",
    "  # to do": "  # …",
    '[registry."u:p@r.example"] # x': '[registry."…@r.example"]  # …',
    '[registry."http://u:p@r.example/x"]': '[registry."http://…@r.example/x"]',
    'r = { auth = { "a:b" = "c" }, d = [1] }': 'r = { auth = { "a:b" = … }, d = … }',
    'imports = [ # x\n  "/a",\n]': "imports = …\n…\n…",
    'imports = ["http://u:p@h/"]': 'imports = ["http://…@h/"]',
}


@pytest.mark.parametrize(("text", "expected"), HIDDEN.items(), ids=HIDDEN)
def test_everything_else_is_hidden(text: str, expected: str) -> None:
    """A value of another key, a comment, a user in the name of a host."""
    found = shown(None, f"{text}\n").splitlines()[3:]
    assert found == [f"+{line}" for line in expected.split("\n")]


def test_change_of_what_is_hidden_is_a_change() -> None:
    """Two values that look alike are not the same line."""
    assert shown("a = 1\n", "a = 2\n").splitlines()[2:] == ["@@ -1 +1 @@", "-a = …", "+a = …"]


def test_garbled_file_is_hidden_as_a_whole() -> None:
    """Where no place can be told, nothing is shown of what was there."""
    assert shown('x = "p\n', "version = 2\n").splitlines()[2:] == [
        "@@ -1 +1 @@", "-…", "+version = 2",
    ]  # fmt: skip


def test_file_that_is_ours_as_a_whole_is_shown() -> None:
    """NVIDIA's config.toml as we write it, over one that somebody else wrote."""
    ours = "# Written by toolkit-agent, which overwrites it.\ndebug = 1\nb = 1\n"
    assert shown("debug = 1\nb = 'x'\n", ours).splitlines()[3:] == [
        "+# Written by toolkit-agent, which overwrites it.", " debug = 1", "-b = …", "+b = 1",
    ]  # fmt: skip


def test_diff_is_a_unified_one_with_the_host_s_names() -> None:
    """`patch` and people read it; the agent's own name of the file would mislead them."""
    assert shown("imports = []\nversion = 2\n", "imports = []\nversion = 3\n").splitlines() == [
        "--- /etc/containerd/config.toml",
        "+++ /etc/containerd/config.toml",
        "@@ -1,2 +1,2 @@",
        " imports = []",
        "-version = 2",
        "+version = 3",
    ]


def test_diff_of_a_new_or_removed_file_names_dev_null() -> None:
    """As diff and git write them."""
    assert shown(None, "a = 1\n").splitlines()[:2] == [
        "--- /dev/null",
        "+++ /etc/containerd/config.toml",
    ]
    assert shown("a = 1\n", None).splitlines()[1] == "+++ /dev/null"


def test_document_says_what_it_is() -> None:
    """Programs tell versions and kinds apart by these two."""
    found = json.loads(render.document("Plan", {"warnings": ["ü"]}))
    assert found == {"apiVersion": "toolkit-agent/v1", "kind": "Plan", "warnings": ["ü"]}


def test_file_that_a_revert_removes_is_not_restored() -> None:
    """A file of ours goes, and one of the admin's comes back."""
    text = render_apply.reverted_text(Reverted(("/etc/a", "/etc/b"), removed=("/etc/b",)), Screen())
    assert text.splitlines() == ["Restored:  /etc/a", "Removed:   /etc/b"]
