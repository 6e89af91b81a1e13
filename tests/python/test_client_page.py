"""The examples of docs/python.md do what the page says."""
import doctest

import util

PAGE = util.TESTS.parent / "docs/python.md"
LEAST = 40                                                 # examples; fewer mean that they are no longer found


def test_page(mnt, monkeypatch):
    monkeypatch.chdir(mnt.parent)
    page = doctest.DocTestParser().get_doctest(PAGE.read_text(), {}, PAGE.name, str(PAGE), 0)
    assert len(page.examples) >= LEAST
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failed = runner.run(page, out=said.append).failed
    assert not failed, "".join(said)
