"""Documents that some runtime reads although TOML 1.0 does not allow them, and who reads each."""

from __future__ import annotations

from dataclasses import dataclass

# As they are called here: go-toml v1 and v2, and BurntSushi/toml.
ONE, TWO, CRIO = "containerd 1.x", "containerd 2.x", "CRI-O"
ALL = frozenset({ONE, TWO, CRIO})


@dataclass(frozen=True)
class Odd:
    """A document: what follows the first lines of a configuration, or all of it where `whole`; who
    reads it, and on which line it is odd (None: it is not, or nobody reads it)."""

    name: str
    data: bytes
    readers: frozenset[str]
    line: int | None
    whole: bool = False

    def __str__(self) -> str:
        """For the name of a test."""
        return self.name

    @property
    def document(self) -> bytes:
        """The whole file."""
        return self.data if self.whole else HEAD + self.data


# Every document sets `sandbox_image` to the marker, so that whoever reads it can be asked.
MARKER = "registry.example/marker"
HEAD = b'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n'
SET = f'sandbox_image = "{MARKER}"\n'.encode()
PLAIN = HEAD + SET
_SECTION = b'[plugins."io.containerd.grpc.v1.cri".x]\n'


def _odd(name: str, data: bytes, *readers: str, line: int | None = 4) -> Odd:
    return Odd(name, SET + data, frozenset(readers), line)


DOCUMENTS = (
    Odd("plain", SET, ALL, None),
    Odd("CR LF", SET.replace(b"\n", b"\r\n"), ALL, None),
    Odd("line separator", "# \u2028\n".encode() + SET, ALL, None),
    Odd("byte order mark", b"\xef\xbb\xbf" + PLAIN, frozenset({ONE, CRIO}), 1, whole=True),
    _odd("byte order mark inside", b"\xef\xbb\xbfx = 1\n"),
    Odd("CR", PLAIN.replace(b"\n", b"\r"), frozenset({ONE}), 1, whole=True),
    _odd("one CR", b"x = 1\ry = 2\n", ONE),
    _odd("two CR", b"x = 1\r\r\n", ONE),
    _odd("CR in a comment", b"# a\rb\n", ONE),
    _odd("GBK in a comment", b"# \xa4\xb5\xcf\n", ONE),
    _odd("surrogate in a comment", b"# \xed\xa0\x80\n", ONE),
    _odd("Latin-1 in a string", b'x = "f\xfcr"\n', ONE),
    _odd("Latin-1 in a key", b'"f\xfcr" = 1\n', ONE),
    _odd("colours in a comment", b"x = 1 # \x1b[0m\n", ONE),
    _odd("NUL in a comment", b"# \0\n", ONE),
    _odd("DEL in a comment", b"# \x7f\n", ONE),
    _odd("colours in a string", b'x = "\x1b[0m"\n'),
    _odd("NUL at the end", b"\0"),
    _odd("form feed", b"\x0c\n"),
    _odd("no-break space", "\u00a0x = 1\n".encode()),
    Odd("UTF-16 LE", b"\xff\xfe" + PLAIN.decode().encode("utf-16-le"), frozenset(), 1, whole=True),
    Odd("UTF-16 BE", b"\xfe\xff" + PLAIN.decode().encode("utf-16-be"), frozenset(), 1, whole=True),
    Odd("UTF-16 unmarked", PLAIN.decode().encode("utf-16-le"), frozenset(), 1, whole=True),
    _odd("break after the brace", b"x = {\na = 1 }\n", ONE, TWO, CRIO),
    _odd("break before the brace", b"x = { a = 1\n}\n", ONE, TWO, CRIO),
    _odd("break behind a comma", b"x = { a = 1,\nb = 2 }\n", ONE, TWO, CRIO),
    _odd("break before a comma", b"x = { a = 1\n, b = 2 }\n", TWO, CRIO),
    _odd("break behind the sign", b"x = { a =\n1 }\n"),
    _odd("no comma", b"x = { a = 1\nb = 2 }\n"),
    _odd("comment in braces", b"x = { a = 1, # }\nb = 2 }\n", ONE, TWO, CRIO),
    _odd("last comma", b"x = { a = 1, }\n", TWO, CRIO),
    _odd("last comma on a line", b"x = { a = 1, # c\n}\n", TWO, CRIO),
    _odd("comma alone", b"x = { , }\n"),
    _odd("two commas", b"x = { a = 1,, }\n"),
    _odd("deep", b"x = { b = [{ d = 1, }], a = {\nc = [\n1,\n] } }\n", TWO, CRIO),
    _odd("only in a string", b'x = "{ a = 1,\\n }"\n', ONE, TWO, CRIO, line=None),
    _odd("only in a comment", b"# x = { a = 1, }\n", ONE, TWO, CRIO, line=None),
    _odd("list with breaks", b"x = { a = [\n1, # one\n], b = 2 }\n", ONE, TWO, CRIO, line=None),
    _odd("escape x", b'x = "\\x65"\n', TWO, CRIO),
    _odd("escape e", b'x = "\\e"\n', TWO, CRIO),
    _odd("escape in three quotes", b'x = """\n\\x65"""\n', TWO, CRIO, line=5),
    _odd("escape in a key", b'"\\x65" = 1\n', TWO, CRIO),
    _odd("escaped backslash", b'x = "\\\\x65 \\\\e"\n', ONE, TWO, CRIO, line=None),
    _odd("no escape", b"x = '\\x65'\n", ONE, TWO, CRIO, line=None),
    _odd("unknown escape", b'x = "\\q"\n'),
    _odd("escaped slash", b'x = "a\\/b"\n', ONE),
    _odd("a table in two places", b"x = { a = 1 }\n" + _SECTION + b"b = 2\n"),
    _odd("value without quotes", b"x = abc\n"),
)
