"""ckptfs export --format=orbax: what unmodified Orbax restores of it, from checkpoints of all kinds, bit for bit."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import util
from test_orbax import LAYOUTS, saver, sharded_tree, varied_tree
from util import ORBAX, ckptfs

FINE, USAGE, MOUNT_FAILED, UNREACHABLE, INTEGRITY, PARTLY, DIFFERS = range(7)
SMALL = [
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e4m3b11fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e3m4",
    "float8_e8m0fnu",
    "float4_e2m1fn",
    "int4",
    "int2",
]
NUMPY = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
]


def bits(a):
    return np.asarray(jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a).tobytes()


def assert_same(got, want, path=""):
    """Two trees: containers, types, bits. A tuple that is not empty comes back as a list, a named tuple or dataclass as
    a dict.
    """
    if hasattr(want, "dtype"):
        assert got.dtype == want.dtype and got.shape == want.shape and bits(got) == bits(want), path
    elif isinstance(want, dict):
        assert type(got) is dict and got.keys() == want.keys(), path
        for key in want:
            assert_same(got[key], want[key], f"{path}/{key}")
    elif isinstance(want, (list, tuple)):
        assert type(got) is (list if want else type(want)) and len(got) == len(want), path
        for i, (a, b) in enumerate(zip(got, want)):
            assert_same(a, b, f"{path}/{i}")
    else:
        assert type(got) is type(want) and repr(got) == repr(want), path


def restore(path):
    """By both checkpointers, with nothing said."""
    with ocp.StandardCheckpointer() as standard:
        tree = standard.restore(Path(path))
    with ocp.PyTreeCheckpointer() as pytree:
        assert_same(pytree.restore(Path(path)), tree)
    return tree


def export(source, out, left_out=()):
    """Export, and compare with the source by ckptfs itself."""
    done = ckptfs("export", source, out, "--format=orbax", "--json", check=PARTLY if left_out else FINE)
    told = json.loads(done.stdout)
    files = [p for p in Path(out).rglob("*") if p.is_file()]
    assert [e["path"] for e in told.get("left_out", [])] == list(left_out)
    assert told["files"] == len(files) and told["bytes"] == sum(p.stat().st_size for p in files)
    assert all(f"ckptfs export: {name}: left out: " in done.stderr for name in left_out)
    differs = ckptfs("diff", source, out, check=DIFFERS if left_out else FINE).stdout.splitlines()
    assert len(differs) == len(left_out), differs
    assert ckptfs("verify", out)
    return Path(out)


def noise(dtype, *shape):
    rng = np.random.default_rng(5)
    dtype = np.dtype(dtype)
    if dtype == bool:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.name in ("int4", "int2", "float4_e2m1fn"):
        width = int(dtype.name.split("_")[0].strip("intfloa"))
        low = rng.integers(0, 1 << width, shape, np.uint8)
        return low.view(dtype) if dtype.name.startswith("float") else (low.astype(int) - (1 << width - 1)).astype(dtype)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


@pytest.mark.parametrize("kind", ["ocdbt", "plain"])
def test_orbax(tmp_path, kind):
    """A tree with all that Orbax saves comes back as from Orbax's own file."""
    tree = varied_tree()
    tree["dtypes"] = {name: noise(getattr(ml_dtypes, name), 3, 5) for name in SMALL} | {
        name: noise(name, 4, 3) for name in NUMPY
    }
    with saver(**LAYOUTS[kind]) as checkpointer:
        checkpointer.save(tmp_path / "saved", tree)
    assert_same(restore(export(tmp_path / "saved", tmp_path / "out")), restore(tmp_path / "saved"))
    again = restore(export(tmp_path / "out", tmp_path / "again"))
    assert_same(again, restore(tmp_path / "saved"))


@pytest.mark.parametrize(
    "source",
    [
        "awkward_keys",
        "prng_keys",
        "namedtuple",
        "big_values",
        "many_small",
        "sharded_8dev_zarr3",
        "dtypes_plain",
        "btree_interior",
        "old_0_2_3/single",
        "old_0_2_3/aggregate",
        "old_0_4_8/aggregate",
        "old_0_4_8/strings",
        "old_0_4_8/zero",
        "old_0_5_3/single",
    ],
)
def test_fixtures(tmp_path, source):
    restore(export(ORBAX / source, tmp_path / "out"))


def test_store(mount, tmp_path):
    """A step that np.save and json.dump wrote; a part of it; the way back by import."""
    (tmp_path / "root").mkdir()
    m = mount(tmp_path / "root")
    step = m / ".new"
    want = {
        "params": {
            "w": noise("float32", 7, 5),
            "b": noise(ml_dtypes.bfloat16, 9),
            "deep": {"x": np.array(3.5), "empty": {}},
        },
        "layers": [{"k": np.full((2, 2), i)} for i in range(11)],
        "step": 7,
        "rate": 0.1,
        "on": True,
        "name": "größer",
        "nothing": None,
    }

    def write(folder, tree):
        folder.mkdir()
        if isinstance(tree, list):
            os.setxattr(folder, "user.ckpt.kind", b"list")
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if isinstance(value, (dict, list)):
                write(folder / str(key), value)
            elif isinstance(value, np.ndarray):
                np.save(folder / f"{key}.npy", value)
            else:
                (folder / f"{key}.json").write_text(json.dumps(value))

    write(step, want)
    (step / "notes.txt").write_text("a blob")
    os.rename(step, m / "7")
    m.stop()
    out = export(tmp_path / "root/7", tmp_path / "out", ["notes.txt"])
    assert_same(restore(out), want)
    assert_same(restore(export(tmp_path / "root/latest/params", tmp_path / "params")), want["params"])
    ckptfs("import", out, tmp_path / "root/8")
    assert ckptfs("diff", tmp_path / "root/8", out).stdout == ""
    assert_same(restore(export(tmp_path / "root/8", tmp_path / "again")), want)


def test_flax(tmp_path):
    tree = {
        "a": noise("float32", 3, 4),
        "n": 3,
        "f": 1.5,
        "t": "text",
        "none": None,
        "d": {"": noise("int8", 2)},
        "z": np.zeros((0, 3)),
        "bytes": b"blob",
        "a/b": "1",
        "a/c/d": "2",
        "a/c/e": "3",
        "x": "4",
        "slash/": noise("int16", 3),
        "/..": noise("int16", 4),
        "c": 1 + 2j,
    }
    (tmp_path / "in.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    got = restore(export(tmp_path / "in.msgpack", tmp_path / "out", ["bytes"]))
    del tree["bytes"]
    tree["c"] = np.array(tree["c"])  # a complex number is a 0-d array
    assert_same(got, tree)


def test_safetensors(tmp_path):
    import safetensors.numpy

    tensors = {"model.a": noise("float32", 4, 4), "model.b.0": noise(ml_dtypes.bfloat16, 3), "lone": noise("int64", 2)}
    safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors", {"format": "np", "note": "größer\n"})
    out = export(tmp_path / "m.safetensors", tmp_path / "out")
    assert_same(
        restore(out), {"model": {"a": tensors["model.a"], "b": {"0": tensors["model.b.0"]}}, "lone": tensors["lone"]}
    )
    for name in ("_METADATA", "_CHECKPOINT_METADATA"):
        assert json.loads((out / name).read_text())["custom_metadata"] == {"format": "np", "note": "größer\n"}
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert checkpointer.metadata(out).custom_metadata == {"format": "np", "note": "größer\n"}


def test_large(tmp_path):
    """Arrays of several chunks, cut along each of their dimensions, evenly and not."""
    tree = {
        "rows": noise("float32", 1024, 9000),
        "odd": noise("uint8", 35_000_003),
        "second": noise("uint8", 2, 17_000_001),
        "third": noise("float64", 1, 3, 2_200_000),
        "none": noise("int8", 16 << 20),
    }
    (tmp_path / "in.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    out = export(tmp_path / "in.msgpack", tmp_path / "out")
    assert_same(restore(out), tree)
    mesh = Mesh(np.array(jax.devices()), ("d",))
    sharding = NamedSharding(mesh, PartitionSpec("d"))
    target = {"rows": jax.ShapeDtypeStruct((1024, 9000), np.float32, sharding=sharding)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        got = checkpointer.restore(
            out,
            args=ocp.args.PyTreeRestore(
                target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
            ),
        )
    assert got["rows"].sharding == sharding and bits(got["rows"]) == bits(tree["rows"])


def test_many(tmp_path):
    """More than one leaf of the B+tree."""
    tree = {
        f"key {i % 97}": {f"{j:05}": np.full(j % 3 + 1, i * j, np.int32) for j in range(i, 9000, 97)} for i in range(97)
    }
    (tmp_path / "in.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    out = export(tmp_path / "in.msgpack", tmp_path / "out")
    assert max(p.stat().st_size for p in (out / "d").iterdir()) > 1 << 20
    assert_same(restore(out), tree)


def test_target(tmp_path):
    """Into a tree with shardings over 8 devices, with other dtypes; and by a manager."""
    tree = sharded_tree()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", tree)
    (tmp_path / "run").mkdir()
    out = export(tmp_path / "saved", tmp_path / "run/3")
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
    with ocp.StandardCheckpointer() as checkpointer:
        got = checkpointer.restore(out, abstract)
    for key, want in tree.items():
        assert (
            isinstance(got[key], jax.Array) and got[key].sharding == want.sharding and bits(got[key]) == bits(want)
        ), key
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16, sharding=a.sharding), tree)
    with ocp.StandardCheckpointer() as checkpointer:
        assert all(a.dtype == jnp.bfloat16 for a in checkpointer.restore(out, abstract).values())


@pytest.mark.parametrize("tree", [{}, {"only": None}, {"only": "text"}, {"": np.ones(3)}, {"list": {}}], ids=repr)
def test_little(tmp_path, tree):
    (tmp_path / "in.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    got = restore(export(tmp_path / "in.msgpack", tmp_path / "out"))
    assert_same(got, np.ones(3) if "" in tree else tree)  # a leaf under the empty key is a bare one


def test_left_out(tmp_path):
    """Names that Orbax joins to the same one, strings that it cannot find, types it lacks. A list with a hole is a
    dict.
    """
    tree = {"a.b": noise("int8", 2), "a": {"b": noise("int8", 3)}, "~": "no", "t~1u": "yes", "s": "1", "s/t": "2"}
    (tmp_path / "in.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    done = ckptfs("export", tmp_path / "in.msgpack", tmp_path / "out", "--format=orbax", "--json", check=PARTLY)
    out = [e["path"] for e in json.loads(done.stdout)["left_out"]]
    assert sorted(out) == ["a.b", "s/t", "~"]
    got = restore(tmp_path / "out")
    assert got["t~1u"] == "yes" and got["s"] == "1" and ("a.b" in got) != ("b" in got["a"])
    saved = tmp_path / "saved"
    with saver() as checkpointer:
        checkpointer.save(saved, {"list": [np.ones(2), 1, "a"]})
    ckptfs("init", tmp_path / "root")
    ckptfs("import", saved, tmp_path / "root/1")
    np.save(tmp_path / "dates.npy", np.zeros(3, "M8[s]"))
    assert_same(restore(export(tmp_path / "root/1", tmp_path / "whole")), {"list": [np.ones(2), 1, "a"]})


def test_nothing_is_left_of_a_failure(tmp_path):
    for number in range(1, 40, 3):
        done = ckptfs(
            "export",
            ORBAX / "dtypes",
            tmp_path / "out",
            "--format=orbax",
            check=None,
            env=os.environ | {"CKPTFS_DISK_FAIL": f"{number}:ENOSPC:once"},
        )
        if done.returncode == 0:
            break
        assert done.returncode == PARTLY and "No space left" in done.stderr and os.listdir(tmp_path) == []
    assert number > 10
    damaged = util.copy_tree(ORBAX / "dtypes", tmp_path / "damaged")
    for p in damaged.rglob("d/*"):
        p.chmod(0o644)
        p.write_bytes(p.read_bytes()[:-20])
    ckptfs("export", damaged, tmp_path / "other", "--format=orbax", check=INTEGRITY)
    assert sorted(os.listdir(tmp_path)) == ["damaged", "out"]
