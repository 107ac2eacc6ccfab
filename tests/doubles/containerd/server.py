"""A scripted containerd: the same command line, configuration rules and CRI answers, no containers.

`python tests/doubles/containerd/server.py --version 2.1.9 [--node DIR] [ARGUMENTS OF containerd]`
is one. With `--install DIR` it writes an executable `containerd` that is one, and prints its path.
With `--node`, absolute paths (also the usual ones of the configuration file and the socket) are
below that directory. Faults are scripted (see `tests/doubles/runtime/script.py`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `server.py`; gives the exit status."""
    from tests.doubles.containerd.command import containerd
    from tests.doubles.runtime.install import make_fake_containerd

    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", required=True, help="which containerd to be")
    parser.add_argument("--node", default="", help="a directory that plays the machine")
    parser.add_argument("--install", type=Path, metavar="DIR", help="write DIR/containerd instead")
    options, rest = parser.parse_known_args(arguments)
    node = os.path.abspath(options.node) if options.node else ""
    if options.install:
        print(make_fake_containerd(options.install, options.version, sys.executable, node=node))
        return 0
    return containerd(options.version, node, rest)


if __name__ == "__main__":
    # Run by path: the package, and the stubs beside it, are found from the root of the tree.
    sys.path[0] = str(Path(__file__).resolve().parents[3])
    sys.exit(main())
