"""A /proc/modules of a test's own, as programs of one node see it.

Where the kernel has the file, the test's is mounted over it. A kernel without loadable modules has
none, and procfs takes no new names: there a small library, loaded before the others, makes the C
library open the test's file, which needs a C compiler.
"""

from __future__ import annotations

from pathlib import Path

from tests.tools.compiler import make_library
from tests.tools.host_tools import reason, tool

PROC = Path("/proc/modules")
FILE = "modules"
_LIBRARY = "modules.so"
_LOADED = "nvidia_uvm 4943872 0 - Live 0x0 (POE)\nnvidia 56848384 2 nvidia_uvm, Live 0x0 (POE)\n"
# Not the driver: names that begin or end as its name does.
_UNLOADED = (
    "nvidiafb 61440 0 - Live 0x0\ni2c_nvidia_gpu 16384 0 - Live 0x0\nloop 40960 0 - Live 0x0\n"
)

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *seen(const char *path) {
    const char *own = getenv("SCRIPTED_MODULES");
    return own && path && !strcmp(path, "/proc/modules") ? own : path;
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define MODE int mode = 0; va_list rest; va_start(rest, flags); \
    if (flags & (O_CREAT | O_TMPFILE)) mode = va_arg(rest, int); \
    va_end(rest);
#define OPEN(name) int name(const char *path, int flags, ...) { \
    MODE REAL(name); return real(seen(path), flags, mode); }
#define OPENAT(name) int name(int at, const char *path, int flags, ...) { \
    MODE REAL(name); return real(at, seen(path), flags, mode); }
#define FOPEN(name) FILE *name(const char *path, const char *how) { \
    REAL(name); return real(seen(path), how); }
#define STAT(name, kind) int name(const char *path, struct kind *to) { \
    REAL(name); return real(seen(path), to); }
#define ACCESS(name) int name(const char *path, int how) { \
    REAL(name); return real(seen(path), how); }

OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) FOPEN(fopen) FOPEN(fopen64)
STAT(stat, stat) STAT(stat64, stat64) ACCESS(access) ACCESS(eaccess)
int faccessat(int at, const char *path, int how, int flags) {
    REAL(faccessat); return real(at, seen(path), how, flags); }
"""


def reason_against() -> str:
    """Why there can be none on this machine; empty where there can."""
    return "" if PROC.exists() or tool("cc") else f"no /proc/modules, and {reason('cc')}"


def make(folder: Path) -> None:
    """Make what programs need, in an empty folder; the driver is loaded."""
    load(folder, loaded=True)
    if not PROC.exists():
        source = folder / "modules.c"
        source.write_text(_SOURCE, encoding="ascii")
        make_library(source, folder / _LIBRARY, ["-w"])
        source.unlink()


def load(folder: Path, *, loaded: bool) -> None:
    """Have the driver loaded, or not."""
    (folder / FILE).write_text(_LOADED if loaded else _UNLOADED, encoding="ascii")


def variables(folder: Path) -> dict[str, str]:
    """What the environment of the programs must have so that they see the file in `folder`."""
    if PROC.exists():
        return {}
    return {"LD_PRELOAD": str(folder / _LIBRARY), "SCRIPTED_MODULES": str(folder / FILE)}
