"""The scripts that stand before the toolkit's programs.

Invariant: a POSIX shell and nothing else is needed to run them; the last thing that each does is to
become the program that it wraps, with the same arguments.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

HEAD = b"#!/bin/sh\n# Written by toolkit-agent, which overwrites it.\n"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The kernel's directory is there at once; only without it the list is read, in which a line starts
# with the module's name (a shell reads byte by byte: 15 ms). That the driver is missing is said
# where a container is made, and to the kernel's log, because what is written to stderr lands in the
# container's own. Each Kubernetes node has that log: the kubelet reads it. To write to it takes no
# program and never waits, and the kernel limits its rate.
_FALL_BACK = """\
driver_is_loaded() {{
    if [ -d /sys/module/nvidia ]; then
        return 0
    fi
    while read -r module _; do
        if [ "$module" = nvidia ]; then
            return 0
        fi
    done </proc/modules
    return 1
}}
if ! driver_is_loaded 2>/dev/null; then
    # shellcheck disable=SC2043 # there may be one
    for runtime in {runtimes}; do
        runtime=$(command -v "$runtime" 2>/dev/null) || continue
        if [ -f "$runtime" ] && [ -x "$runtime" ]; then
            case " $* " in
            *" create "* | *" run "*)
                line="toolkit-agent: the NVIDIA driver is not loaded: $runtime goes on alone"
                if [ -w /dev/kmsg ]; then
                    echo "<4>$line" >>/dev/kmsg
                fi 2>/dev/null
                ;;
            esac
            exec "$runtime" "$@"
        fi
    done
    echo "cannot start a container: neither the NVIDIA driver nor a runtime is there" >&2
    exit 127
fi
"""


@dataclass(frozen=True, slots=True)
class Wrapper:
    """All paths are the host's. `config` is the toolkit's config.toml, where the program reads it;
    `libraries`: the toolkit's directory is searched for libraries too; `runtimes` are called in
    turn while the driver's module is not loaded, none: it is of no importance."""

    program: str
    directory: str
    config: str | None = None
    libraries: bool = False
    runtimes: tuple[str, ...] = ()


def text(wrapper: Wrapper) -> bytes:
    """The script."""
    directory = shlex.quote(wrapper.directory)
    lines = [f'PATH="${{PATH:-{_PATH}}}"']
    if wrapper.runtimes:
        runtimes = " ".join(map(shlex.quote, wrapper.runtimes))
        lines += _FALL_BACK.format(runtimes=runtimes).splitlines()
    lines.append(f'PATH={directory}:"$PATH"')
    names = ["PATH"]
    if wrapper.config is not None:
        lines.append(f"NVIDIA_CTK_CONFIG_FILE_PATH={shlex.quote(wrapper.config)}")
        names.append("NVIDIA_CTK_CONFIG_FILE_PATH")
    if wrapper.libraries:
        rest = '"${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"'
        lines.append(f"LD_LIBRARY_PATH={directory}{rest}")
        names.append("LD_LIBRARY_PATH")
    lines += [f"export {' '.join(names)}", f'exec {shlex.quote(wrapper.program)} "$@"']
    return HEAD + ("\n".join(lines) + "\n").encode()
