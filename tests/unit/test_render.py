"""What is shown of a configuration file: everything but its secrets."""

from __future__ import annotations

import json
import tomllib

import pytest

from agent import render
from agent.engine.plan import Change
from agent.host.files import FileState
from agent.host.paths import HostPath

SECRET = "S3cr3t-Z9"  # noqa: S105 (what must not be shown)
PATH = HostPath("/host/etc/containerd/config.toml", "/etc/containerd/config.toml")


def shown(before: str | None, after: str | None) -> str:
    """Return the diff of a file."""
    old, new = (None if text is None else FileState(text.encode()) for text in (before, after))
    return render.diff(Change(PATH, old, new))


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


def test_key_and_file_stay_readable() -> None:
    """A person has to see which line it is."""
    found = shown(None, f'  password = "{SECRET}"\nendpoint = ["https://u:p@r.example/v2"]\n')
    assert "+  password = <redacted>" in found.splitlines()
    assert "r.example/v2" in found


PUBLIC = [
    'version = 2',
    'imports = ["/etc/containerd/conf.d/*.toml"]',
    '[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example".auth]',
    '[plugins."io.containerd.grpc.v1.cri".registry.headers]',
    '      BinaryName = "/usr/local/nvidia/toolkit/nvidia-container-runtime"',
    '  default_runtime_name = "nvidia" # the authority on GPUs is @team',
    'username = "robot"',
    'endpoint = ["https://r.example:5000/v2", "http://[::1]:80"]',
    'sandbox_image = "r.example/pause@sha256:0123"',
    'config_path = "/etc/containerd/certs.d"',
    'x509_key_pair_streaming = { tls_cert_file = "", tls_key_file = "/etc/k.pem" }',
    'key_model = "node"',
    'ca_file = "/etc/ca.pem"',
    'enable_cdi = true',
    'cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]',
    'container_annotations = ["nvidia.cdi.k8s.io/*", "cdi.k8s.io/*"]',
    '# Ask the platform team for the password.',
    '',
]  # fmt: skip


@pytest.mark.parametrize("line", PUBLIC)
def test_everything_else_is_shown(line: str) -> None:
    """A plan with holes in it cannot be judged."""
    assert render.redact(line) == line


def test_diff_is_a_unified_one_with_the_host_s_names() -> None:
    """`patch` and people read it; the agent's own name of the file would mislead them."""
    assert shown("a = 1\nb = 2\n", "a = 1\nb = 3\n").splitlines() == [
        "--- /etc/containerd/config.toml",
        "+++ /etc/containerd/config.toml",
        "@@ -1,2 +1,2 @@",
        " a = 1",
        "-b = 2",
        "+b = 3",
    ]


def test_diff_of_a_new_and_of_a_removed_file() -> None:
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
