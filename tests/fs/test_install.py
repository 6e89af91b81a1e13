"""What `meson install` puts in place, and that it works from there."""

import os

import util

TOP = util.TESTS.parent


def test_program(installed):
    assert util.run(installed.program, "--version").stdout == util.run(util.CKPTFS, "--version").stdout


def test_pages(installed):
    """All of docs/ is there, and placed so that the pages find one another."""
    folder = installed / "datadir" / "doc/ckptfs"
    assert (folder / "LICENSE").exists()
    for page in [TOP / "README.md", *sorted((TOP / "docs").glob("*.md")), *sorted((TOP / "docs/examples").iterdir())]:
        assert (folder / page.relative_to(TOP)).read_bytes() == page.read_bytes()


# --- the library


def flags(installed):
    """Of pkg-config, for the installed library; its paths are those below the folder that stands for /."""
    environment = os.environ | {"PKG_CONFIG_PATH": str(installed / "libdir" / "pkgconfig")}
    words = util.run(
        "pkg-config", f"--define-variable=prefix={installed.prefix}", "--cflags", "--libs", "ckptfs", env=environment
    ).stdout.split()
    return words + {"address": ["-fsanitize=address,undefined"], "thread": ["-fsanitize=thread"]}.get(
        util.SANITIZED, []
    )


def test_library(installed, tmp_path):
    """The example of a program that uses the library is built against what is installed, and nothing else, and
    reads.
    """
    example = installed / "datadir" / "doc/ckptfs/docs/examples/cat.c"
    util.run(
        "cc",
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        tmp_path / "cat",
        example,
        *flags(installed),
        cwd=tmp_path,
    )
    source = util.DATA / "demo"
    for path in "latest/metrics.json", "300/state/model/params/encoder/kernel@0:2,::8", "300/state/config/.tree.json":
        assert (
            util.run(tmp_path / "cat", source, path, text=False).stdout
            == util.ckptfs("cat", source, path, text=False).stdout
        )
    done = util.run(tmp_path / "cat", source, "latest/nothing", check=1)
    assert "No such file" in done.stderr


def test_header(installed):
    """The public headers bring no other headers of the project than those that are installed."""
    folder = installed / "includedir" / "ckptfs"
    for name in "core/ckpt.h", "core/ckpt_store.h":
        assert (folder / name).read_bytes() == (TOP / name).read_bytes()
    for header in folder.rglob("*.h"):
        util.run("cc", "-std=c11", "-Wall", "-Werror", "-fsyntax-only", "-I", folder, "-x", "c", header)
