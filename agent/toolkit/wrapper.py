"""The wrapper scripts of the toolkit's programs, which set the environment of these programs.

Invariant: a script needs only a POSIX shell, and ends by executing the wrapped program with the
same arguments.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

HEAD = b"#!/bin/sh\n# Written by toolkit-agent, which overwrites it.\n"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# /sys is checked first, because a shell reads /proc/modules byte by byte (15 ms). A missing driver
# is reported when a container is created, in the kernel's log, because stderr of this program is
# the container's. Each Kubernetes node has that log, because the kubelet reads it. Writing to it
# needs no program and never blocks, and the kernel limits its rate.
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
                line="toolkit-agent: the NVIDIA driver is not loaded: $runtime runs without it"
                if [ -w /dev/kmsg ]; then
                    echo "<4>$line" >>/dev/kmsg
                fi 2>/dev/null
                ;;
            esac
            exec "$runtime" "$@"
        fi
    done
    echo "cannot start a container: there is neither the NVIDIA driver nor a low-level runtime" >&2
    exit 127
fi
"""


def text(
    program: str, directory: str, *, config: str | None = None, libraries: bool = False,
    runtimes: Sequence[str] = (),
) -> bytes:  # fmt: skip
    """The content of the script for a program. All paths are host paths.

    `config` is the toolkit's config.toml; None if the program does not read it. `libraries`: the
    loader also searches the toolkit's `directory`. `runtimes` are tried in this order while the
    driver's module is not loaded; with () the script does not check the driver.
    """
    place = shlex.quote(directory)
    lines = [f'PATH="${{PATH:-{_PATH}}}"']
    if runtimes:
        listed = " ".join(map(shlex.quote, runtimes))
        lines += _FALL_BACK.format(runtimes=listed).splitlines()
    lines.append(f'PATH={place}:"$PATH"')
    names = ["PATH"]
    if config is not None:
        lines.append(f"NVIDIA_CTK_CONFIG_FILE_PATH={shlex.quote(config)}")
        names.append("NVIDIA_CTK_CONFIG_FILE_PATH")
    if libraries:
        rest = '"${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"'
        lines.append(f"LD_LIBRARY_PATH={place}{rest}")
        names.append("LD_LIBRARY_PATH")
    lines += [f"export {' '.join(names)}", f'exec {shlex.quote(program)} "$@"']
    return HEAD + ("\n".join(lines) + "\n").encode()
