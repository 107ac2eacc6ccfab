"""A made-up host root, for tests of paths."""

from __future__ import annotations

from pathlib import Path


def make_host(directory: Path) -> Path:
    """Make the root, beside a place outside it that no path may lead to."""
    for name in ("host/etc/containerd/conf.d", "host/data", "host/run", "outside/etc/containerd"):
        (directory / name).mkdir(parents=True)
    (directory / "host/etc/containerd/config.toml").write_text("inside")
    (directory / "outside/secret").write_text("outside")
    return directory / "host"
