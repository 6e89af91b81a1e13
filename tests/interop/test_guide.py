"""Flax's guide "Save and load checkpoints" with the libraries that it is about, unmodified: each of its calls with its
folder in MOUNT/.files of a native root, and with a plain folder. Both give the same, and what is saved there opens up
as a tree in the mount."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import flax
import pytest

import guide
import util
from comparing import compare
from guide import CALLS, ERRORS, REFUSED

HERE = Path(__file__).parent


class Both:
    """The guide in two folders, one call after the other."""

    def __init__(self, mounted, plain):
        self.mounted, self.guides, self.outcomes = (
            mounted,
            [guide.Guide(str(plain)), guide.Guide(str(mounted / ".files/flax_ckpt"))],
            [],
        )

    def run_to(self, index):
        """The outcomes of one call; those before it are made first, if they have not been."""
        while len(self.outcomes) <= index:
            self.outcomes.append([guide.outcome(CALLS[len(self.outcomes)], g) for g in self.guides])
        return self.outcomes[index]


@pytest.fixture(scope="module")
def both(module_mount, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    (folder / "root").mkdir()
    util.ckptfs("init", folder / "root")
    before = flax.config.flax_use_orbax_checkpointing
    made = Both(module_mount(folder / "root", "refresh=0.2"), folder / "plain")
    yield made
    flax.config.update("flax_use_orbax_checkpointing", before)
    for g in made.guides:
        g.close()


def compare_saved(top, files, saves, seed):
    """What a call saved is in the tree, leaf by leaf, and no other step or file."""
    for path, tree in saves.items():
        util.wait_for((top / path).is_dir, 10)
        flax_file = (files / path).is_file()
        assert os.getxattr(top / path, "user.ckpt.format") == (b"flax-msgpack" if flax_file else b"orbax")
        compare(top / path, guide.as_saved(tree, flax_file), seed)
    for parent in {(top / path).parent for path in saves}:

        def listed():
            return sorted(set(os.listdir(parent)) - {"latest"}) == sorted(os.listdir(files / parent.relative_to(top)))

        util.wait_for(listed, 10)


@pytest.mark.parametrize("index", range(len(CALLS)), ids=[f"{c.section.replace(' ', '-')}-{c.name}" for c in CALLS])
def test_call(both, index):
    one = CALLS[index]
    plain, mounted = both.run_to(index)
    guide.assert_same(plain, mounted)
    wanted = (ERRORS | REFUSED).get(one.name)
    if isinstance(plain, Exception):
        assert type(plain) is wanted, f"on a plain folder, too: {plain!r}"
        swapped = str(mounted).replace(both.guides[1].folder, both.guides[0].folder)
        assert swapped == str(plain)
    else:
        assert wanted is None, f"{one.name} works now"
    if len(both.outcomes) == index + 1:  # later calls delete what this one has saved
        top = both.mounted / "flax_ckpt"
        for path in one.gone:
            util.wait_for(lambda: not (top / path).exists(), 10)
            assert not os.path.exists(both.guides[1] / path)
        compare_saved(top, both.mounted / ".files/flax_ckpt", one.saves, seed=index)


def test_the_source_is_a_plain_folder(both):
    """What is left at the end is there without the mount, too, file by file the same."""
    both.run_to(len(CALLS) - 1)
    files, source = both.mounted / ".files/flax_ckpt", Path(both.mounted.source) / "flax_ckpt"
    util.run("diff", "-r", files, source)


def test_refused_calls_are_told():
    """The page has an item for each, which names its error first."""
    page = (util.TESTS.parent / "docs/examples/guide.md").read_text()
    items = re.split(r"^- ", page.partition("## What Orbax and Flax refuse")[2], flags=re.M)[1:]
    told = [re.search(r"`(\w+Error)`", item)[1] for item in items]
    assert sorted(told) == sorted(error.__name__ for error in REFUSED.values())


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def test_two_processes(mount, tmp_path):
    """The part for several processes, by two, each with four devices, in one mount."""
    (tmp_path / "root").mkdir()
    util.ckptfs("init", tmp_path / "root")
    m = mount(tmp_path / "root", "refresh=0.2")
    command = [sys.executable, HERE / "guide_processes.py", str(free_port()), tmp_path / "plain", m / ".files/run"]
    programs = [
        subprocess.Popen([*command, str(k)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for k in range(2)
    ]
    try:
        said = [p.communicate(timeout=120) for p in programs]
    finally:
        for p in programs:
            util.end_process(p)
    assert all(p.returncode == 0 and out.endswith("good\n") for p, (out, _) in zip(programs, said)), "\n".join(
        err[-3000:] for _, err in said
    )
    compare_saved(
        m / "run",
        m / ".files/run",
        {"orbax/managed_async/0": guide.mp_ckpt, "multiprocess/checkpoint_3": guide.mp_ckpt},
        seed=0,
    )
