"""The examples of a page of docs/, run as tests.

A block ```console holds commands ("$ ", continued with "> ") and what they print, stderr included. Each block runs in a
bash of its own. In the output "..." stands for any text in a line, and alone in a line for any lines. A block ```python
holds a session of Python, as doctest has them; those of a page are one session.
"""

import doctest
import os
import re
import subprocess
import sys
from dataclasses import dataclass

import util


@dataclass
class Block:
    language: str
    heading: str  # that it stands under
    number: int  # of its first line
    lines: list


def blocks(page):
    """The blocks of a page that are tests, in its order."""
    heading, found, inside = "", [], None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if inside is not None:
            if line == "```":
                found += [inside] if inside.language in ("console", "python") else []
                inside = None
            else:
                inside.lines.append(line)
        elif line.startswith("```"):
            inside = Block(line[3:], heading, number + 1, [])
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert inside is None, f"{page.name}: a block does not end"
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
    script = "".join(
        f"{command}\n{{ s=$?; printf '\\n%s\\n' '{mark}'; (exit $s); }} 2>/dev/null\n" for command, _ in steps
    )
    bin_folder = folder.parent / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name, target in ("ckptfs", util.CKPTFS), ("python3", sys.executable):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{target}" "$@"\n')
        (bin_folder / name).chmod(0o755)
    env = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", "umask 022\n" + script],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=limit,
    )
    said = done.stdout.decode(errors="replace")
    assert not util.SUSPICIOUS.search(said), said
    parts = said.split(f"\n{mark}\n")
    assert len(parts) == len(steps) + 1 and not parts[-1], f"the shell ended early:\n{said}"
    return [part.split("\n")[:-1] if part.endswith("\n") else part.split("\n") if part else [] for part in parts[:-1]]


def check_console(block, folder):
    """The commands of a block print what the page says."""
    steps = session(block.lines)
    assert steps, "a block without a command"
    for (command, want), got in zip(steps, run(steps, folder)):
        assert matches(want, got), "\n".join([f"$ {command}", "--- the page says", *want, "--- it is", *got])


def check_python(block, page, variables):
    """The same of a session; variables are left to the page's next one."""
    test = doctest.DocTestParser().get_doctest(
        "\n".join(block.lines) + "\n", {}, page.name, str(page), block.number - 1
    )
    assert test.examples, f"{page.name}, line {block.number}: a block without an example"
    test.globs, said = variables, []
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append, clear_globs=False).failed
    assert not failed, "".join(said)


def check_page(page, folder):
    """All blocks of a page, in its order, in one folder that is also the process's."""
    variables = {}
    try:
        for block in blocks(page):
            if block.language == "console":
                check_console(block, folder)
            else:
                check_python(block, page, variables)
    finally:
        variables.clear()  # what is open in the mount
