"""The readers of docs/examples in C, Go and JavaScript: a leaf and a slice by path, compared with NumPy."""
import os
import shutil
import subprocess

import numpy as np
import pytest

import util

EXAMPLES = util.TESTS.parent / "docs/examples"


def build_c(folder):
    command = ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-o", folder / "read", EXAMPLES / "read.c"]
    subprocess.run(command, check=True, timeout=60)
    return [folder / "read"]


def build_go(folder):
    environment = os.environ | {"GO111MODULE": "off", "GOFLAGS": "", "GOCACHE": str(folder / "cache"), "GOTOOLCHAIN": "local"}
    subprocess.run(["go", "build", "-o", folder / "read", EXAMPLES / "read.go"], check=True, timeout=240, env=environment)
    return [folder / "read"]


def build_javascript(_):
    return ["node", EXAMPLES / "read.js"]


@pytest.fixture(scope="module", params=[build_c, build_go, build_javascript], ids=lambda build: build.__name__.removeprefix("build_"))
def reader(request, tmp_path_factory):
    """The command of a reader."""
    for tool in {"build_c": ["cc"], "build_go": ["go"], "build_javascript": ["node"]}[request.param.__name__]:
        assert shutil.which(tool), f"{tool} is missing"
    return request.param(tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize("case,key,text", [("manager_steps", "latest/model/params/kernel", "1:4,::2"), ("sharded_8dev", "both", "3:13:3,-2:"),
                                           ("big_values", "noise", "59,40:"), ("zarr3_no_ocdbt", "params/dense/kernel", "::-1,0")])
def test_reader(module_mount, reader, case, key, text):
    top = module_mount(util.ORBAX).top / case
    done = subprocess.run([*reader, top, key, text], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    whole = np.load(top / f"{key}.npy")
    part = eval(f"whole[{text}]")
    assert int(first.split()[0]) == whole.size
    assert float(first.split()[1]) == pytest.approx(whole.astype(np.float64).sum(), rel=1e-6)
    assert np.array(second.split(), np.float32).tobytes() == np.ascontiguousarray(part).tobytes()
