"""Real processes, each with a mount of its own, write one step together and restore it under other shardings."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ckptfs
import util

HERE = Path(__file__).parent


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.fixture
def mounts(mount, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    util.ckptfs("init", root)
    return lambda n: [mount(root, f"writers={n}", f"writer={k}", "refresh=0.2", "commit_timeout=120") for k in range(n)]


def check_once(root):
    """One step, of arrays that are whole, and what all had is there once."""
    store = root / ".ckptstore"
    assert os.listdir(store / "steps") == ["7.json"]
    nodes = {node["name"]: node for node in json.loads((store / "steps/7.json").read_bytes())["nodes"]}
    assert sorted(name for name in nodes if "@" in name) == [] and {"both.npy", "same.npy"} <= nodes.keys()
    assert os.listdir(store / "staging") == []


@pytest.mark.parametrize("count", [2, 4])
def test_jax(mounts, tmp_path, count):
    port, env = free_port(), {**os.environ, "PYTHONPATH": str(HERE.parents[1] / "python")}
    programs = [
        subprocess.Popen(
            [sys.executable, HERE / "several.py", str(port), str(count), str(k), m / "7"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k, m in enumerate(mounts(count))
    ]
    said = [p.communicate(timeout=200) for p in programs]
    assert all(p.returncode == 0 and out == "good\n" for p, (out, _) in zip(programs, said)), "\n".join(
        err for _, err in said
    )
    check_once(tmp_path / "root")


PLAIN = """
import sys, numpy as np, ckptfs
step, k, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ckptfs.save(step, {"mine": {str(k): np.full(1000, k)}, "same": np.arange(3.0), "n": 1}, together=True)
"""


@pytest.mark.parametrize("count", [2, 4])
def test_numpy(mounts, count):
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1] / "python")}
    ms = mounts(count)
    programs = [
        subprocess.Popen([sys.executable, "-c", PLAIN, m / "7", str(k), str(count)], env=env) for k, m in enumerate(ms)
    ]
    assert [p.wait(100) for p in programs] == [0] * count
    tree = ckptfs.restore(ms[0] / "7")
    assert sorted(tree["mine"]) == [str(k) for k in range(count)] and all(
        (tree["mine"][str(k)] == k).all() for k in range(count)
    )
    assert (tree["same"] == np.arange(3.0)).all() and tree["n"] == 1


ALONE = """
import os, sys, numpy as np
step, k, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
whole, same = np.arange(64 * 48, dtype=np.float32).reshape(64, 48), np.arange(5000, dtype=np.int32)

def boxes(rows, columns):
    return [(i, i + 64 // rows, j, j + 48 // columns)
            for i in range(0, 64, 64 // rows) for j in range(0, 48, 48 // columns)]

os.makedirs(step, exist_ok=True)
for a, b, c, d in boxes(4, 2)[k * 8 // n:(k + 1) * 8 // n]:
    np.save(f"{step}/both@{a}:{b},{c}:{d}.npy", whole[a:b, c:d])
np.save(f"{step}/same.npy", same)
os.fsync(os.open(step, os.O_RDONLY))
for grid in (4, 2), (2, 4), (1, 8):
    for a, b, c, d in boxes(*grid)[k * 8 // n:(k + 1) * 8 // n]:
        assert np.array_equal(np.load(f"{step}/both@{a}:{b},{c}:{d}.npy"), whole[a:b, c:d])
assert np.array_equal(np.load(f"{step}/both.npy"), whole) and np.array_equal(np.load(f"{step}/same.npy"), same)
"""


@pytest.mark.parametrize("count", [2, 4])
def test_numpy_alone(mounts, tmp_path, count):
    """The same without the client: a 4x2 grid of pieces, read as 2x4, as 1x8 and whole."""
    programs = [
        subprocess.Popen([sys.executable, "-c", ALONE, m / "7", str(k), str(count)])
        for k, m in enumerate(mounts(count))
    ]
    assert [p.wait(100) for p in programs] == [0] * count
    check_once(tmp_path / "root")
