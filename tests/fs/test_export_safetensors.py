"""ckptfs export --format=safetensors: one file that the real library reads, from checkpoints of all kinds."""

import json
import os
import signal
import subprocess
import time

import ml_dtypes  # noqa: F401  safetensors needs it for bfloat16
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import util
from util import CKPTFS, ORBAX, ckptfs

FINE, USAGE, MOUNT_FAILED, UNREACHABLE, INTEGRITY, PARTLY, DIFFERS = range(7)
DEMO = util.DATA / "demo"
NO_TYPE = {
    "complex128",
    "complex32",
    "int4",
    "uint4",
    "int2",
    "uint2",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float4_e2m1fn",
    "float6_e2m3fn",
    "float6_e3m2fn",
}
SOURCES = [
    DEMO / "300",
    ORBAX / "dtypes",
    ORBAX / "empties_strings_scalars",
    util.DATA / "safetensors/basic.safetensors",
    util.DATA / "safetensors/sharded",
    util.DATA / "safetensors/all-dtypes.safetensors",
    util.DATA / "gguf/basic.gguf",
]


def header(path):
    with open(path, "rb") as f:
        return json.loads(f.read(int.from_bytes(f.read(8), "little")))


def check_export(source, out, step="."):
    """Export a step of a source, and compare with the tree that the mount shows."""
    tree = json.loads(ckptfs("cat", source, f"{step}/.tree.json").stdout)
    leaves = {".".join(map(str, leaf["path"])): leaf for leaf in tree["leaves"]}
    left_out = {
        name
        for name, leaf in leaves.items()
        if leaf["kind"] == "blob" or (leaf["kind"] == "array" and leaf["dtype"] in NO_TYPE)
    }
    done = ckptfs(
        "export",
        f"{source}/{step}".removesuffix("/."),
        out,
        "--format=safetensors",
        "--json",
        check=PARTLY if left_out else FINE,
    )
    told = json.loads(done.stdout)
    assert (
        {e["path"] for e in told.get("left_out", [])} == left_out
        and told["files"] == 1
        and told["bytes"] == out.stat().st_size
    )
    assert all(f"ckptfs export: {name}: left out: " in done.stderr for name in left_out)
    numbers = {name for name, leaf in leaves.items() if leaf["kind"] == "value" and "dtype" in leaf}
    others = {name for name, leaf in leaves.items() if leaf["kind"] == "value"} - numbers
    shown = header(out)
    metadata = shown.pop("__metadata__")
    with safetensors.safe_open(out, "numpy") as f:
        assert set(f.keys()) == shown.keys() == leaves.keys() - left_out - others
        assert f.metadata() == metadata and metadata.keys() >= left_out | others | {"format"}
    start = out.stat().st_size - max((e["data_offsets"][1] for e in shown.values()), default=0)
    data = out.read_bytes()
    for name in sorted(shown.keys() - numbers)[:: max(1, len(shown) // 30)]:
        begin, end = shown[name]["data_offsets"]
        assert (
            data[start + begin : start + end]
            == ckptfs("cat", source, f"{step}/" + leaves[name]["file"].removesuffix(".npy"), text=False).stdout
        ), name
        assert shown[name]["shape"] == leaves[name]["shape"]
    for name in others:
        assert json.loads(metadata[name]) == leaves[name]["value"]
    return metadata


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.name)
def test_export(tmp_path, source):
    check_export(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_store(tmp_path):
    ckptfs("init", tmp_path / "root")
    ckptfs("import", DEMO / "300", tmp_path / "root/300")
    check_export(tmp_path / "root", tmp_path / "out", "300")
    ckptfs("export", tmp_path / "root/latest/state/model", tmp_path / "model", "--format=safetensors")
    ckptfs("export", DEMO / "300/state/model", tmp_path / "same", "--format=safetensors")
    mine, same = (safetensors.numpy.load_file(tmp_path / name) for name in ("model", "same"))
    assert mine.keys() == same.keys() and all((mine[k] == same[k]).all() for k in mine)


def test_metadata_is_passed_on(tmp_path):
    """Loaders ask for the "format" that the first writer put there. What is left out of one file is not left out of the
    next.
    """
    tensors = {"a": np.arange(3), "b.c": np.ones((2, 2), np.float16)}
    safetensors.numpy.save_file(
        tensors, tmp_path / "in.safetensors", {"format": "pt", "note": "größer\n\"", "b": "left out: a blob"}
    )
    assert check_export(tmp_path / "in.safetensors", tmp_path / "out.safetensors") == {
        "format": "pt",
        "note": "größer\n\"",
    }
    again = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert again.keys() == tensors.keys() and all((again[k] == tensors[k]).all() for k in tensors)
    assert check_export(util.DATA / "safetensors/sharded", tmp_path / "sharded")["format"] == "pt"


def test_places(tmp_path):
    """A directory gets a model.safetensors; nothing is overwritten, and nothing is left behind."""
    (tmp_path / "file").write_text("x")
    part = DEMO / "300/state/model"
    ckptfs("export", part, tmp_path, "--format=safetensors")
    ckptfs("export", part, tmp_path / "model", "--format=safetensors")
    assert (tmp_path / "model").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    done = ckptfs("export", part, tmp_path, "--format=safetensors", "--json", check=USAGE)
    assert json.loads(done.stdout)["error"]["code"] == "EEXIST"
    ckptfs("export", part, tmp_path / "file", "--format=safetensors", check=USAGE)
    ckptfs("export", part, f"{tmp_path}/new/", "--format=safetensors", check=USAGE)
    ckptfs("export", part, tmp_path / "new/file", "--format=safetensors", check=PARTLY)
    ckptfs("export", DEMO, tmp_path / "out", "--format=safetensors", check=USAGE)
    ckptfs("export", DEMO / "400", tmp_path / "out", "--format=safetensors", check=UNREACHABLE)
    damaged = util.copy_tree(DEMO / "300", tmp_path / "damaged")
    for p in damaged.rglob("d/*"):
        p.chmod(0o644)
        p.write_bytes(p.read_bytes()[:-20])
    ckptfs("export", damaged, tmp_path / "out", "--format=safetensors", check=INTEGRITY)
    assert sorted(os.listdir(tmp_path)) == ["damaged", "file", "model", "model.safetensors"]


def test_equal_names(tmp_path):
    """Joined names that would be equal: there is no such file."""
    tree = tmp_path / "root"
    ckptfs("init", tree)
    (tmp_path / "files/a").mkdir(parents=True)
    np.save(tmp_path / "files/a.b.npy", np.ones(2))
    np.save(tmp_path / "files/a/b.npy", np.ones(2))
    ckptfs("import", tmp_path / "files", tree / "1")
    done = ckptfs("export", tree / "1", tmp_path / "out", "--format=safetensors", check=None)
    assert done.returncode == INTEGRITY and "a.b" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["files", "root"]


def test_interrupted(tmp_path):
    """Ctrl-C takes the half written file away."""
    size = 1 << 33  # a hole, but it takes a while to be read
    head = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(tmp_path / "in.safetensors", "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        f.truncate(8 + len(head) + size)
    process = subprocess.Popen(
        [CKPTFS, "export", tmp_path / "in.safetensors", tmp_path / "out", "--format=safetensors"],
        stderr=subprocess.PIPE,
    )
    try:
        util.wait_for(lambda: len(os.listdir(tmp_path)) > 1 or process.poll() is not None)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=util.LIMIT)
    finally:
        util.end_process(process)
    assert process.returncode == -signal.SIGINT and os.listdir(tmp_path) == ["in.safetensors"]
