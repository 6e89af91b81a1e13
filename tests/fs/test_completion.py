"""Completion of command lines: by bash's function, and typed in bash and zsh."""

import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest

import util

SOURCE = util.DATA / "demo"
COMMANDS = "mount umount info ls cat cp verify diff wait init config import export prune gc".split()
CALL = r"""
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
_ckptfs
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def complete(installed, tmp_path):
    """complete(line): what bash's function offers for the end of the line, with ckptfs on the PATH."""
    path = installed / "datadir" / "bash-completion/completions/ckptfs"
    environment = os.environ | {"PATH": f"{installed / 'bindir'}:{os.environ['PATH']}"}

    def offer(line):
        done = util.run("bash", "--norc", "-c", CALL, "bash", path, line, cwd=tmp_path, env=environment)
        assert not done.stderr, done.stderr
        return sorted(filter(None, done.stdout.split("\n")))

    return offer


def test_commands(complete):
    assert complete("ckptfs ") == sorted([*COMMANDS, "--help", "--version"])
    assert complete("ckptfs um") == ["umount"]
    assert complete("ckptfs nothing-like-it") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_flags(complete, command):
    """All that --help names."""
    text = util.ckptfs(command, "--help").stdout
    want = {"--help"} | {
        word
        for line in re.findall(r"^  (-\S.*?)(?:  .*)?$", text, re.M)
        for word in (
            re.sub(r"(=| (?=[A-Z])).*", lambda m: "=" if m[1] == "=" else "", flag) for flag in line.split(", ")
        )
    }
    assert len(want) > 1
    assert complete(f"ckptfs {command} -") == sorted(want)


def test_flags_begun(complete):
    assert complete("ckptfs wait run --t") == ["--timeout="]
    assert complete("ckptfs wait --after 5 run --a") == ["--after="]
    for text in "--format=", "--format ":
        assert complete(f"ckptfs export a b {text}") == ["npy", "orbax", "safetensors"]
        assert complete(f"ckptfs export a b {text}s") == ["safetensors"]


def test_mount_options(complete):
    names = complete("ckptfs mount a b -o ")
    assert {"ro", "rw", "refresh=", "cache=", "uid=", "gid=", "umask=", "allow_other", "commit=", "nofail"} <= set(
        names
    )
    assert complete("ckptfs mount -o ro,ref") == ["ro,refresh="]
    assert complete("ckptfs a b -o ro,over") == ["ro,overwrite"]
    assert complete("ckptfs mount a b -o ro,codec=b") == ["blosc"]  # bash breaks words at =
    assert complete("ckptfs mount a b -o commit=") == ["auto", "explicit"]
    assert complete("ckptfs mount a b -o cache=") == []


def test_settings(complete):
    assert complete("ckptfs config root keep_") == ["keep_best=", "keep_last=", "keep_newer=", "keep_period="]
    assert complete("ckptfs config root keep_last=3 best_mode=m") == ["max", "min"]


def test_paths(complete, tmp_path):
    assert complete(f"ckptfs cat {SOURCE} ") == ["100", "200", "300", "latest"]
    assert complete(f"ckptfs ls {SOURCE} 3") == ["300/"]
    assert complete(f"ckptfs cat --json {SOURCE} latest/m") == ["latest/metrics.json"]
    assert complete(f"ckptfs cat {SOURCE} latest/metrics.json 300/state/model/params/encoder/") == [
        f"300/state/model/params/encoder/{name}.npy" for name in ("bias", "kernel")
    ]
    assert complete(f"ckptfs cp {SOURCE} .") == [".ckptfs/"]
    assert complete(f"ckptfs cp {SOURCE} 300 ") == [] == complete(f"ckptfs ls {SOURCE} 300 ")
    assert complete("ckptfs cat nothing ") == []
    os.symlink(SOURCE, tmp_path / "a b'c")
    for quoted in "a\\ b\\'c", '"a b\'c"', "'a b'\\''c'":
        assert complete(f"ckptfs ls {quoted} l") == ["latest/"]
    assert complete(f"ckptfs ls {SOURCE} '3") == ["300/"]


def test_mounts(complete, mount):
    m = mount(SOURCE)
    assert complete(f"ckptfs umount {m.top.parent}") == [str(m.top)]
    assert str(m.top) in complete("ckptfs umount --lazy ")


# --- typed


def typed(shell, setup, line, folder, limit=30):
    """The words that the shell takes a line for after it has been typed, with tab keys, into it."""
    words = folder / "words"
    parent, child = pty.openpty()
    process = subprocess.Popen(
        shell,
        stdin=child,
        stdout=child,
        stderr=child,
        cwd=folder,
        start_new_session=True,
        env=os.environ | {"TERM": "dumb", "HOME": str(folder), "LC_ALL": "C.UTF-8"},
    )
    os.close(child)
    said = ""

    def wait_for(mark):
        nonlocal said
        end = time.monotonic() + limit
        while mark not in said:
            assert time.monotonic() < end, said
            if select.select([parent], [], [], 0.2)[0]:
                said += os.read(parent, 65536).decode(errors="replace")

    try:
        os.write(parent, f"{setup}; echo re''ady\n".encode())
        wait_for("ready")
        # from the line's beginning: print its words to a file
        os.write(parent, line.encode() + f"\x01printf '%s\\n' \x05 >'{words}'; echo do''ne\n".encode())
        wait_for("done")
    finally:
        process.kill()
        process.wait(10)
        os.close(parent)
    return [word.rstrip("/") for word in words.read_text().splitlines()]  # zsh takes a slash away that a blank follows


@pytest.fixture
def place(tmp_path, installed):
    (tmp_path / "bin").mkdir()
    os.symlink(installed / "bindir" / "ckptfs", tmp_path / "bin/ckptfs")
    util.copy_tree(SOURCE, tmp_path / "my run")
    return tmp_path


TYPED = [
    ("ckptfs umo\t", ["ckptfs", "umount"]),
    ("ckptfs ls my\t lat\t", ["ckptfs", "ls", "my run", "latest"]),
    (
        "ckptfs cat my\t latest/metr\t 300/state/mo\tpa\tenc\tb\t",
        ["ckptfs", "cat", "my run", "latest/metrics.json", "300/state/model/params/encoder/bias.npy"],
    ),
    ("ckptfs mount my\t x -o ro,codec=bl\t", ["ckptfs", "mount", "my run", "x", "-o", "ro,codec=blosc"]),
    ("ckptfs wait x --inter\t5", ["ckptfs", "wait", "x", "--interval=5"]),
    ("ckptfs export a b --form\tn\t", ["ckptfs", "export", "a", "b", "--format=npy"]),
    ("ckptfs config my\t keep_l\t3", ["ckptfs", "config", "my run", "keep_last=3"]),
]


@pytest.mark.parametrize("line,want", TYPED)
def test_typed_in_bash(place, installed, line, want):
    setup = f"PS1='$ '; PATH={place}/bin:$PATH; source '{installed / 'datadir'}/bash-completion/completions/ckptfs'"
    assert typed(["bash", "--norc", "--noprofile", "-i"], setup, line, place) == want


@pytest.mark.parametrize("line,want", TYPED)
def test_typed_in_zsh(place, installed, line, want):
    assert shutil.which("zsh"), "zsh is missing"
    setup = (
        f"PS1='$ '; path=({place}/bin $path); fpath=('{installed / 'datadir'}/zsh/site-functions' $fpath); "
        "bindkey -e; autoload -Uz compinit; compinit -u -D"
    )
    assert typed(["zsh", "-f", "-i"], setup, line, place) == want
