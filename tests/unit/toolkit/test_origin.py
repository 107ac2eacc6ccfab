"""The toolkit is taken from packages, from an installed one, or from the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import NoToolkit, Refused
from agent.toolkit import origin, programs, wrapper
from agent.toolkit.origin import Origin
from tests.unit.support.made_toolkit import ALL, LIBRARIES, TOOLKIT, Host
from tests.unit.support.made_toolkit import packages as whole
from tests.unit.support.made_toolkit import programs as made

RUNTIME, HOOK, CTK = "nvidia-container-runtime", "nvidia-container-runtime-hook", "nvidia-ctk"
OURS = wrapper.text(f"{TOOLKIT}/{RUNTIME}.real", TOOLKIT, runtimes=("runc",)).decode()
STANDS_BEFORE_HOST = wrapper.text(f"/usr/bin/{RUNTIME}", TOOLKIT).decode()


def theirs(name: str) -> str:
    """As NVIDIA's wrappers are."""
    return f'#! /bin/sh\nPATH={TOOLKIT}:$PATH \\\n\t{TOOLKIT}/{name}.real "$@"\n'


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def find(host: Host, **env: str) -> Origin:
    """The toolkit on this host."""
    ctx = host.context(env)
    return origin.find(ctx.settings, ctx.host, programs.directory(ctx.settings, ctx.host))


def short(host: Host, found: dict[str, str], below: str = "") -> dict[str, str]:
    """Paths below some directory of the host's."""
    return {name: path.removeprefix(f"{host.root}{below}") for name, path in found.items()}


# From packages.


@pytest.mark.parametrize("directory", ["/usr/lib64", "/usr/lib/x86_64-linux-gnu",
                                       "/usr/lib/aarch64-linux-gnu"])  # fmt: skip
def test_packages_give_programs_and_real_libraries(host: Host, directory: str) -> None:
    """Every program, and the libraries themselves in place of the links that lead to them."""
    host.make(whole(directory), "/source")
    found = find(host, TOOLKIT_SOURCE_ROOT=str(host.at("/source")))
    assert (found.kind, found.place) == ("packages", str(host.at("/source")))
    assert short(host, dict(found.programs), "/source") == {n: f"/usr/bin/{n}" for n in ALL}
    libraries = {name: f"{directory}/{name}.17.0" for name in LIBRARIES}
    assert short(host, dict(found.libraries), "/source") == libraries


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({f"/usr/sbin/{CTK}": "x"}, "/usr/sbin/nvidia-ctk"),
        ({f"/usr/local/bin/{CTK}": "x", f"/usr/bin/{CTK}": "x"}, "/usr/local/bin/nvidia-ctk"),
        ({f"/usr/bin/{CTK}": "-> ../libexec/ctk", "/usr/libexec/ctk": "x"}, "/usr/libexec/ctk"),
        ({f"/usr/bin/{CTK}": "-> /opt/ctk", "/opt/ctk": "x"}, "/opt/ctk"),
        ({"/bin": "-> usr/bin", f"/usr/bin/{CTK}": "x"}, "/usr/bin/nvidia-ctk"),
        ({f"/usr/local/bin/{CTK}": "text", f"/usr/bin/{CTK}": "x"}, "/usr/bin/nvidia-ctk"),
        ({f"/usr/bin/{CTK}": "text"}, None),
        ({f"/usr/bin/{CTK}/inside": "x"}, None),
        ({f"/usr/bin/{CTK}": "-> /missing"}, None),
        ({f"/usr/bin/{CTK}": f"-> {CTK}"}, None),
        ({f"/usr/bin/{CTK}": "-> ../../../../../outside"}, None),
        ({f"/usr/bin/{CTK}": "-> /outside"}, None),
    ],
)
def test_program_is_found_behind_a_link_inside_the_tree(
    host: Host, files: dict[str, str], expected: str | None
) -> None:
    """A link is followed inside the tree, and leads nowhere else."""
    host.make({"/outside": "x"})
    host.make({**files, f"/usr/bin/{RUNTIME}": "x"}, "/source")
    found = find(host, TOOLKIT_SOURCE_ROOT=str(host.at("/source")))
    assert short(host, dict(found.programs), "/source").get(CTK) == expected
    assert dict(found.libraries) == {}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/usr/lib64/{}": "-> /usr/lib/x", "/usr/lib/x": "text"}, "/usr/lib/x"),
        ({"/usr/lib64/{}": "text"}, "/usr/lib64/{}"),
        ({"/usr/lib64/{}": "-> missing", "/usr/lib/x86_64-linux-gnu/{}": "text"},
         "/usr/lib/x86_64-linux-gnu/{}"),
        ({"/usr/lib64/{}/x": "text"}, None),
        ({"/usr/lib64/{}": "-> ../../../../outside"}, None),
    ],
)  # fmt: skip
def test_library_is_found_behind_a_link_inside_the_tree(
    host: Host, files: dict[str, str], expected: str | None
) -> None:
    """The same for these; they need no right to be executed."""
    name = LIBRARIES[0]
    host.make({"/outside": "text"})
    host.make({path.format(name): text for path, text in files.items()}, "/source")
    host.make(made("/usr/bin"), "/source")
    found = find(host, TOOLKIT_SOURCE_ROOT=str(host.at("/source")))
    right = {} if expected is None else {name: expected.format(name)}
    assert short(host, dict(found.libraries), "/source") == right


@pytest.mark.parametrize(
    ("trees", "rpm", "asked", "expected"),
    [
        (("/deb", "/rpm"), False, "auto", "/deb"),
        (("/deb", "/rpm"), True, "auto", "/rpm"),
        (("/deb", "/rpm"), True, "deb", "/deb"),
        (("/deb", "/rpm"), False, "rpm", "/rpm"),
        (("", "/deb"), False, "auto", ""),
        (("/deb",), True, "auto", None),
        ((), False, "auto", None),
    ],
)
def test_kind_of_packages_is_the_hosts_or_the_one_asked_for(
    host: Host, trees: tuple[str, ...], rpm: bool, asked: str, expected: str | None
) -> None:
    """That of the host, or the one asked for; a tree may be given itself. What was asked for and is
    not there is not replaced by something else."""
    host.make(made("/usr/bin"))
    for tree in trees:
        host.make(made("/usr/bin"), f"/source{tree}")
    if rpm:
        host.make({"/usr/bin/rpm": "x"})
    env = {"TOOLKIT_SOURCE_ROOT": str(host.at("/source")), "TOOLKIT_PACKAGE_TYPE": asked}
    if expected is None:
        with pytest.raises(Refused, match="cannot install the toolkit: there is no nvidia-cont"):
            find(host, **env)
    else:
        assert find(host, **env).place == f"{host.root}/source{expected}"


def test_packages_of_the_image_come_before_installed_ones(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by themselves, and before what was installed of them."""
    monkeypatch.setattr(origin, "ARTIFACTS", str(host.at("/artifacts")))
    host.make(made(TOOLKIT))
    assert find(host).kind == "installed"
    host.make(made("/usr/bin"), "/artifacts/deb")
    assert find(host).kind == "packages"


# What is on the host.


def both(name: str, text: str) -> dict[str, str]:
    """A wrapper and its program."""
    return {f"{TOOLKIT}/{name}": text, f"{TOOLKIT}/{name}.real": "x"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # Ours, NVIDIA's, and such as somebody put there by hand.
        (both(RUNTIME, OURS), {RUNTIME: f"{RUNTIME}.real"}),
        (both(RUNTIME, theirs(RUNTIME)), {RUNTIME: f"{RUNTIME}.real"}),
        ({f"{TOOLKIT}/{RUNTIME}": "x", f"{TOOLKIT}/nvidia-cdi-hook": "x"},
         {RUNTIME: RUNTIME, "nvidia-cdi-hook": "nvidia-cdi-hook"}),
        ({f"{TOOLKIT}/{RUNTIME}": "-> bin/x", f"{TOOLKIT}/bin/x": "x"}, {RUNTIME: "bin/x"}),
        ({f"{TOOLKIT}/{HOOK}": "x"}, {HOOK: HOOK}),
        # A program that has gone: a copy of its wrapper would execute itself for ever.
        ({**both(RUNTIME, OURS), f"{TOOLKIT}/{CTK}": OURS}, {RUNTIME: f"{RUNTIME}.real"}),
        ({**both(RUNTIME, theirs(RUNTIME)), f"{TOOLKIT}/{CTK}": theirs(CTK)},
         {RUNTIME: f"{RUNTIME}.real"}),
        ({**both(RUNTIME, OURS), f"{TOOLKIT}/{CTK}": "x", f"{TOOLKIT}/{CTK}.real": "text"},
         {RUNTIME: f"{RUNTIME}.real", CTK: CTK}),
    ],
)  # fmt: skip
def test_installed_programs_are_those_behind_the_wrappers(
    host: Host, files: dict[str, str], expected: dict[str, str]
) -> None:
    """The programs behind the wrappers; the host's own packages do not count beside them."""
    host.make(files)
    host.make(made("/usr/bin", (HOOK, CTK)))
    found = find(host)
    assert (found.kind, found.place) == ("installed", TOOLKIT)
    assert short(host, dict(found.programs), f"{TOOLKIT}/") == expected


def test_installed_libraries_are_found(host: Host) -> None:
    host.make({**both(RUNTIME, OURS), f"{TOOLKIT}/{LIBRARIES[0]}": "-> x.1.2.3",
               f"{TOOLKIT}/x.1.2.3": "text"})  # fmt: skip
    assert short(host, dict(find(host).libraries), TOOLKIT) == {LIBRARIES[0]: "/x.1.2.3"}


@pytest.mark.parametrize(
    "files",
    [
        {},
        {f"{TOOLKIT}": "text"},
        {f"{TOOLKIT}/{RUNTIME}": STANDS_BEFORE_HOST, f"{TOOLKIT}/{HOOK}": STANDS_BEFORE_HOST},
        {f"{TOOLKIT}/{RUNTIME}": OURS},
        {f"{TOOLKIT}/{RUNTIME}": theirs(RUNTIME)},
        {f"{TOOLKIT}/{RUNTIME}": "text", f"{TOOLKIT}/{CTK}": "x"},
    ],
    ids=["nothing", "file", "wrappers alone", "program gone", "theirs gone", "others"],
)
@pytest.mark.parametrize("there", [True, False], ids=["host", "nothing"])
def test_toolkit_of_the_host_is_used_where_none_is_installed(
    host: Host, files: dict[str, str], there: bool
) -> None:
    """The host's own, run where it is, by its own links; or none."""
    host.make(files)
    if there:
        host.make({**made("/usr/bin", (CTK,)), f"/usr/bin/{RUNTIME}": "-> /opt/x", "/opt/x": "x"})
        found = find(host)
        assert (found.kind, found.place, dict(found.libraries)) == ("host", "/usr/bin", {})
        assert short(host, dict(found.programs)) == {RUNTIME: "/opt/x", CTK: f"/usr/bin/{CTK}"}
    else:
        with pytest.raises(NoToolkit, match="cannot find the NVIDIA container toolkit: "):
            find(host)


def test_runtime_goes_before_the_hook_alone(host: Host) -> None:
    """The hook is enough where no handler is needed."""
    host.make({f"{TOOLKIT}/{RUNTIME}": OURS, f"{TOOLKIT}/{HOOK}": "x"})
    assert dict(find(host).programs) == {HOOK: str(host.at(f"{TOOLKIT}/{HOOK}"))}
    host.make(made("/usr/bin", (RUNTIME,)))
    assert find(host).kind == "host"


def test_our_wrapper_is_not_taken_for_the_hosts_program(host: Host) -> None:
    """The wrapper that stands before the host's program is not the host's program."""
    host.make({f"{TOOLKIT}/{RUNTIME}": STANDS_BEFORE_HOST})
    host.make({f"/usr/bin/{RUNTIME}": f"-> {TOOLKIT}/{RUNTIME}"})
    with pytest.raises(NoToolkit):
        find(host)


@pytest.mark.parametrize("place", ["/source/usr/bin", TOOLKIT, "/usr/bin"])
def test_program_that_others_can_exchange_is_refused(host: Host, place: str) -> None:
    """Root would run it."""
    host.make({f"{place}/{RUNTIME}": "x", f"{place}/{CTK}": "x"})
    host.at(f"{place}/{CTK}").chmod(0o775)
    env = {"TOOLKIT_SOURCE_ROOT": str(host.at("/source"))} if "source" in place else {}
    with pytest.raises(
        Refused, match=rf"^cannot use .*/{CTK}: in .*/{CTK} can be written by others"
    ):
        find(host, **env)
