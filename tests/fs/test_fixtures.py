"""Every case of tests/data is shown as its truth file says (names, sizes, headers, bytes, nothing missing, nothing
extra), and what is bad is refused.
"""

import json
import os
import subprocess
import sys

import pytest

import check_fixtures
import util

FAMILIES = ["orbax", "flax-msgpack", "numpy", "safetensors", "gguf", "pytorch", "zarr"]
CASES = [
    f"{family}/{p.name.removesuffix('.truth.json')}"
    for family in FAMILIES
    for p in sorted((util.DATA / family).glob("*.truth.json"))
]


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """The mounts of check_fixtures.py, with their daemon's log and end checked too."""

    class Watched(util.Mount):
        count = 0

        def __init__(self, _, source):
            Watched.count += 1
            super().__init__(source, "ro", folder=tmp_path / f"mount{Watched.count}")

        def __enter__(self):
            return str(super().__enter__().top)

    monkeypatch.setattr(check_fixtures, "Mount", Watched)


@pytest.mark.parametrize("case", CASES)
def test_case(case, watched):
    """One fixture, mounted by itself."""
    path = util.DATA / case
    truth = json.loads(path.with_name(f"{path.name}.truth.json").read_text())
    source = path.with_name(truth.get("root") or truth.get("file") or path.name)
    faults = []
    if truth.get("expect") == "refuse":
        expect = {source.name: "either" if truth.get("may_accept") else "refuse"}
        check_fixtures.bad_folder(util.CKPTFS, str(source.parent), expect, lambda _, found: faults.extend(found))
    else:
        faults = check_fixtures.good_case(util.CKPTFS, str(source), truth)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("family", [family for family in FAMILIES if (util.DATA / family / "bad").is_dir()])
def test_bad(family, watched):
    """The malformed ones of a family together, as in a folder of runs."""
    lines = (util.DATA / family / "bad/LIST.txt").read_text().splitlines()
    cases = {
        name.strip(): expect.strip()
        for name, expect, *_ in (line.split("|") for line in lines if not line.startswith("#"))
    }
    found = []
    check_fixtures.bad_folder(
        util.CKPTFS,
        str(util.DATA / family / "bad"),
        cases,
        lambda name, faults: found.extend(f"{name}: {f}" for f in faults),
    )
    assert not found, "\n".join(found)


def test_as_a_program():
    """check_fixtures.py by itself, with daemons in the background."""
    done = subprocess.run(
        [sys.executable, util.TESTS / "check_fixtures.py", "--ckptfs", util.CKPTFS, "-k", "manager", util.ORBAX],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_together(mount, tmp_path):
    """In a folder of runs each is found as when it is mounted alone. (The names are none that a step could have.)"""
    cases = [
        case for family, case in (c.split("/") for c in CASES) if family == "orbax" and (util.ORBAX / case).is_dir()
    ]
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
