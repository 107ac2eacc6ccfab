"""The scripted containerd's command line: the real one's commands, and the daemon."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tests.doubles.containerd.generation import (
    CRI_RUNTIME,
    GRPC_CRI,
    Generation,
    Table,
    generation_of,
    reported_version,
)
from tests.doubles.containerd.load import Loaded, Node, RefusedError, built_in, load
from tests.doubles.containerd.populate import effective
from tests.doubles.containerd.specs import deadly
from tests.doubles.containerd.status import address_of, config_info, why_dead
from tests.doubles.runtime import toml
from tests.doubles.runtime.ending import set_by_signals
from tests.doubles.runtime.script import TRIAL_VARIABLE, read_script

_USUAL_CONFIG = "/etc/containerd/config.toml"


def containerd(version: str, node: str, arguments: Sequence[str]) -> int:
    """Do what the command `containerd` with these arguments does; gives the exit status."""
    parser = argparse.ArgumentParser(prog="containerd", allow_abbrev=False)
    parser.add_argument("-c", "--config", help="the configuration file")
    parser.add_argument("-a", "--address", help="the socket, instead of the configured one")
    parser.add_argument("--root", help="is ignored: there are no containers")
    parser.add_argument("--state", help="likewise; given for a trial start")
    parser.add_argument("-l", "--log-level", help="is ignored")
    parser.add_argument("-v", "--version", action="store_true", help="print the version")
    # What follows the command belongs to it: like the real one, `config dump -c FILE` is an error.
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.state:
        os.environ[TRIAL_VARIABLE] = "1"
    generation, place = generation_of(version), Node(node)
    try:
        if options.version:
            print(f"containerd github.com/containerd/containerd {reported_version(version)}")
        elif options.command == ["config", "default"]:
            print(generation.default_text(), end="")
        elif options.command == ["config", "dump"]:
            print(_dump(generation, options.config or _USUAL_CONFIG, place), end="")
        elif options.command:
            parser.error(f"not understood: {' '.join(options.command)}")
        else:
            _daemon(version, options.config, options.address, place)
    except RefusedError as error:
        print(f"containerd: {error}", file=sys.stderr)
        return error.status
    return 0


def _dump(generation: Generation, path: str, node: Node) -> str:
    """Give the effective configuration; 2.x swallows that a file is missing."""
    loaded = load(generation, path, node)
    if loaded.missing and not generation.deep:
        raise RefusedError(loaded.missing)
    document = effective(generation, loaded)
    unset = generation.unprinted()
    shown = {key: document[key] for key in document if document[key] != unset.get(key)}
    return toml.dumps(shown, "'" if generation.deep else '"')


def _daemon(version: str, config: str | None, address: str | None, node: Node) -> None:
    """Load, listen and answer until SIGTERM."""
    with contextlib.suppress(OSError):  # a trial start has a /proc of its own
        Path("/proc/self/comm").write_text("containerd", encoding="ascii")
    ended = threading.Event()
    set_by_signals(ended)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup: the real one dies of it
    generation, script = generation_of(version), read_script()
    document = effective(generation, _load_daemon(generation, config, node))
    dead = why_dead(generation, document)
    if dead:
        if GRPC_CRI in document["required_plugins"]:
            raise RefusedError(f"load required plugin {GRPC_CRI}: {dead}")
        print(_failed_plugin(generation, dead), file=sys.stderr, flush=True)
    if script.die_when and script.die_when.holds(generation, document):
        _die("scripted: dies with this configuration")
    if not dead and (panic := deadly(generation, document, node)):
        _die(panic)
    ended.wait(script.delay_start_s)
    socket = Path(node.real(address or address_of(document)))
    _serve(version, None if dead else document, socket, script.crash_after_s, ended)


def _failed_plugin(generation: Generation, why: str) -> str:
    """What the log says of a CRI plugin that does not load (observed on 1.6, 1.7 and 2.1)."""
    error = f"error={json.dumps(why)}"
    if generation.deep:
        return f'level=warning msg="failed to load plugin" {error} id={CRI_RUNTIME} type=x'
    return f'level=warning msg="failed to load plugin {GRPC_CRI}" {error}'


def _load_daemon(generation: Generation, config: str | None, node: Node) -> Loaded:
    """Load for the daemon: only the usual file may be missing, and then nothing is read."""
    if config is None and not os.path.exists(node.real(_USUAL_CONFIG)):
        return Loaded(built_in(generation), ())
    loaded = load(generation, config or _USUAL_CONFIG, node)
    if loaded.missing:
        raise RefusedError(loaded.missing)
    return loaded


def _serve(
    version: str,
    document: Table | None,
    socket: Path,
    crash_after_s: float | None,
    ended: threading.Event,
) -> None:
    # Late, because `config dump` needs no gRPC and is called often.
    from tests.doubles.containerd.service import Runtime, serve

    generation = generation_of(version)
    config = None if document is None else config_info(generation, document)
    runtime = Runtime(generation, reported_version(version), config, read_script)
    if crash_after_s is not None:
        crash = threading.Timer(crash_after_s, _die, ["scripted: crashes now"])
        crash.daemon = True
        crash.start()
    serve(runtime, socket, ended)


def _die(why: str) -> NoReturn:
    print(f"containerd: {why}", file=sys.stderr, flush=True)
    os._exit(2)
