"""Fill the cache with what the heaviest tests need: the project's image, systems with systemd.

    python -m tests.tools.prepare [--long]

Each is cached under a hash of its inputs. After a change in `agent/` only the image layers that
contain it are rebuilt. Where nothing can be made (no root, no apt) it says so at once; that is no
error, because tests say what they skip.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tests.image import build
from tests.tools.image_tools import Unavailable, image_tools
from tests.tools.node_tools import node_tools

DEFAULT, NEWER = "1.7", "2.1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make it, say how long that took, and return 0."""
    parser = argparse.ArgumentParser(description="Make what the heaviest tests need.")
    parser.add_argument("--long", action="store_true", help="what long tests need, too")
    return prepare(long=parser.parse_args(arguments).long)


def prepare(*, long: bool = False) -> int:
    """Fill the cache. Returns 0 also where something failed: the tests that need it say so."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print("prepare: no image and no system: that takes root and apt", file=sys.stderr)
        return 0
    for name, make in _steps(long):
        start = time.monotonic()
        try:
            make()
            answer = f"{time.monotonic() - start:.1f} s"
        except (Unavailable, AssertionError, OSError) as error:
            answer = f"cannot make it: {error}"
        print(f"prepare: {name}: {answer}", file=sys.stderr)
    return 0


def _steps(long: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "the image", lambda: build.build(image_tools())
    for generation in (DEFAULT, NEWER) if long else (DEFAULT,):
        yield f"a system with containerd {generation}", partial(node_tools, generation)


if __name__ == "__main__":
    sys.exit(main())
