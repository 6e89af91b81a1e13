"""Sizes that a writing daemon must hold, with its peak memory under 256 MiB."""

import os
import time

import numpy as np
import pytest

import trees
import util
from trees import EXPLICIT, MIB, commit, run, wait_committed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LIMIT = 256 << 20


def check_memory(m):
    peak = m.memory()
    print(f"peak {peak / MIB:.0f} MiB")
    assert util.SANITIZED or peak < LIMIT, f"peak {peak / MIB:.0f} MiB"


@pytest.mark.parametrize("kind", ["noise", "ramp"])
def test_four_gigabytes(mount, root, kind):
    """One leaf that is stored as it is, and one that is encoded: written, committed, changed in the middle, committed
    again, read.
    """
    m = mount(root, EXPLICIT, patience=1700)
    (m / "7").mkdir()
    rows, columns = 1024, 1 << 20
    row = (
        (lambda y: trees.noise_array(columns, y))
        if kind == "noise"
        else (lambda y: np.arange(columns, dtype=np.uint32) // 16 + y)
    )
    begin = time.monotonic()
    with open(m / "7/w.npy", "wb", buffering=0) as f:
        np.lib.format.write_array_header_1_0(f, {"descr": "<u4", "fortran_order": False, "shape": (rows, columns)})
        for y in range(rows):
            f.write(row(y))
    written = time.monotonic()
    commit(m / "7")
    print(f"written in {written - begin:.0f} s, committed in {time.monotonic() - written:.0f} s")
    check_memory(m)
    with open(m / "7/w.npy", "r+b", buffering=0) as f:
        f.seek(128 + 500 * columns * 4)
        f.write(row(5000))
    commit(m / "7")
    check_memory(m)
    for y in range(rows):
        if y % 97 in (0, 15):
            got = np.load(m / f"7/w@{y}.npy")
            assert (got == row(5000 if y == 500 else y)).all(), y
    trees.run(util.CKPTFS, "verify", root, limit=600)
    check_memory(m)


def test_hundred_thousand_leaves(mount, root, tmp_path):
    """Copied in, committed by itself, walked, changed, committed, deleted."""
    source = tmp_path / "source"
    for n in range(100_000):
        folder = source / f"{n // 1000:03}"
        if n % 1000 == 0:
            folder.mkdir(parents=True)
        trees.array(folder / f"leaf{n:06}.npy", np.full(n % 60, n, np.int32))
    m = mount(root, "settle=2", patience=1700)
    begin = time.monotonic()
    run("cp", "-r", source, m / "7", limit=600)
    copied = time.monotonic()
    wait_committed(m / "7", 600)
    print(f"copied in {copied - begin:.0f} s, committed within {time.monotonic() - copied:.0f} s")
    check_memory(m)
    assert len(trees.objects(root)) < 1000
    run("diff", "-r", source, m / "7", limit=600)
    run("bash", "-c", 'echo x > "$1"', "-", m / "7/050/new", limit=300)
    wait_committed(m / "7", 600)
    assert (m / "7/050/new").read_text() == "x\n" and len(os.listdir(m / "7/099")) == 1000
    check_memory(m)
    run("rm", "-r", m / "7", limit=600)
    assert trees.committed(root) == []
    check_memory(m)
    util.ckptfs("gc", root)
    assert trees.objects(root) == {}
