"""The examples of docs/examples/guide.md and languages.md do what the pages say."""

import os

import flax
import pytest

import pages
import util

EXAMPLES = util.TESTS.parent / "docs/examples"
LEAST = {"guide.md": 30, "languages.md": 3}  # blocks; fewer mean that they are no longer found


@pytest.mark.parametrize("name", LEAST)
def test_page(mnt, tmp_path, monkeypatch, name):
    assert len(pages.blocks(EXAMPLES / name)) >= LEAST[name]
    monkeypatch.chdir(mnt.parent)
    os.symlink(tmp_path / "root", "root")
    os.symlink(EXAMPLES, "examples")
    before = flax.config.flax_use_orbax_checkpointing
    try:
        pages.check_page(EXAMPLES / name, mnt.parent)
    finally:
        flax.config.update("flax_use_orbax_checkpointing", before)
