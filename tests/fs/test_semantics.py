"""Every shell session of docs/using.md, writing.md and reference.md does what the page says. Each runs in a folder of
its own that is as using.md describes it under "The examples".
"""

import os
import shutil
import subprocess

import pytest

import pages
import util
from pages import matches, session

LEAST = {"using.md": 20, "writing.md": 8, "reference.md": 16}  # blocks; fewer mean that they are no longer found
PAGES = [util.TESTS.parent / "docs" / name for name in LEAST]
PREPARED = "mnt", "runs"


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


PAGE_BLOCKS = [(page, block) for page in PAGES for block in pages.blocks(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_enough_blocks(page):
    assert len(pages.blocks(page)) >= LEAST[page.name]


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
    steps = session(
        [
            "$ cd / && x=1",
            "$ echo a; printf b",
            "a",
            "b",
            "$ echo $x >&2",
            "1",
            "$ for i in 1 2",
            "> do echo $i; done",
            "1",
            "2",
            "$ false",
            "$ echo $?",
            "1",
        ]
    )
    assert pages.run(steps, here) == [want for _, want in steps]


@pytest.mark.parametrize(
    "block",
    [block for _, block in PAGE_BLOCKS],
    ids=[f"{page.stem}:{block.heading}:{block.number}" for page, block in PAGE_BLOCKS],
)
def test_example(block, folder):
    pages.check_console(block, folder)
