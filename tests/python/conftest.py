"""Fixtures of the tests of the Python client."""

import pytest


@pytest.fixture
def mnt(mount, tmp_path):
    """A writable mount of an empty root, as a path. It commits only when asked to."""
    (tmp_path / "root").mkdir()
    return mount(tmp_path / "root", "commit=explicit").top
