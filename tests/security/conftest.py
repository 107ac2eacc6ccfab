"""Nodes as fixtures: those of the black box tests."""

from __future__ import annotations

from tests.cli.conftest import node, sourced

__all__ = ["node", "sourced"]
