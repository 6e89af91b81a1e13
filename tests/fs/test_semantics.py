"""Every shell session of docs/semantics.md does what the page says.

A block ```console holds commands ("$ ", continued with "> ") and what they print, stderr included. Each block runs in bash in a folder
of its own that is as the page's introduction says. In the output "..." stands for any text in a line, and alone in a line for any lines.
"""
import os
import re
import shutil
import subprocess
import sys

import pytest

import util

PAGE = util.TESTS.parent / "docs/semantics.md"
LEAST = 35                                                 # blocks; fewer mean that they are no longer found
PREPARED = "mnt", "runs"


def blocks(text):
    """(heading, line number, lines) of each console block."""
    heading, found, inside = "", [], None
    for number, line in enumerate(text.splitlines(), 1):
        if inside is not None:
            if line == "```":
                found.append((heading, number - len(inside), inside))
                inside = None
            else:
                inside.append(line)
        elif line == "```console":
            inside = []
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert inside is None, f"{PAGE.name}: a block does not end"
    return found


def session(lines):
    """[[command, [lines of output]], ...]"""
    steps = []
    for line in lines:
        if line.startswith("$ "):
            steps.append([line[2:], []])
        elif line.startswith("> ") and steps and not steps[-1][1]:
            steps[-1][0] += "\n" + line[2:]
        else:
            assert steps, f"output before the first command: {line}"
            steps[-1][1].append(line)
    return steps


def matches(want, got):
    """Do lines of output match, wildcards included?"""
    if not want:
        return not got
    if want[0] == "...":
        return any(matches(want[1:], got[n:]) for n in range(len(got) + 1))
    pattern = ".*".join(re.escape(part) for part in want[0].split("..."))
    return bool(got) and re.fullmatch(pattern, got[0]) is not None and matches(want[1:], got[1:])


def run(steps, folder, limit=util.LIMIT):
    """Run the commands in one shell; the output of each, as lines."""
    mark = "@@@ the end of a command @@@"
    script = "".join(f"{command}\n{{ s=$?; printf '\\n%s\\n' '{mark}'; (exit $s); }} 2>/dev/null\n" for command, _ in steps)
    bin_folder = folder.parent / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name, target in ("ckptfs", util.CKPTFS), ("python3", sys.executable):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{target}" "$@"\n')
        (bin_folder / name).chmod(0o755)
    env = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", "umask 022\n" + script], cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=limit)
    said = done.stdout.decode(errors="replace")
    assert not util.SUSPICIOUS.search(said), said
    parts = said.split(f"\n{mark}\n")
    assert len(parts) == len(steps) + 1 and not parts[-1], f"the shell ended early:\n{said}"
    return [part.split("\n")[:-1] if part.endswith("\n") else part.split("\n") if part else [] for part in parts[:-1]]


@pytest.fixture
def folder(tmp_path, mount, module_mount):
    """The folder of the page's introduction."""
    here = tmp_path / "here"
    here.mkdir()
    shutil.copytree(util.DATA / "demo", here / "demo")
    subprocess.run(["chmod", "-R", "u=rwX,go=rX", here / "demo"], check=True, timeout=util.LIMIT)
    os.symlink(util.ORBAX, here / "cases")
    os.symlink(mount(here / "demo").top, here / "mnt")
    os.symlink(module_mount(util.ORBAX).top, here / "runs")
    yield here
    # what a block mounted itself and, having failed, did not unmount
    for name in os.listdir(here):
        if name not in PREPARED and util.mounted(here / name):
            util.unmount(here / name, "-l")


PAGE_BLOCKS = blocks(PAGE.read_text())


def test_enough_blocks():
    assert len(PAGE_BLOCKS) >= LEAST


def test_wildcards():
    assert matches(["a", "..."], ["a"])
    assert matches(["...", "b"], ["a", "c", "b"])
    assert matches(["size ... of 4"], ["size 12 of 4"])
    assert not matches(["a"], ["a", "b"])
    assert not matches(["a", "b"], ["a"])
    assert not matches(["size ... of 4"], ["size 12 of 5"])
    assert not matches(["a.c"], ["abc"])


def test_differences_are_seen(tmp_path):
    """The runner tells outputs and commands apart, and keeps the shell's state from one to the next."""
    here = tmp_path / "here"
    here.mkdir()
    steps = session(["$ cd / && x=1", "$ echo a; printf b", "a", "b", "$ echo $x >&2", "1", "$ for i in 1 2", "> do echo $i; done", "1", "2",
                     "$ false", "$ echo $?", "1"])
    assert run(steps, here) == [want for _, want in steps]


@pytest.mark.parametrize("lines", [pytest.param(lines, id=f"{heading}:{number}") for heading, number, lines in PAGE_BLOCKS])
def test_example(lines, folder):
    steps = session(lines)
    assert steps, "a block without a command"
    for (command, want), got in zip(steps, run(steps, folder)):
        assert matches(want, got), "\n".join([f"$ {command}", "--- the page says", *want, "--- it is", *got])
