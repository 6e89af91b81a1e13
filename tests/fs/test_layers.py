"""The folders of core/ use only those below them, core knows nothing of FUSE, and every header compiles by itself
(docs/architecture.md).
"""

import os
import re
import shutil
import subprocess

import pytest

import util

TOP = util.TESTS.parent
LAYERS = [
    "base",
    "io",
    "codec",
    "array",
    "tree",
    "object",
    "format",
    "store",
    "commit",
    "stage",
    "view",
    "source",
]  # lowest first
# What the program takes from core besides the public header and core/base: helpers that know nothing of checkpoints on
# disk, and for the commands that change a root, its store as a whole.
HELPERS = {
    "core/array/dtype.h",
    "core/array/npy.h",
    "core/io/json.h",
    "core/io/disk.h",
    "core/store/store.h",
    "core/commit/commit.h",
    "core/commit/work.h",
}
HEADERS = sorted(p.relative_to(TOP).as_posix() for folder in ("core", "fs") for p in (TOP / folder).rglob("*.h"))
FILES = HEADERS + sorted(
    p.relative_to(TOP).as_posix() for folder in ("core", "fs") for p in (TOP / folder).rglob("*.c")
)


def includes(path):
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', (TOP / path).read_text(), re.M)


def layer(path):
    """The layer of a path in core/; the public header is above them all."""
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
        if name == "core/ckpt.h":
            assert path.startswith("core/source/"), f"{path}: only core/source implements core/ckpt.h"
        else:
            assert layer(name) <= layer(path), f"{path}: {name} is a layer above"


@pytest.mark.parametrize("path", [p for p in FILES if p.startswith("fs/")])
def test_fs(path):
    for name in includes(path):
        if name.startswith("core/"):
            assert name == "core/ckpt.h" or name.startswith("core/base/") or name in HELPERS, f"{path}: {name}"


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
