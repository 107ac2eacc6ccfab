"""Pods of the agent's own on a node whose handlers leave cgroups to systemd."""

from __future__ import annotations

import json

import pytest

from tests.conformance import checks
from tests.node.conftest import Boot
from tests.node.systemd_node import SERVICE, SystemdNode
from tests.tools import pause_image

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

_CONFIG = f"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image.NAME}"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
"""


def _prepare(node: SystemdNode) -> None:
    """Give the node an image, programs of the toolkit that run runc, and that configuration."""
    for name in ("nvidia-container-runtime", "nvidia-container-runtime.cdi"):
        node.path(f"usr/local/nvidia/toolkit/{name}").write_text('#!/bin/sh\nexec runc "$@"\n')
    for name in ("hosts", "hostname"):  # runtimes copy them into each pod
        node.path(f"etc/{name}").touch()
    # nspawn gives a machine its hierarchies of cgroups version 1 read-only.
    node.run("sh", "-c", "for f in /sys/fs/cgroup/*/; do mount -o remount,bind,rw $f; done")
    node.path("etc/containerd/config.toml").write_text(_CONFIG)
    pause_image.write_pause_image(node.path("root/pause.tar"))
    told = node.run("systemctl", "restart", SERVICE)
    words = ("-n", "k8s.io", "images", "import", "--snapshotter", "native", "/root/pause.tar")
    told += node.run("ctr", *words)
    assert "pause" in node.run("ctr", "-n", "k8s.io", "images", "ls", "-q"), told


def test_pods_run_in_cgroups_of_systemd(boot: Boot) -> None:
    """runc wants a slice for each pod then, and fails without one."""
    node = boot()
    _prepare(node)
    applied = node.agent("apply")
    checks.done(applied)
    assert "ran under the default handler, nvidia, nvidia-cdi" in applied.stdout, applied
    verified = node.agent("verify", "-o", "json")
    assert verified.returncode == 0, verified
    found = json.loads(verified.stdout)
    assert {proof["result"] for proof in found["proofs"]} <= {"ok", "not tried"}, found
    assert node.run("ctr", "-n", "k8s.io", "containers", "ls", "-q") == ""
