"""The package has the CRI's wire format, bounded dependencies and nothing else on top."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

import agent
from agent._cri import api_pb2, api_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
STUBS = ("api_pb2.py", "api_pb2.pyi", "api_pb2_grpc.py")

# As in k8s.io/cri-api, runtime/v1: what a runtime sends can only be read with these very numbers
# and types. Written out once more, because a slip in the proto would look like a silent runtime.
FIELDS = {
    "VersionRequest": ["1 string version"],
    "VersionResponse": [
        "1 string version",
        "2 string runtime_name",
        "3 string runtime_version",
        "4 string runtime_api_version",
    ],
    "StatusRequest": ["1 bool verbose"],
    "StatusResponse": [
        "1 RuntimeStatus status",
        "2 map<string, string> info",
        "3 repeated RuntimeHandler runtime_handlers",
        "4 RuntimeFeatures features",
    ],
    "RuntimeStatus": ["1 repeated RuntimeCondition conditions"],
    "RuntimeCondition": ["1 string type", "2 bool status", "3 string reason", "4 string message"],
    "RuntimeHandler": ["1 string name", "2 RuntimeHandlerFeatures features"],
    "RuntimeHandlerFeatures": ["1 bool recursive_read_only_mounts", "2 bool user_namespaces"],
    "RuntimeFeatures": ["1 bool supplemental_groups_policy", "2 bool user_namespaces_host_network"],
    "ListPodSandboxRequest": ["1 PodSandboxFilter filter"],
    "PodSandboxFilter": [
        "1 string id",
        "2 PodSandboxStateValue state",
        "3 map<string, string> label_selector",
    ],
    "PodSandboxStateValue": ["1 PodSandboxState state"],
    "ListPodSandboxResponse": ["1 repeated PodSandbox items"],
    "PodSandbox": [
        "1 string id",
        "2 PodSandboxMetadata metadata",
        "3 PodSandboxState state",
        "4 int64 created_at",
        "5 map<string, string> labels",
        "7 string runtime_handler",
    ],
    "PodSandboxMetadata": [
        "1 string name",
        "2 string uid",
        "3 string namespace",
        "4 uint32 attempt",
    ],
    "PodSandboxStatusRequest": ["1 string pod_sandbox_id", "2 bool verbose"],
    "PodSandboxStatusResponse": ["2 map<string, string> info"],
    "ListContainersRequest": [],
    "ListContainersResponse": ["1 repeated Container containers"],
    "Container": [
        "1 string id",
        "2 string pod_sandbox_id",
        "3 ContainerMetadata metadata",
        "6 ContainerState state",
        "7 int64 created_at",
        "9 map<string, string> annotations",
    ],
    "ContainerMetadata": ["1 string name", "2 uint32 attempt"],
    "ContainerStatusRequest": ["1 string container_id", "2 bool verbose"],
    "ContainerStatusResponse": ["2 map<string, string> info"],
    "RunPodSandboxRequest": ["1 PodSandboxConfig config", "2 string runtime_handler"],
    "RunPodSandboxResponse": ["1 string pod_sandbox_id"],
    "PodSandboxConfig": [
        "1 PodSandboxMetadata metadata",
        "6 map<string, string> labels",
        "8 LinuxPodSandboxConfig linux",
    ],
    "LinuxPodSandboxConfig": [
        "1 string cgroup_parent",
        "2 LinuxSandboxSecurityContext security_context",
    ],
    "LinuxSandboxSecurityContext": ["1 NamespaceOption namespace_options"],
    "NamespaceOption": [
        "1 NamespaceMode network",
        "2 NamespaceMode pid",
        "3 NamespaceMode ipc",
    ],
    "StopPodSandboxRequest": ["1 string pod_sandbox_id"],
    "StopPodSandboxResponse": [],
    "RemovePodSandboxRequest": ["1 string pod_sandbox_id"],
    "RemovePodSandboxResponse": [],
    "CreateContainerRequest": [
        "1 string pod_sandbox_id",
        "2 ContainerConfig config",
        "3 PodSandboxConfig sandbox_config",
    ],
    "CreateContainerResponse": ["1 string container_id"],
    "ContainerConfig": [
        "1 ContainerMetadata metadata",
        "2 ImageSpec image",
        "9 map<string, string> labels",
        "10 map<string, string> annotations",
        "15 LinuxContainerConfig linux",
        "17 repeated CDIDevice CDI_devices",
    ],
    "ImageSpec": ["1 string image", "18 string user_specified_image"],
    "LinuxContainerConfig": ["2 LinuxContainerSecurityContext security_context"],
    "LinuxContainerSecurityContext": ["3 NamespaceOption namespace_options"],
    "CDIDevice": ["1 string name"],
    "StartContainerRequest": ["1 string container_id"],
    "StartContainerResponse": [],
    "ImageStatusRequest": ["1 ImageSpec image"],
    "ImageStatusResponse": ["1 Image image"],
    "Image": ["1 string id"],
}
METHODS = {
    "Version": ("VersionRequest", "VersionResponse"),
    "Status": ("StatusRequest", "StatusResponse"),
    "ListPodSandbox": ("ListPodSandboxRequest", "ListPodSandboxResponse"),
    "PodSandboxStatus": ("PodSandboxStatusRequest", "PodSandboxStatusResponse"),
    "ListContainers": ("ListContainersRequest", "ListContainersResponse"),
    "ContainerStatus": ("ContainerStatusRequest", "ContainerStatusResponse"),
    "RunPodSandbox": ("RunPodSandboxRequest", "RunPodSandboxResponse"),
    "StopPodSandbox": ("StopPodSandboxRequest", "StopPodSandboxResponse"),
    "RemovePodSandbox": ("RemovePodSandboxRequest", "RemovePodSandboxResponse"),
    "CreateContainer": ("CreateContainerRequest", "CreateContainerResponse"),
    "StartContainer": ("StartContainerRequest", "StartContainerResponse"),
}
SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_INT64: "int64",
}

# Everything that may lie at the top. A new name is a decision, not a by-product.
TOP = {
    ".ci",
    ".git",
    ".github",
    ".gitignore",
    ".containerignore",
    ".dockerignore",
    "Containerfile",
    "LICENSE",
    "README.md",
    "agent",
    "deploy",
    "protos",
    "pyproject.toml",
    "tests",
}


def type_of(field: FieldDescriptor) -> str:
    """Return a field's type as a proto spells it."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return f"map<{type_of(key)}, {type_of(value)}>"
    named = field.message_type or field.enum_type
    kind = named.name if named is not None else SCALARS[field.type]
    return f"repeated {kind}" if field.is_repeated else kind


def shape(message: Descriptor) -> list[str]:
    """Return a message's fields as lines of the table."""
    return [f"{field.number} {type_of(field)} {field.name}" for field in message.fields]


def pyproject() -> dict[str, Any]:
    """Read the project's metadata from the source."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def numbers(version: str) -> tuple[int, ...]:
    """Return a plain version as numbers that compare."""
    return tuple(int(part) for part in version.split("."))


def floor(package: str) -> tuple[int, ...]:
    """Return the lowest version of a dependency that pyproject.toml allows."""
    (match,) = [
        found
        for line in pyproject()["project"]["dependencies"]
        if (found := re.match(rf"{package}>=([\d.]+),", line))
    ]
    return numbers(match[1])


def test_messages_have_the_numbers_and_types_of_the_interface() -> None:
    messages = api_pb2.DESCRIPTOR.message_types_by_name
    assert {name: shape(message) for name, message in messages.items()} == FIELDS


def test_states_have_the_numbers_of_the_interface() -> None:
    assert dict(api_pb2.PodSandboxState.items()) == {"SANDBOX_READY": 0, "SANDBOX_NOTREADY": 1}
    names = ("CREATED", "RUNNING", "EXITED", "UNKNOWN")
    assert dict(api_pb2.ContainerState.items()) == {
        f"CONTAINER_{name}": number for number, name in enumerate(names)
    }
    assert dict(api_pb2.NamespaceMode.items()) == {"POD": 0, "CONTAINER": 1, "NODE": 2}


def test_service_is_called_by_the_name_of_the_interface() -> None:
    service = api_pb2.DESCRIPTOR.services_by_name["RuntimeService"]
    methods = {m.name: (m.input_type.name, m.output_type.name) for m in service.methods}
    assert service.full_name == "runtime.v1.RuntimeService"
    assert methods == METHODS
    assert all(hasattr(api_pb2_grpc.RuntimeServiceServicer, name) for name in METHODS)
    (image,) = api_pb2.DESCRIPTOR.services_by_name["ImageService"].methods
    assert image.full_name == "runtime.v1.ImageService.ImageStatus"


def test_messages_do_not_collide_with_another_package() -> None:
    """Protobuf's pool is one per process and refuses a second file of the same name."""
    assert api_pb2.DESCRIPTOR.name == "agent/_cri/api.proto"


def test_unknown_fields_of_a_newer_runtime_are_skipped() -> None:
    """Field 15 is none of ours; its bytes are `tag, length, "new"`."""
    wire = api_pb2.VersionResponse(runtime_name="containerd").SerializeToString() + b"\x7a\x03new"
    assert api_pb2.VersionResponse.FromString(wire).runtime_name == "containerd"


def test_generated_code_is_not_newer_than_the_oldest_allowed_runtime() -> None:
    """Protobuf and grpc refuse code that a newer compiler wrote, when it is imported."""
    text = (ROOT / "agent/_cri/api_pb2.py").read_text(encoding="utf-8")
    generated = re.search(r"Protobuf Python Version: ([\d.]+)", text)
    assert generated is not None
    assert numbers(generated[1]) <= floor("protobuf")
    assert numbers(api_pb2_grpc.GRPC_GENERATED_VERSION) <= floor("grpcio")


def test_version_is_one() -> None:
    assert importlib.metadata.version("cdi-toolkit-agent") == agent.__version__


@pytest.mark.parametrize("command", ["toolkit-agent", "nvidia-toolkit"])
def test_command_can_be_loaded(command: str) -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name=command)
    assert callable(entry.load())


def test_dependencies_have_a_floor_and_a_ceiling() -> None:
    project = pyproject()
    requirements = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
    ]
    loose = [r for r in requirements if not re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", r)]
    assert loose == []


def test_what_builds_the_package_is_among_the_tools() -> None:
    """An editable install is built with them, without an environment of its own."""
    project = pyproject()
    assert set(project["build-system"]["requires"]) <= set(project["dependency-groups"]["dev"])


def test_top_of_the_tree_is_the_fixed_one() -> None:
    ignored = re.findall(r"^/?([^/*\n]+)/$", (ROOT / ".gitignore").read_text(), flags=re.MULTILINE)
    assert {path.name for path in ROOT.iterdir()} - set(ignored) <= TOP


def pip(*arguments: str) -> None:
    """Run pip of this environment; its message is the failure's."""
    argv = [sys.executable, "-m", "pip", "-qq", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def bare_checkout(tmp_path: Path) -> Path:
    """Return a copy of what is committed and goes into the package: without stubs."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("agent", "protos"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("api_pb2*", "__*__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def check_wheel(folder: Path, target: Path) -> None:
    """Check that the only wheel in `folder` holds the program, its stubs, and nothing else."""
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(target)
    metadata = f"cdi_toolkit_agent-{agent.__version__}.dist-info"
    assert {f"agent/_cri/{stub}" for stub in STUBS} <= set(names)
    assert {name.partition("/")[0] for name in names} == {"agent", metadata}
    assert f"{metadata}/licenses/LICENSE" in names
    code = f"import sys; sys.path.insert(0, {str(target)!r}); import agent._cri.api_pb2_grpc as m; "
    # -I: the wheel's module, not the checkout's that an editable install puts on the path.
    done = subprocess.run(
        [sys.executable, "-I", "-c", code + "print(m.__file__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == target / "agent/_cri/api_pb2_grpc.py"


def test_wheel_of_a_bare_checkout_has_the_stubs(bare_checkout: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    pip("wheel", "--no-build-isolation", "--no-deps", "-w", str(wheels), str(bare_checkout))
    check_wheel(wheels, tmp_path / "unpacked")


@pytest.mark.long
def test_wheel_of_an_sdist_has_the_stubs(bare_checkout: Path, tmp_path: Path) -> None:
    """As a user's pip does it: the build's requirements are downloaded."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=bare_checkout,
        check=True,
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    wheels = tmp_path / "wheels"
    pip("wheel", "--no-deps", "-w", str(wheels), str(sdist))
    check_wheel(wheels, tmp_path / "unpacked")
