"""Fixtures of the tests of writing."""

import pytest

import trees
import util


@pytest.fixture
def root(tmp_path):
    """A directory that `ckptfs init` has made a native root."""
    folder = tmp_path / "root"
    folder.mkdir()
    util.ckptfs("init", folder)
    return folder


@pytest.fixture
def writable(mount, root):
    """A writable mount of `root` that commits only when asked to."""
    return mount(root, trees.EXPLICIT)


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A tree of every kind, with a leaf of 40 MB. Not to be changed."""
    return trees.make_tree(tmp_path_factory.mktemp("tree") / "tree")


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory):
    """The same, without much in it."""
    return trees.make_tree(tmp_path_factory.mktemp("tree") / "small", small=20, large=0)
