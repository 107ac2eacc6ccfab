"""What a running daemon knows: what it shows, what its pods get, and the pods.

The real one copies its configuration when it starts. SIGHUP changes the copy that Status shows;
pods go on with the table of the start.
"""

from __future__ import annotations

import copy
import json
import threading
from dataclasses import asdict, replace
from pathlib import Path

from tests.doubles.crio.generation import Generation, Table
from tests.doubles.crio.load import RefusedError
from tests.doubles.crio.validate import Log, check_default, check_handlers
from tests.doubles.runtime.base import number_of
from tests.doubles.runtime.script import Pod, made_pod

_FILE = "sandboxes.json"


class Daemon:
    """The configuration and the pods; pods are on disk, so that a restart keeps them."""

    def __init__(self, generation: Generation, document: Table) -> None:
        self.generation = generation
        self.shown = copy.deepcopy(document)
        self._used = document["runtime"]
        self._file = Path(document["root"], _FILE)
        self._lock = threading.Lock()
        self._pods: dict[str, Pod] = {}
        if self._file.exists():
            saved = json.loads(self._file.read_text(encoding="utf-8"))
            self._pods = {number: made_pod(pod) for number, pod in saved.items()}

    def pods(self) -> tuple[Pod, ...]:
        """The pods that were run, and not removed."""
        with self._lock:
            return tuple(self._pods.values())

    def run(self, pod: Pod) -> str:
        """Run a pod and give its id; RefusedError where the table of the start has no handler."""
        self._find(pod.handler)
        with self._lock:
            self._pods[number_of(pod)] = pod
            self._save()
        return number_of(pod)

    def stop(self, number: str) -> None:
        """Stop a pod; RefusedError where its handler is gone: nobody can kill it any more. One that
        is stopped already stays so whatever became of its handler."""
        with self._lock:
            pod = self._pods.get(number)
            if pod is not None and pod.ready:
                if not pod.bare:
                    self._find(pod.handler)
                self._pods[number] = replace(pod, ready=False)
                self._save()

    def remove(self, number: str) -> None:
        """Stop a pod and forget it; RefusedError where its handler is gone, for its container,
        ended or not, could not be deleted."""
        self.stop(number)
        with self._lock:
            pod = self._pods.get(number)
            if pod is not None and not pod.bare:
                self._find(pod.handler)
            self._pods.pop(number, None)
            self._save()

    def reload(self, document: Table, log: Log) -> None:
        """Take over what SIGHUP takes over; RefusedError may come half-way, as in the real one."""
        shown = copy.deepcopy(self.shown)
        self.shown = shown
        new, runtime = document["runtime"], shown["runtime"]
        runtime["log_level"] = new["log_level"]
        for key in ("pause_image", "pinned_images"):
            shown["image"][key] = document["image"][key]
        if "cdi_spec_dirs" in runtime:
            _share_array(runtime["cdi_spec_dirs"], new["cdi_spec_dirs"])
        changed = runtime["runtimes"] != new["runtimes"]
        if changed:
            runtime["runtimes"] = new["runtimes"]
        if runtime["default_runtime"] != new["default_runtime"]:
            runtime["default_runtime"] = new["default_runtime"]
            changed = True
            check_default(self.generation, runtime)
            log("info", f'Set config default_runtime to "{runtime["default_runtime"]}"')
        if changed:
            check_handlers(self.generation, runtime, log)

    def _find(self, name: str) -> Table:
        runtimes: Table = self._used["runtimes"]
        found: Table | None = runtimes.get(name or self._used["default_runtime"])
        if found is None:
            table = " ".join(f"{known}:{hex(id(runtimes[known]))}" for known in sorted(runtimes))
            raise RefusedError(
                f"failed to find runtime handler {name} from runtime list map[{table}]"
            )
        return found

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps({n: asdict(p) for n, p in self._pods.items()}))


def _share_array(shown: list[str], new: list[str]) -> None:
    """Both are slices of the one built-in array of two, as long as they fit: so both change."""
    if len(shown) <= 2 and len(new) <= 2:
        count = min(len(shown), len(new))
        shown[:count] = new[:count]
