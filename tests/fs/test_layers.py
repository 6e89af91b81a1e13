"""The folders of core/ use only those below them, core knows nothing of FUSE, and every header compiles by itself
(docs/architecture.md).
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import util

TOP = util.TESTS.parent
LAYERS = "base io codec array tree object format store commit stage view source".split()  # lowest first
# The public headers, each with the folders that implement it.
PUBLIC = {"core/ckpt.h": ("core/source/",), "core/ckpt_store.h": ("core/store/", "core/commit/")}
# What the program takes from core besides the public headers and core/base: helpers that know nothing of checkpoints on
# disk.
HELPERS = {"core/array/dtype.h", "core/array/npy.h", "core/io/json.h", "core/io/disk.h"}
# How many files of a folder may call each other in a circle; those that still have larger ones, with what they have.
LARGEST_CIRCLE = 2
LARGEST_CIRCLES = {}
HEADERS = sorted(p.relative_to(TOP).as_posix() for folder in ("core", "fs") for p in (TOP / folder).rglob("*.h"))
FILES = HEADERS + sorted(
    p.relative_to(TOP).as_posix() for folder in ("core", "fs") for p in (TOP / folder).rglob("*.c")
)


def includes(path):
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', (TOP / path).read_text(), re.M)


def layer(path):
    """The layer of a path in core/; the public headers are above them all."""
    parts = path.split("/")
    return LAYERS.index(parts[1]) if len(parts) > 2 else len(LAYERS)


def test_all_folders_are_known():
    assert sorted(p.name for p in (TOP / "core").iterdir() if p.is_dir()) == sorted(LAYERS)


@pytest.mark.parametrize("path", [p for p in FILES if p.startswith("core/")])
def test_core(path):
    for name in includes(path):
        assert not re.search(r"\bfuse", name), f"{path}: {name}"
        assert not name.startswith("fs/"), f"{path}: {name}"
        if not name.startswith("core/"):
            continue
        assert (TOP / name).is_file(), f"{path}: {name} is not there"
        if name in PUBLIC:
            assert path.startswith(PUBLIC[name]), f"{path}: only {PUBLIC[name]} implement {name}"
        else:
            assert layer(name) <= layer(path), f"{path}: {name} is a layer above"


@pytest.mark.parametrize("path", [p for p in FILES if p.startswith("fs/")])
def test_fs(path):
    for name in includes(path):
        if name.startswith("core/"):
            assert name in PUBLIC or name.startswith("core/base/") or name in HELPERS, f"{path}: {name}"


@pytest.mark.parametrize("header", HEADERS)
def test_guard(header):
    """The guard is the path."""
    guard = (
        "CKPT_H"
        if header == "core/ckpt.h"
        else "CKPT_" + header.removeprefix("core/").upper().replace("/", "_").replace(".", "_")
    )
    if header.startswith("fs/"):
        guard = header.upper().replace("/", "_").replace(".", "_")
    assert f"#ifndef {guard}\n#define {guard}\n" in (TOP / header).read_text()


def test_private_headers():
    """A header that says it is private to a folder of core is included in that folder only."""
    private = {}
    for header in HEADERS:
        found = re.search(r"Private to (core/\w+)", (TOP / header).read_text())
        if found:
            private[header] = found[1] + "/"
    assert private
    for path in FILES:
        for name in includes(path):
            assert path.startswith(private.get(name, "")), f"{path}: {name} is private to {private[name]}"


def test_headers_compile_alone(tmp_path):
    cc = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not cc or not shutil.which("pkg-config"):
        pytest.skip("no compiler here")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "fuse3", "libcjson"], capture_output=True, text=True, check=True, timeout=util.LIMIT
    )
    for header in HEADERS:
        (tmp_path / "alone.c").write_text(f'#include "{header}"\n#include "{header}"\n')
        done = subprocess.run(
            [
                *cc.split(),
                "-std=gnu11",
                "-D_GNU_SOURCE",
                "-Wall",
                "-Werror",
                "-Wno-unused-function",
                "-fsyntax-only",
                f"-I{TOP}",
                *flags.stdout.split(),
                tmp_path / "alone.c",
            ],
            capture_output=True,
            text=True,
            timeout=util.LIMIT,
        )
        assert done.returncode == 0, f"{header}: {done.stderr}"


@pytest.fixture(scope="module")
def symbols():
    """What the files of the library define for others, and what each wants: {name: file}, {file: {name}}."""
    library = Path(util.CKPTFS).parent.parent / "core/libckptfs.a"
    if not library.is_file():
        pytest.skip(f"{library} is not there: the program is not one of a build folder")
    assert shutil.which("nm"), "nm is missing"
    defined, wanted = {}, {}
    for line in util.run("nm", "-A", library).stdout.splitlines():
        place, name = line.rsplit(" ", 1)
        file, kind = place.split(":")[-2].rsplit("/", 1)[-1].removesuffix(".c.o"), place[-1]
        if name.startswith("__odr_asan"):  # of the address sanitizer
            continue
        if kind == "U":
            wanted.setdefault(file, set()).add(name)
        elif kind.isupper():
            assert name not in defined, f"{name} is in {defined[name]} and in {file}"
            defined[name] = file
    return defined, wanted


def test_exported_names(symbols):
    """The library is installed, so a name without its prefix could clash with one of a user's program."""
    defined, _ = symbols
    assert len(defined) > 100
    assert sorted(name for name in defined if not name.startswith("ckpt_")) == []


def circles(calls):
    """The largest sets of files that reach each other, by Tarjan. calls: {file: {file that it calls}}."""
    found, number, lowest, stack = [], {}, {}, []

    def visit(file):
        number[file] = lowest[file] = len(number)
        stack.append(file)
        for called in sorted(calls.get(file, ())):
            if called not in number:
                visit(called)
            if called in stack:
                lowest[file] = min(lowest[file], lowest[called])
        if lowest[file] == number[file]:
            at = stack.index(file)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for file in sorted(calls):
        if file not in number:
            visit(file)
    return [circle for circle in found if len(circle) > 1]


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set()}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"a"}, "c": {"d"}, "d": {"c"}}) == [["c", "d"], ["a", "b"]]
    assert circles({"a": {"b"}, "b": {"c"}}) == []


def test_circles(symbols):
    """Files that call each other in a circle can only be read together, so few may."""
    defined, wanted = symbols
    calls = {file: {defined[name] for name in names if name in defined} - {file} for file, names in wanted.items()}
    for circle in circles(calls):
        folder = circle[0].split("_")[0]
        print(len(circle), *circle)
        assert folder in LAYERS and all(file.startswith(folder + "_") for file in circle), (
            f"a circle of layers: {circle}"
        )
        assert len(circle) <= LARGEST_CIRCLES.get(folder, LARGEST_CIRCLE), f"{len(circle)} files: {circle}"
