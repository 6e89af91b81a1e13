"""The readers of docs/examples in C, Go and JavaScript: a leaf and a slice by path, compared with NumPy; of what Orbax
has saved, and of what np.save has written.
"""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import util

EXAMPLES = util.TESTS.parent / "docs/examples"


def build_c(folder):
    command = ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-o", folder / "read", EXAMPLES / "read.c"]
    subprocess.run(command, check=True, timeout=60)
    return [folder / "read"]


def build_go(folder):
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "GOCACHE": str(folder / "cache"),
        "GOTOOLCHAIN": "local",
    }
    subprocess.run(
        ["go", "build", "-o", folder / "read", EXAMPLES / "read.go"], check=True, timeout=240, env=environment
    )
    return [folder / "read"]


def build_javascript(_):
    return ["node", EXAMPLES / "read.js"]


@pytest.fixture(
    scope="module",
    params=[build_c, build_go, build_javascript],
    ids=lambda build: build.__name__.removeprefix("build_"),
)
def reader(request, tmp_path_factory):
    """The command of a reader."""
    for tool in {"build_c": ["cc"], "build_go": ["go"], "build_javascript": ["node"]}[request.param.__name__]:
        assert shutil.which(tool), f"{tool} is missing"
    return request.param(tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize(
    "case,key,text",
    [
        ("manager_steps", "latest/model/params/kernel", "1:4,::2"),
        ("sharded_8dev", "both", "3:13:3,-2:"),
        ("big_values", "noise", "59,40:"),
        ("zarr3_no_ocdbt", "params/dense/kernel", "::-1,0"),
    ],
)
def test_reader(module_mount, reader, case, key, text):
    check(reader, module_mount(util.ORBAX).top / case, key, text)


SAVE = """
import sys, numpy as np, orbax.checkpoint as ocp
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(sys.argv[1], {"params": {"w": np.arange(3000, dtype=np.float32).reshape(60, 50) / 7}})
"""


def test_steps_of_a_root(mount, reader, tmp_path):
    """Orbax saves into the files face, np.save writes into the tree: both are read by the same paths."""
    (tmp_path / "root").mkdir()
    m = mount(tmp_path / "root", "commit=explicit")
    subprocess.run(
        [sys.executable, "-c", SAVE, m / ".files/1"], check=True, timeout=100, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    (m / ".new/params").mkdir(parents=True)
    np.save(m / ".new/params/w.npy", np.arange(3000, dtype=np.float32).reshape(60, 50) / 7)
    os.rename(m / ".new", m / "2")
    for step in "1", "2":
        util.wait_for((m / step / "params/w.npy").exists, 10)
        check(reader, m / step, "params/w", "3:50:4,-2:")


def check(reader, top, key, text):
    done = subprocess.run([*reader, top, key, text], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    whole = np.load(top / f"{key}.npy")
    part = eval(f"whole[{text}]")
    assert int(first.split()[0]) == whole.size
    assert float(first.split()[1]) == pytest.approx(whole.astype(np.float64).sum(), rel=1e-6)
    assert np.array(second.split(), np.float32).tobytes() == np.ascontiguousarray(part).tobytes()
