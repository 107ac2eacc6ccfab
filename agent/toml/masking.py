"""Messages of other programs, without the values of a configuration that they may repeat.

A runtime that rejects a value repeats it ("Can't convert hunter2(string) to int"), and the value
can be a password. No list of what is secret is ever complete. So this module has the opposite list:
the words of the runtimes' messages, the words of the keys in the files, and names of ours. Whatever
is not in it is shown as `…`.

Invariant: pure. Each word that `masked` returns is known before the text is read, except for small
numbers of lines and columns. The keys of masked values are named instead.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from agent.redaction import HIDDEN, redact_text
from agent.toml.dialect import Data
from agent.toml.write import Path, dotted

_MOST = 300  # characters of what is shown
_MOST_READ = 10_000  # characters of what is looked at
_MOST_KEYS = 2
_SHORTEST = 2  # characters of a value that is looked for

# Numbers say where something is, how a program ended, or are no numbers at all.
_PLACE = re.compile(
    r"""\(\d{1,5},[ ]\d{1,4}\) | \b(?:line|row|column)(?:[ ]|=)\d{1,5}\b
        | /proc/self/fd/\d{1,4}\b | \bexit[ ](?:status|code)[ ]\d{1,3}\b""",
    re.VERBOSE,
)
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"?|`[^`]*`?|(?<!\w)\'[^\']*\'?')
_TOKEN = re.compile(r"[^\s\"`'()\[\]{},;]+")
_WORDS = re.compile(r"[A-Za-z]+\d*|[^A-Za-z]")
_HUMPS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PUNCTUATION = frozenset(".-_/:$=*!?<>|&\\%+")
_AGAIN = re.compile(rf"{HIDDEN}(?:\s*{HIDDEN})+")

# The words of the messages of containerd 1.6 to 2.4, CRI-O, Go's libraries, gRPC, systemd and
# tomllib; names of runtimes, plugins and usual directories; types of Go; words of usual keys.
_KNOWN_WORDS = """
a about above absolute access additional address addresses after again all allowed already also
always an and annotations another any api apparmor are argument arguments array as at attempt audit
auth authentication authorized available away backend bad bare base basic be because been before
begin below between bin binaryname blkio blockio bool boolean both broken btrfs build but by byte
bytes call called can cannot capabilities cause cdi certificate cgroup cgroupfs cgroups chain change
channel character characters check child chown class clean client close closed cni code column
command commands comment concurrent conf config configs configuration configured conflict conmon
conmonrs connect connectex connecting connection connections container containerd containers content
context control controlled controller convert copy core cpu cpuset cpusets create created creating
creation cri crio criu crun ctr current daemon data date dates datetime dead deadline debug declare
declared decode decoding default defaults defined delete denied dependency deprecated desc
descriptor destructive details dev device devices devmapper dial did digest digit digits dir
directories directory dirs disable disabled discard disk dns document does doesn don downloads drop
dump duplicate duplicated duration each early either element empty enable enabled encode encoding
end ended endpoint engine entry env environment eof equal erofs err error errors escape escaped etc
event events exceeded exec executable execute exist existing exists exit exited expect expected
expects failed failing failure failures false fatal feature features field fields fifo file files
filesystem find first flag flags float float32 float64 for forbidden format found frame from fs full
function gc generate generation get getting gid global go goaway goroutine got group grpc gzip had
handler handlers handshake has hash have header hexadecimal hook hooks host hostname hosts http
https hugetlb id identitytoken idle if ignore ignored ignoring image images immutable implemented
import imports in include incompatible index infinite info information infra init initialize
initialized initializing inject injection inline input inside install int int16 int32 int64 int8
integer integers interactive interface internal into introspection invalid invocation io ip ipv4
ipv6 irqbalance is isn isolate it its job jobs journalctl json k8 kata kernel key keys kind kubelet
kubernetes label labels last layer layers leading lease leases least left length less level lib
libexec library like limit line lines link linux list listen listener literal load loaded loading
local location lock log logger logs long lookup lost lstat lz4 main make managed manager manually
map marshal mask masked match matching max maximum may maybe memory message metadata method minimum
mirror mirrors missing mix mkdir mode module monitor mount mounts mtls must mutate mutually name
named names namespace namespaces native need needed needs nested network new newline next nil no
node non none nor not nothing now nri null number numbers nvidia nvml object oci octal of off
offline offset old on once one only oom open opencontainers opened opening operation opt option
options or org os other out output overflow overlay overlayfs override overwrite own package panic
parse parsed parser parsing part password path paths pattern pem permission permitted pid pids pigz
ping pinned pinns pipe pivot pki place platform plugin plugins pod pointer policy polkit port
positive preface prefix prepare present previous privileged problem proc process processor
processors profile progress protocol provided proxy pull queued range rate rdt re reached read
reader reading readlink reason receive received recursion recursive redefine refused register
registered registry rejected reload remote remounted remove removed rename request require required
requires reset resolve resolver resource resources response restart result retrieve retry return
returned revert root rootless row rpc run runc running runsc runtime runtimes s sandbox sandboxed
sandboxer sandboxes sbin scheme score seccomp section security see seen select self selinux send
server service services set setting settings setup sha256 shadow share shim shm should shutdown
shutting signal signature signed size skip skipping slice snapshot snapshots snapshotter
snapshotters soci sock socket some source spaces spec special specification specified specify stargz
start started starting starts stat state statement static status still stop stopped storage stored
stream streaming strict strictly string strings struct structure subchannel subcommand success
successfully support supported symlink symlinks syntax sys syscall sysctl sysctls system systemctl
systemd t table tables tag takes target task tasks tcp template temporarily terminate text than that
the their them then there these they this time timed timeout timeouts timer tls to tolerate
tombstone toml too top tracing trailing transaction transfer transient translate transport trap tree
true trusted try ttrpc two type typed types udp uid uint uint16 uint32 uint64 uint8 ulimit ulimits
unable unavailable unclosed undefined understood unescaped unexpected unicode unimplemented unit
units unix unknown unlink unmarshal unmarshaling unmounted unpack unpacked unqualified unresolvable
unset unsigned unsupported until untrusted unused uri url usable usage use used user username using
usr utf utf8 uuid v1 v2 v3 v4 valid validate validating validation value values var variable
verifier version via volume wait waiting want warning was watch watching were when where whether
which while whitespace will with within without word worker working workload would write writer
writing wrong x x509 xeu yaml yes yet you your zero zfs zstd
"""


@dataclass(frozen=True)
class Source:
    """A configuration file that a program was given: its host path, decoded text, and data."""

    name: str
    text: str
    data: Data


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    """The words of `_KNOWN_WORDS`, and those of the kernel's errors, in lower case."""
    kernel = " ".join(os.strerror(number) for number in errno.errorcode)
    return frozenset(re.findall(r"[a-z]+\d*", f"{_KNOWN_WORDS} {kernel}".lower()))


def masked(text: str, names: Collection[str] = (), words: Collection[str] = ()) -> str:
    """The text with `…` for each word that is not known.

    `names` are texts of ours that stay as they are, such as the path of an executable; `words` are
    more known words, in lower case.
    """
    known = _known() | {*words}
    kept = "|".join(re.escape(name) for name in sorted(filter(None, names), key=len, reverse=True))
    own = re.compile(rf"(?<![^\s\"'`(\[=])(?:{kept})(?![^\s\"'`)\],:;.])") if kept else None
    return _shortened(_AGAIN.sub(HIDDEN, "".join(_parts(text[:_MOST_READ], known, own))))


def _parts(text: str, known: Collection[str], own: re.Pattern[str] | None) -> Iterator[str]:
    at = 0
    while at < len(text):
        if found := (own and own.match(text, at)) or _PLACE.match(text, at):
            yield found[0]
        elif found := _QUOTED.match(text, at):
            inside = found[0].strip("\"'`")
            shown = (own and own.fullmatch(inside)) or _is_known(inside, known)
            yield found[0] if shown else f'"{HIDDEN}"'
        elif found := _TOKEN.match(text, at):
            yield _token(found[0], known)
        else:
            yield text[at] if text[at].isprintable() else " "
            at += 1
            continue
        at = found.end()


def _token(token: str, known: Collection[str]) -> str:
    plain = token.rstrip(".:!?")
    return token if _is_known(plain, known) else HIDDEN + token[len(plain) :]


def _is_known(token: str, known: Collection[str]) -> bool:
    """Does a token consist of known words and of punctuation between them?"""
    return all(
        part in _PUNCTUATION
        or part.lower() in known
        or (part.isalpha() and all(hump.lower() in known for hump in _HUMPS.findall(part)))
        for part in _WORDS.findall(token)
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[:_MOST]}{HIDDEN}"


def explained(text: str, sources: Iterable[Source], names: Collection[str] = ()) -> str:
    """`masked`, with the words of the keys in the files that the program was given; the keys whose
    values it repeats are named behind it."""
    files = tuple(sources)
    words = {word for file in files for key in _bare_keys(file.data) for word in _split(key)}
    names = (*names, *(file.name for file in files))
    shown = masked(text, names, words)
    if HIDDEN not in shown:
        return shown
    keys = list(dict.fromkeys(_places(_PLACE.sub("", text[:_MOST_READ]), files)))
    if not keys or len(keys) > _MOST_KEYS:
        return shown
    return f"{shown} ({HIDDEN} is the value of {' or of '.join(keys)})"


def _bare_keys(data: Any) -> Iterator[str]:
    """Keys that are written without quotes: others can hold names of hosts and users."""
    if isinstance(data, dict):
        for key, value in data.items():
            if re.fullmatch(r"[A-Za-z0-9_-]+", key):
                yield key
            yield from _bare_keys(value)
    elif isinstance(data, list):
        for item in data:
            yield from _bare_keys(item)


def _split(key: str) -> list[str]:
    """The words of a key, as `_is_known` splits a token; a key without underscores as a whole."""
    return [word.lower() for word in re.findall(r"[A-Za-z]+\d*", key)]


def _places(text: str, files: Iterable[Source]) -> Iterator[str]:
    """Keys whose values stand in the text, with their lines."""
    for file in files:
        for path, value in _values(file.data):
            word = str(value)
            if len(word) < _SHORTEST or word not in text or _is_known(word, _known()):
                continue
            if re.search(rf"(?<![\w.@/-]){re.escape(word)}(?![\w@/-])", text):
                yield f"{safe_path(path)}, {_line(file, path)}{file.name}"


def _values(data: Any, above: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _values(value, (*above, key))
    elif isinstance(data, list):
        for item in data:
            yield from _values(item, above)
    elif not isinstance(data, bool):
        yield above, data


def _line(file: Source, path: Path) -> str:
    """`line N of ` for the statement that gives a key its value; empty if it is not found."""
    from agent.toml import scan  # needed only if something failed

    try:
        found = scan.statements(file.text)
    except (scan.Unreadable, ValueError, RecursionError):
        return ""
    for one in found:
        if one.kind == "key" and path[: len(one.path)] == one.path:
            return f"line {file.text.count(chr(10), 0, one.code) + 1} of "
    return ""


def safe_path(path: Path) -> str:
    """A path of keys for messages, without users and passwords in the names of hosts."""
    return dotted(tuple(safe_key(part) for part in path))


def safe_key(key: str) -> str:
    """A key without the user and the password that a URL in it can hold, `://` or none."""
    text = redact_text(key)
    if text != key or "@" not in text or not re.search(r"[:/].*@", text):
        return text
    return HIDDEN + text[text.rindex("@") :]
