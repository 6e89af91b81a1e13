#!/usr/bin/env python3
"""Make tests/data/zarr: folders of Zarr arrays as TensorStore writes them, each with the truth of what is in it.

    make_zarr.py [FOLDER]
"""

import asyncio
import hashlib
import json
import pathlib
import shutil
import sys

import ml_dtypes
import numpy as np
import tensorstore as ts
from flax import serialization

K = np.arange(12, dtype="f4").reshape(4, 3) / 8
TREE = {
    "training_key": np.array([0, 42], "u4"),
    "model/embeddings/weight": K,
    "model/layers/0/weight": K.astype(ml_dtypes.bfloat16),
    "model/layers/1/weight": -K.astype(ml_dtypes.bfloat16),
    "opt_state/count": np.array(7, "i4"),
}
SHARDS = {
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 4]}},
    "codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [2, 2]}}],
}


def write(kvstore, array, driver="zarr", rows=..., **metadata):
    spec = {"driver": driver, "kvstore": kvstore, "dtype": array.dtype.name}
    spec["metadata"] = {"shape": list(array.shape), **metadata}

    async def run():
        store = await ts.open(spec, create=True, open=True)
        await store[rows].write(array[rows])

    asyncio.run(run())
    return spec


def in_folder(folder, name):
    return {"driver": "file", "path": f"{folder / name}/"}


def in_database(folder, name):
    base = {"driver": "file", "path": f"{folder}/"}
    return {"driver": "ocdbt", "base": base, "path": f"{name}/", "config": {"max_inline_value_bytes": 100}}


def keep_truth(folder, arrays, files=(), kind="zarr"):
    leaves = []
    for name, array in arrays.items():
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        leaf = {"path": name.split("/"), "kind": "array", "dtype": array.dtype.name, "shape": list(array.shape)}
        leaves.append(leaf | {"nbytes": array.nbytes, "sha256": digest})
    for name in files:
        data = (folder / name).read_bytes()
        leaf = {"path": name.split("/"), "kind": "bytes", "nbytes": len(data)}
        leaves.append(leaf | {"sha256": hashlib.sha256(data).hexdigest()})
    truth = {"case": folder.name, "format": kind, "leaves": leaves}
    folder.with_name(f"{folder.name}.truth.json").write_text(json.dumps(truth, indent=1) + "\n")


def make_levanter(folder):
    for name, array in TREE.items():
        write(in_folder(folder, name), array)
    (folder / "metadata.json").write_text('{"step": 10000}')
    (folder / "model/config.yaml").write_text("hidden_dim: 3\n")
    keep_truth(folder, TREE, ["metadata.json", "model/config.yaml"])


def make_group(folder):
    arrays = {"lat": np.arange(3.0), "train/images": np.zeros((4, 2), "u1"), "train/labels": np.arange(4)}
    for name, array in arrays.items():
        write(in_folder(folder, name), array, compressor={"id": "zlib"})
    for group in (folder, folder / "train"):
        (group / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / ".zattrs").write_text('{"title": "weather"}')
    (folder / "lat/.zattrs").write_text('{"units": "m"}')
    (folder / "README.md").write_text("data\n")
    keep_truth(folder, arrays, ["README.md"])


def make_sharded(folder):
    arrays = {"a/w": np.arange(48, dtype="i2").reshape(6, 8), "b": np.ones((4, 4), "f8")}
    for name, array in arrays.items():
        write(in_folder(folder, name), array, "zarr3", **SHARDS)
    (folder / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    keep_truth(folder, arrays)


def make_database(folder):
    for name, array in TREE.items():
        write(in_database(folder, name), array, "zarr3")
    (folder / "metadata.json").write_text('{"step": 30000}')
    keep_truth(folder, TREE, ["metadata.json"])


def make_processes(folder):
    whole = np.arange(16, dtype="i4").reshape(4, 4)
    for process in (0, 1):
        part = in_database(folder / f"process_{process}", "model/w")
        write(part, whole, rows=slice(2 * process, 2 * process + 2), chunks=[2, 4])
    keep_truth(folder, {"model/w": whole})


def make_t5x(folder):
    """The msgpack file is Orbax' reader's, for which the folder looks like an old save."""
    state = {"version": 3, "optimizer": {"state": {"v": np.ones(3, "f4")}, "target": {}}}
    arrays = {"optimizer/state/v": state["optimizer"]["state"]["v"]}
    for name, array in (("embedding", 2 * K), ("kernel", K)):
        stored = f"target.{name}"
        spec = write(in_folder(folder, stored), array, chunks=[2, 1], compressor={"id": "gzip"})
        spec["kvstore"] = {"driver": "gfile", "path": f"{stored}/"}
        state["optimizer"]["target"][name] = spec
        arrays[f"optimizer/target/{name}"] = array
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(state))
    keep_truth(folder, arrays, kind="orbax")
    truth = json.loads(folder.with_name("t5x.truth.json").read_text())
    truth["leaves"].append({"path": ["version"], "kind": "int", "value": "3"})
    folder.with_name("t5x.truth.json").write_text(json.dumps(truth, indent=1) + "\n")


def main():
    top = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).with_name("zarr"))
    shutil.rmtree(top, ignore_errors=True)
    for name, make in (
        ("levanter", make_levanter),
        ("group.zarr", make_group),
        ("sharded.zarr", make_sharded),
        ("database", make_database),
        ("processes", make_processes),
        ("t5x", make_t5x),
    ):
        (top / name).mkdir(parents=True)
        make(top / name)


main()
