"""Real processes, each with a mount of its own, write one step together and restore it under other shardings."""
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


@pytest.mark.parametrize("count", [2, 4])
def test_jax(mounts, count):
    port, env = free_port(), {**os.environ, "PYTHONPATH": str(HERE.parents[1] / "python")}
    programs = [subprocess.Popen([sys.executable, HERE / "several.py", str(port), str(count), str(k), m / "7"], env=env, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True) for k, m in enumerate(mounts(count))]
    said = [p.communicate(timeout=200) for p in programs]
    assert all(p.returncode == 0 and out == "good\n" for p, (out, _) in zip(programs, said)), "\n".join(err for _, err in said)


PLAIN = """
import sys, numpy as np, ckptfs
step, k, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ckptfs.save(step, {"mine": {str(k): np.full(1000, k)}, "same": np.arange(3.0), "n": 1}, together=True)
"""


@pytest.mark.parametrize("count", [2, 4])
def test_numpy(mounts, count):
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1] / "python")}
    ms = mounts(count)
    programs = [subprocess.Popen([sys.executable, "-c", PLAIN, m / "7", str(k), str(count)], env=env) for k, m in enumerate(ms)]
    assert [p.wait(100) for p in programs] == [0] * count
    tree = ckptfs.restore(ms[0] / "7")
    assert sorted(tree["mine"]) == [str(k) for k in range(count)] and all((tree["mine"][str(k)] == k).all() for k in range(count))
    assert (tree["same"] == np.arange(3.0)).all() and tree["n"] == 1
