"""T5X's checkpoints: a msgpack file in which specifications of TensorStore stand for Zarr arrays beside it."""

import asyncio
import io
import json
import os
import shutil

os.environ["JAX_PLATFORMS"] = "cpu"

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from flax import serialization

import util

KERNEL = np.arange(12, dtype="f4").reshape(4, 3) / 8
ARRAYS = {
    "target/encoder/layers_0/attention/query/kernel": KERNEL,
    "target/token_embedder/embedding": (2 * KERNEL).astype(ml_dtypes.bfloat16),
    "state/param_states/zeros": np.zeros((5, 2), "f4"),
}


def set_at(tree, path, value):
    *parents, last = path.split("/")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value


def write_array(path, array, driver):
    metadata = {"shape": list(array.shape)}
    if driver == "zarr":
        metadata |= {"chunks": [2, 1], "compressor": {"id": "gzip"}}
    spec = {"driver": driver, "dtype": array.dtype.name, "metadata": metadata}

    async def write():
        store = await ts.open({**spec, "kvstore": {"driver": "file", "path": f"{path}/"}}, create=True)
        await store.write(array)

    asyncio.run(write())
    return spec


def place_of(style, name):
    """What the specification says of where the array is."""
    if style == "old":
        return {"kvstore": {"driver": "gfile"}, "path": f"{name}/"}
    if style == "gcs":
        return {"kvstore": {"driver": "gcs", "bucket": "acme", "path": f"{name}/"}}
    if style == "bucket":
        return {"kvstore": {"driver": "gcs", "bucket": "acme", "path": f"t5x/checkpoint_7/{name}"}}
    if style == "absolute":
        return {"kvstore": {"driver": "file", "path": f"/cns/x/./t5x//checkpoint_7.tmp-12/{name}/"}}
    return {"kvstore": {"driver": "file", "path": f"{name}/"}}


def save(folder, style="file", driver="zarr", names=None):
    """As T5X saves: each large array is a folder of Zarr, and the msgpack file has its specification."""
    folder.mkdir()
    small = {"step": np.int32(1000), "param_states": {"v": np.ones(3, "f4")}}
    state = {"version": 3, "optimizer": {"state": small}}
    for path, array in ARRAYS.items():
        name = path.replace("/", ".")
        spec = write_array(folder / name, array, driver) | place_of(style, (names or {}).get(name, name))
        set_at(state["optimizer"], path, spec)
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(state))
    return folder


def cat(source, name):
    return util.ckptfs("cat", source, name, text=False).stdout


def listed(source):
    return {e["path"] for e in json.loads(util.ckptfs("ls", "-R", "--json", source).stdout) if e["type"] != "dir"}


def check(source, arrays=ARRAYS):
    for path, array in arrays.items():
        assert cat(source, f"optimizer/{path}") == array.tobytes(), path


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
@pytest.mark.parametrize("style", ["file", "old", "gcs", "bucket", "absolute"])
def test_arrays(tmp_path, style, driver):
    source = save(tmp_path / "checkpoint_7", style, driver)
    check(source)
    want = {f"optimizer/{p}.npy" for p in ARRAYS} | {"optimizer/state/param_states/v.npy"}
    assert listed(source) == want | {"optimizer/state/step.json", "version.json"}
    shape = np.load(io.BytesIO(cat(source, "optimizer/target/token_embedder/embedding.npy"))).shape
    assert shape == (4, 3)
    util.ckptfs("verify", source)


def test_import(tmp_path):
    source = save(tmp_path / "checkpoint_7")
    util.ckptfs("init", tmp_path / "store")
    util.ckptfs("import", source, tmp_path / "store/7")
    check(tmp_path / "store/7")


def test_slices(tmp_path, mount):
    m = mount(save(tmp_path / "checkpoint_7"))
    name = "optimizer/target/encoder/layers_0/attention/query/kernel"
    assert (np.load(m / f"{name}@1:3,::2.npy") == KERNEL[1:3, ::2]).all()
    assert os.getxattr(m / f"{name}.npy", "user.ckpt.shape") == b"[4,3]"


def faults(source):
    return json.loads(util.ckptfs("verify", "--json", source, check=4).stdout)["faults"]


def test_a_damaged_chunk_is_a_fault_of_its_array(tmp_path):
    source = save(tmp_path / "checkpoint_7")
    chunk = source / "target.encoder.layers_0.attention.query.kernel/1.0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0xFF
    chunk.write_bytes(data)
    found = [f["path"] for f in faults(source)]
    assert found == ["optimizer/target/encoder/layers_0/attention/query/kernel.npy"]
    check(source, {p: a for p, a in ARRAYS.items() if "kernel" not in p})


@pytest.mark.parametrize("style", ["file", "absolute"])
def test_a_folder_that_is_gone_is_a_fault_of_its_array(tmp_path, style):
    """No other array is taken for it, though its name ends in the same way."""
    source = save(tmp_path / "checkpoint_7", style)
    shutil.rmtree(source / "target.token_embedder.embedding")
    shutil.copytree(source / "state.param_states.zeros", source / "embedding")
    found = [f["path"] for f in faults(source)]
    assert found == ["optimizer/target/token_embedder/embedding.npy"]
    check(source, {p: a for p, a in ARRAYS.items() if "embedding" not in p})


@pytest.mark.parametrize("style", ["file", "old", "absolute"])
def test_no_path_leads_out(tmp_path, style):
    name = "target.token_embedder.embedding"
    source = save(tmp_path / "checkpoint_7", style, names={name: f"../{name}"})
    (source / name).rename(tmp_path / name)
    found = faults(source)
    assert [f["path"] for f in found] == ["optimizer/target/token_embedder/embedding.npy"]
    assert "not a path inside" in found[0]["error"]["message"]


@pytest.mark.parametrize(
    "lookalike",
    [
        {"driver": "zarr", "kvstore": {"driver": "file"}},
        {"driver": "n5", "kvstore": {"driver": "file", "path": "x/"}},
        {"driver": "zarr", "kvstore": "file", "path": "x/"},
        {"driver": "zarr", "kvstore": {"driver": "file", "path": "x/"}, "mine": 1},
        {"driver": "zarr", "kvstore": {"path": "x/"}},
        {"driver": 1, "kvstore": {"driver": "file", "path": "x/"}},
    ],
)
def test_other_maps_stay_maps(tmp_path, lookalike):
    (tmp_path / "save").mkdir()
    (tmp_path / "save/checkpoint").write_bytes(serialization.msgpack_serialize({"config": lookalike}))
    assert json.loads(cat(tmp_path / "save", "config/driver")) == lookalike["driver"]
    assert "config.npy" not in listed(tmp_path / "save")
