"""All shapes of the matrix on rules: those of the real one, and what only mixed versions have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.conformance import shapes
from tests.conformance.shapes import ROW3, Expected, Shape
from tests.generations.mixes import (
    DOWN,
    VERSIONS,
    frozen_mixes,
    spread,
    switch_mixes,
    version_mixes,
)
from tests.generations.singles import SINGLES


@dataclass(frozen=True)
class Cell:
    """One shape on one version."""

    shape: Shape
    version: str

    def __str__(self) -> str:
        """For the name of a test."""
        return f"{self.shape.name}-{self.version}"


# Where 2.3 and later differ from 2.1: they read version 1, and a drop-in must not be newer.
_SINCE_23: Mapping[str, Expected] = {
    "v1": ROW3,
    "v1-implicit": ROW3,
    "version-at-the-end": ROW3,
    "frozen-v3-below-v2": DOWN,
}


def _real() -> Iterator[Shape]:
    """The shapes that are tried on a real 2.1."""
    for shape in shapes.SHAPES:
        if "2.1" in shape.cells:
            old = shape.cells["2.1"]
            cells = spread(old, _SINCE_23.get(shape.name, old))
            yield Shape(**{**vars(shape), "cells": cells})


SHAPES = (*_real(), *SINGLES, *version_mixes(), *switch_mixes(), *frozen_mixes())
CELLS = [Cell(shape, version) for shape in SHAPES for version in VERSIONS if version in shape.cells]
