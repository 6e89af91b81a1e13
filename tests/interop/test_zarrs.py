"""Folders of Zarr arrays, and databases of OCDBT, that TensorStore and JAX write without any metadata of Orbax."""

import asyncio
import io
import json
import os
import shutil
import subprocess

os.environ["JAX_PLATFORMS"] = "cpu"

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from jax.experimental.array_serialization import serialization, tensorstore_impl

import util

K = np.arange(12, dtype="f4").reshape(4, 3) / 8
BF16 = K.astype(ml_dtypes.bfloat16)


def write_all(arrays):
    """Write arrays; a list of (kvstore, array, driver, metadata)."""

    async def write():
        for kvstore, array, driver, metadata in arrays:
            spec = {"driver": driver, "kvstore": kvstore, "dtype": array.dtype.name}
            spec["metadata"] = {"shape": list(array.shape), **metadata}
            store = await ts.open(spec, create=True)
            await store.write(array)

    asyncio.run(write())


def write_folder(folder, arrays, driver="zarr", **metadata):
    files = [({"driver": "file", "path": f"{folder / name}/"}, a, driver, metadata) for name, a in arrays.items()]
    write_all(files)
    return folder


def write_database(folder, arrays, driver="zarr", config=None):
    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}, "config": config or {}}
    write_all([(base | {"path": f"{name}/" if name else ""}, a, driver, {}) for name, a in arrays.items()])
    return folder


def cat(source, name):
    return util.ckptfs("cat", source, name, text=False).stdout


def listed(source):
    """Listed files, without directories."""
    entries = json.loads(util.ckptfs("ls", "-R", "--json", source).stdout)
    return {e["path"] for e in entries if e["type"] != "dir"}


def check(source, arrays, files=()):
    """All arrays and files are there, and nothing else; verify reads them."""
    assert listed(source) == {f"{name}.npy" if name else "%.npy" for name in arrays} | set(files)
    for name, array in arrays.items():
        got = np.load(io.BytesIO(cat(source, f"{name or '%'}.npy")))
        assert got.tobytes() == array.tobytes(), name
        meta = json.loads(cat(source, f"{name or '%'}.meta.json"))
        assert (meta["dtype"], meta["shape"]) == (array.dtype.name, list(array.shape))
        assert meta["format"] == "zarr"
    told = json.loads(util.ckptfs("verify", "--json", source).stdout)
    assert told["faults"] == [] and told["files"] >= len(arrays) + len(files)


def check_copies(tmp_path, source, arrays, files=()):
    """What export and import make of it has all of it."""
    util.ckptfs("export", source, tmp_path / "out", "--format=npy")
    for name, array in arrays.items():
        got = np.load(tmp_path / f"out/{name}.npy")
        assert got.shape == array.shape and got.tobytes() == array.tobytes()
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == cat(source, name)
    util.ckptfs("init", tmp_path / "store")
    util.ckptfs("import", source, tmp_path / "store/1")
    util.ckptfs("diff", source, tmp_path / "store/1")


LEVANTER = {
    "training_key": np.array([0, 42], "u4"),
    "model/embeddings/token_embeddings/weight": K,
    "model/transformer/layers/stacked/attn/q_proj/weight": BF16,
}


# --- files


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_one_folder_a_level(tmp_path, driver):
    """An array at the top does not hide those below, nor the files."""
    source = write_folder(tmp_path / "step-10000", LEVANTER, driver)
    (source / "metadata.json").write_text('{"step": 10000}')
    (source / "model/config.yaml").write_text("a: 1\n")
    (source / "model/empty").mkdir()
    files = ["metadata.json", "model/config.yaml"]
    check(source, LEVANTER, files)
    check_copies(tmp_path, source, LEVANTER, files)


def test_only_the_trainers_file_is_at_the_top(tmp_path):
    arrays = {name: a for name, a in LEVANTER.items() if "/" in name}
    source = write_folder(tmp_path / "some", arrays)
    (source / "metadata.json").write_text("{}")
    check(source, arrays, ["metadata.json"])
    check_copies(tmp_path, source, arrays, ["metadata.json"])


def test_nothing_but_arrays_far_down(tmp_path):
    """Such a folder may be anything, so it is a folder; its arrays and files are there."""
    source = write_folder(tmp_path / "some", {"a/b/c/w": K})
    (source / "a/notes.txt").write_text("x")
    assert listed(source) == {"a/b/c/w.npy", "a/notes.txt"}
    assert cat(source, "a/b/c/w") == K.tobytes()


def test_steps(tmp_path, mount):
    """A folder is a step by its name, whatever is in it but arrays."""
    for number in (10000, 20000):
        folder = write_folder(tmp_path / f"run/step_{number:08}", {"gda/model/decoder/emb/weight": number * K})
        if number == 10000:
            (folder / "index").write_text('[["step", 10000]]')
    steps = json.loads(util.ckptfs("info", "--json", tmp_path / "run").stdout)["steps"]
    assert [(s["name"], s["step"], s["leaves"]) for s in steps] == [
        ("step_00010000", 10000, 2),
        ("step_00020000", 20000, 1),
    ]
    m = mount(tmp_path / "run")
    assert os.readlink(m / "latest") == "step_00020000"
    assert (np.load(m / "latest/gda/model/decoder/emb/weight.npy") == 20000 * K).all()
    assert (m / "step_00010000/index").read_text() == '[["step", 10000]]'


def test_runs_are_no_checkpoint(tmp_path):
    """Folders of steps are folders, though each holds arrays somewhere, and has a trainer's file, or a step's name."""
    for run in ("run_1", "run_2"):
        for step in (1, 2):
            write_folder(tmp_path / f"runs/{run}/step-{step}", {"model/w": step * K, "key": K})
        (tmp_path / f"runs/{run}/metadata.json").write_text("{}")
    steps = json.loads(util.ckptfs("info", "--json", tmp_path / "runs").stdout)["steps"]
    assert sorted((s["name"], s["step"]) for s in steps) == [("step-1", 1.0)] * 2 + [("step-2", 2.0)] * 2


def test_group(tmp_path):
    arrays = {"lat": np.arange(3.0), "train/images": np.zeros((4, 2), "u1"), "train/labels": np.arange(4)}
    source = write_folder(tmp_path / "data.zarr", arrays)
    (source / ".zgroup").write_text('{"zarr_format": 2}')
    (source / "train/.zgroup").write_text('{"zarr_format": 2}')
    (source / ".zmetadata").write_text("{}")
    (source / ".zattrs").write_text('{"title": "weather"}')
    (source / "lat/.zattrs").write_text('{"units": "m"}')
    (source / "README.md").write_text("data\n")
    check(source, arrays, ["README.md"])
    assert json.loads(cat(source, "lat.meta.json"))["attributes"] == {"units": "m"}
    assert json.loads(cat(source, ".tree.json"))["metadata"] == {"title": "weather"}


def test_group_of_version_3(tmp_path):
    source = write_folder(tmp_path / "data.zarr", {"a/w": K, "b": BF16}, "zarr3", attributes={"units": "m"})
    for folder in (source, source / "a"):
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"title": "weather"}}
        (folder / "zarr.json").write_text(json.dumps(group))
    check(source, {"a/w": K, "b": BF16})
    assert json.loads(cat(source, "b.meta.json"))["attributes"] == {"units": "m"}
    assert json.loads(cat(source, ".tree.json"))["metadata"] == {"title": "weather"}


def test_group_without_arrays(tmp_path):
    (tmp_path / "data.zarr/a").mkdir(parents=True)
    (tmp_path / "data.zarr/.zgroup").write_text('{"zarr_format": 2}')
    assert listed(tmp_path / "data.zarr") == set()


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_one_array(tmp_path, driver):
    source = write_folder(tmp_path, {"w": K}, driver) / "w"
    check(source, {"": K})


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_what_lies_in_the_folder_of_an_array(tmp_path, driver):
    """Chunks are not shown, in whatever way their keys are made; files of the user are."""
    chunks = {"chunks": [1, 2]} if driver == "zarr" else {"chunk_grid": {"name": "regular"}}
    if driver == "zarr3":
        chunks["chunk_grid"]["configuration"] = {"chunk_shape": [1, 2]}
    slash = {"dimension_separator": "/"} if driver == "zarr" else {}
    dots = {} if driver == "zarr" else {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}}
    source = write_folder(tmp_path / "s", {"w": K}, driver, **chunks, **slash)
    write_folder(source, {"v": K}, driver, **chunks, **dots)
    (source / "w/0.0.__lock").write_text("")
    (source / "w/README.md").write_text("r")
    (source / "w/c.txt").write_text("r")
    (source / "w/c0").write_text("r")
    write_folder(source, {"w/inner": BF16})
    check(source, {"w": K, "v": K, "w/inner": BF16}, ["w/README.md", "w/c.txt", "w/c0"])


@pytest.mark.parametrize("dtype", ["<U3", ">U3", "|S5", "<M8[ns]", ">M8[s]", "<m8[D]"])
def test_types_of_numpy(tmp_path, dtype):
    """Strings and dates, as Zarr's own library stores them."""
    array = np.array(["1", "22", "333"]).astype("<i8" if dtype[1] in "mM" else dtype).astype(dtype)
    header = {"zarr_format": 2, "shape": [3], "chunks": [2], "order": "C", "dtype": dtype, "compressor": None}
    source = write_folder(tmp_path / "s", {"b": K})
    (source / "t").mkdir()
    (source / "t/.zarray").write_text(json.dumps(header | {"filters": None, "fill_value": None}))
    (source / "t/0").write_bytes(array[:2].tobytes())
    (source / "t/1").write_bytes(array[2:].tobytes() * 2)
    got = np.load(io.BytesIO(cat(source, "t.npy")))
    assert (got == array).all() and got.dtype == array.dtype.newbyteorder("<")


def test_views_and_copies_in_a_mount(tmp_path, mount):
    source = write_folder(tmp_path / "step", LEVANTER)
    (source / "metadata.json").write_text("{}")
    m = mount(source)
    name = "model/embeddings/token_embeddings/weight"
    assert (np.load(m / f"{name}@1:3,::2.npy") == K[1:3, ::2]).all()
    assert (m / name).read_bytes() == K.tobytes()
    assert os.getxattr(m / f"{name}.npy", "user.ckpt.shape") == b"[4,3]"
    subprocess.run(["cp", "-r", m.top, tmp_path / "copy"], check=True)
    assert (np.load(tmp_path / f"copy/{name}.npy") == K).all()
    assert (tmp_path / "copy/metadata.json").read_text() == "{}"


def test_other_checkpoints_in_it(tmp_path):
    """A checkpoint of another format in the folder is what it is, and not lost in its tree."""
    source = write_folder(tmp_path / "mixed", {"w": K, "v": BF16})
    (source / "README.md").write_text("r")
    shutil.copytree(util.ORBAX / "manager_steps/4", source / "other")
    alone = listed(util.ORBAX / "manager_steps/4")
    assert listed(source) == {"w.npy", "v.npy", "README.md"} | {f"other/{name}" for name in alone}
    assert cat(source, "w") == K.tobytes()
    name = min(name for name in alone if name.endswith(".npy"))
    assert cat(source, f"other/{name}") == cat(util.ORBAX / "manager_steps/4", name)


def test_a_root_with_an_array_in_it(tmp_path):
    """Steps of another format stay steps."""
    source = util.copy_tree(util.ORBAX / "manager_steps", tmp_path / "run")
    steps = [s["name"] for s in json.loads(util.ckptfs("info", "--json", source).stdout)["steps"]]
    write_folder(source, {"mine": K})
    assert cat(source, "mine/%") == K.tobytes()
    found = [s["name"] for s in json.loads(util.ckptfs("info", "--json", source).stdout)["steps"]]
    assert set(steps) <= set(found)


def test_damage(tmp_path):
    """A damaged chunk, and metadata that are no JSON, are faults of their arrays."""
    source = write_folder(tmp_path / "s", {"a/w": K, "a/v": K, "u": K}, compressor={"id": "gzip"})
    chunk = source / "a/w/0.0"
    chunk.write_bytes(chunk.read_bytes()[:-4])
    (source / "u/.zarray").write_text("{")
    told = json.loads(util.ckptfs("verify", "--json", source, check=4).stdout)
    assert sorted(f["path"] for f in told["faults"]) == ["a/w.npy", "u.npy"]
    assert cat(source, "a/v") == K.tobytes()


def test_fill_values(tmp_path):
    """Chunks that were never written hold the fill value."""
    source = write_folder(tmp_path / "s", {"a/w": np.zeros((4, 3), "f4"), "b": K}, fill_value=0.0, dtype="<f4")
    assert not (source / "a/w/0.0").exists()
    check(source, {"a/w": np.zeros((4, 3), "f4"), "b": K})


def test_a_chunk_that_goes_while_it_is_mounted(tmp_path, mount):
    """It is no fill value: what is being deleted is never read as zeros."""
    source = write_folder(tmp_path / "s", {"a/w": K, "b": K}, fill_value=0.0, dtype="<f4")
    m = mount(source)
    (source / "a/w/0.0").unlink()
    with pytest.raises(FileNotFoundError):
        (m / "a/w.npy").read_bytes()
    assert (m / "b").read_bytes() == K.tobytes()


# --- databases


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_database(tmp_path, driver):
    source = write_database(tmp_path / "step-30000", LEVANTER, driver)
    (source / "metadata.json").write_text('{"step": 30000}')
    (source / "logs").mkdir()
    (source / "logs/a.txt").write_text("x")
    files = ["logs/a.txt", "metadata.json"]
    check(source, LEVANTER, files)
    check_copies(tmp_path, source, LEVANTER, files)


def test_database_with_interior_nodes(tmp_path):
    arrays = {f"layers/{n}/w": np.full((2, 2), n, "i4") for n in range(300)}
    config = {"max_decoded_node_bytes": 1000, "max_inline_value_bytes": 0}
    check(write_database(tmp_path / "s", arrays, config=config), arrays)


def test_other_keys_of_a_database(tmp_path):
    """What is no array's is a file: by its own name, whatever it looks like."""
    source = write_database(tmp_path / "s", {"a/0": K})
    values = {"a/notes.txt": b"n", "a/1/2": b"no chunk", "b": b"", "a/0/mine": b"m", "c/d/": b"e", "e\\f%\n": b"odd"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{source}/"}).result()
    for key, value in values.items():
        store.write(key.encode(), value).result()
    names = {"a/notes.txt": "a/notes.txt", "a/1/2": "a/1/2", "b": "b", "a/0/mine": "a/0/mine", "c/d/": "c/d/%"}
    names["e\\f%\n"] = "e\\f%25%0A"
    check(source, {"a/0": K}, names.values())
    for key, name in names.items():
        assert cat(source, name) == values[key]


def test_database_of_one_array(tmp_path):
    check(write_database(tmp_path / "s", {"": K}), {"": K})


def test_steps_that_are_databases(tmp_path, mount):
    for number in (5, 7):
        write_database(tmp_path / f"run/step-{number}", {"model/w": number * K})
    m = mount(tmp_path / "run")
    assert os.readlink(m / "latest") == "step-7" and (np.load(m / "latest/model/w.npy") == 7 * K).all()


def serialize(arrays, folder, **options):
    specs = [tensorstore_impl.get_tensorstore_spec(str(folder / n), ocdbt=True, **options) for n in arrays]
    serialization.run_serialization([jnp.asarray(a) for a in arrays.values()], specs)


def test_jax(tmp_path):
    """JAX makes a database of each folder."""
    arrays = {"model/a/w": K, "model/a/v": BF16, "model/b/w": 2 * K, "key": np.array([0, 42], "u4")}
    serialize(arrays, tmp_path / "s")
    assert (tmp_path / "s/model/a/manifest.ocdbt").exists() and (tmp_path / "s/manifest.ocdbt").exists()
    check(tmp_path / "s", arrays)
    check_copies(tmp_path, tmp_path / "s", arrays)


@pytest.mark.parametrize("prefix", ["process_", "ocdbt.process_"])
def test_databases_of_processes(tmp_path, prefix):
    """Each process wrote its chunks of an array to a database of its own, and none joined them."""
    whole = np.arange(16, dtype="i4").reshape(4, 4)
    for process in (0, 1):
        folder = tmp_path / f"s/{prefix}{process}"
        base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}, "path": "m/w/"}
        metadata = {"shape": [4, 4], "chunks": [2, 4]}

        async def write(process=process, base=base, metadata=metadata):
            spec = {"driver": "zarr", "kvstore": base, "dtype": "int32", "metadata": metadata}
            store = await ts.open(spec, create=True)
            rows = slice(2 * process, 2 * process + 2)
            await store[rows].write(whole[rows])

        asyncio.run(write())
    (tmp_path / "s/metadata.json").write_text("{}")
    check(tmp_path / "s", {"m/w": whole}, ["metadata.json"])


@pytest.mark.parametrize("prefix", ["process_0", "ocdbt.process_0"])
def test_databases_of_processes_that_were_joined(tmp_path, prefix):
    source = write_database(tmp_path / "s" / prefix, {"m/w": K}).parent
    parts, joined = (
        {"driver": "ocdbt", "base": {"driver": "file", "path": str(folder)}} for folder in (source / prefix, source)
    )
    asyncio.run(tensorstore_impl.combine_kvstores(joined, [parts]))
    assert (source / "manifest.ocdbt").exists()
    check(source, {"m/w": K})


def test_damaged_database(tmp_path):
    source = write_database(tmp_path / "s", LEVANTER, config={"max_inline_value_bytes": 0})
    for data in (source / "d").iterdir():
        data.write_bytes(b"")
    done = util.ckptfs("ls", source, check=4)
    assert "truncated" in done.stderr


def test_what_is_left_of_a_save_of_orbax(tmp_path):
    """A database whose _METADATA are gone, beside other files of Orbax, is damaged: nobody knows its tree."""
    source = write_database(tmp_path / "s", {"a.b": K})
    (source / "_sharding").write_text("{}")
    assert "_METADATA is missing" in util.ckptfs("ls", source, check=4).stderr
