"""Every case of tests/data/orbax is shown as its truth file says: names, sizes, headers, bytes, nothing missing, nothing extra."""
import json
import os
import subprocess
import sys

import pytest

import check_fixtures
import util

CASES = sorted(p.name.removesuffix(".truth.json") for p in util.ORBAX.glob("*.truth.json"))


@pytest.mark.parametrize("case", CASES)
def test_case(case, tmp_path, monkeypatch):
    """One fixture, mounted by itself; its daemon's log and end are checked too."""
    class Watched(util.Mount):
        def __init__(self, _, source):
            super().__init__(source, "ro", folder=tmp_path / "mount")

        def __enter__(self):
            return str(super().__enter__().top)

    monkeypatch.setattr(check_fixtures, "Mount", Watched)
    truth = json.loads((util.ORBAX / f"{case}.truth.json").read_text())
    faults = check_fixtures.good_case(util.CKPTFS, str(util.ORBAX / case), truth)
    assert not faults, "\n".join(faults)


def test_as_a_program():
    """check_fixtures.py by itself, with daemons in the background."""
    done = subprocess.run([sys.executable, util.TESTS / "check_fixtures.py", "--ckptfs", util.CKPTFS, "-k", "manager", util.ORBAX],
                          capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_together(mount, tmp_path):
    """In a folder of runs each is found as when it is mounted alone. (The names are none that a step could have.)"""
    cases = [case for case in CASES if (util.ORBAX / case).is_dir()]
    for case in cases:
        util.copy_tree(util.ORBAX / case, tmp_path / "runs" / case.replace("_", "-"))
    m = mount(tmp_path / "runs")
    assert sorted(os.listdir(m.top)) == sorted(case.replace("_", "-") for case in cases)
    for case in cases:
        truth = json.loads((util.ORBAX / f"{case}.truth.json").read_text())
        exp = check_fixtures.expectation(truth, str(util.ORBAX / case))
        files, _, links = check_fixtures.listing(str(m / case.replace("_", "-")))
        assert files == exp.files.keys(), case
        assert links == exp.links, case
