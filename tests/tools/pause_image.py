"""An image of one program that waits until it is killed: the sandbox of each pod, and containers
that are only created. Made here, because tests can pull none and not each machine has a compiler.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import struct
import tarfile
from pathlib import Path
from typing import Any

NAME = "localhost/pause:1"

_LOAD_ADDRESS = 0x400000
_HEADERS = 64 + 56  # of the file and of its one segment; the code follows
# For each machine: ELF's number of it, the name of images for it, and an endless loop around the
# system call that waits for a signal: pause() or, where there is none, ppoll() of nothing.
_MACHINES = {
    "x86_64": (62, "amd64", "b822000000 0f05 ebf7"),
    "aarch64": (183, "arm64", "000080d2 010080d2 020080d2 030080d2 280980d2 010000d4 faffff17"),
}


def write_pause_image(path: Path) -> None:
    """Write it to `path` as an OCI image layout in a tar, named for containerd."""
    machine, architecture, code = _MACHINES[platform.machine()]
    layer = _tar({"pause": _program(machine, bytes.fromhex(code))}, 0o755)
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layers = [blob(layer, "layer.v1.tar")]
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(_json(config), "config.v1+json"),
        "layers": layers,
    }
    named = {"annotations": {"io.containerd.image.name": NAME}}
    index = {
        "schemaVersion": 2,
        "manifests": [blob(_json(manifest), "manifest.v1+json") | named],
    }
    layout = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index)}
    path.write_bytes(_tar(layout | blobs, 0o644))


def _program(machine: int, code: bytes) -> bytes:
    """An executable for Linux with `code` and nothing else."""
    size = _HEADERS + len(code)
    entry = _LOAD_ADDRESS + _HEADERS
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)
    return identity + header + segment + code


def _tar(files: dict[str, bytes], mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _json(data: object) -> bytes:
    return json.dumps(data).encode()
