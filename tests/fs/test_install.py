"""What `meson install` puts in place, and that it works from there."""
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import util

TOP = util.TESTS.parent
BUILD = Path(util.CKPTFS).parents[1]


def run(*command, check=0, limit=util.LIMIT, **kwargs):
    """Run a command; its stdout and stderr are text unless text=False. check: the exit status to expect, None for any."""
    kwargs.setdefault("text", True)
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, **kwargs)
    said = done.stderr if kwargs["text"] else done.stderr.decode(errors="replace")
    assert not util.SUSPICIOUS.search(said), said
    assert check is None or done.returncode == check, f"exit {done.returncode}: {said.strip() or done.stdout}"
    return done


class Installed:
    """The project installed into a folder, as a package would be made."""

    def __init__(self, folder):
        self.top = folder
        run("meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", "--destdir", folder, limit=120)
        options = json.loads(run("meson", "introspect", "--buildoptions", BUILD).stdout)
        self.options = {o["name"]: o["value"] for o in options}
        self.prefix = Path(f"{folder}{self.options['prefix']}")
        self.program = self / "bindir" / "ckptfs"

    def __truediv__(self, option):
        """The folder of an option, such as bindir."""
        return self.prefix / self.options[option]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    assert shutil.which("meson"), "meson is missing"
    if not (BUILD / "build.ninja").exists():
        pytest.skip(f"{util.CKPTFS} is not in a build folder")
    folder = tmp_path_factory.mktemp("installed")
    for parent in [folder, *folder.parents]:               # other users are to run what is in it
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    return Installed(folder)


def test_program(installed):
    assert run(installed.program, "--version").stdout == run(util.CKPTFS, "--version").stdout


def test_pages(installed):
    """All of docs/ is there, and the links of one page to another lead somewhere."""
    folder = installed / "datadir" / "doc/ckptfs"
    assert (folder / "LICENSE").exists()
    for page in [TOP / "README.md", *sorted((TOP / "docs").glob("*.md")), *sorted((TOP / "docs/examples").iterdir())]:
        path = page.relative_to(TOP)
        copy = folder / (path.relative_to("docs") if "examples" in path.parts else path)
        assert copy.read_bytes() == page.read_bytes()


# --- the library

def flags(installed):
    """Of pkg-config, for the installed library; its paths are those below the folder that stands for /."""
    environment = os.environ | {"PKG_CONFIG_PATH": str(installed / "libdir" / "pkgconfig")}
    words = run("pkg-config", f"--define-variable=prefix={installed.prefix}", "--cflags", "--libs", "ckptfs", env=environment).stdout.split()
    return words + (["-fsanitize=address,undefined"] if util.SANITIZED else [])


def test_library(installed, tmp_path):
    """The example of a program that uses the library is built against what is installed, and nothing else, and reads."""
    example = installed / "datadir" / "doc/ckptfs/examples/cat.c"
    run("cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "cat", example, *flags(installed), cwd=tmp_path)
    source = util.DATA / "demo"
    for path in "latest/metrics.json", "300/state/model/params/encoder/kernel@0:2,::8", "300/state/config/.tree.json":
        assert run(tmp_path / "cat", source, path, text=False).stdout == util.ckptfs("cat", source, path, text=False).stdout
    done = run(tmp_path / "cat", source, "latest/nothing", check=1)
    assert "No such file" in done.stderr


def test_header(installed):
    """The public header brings no other headers of the project than those that are installed."""
    folder = installed / "includedir" / "ckptfs"
    assert (folder / "core/ckpt.h").read_bytes() == (TOP / "core/ckpt.h").read_bytes()
    for header in folder.rglob("*.h"):
        run("cc", "-std=c11", "-Wall", "-Werror", "-fsyntax-only", "-I", folder, "-x", "c", header)
