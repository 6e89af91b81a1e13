"""The examples of docs/python.md do what the page says."""

import pages
import util

PAGE = util.TESTS.parent / "docs/python.md"
LEAST = 14  # blocks; fewer mean that they are no longer found


def test_page(mnt, monkeypatch):
    assert len(pages.blocks(PAGE)) >= LEAST
    monkeypatch.chdir(mnt.parent)
    pages.check_page(PAGE, mnt.parent)
