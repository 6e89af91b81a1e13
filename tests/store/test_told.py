"""What the bytes of a leaf do not tell goes into a store, and from step to step: types, shapes, PRNGs, names."""

import json
import os
import shutil
import subprocess

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

import util
from util import ckptfs

SCALARS = {
    "f32": np.float32(0.1),
    "f16": np.float16(-0.5),
    "bf": np.array(1.5, ml_dtypes.bfloat16)[()],
    "f64": np.float64(0.1),
    "nan": np.float32("nan"),
    "inf": np.float16("-inf"),
    "zero": np.float32(-0.0),
    "i8": np.int8(-128),
    "i16": np.int16(7),
    "i32": np.int32(-1),
    "i64": np.int64(2**53 + 1),
    "u8": np.uint8(255),
    "u16": np.uint16(3),
    "u32": np.uint32(2**32 - 1),
    "u64": np.uint64(5),
    "yes": np.bool_(True),
}


def meta(source, name):
    told = json.loads(ckptfs("cat", source, f"{name}.meta.json").stdout)
    return {k: told.get(k) for k in ("kind", "dtype", "shape", "prng_impl", "value")}


def names(source, path=""):
    """Listed leaves without their suffixes, with their metadata."""
    listed = json.loads(ckptfs("ls", source, path, "-R", "--json").stdout)
    below = f"{path}/" if path else ""
    suffixes = {"array": ".npy", "value": ".json"}
    return {
        e["path"].removeprefix(below): meta(source, e["path"].removesuffix(suffixes.get(e["kind"], "")))
        for e in listed
        if e["type"] == "file"
    }


def arrays():
    return {
        "fp8": np.arange(6, dtype="f4").astype(ml_dtypes.float8_e5m2),
        "other": np.arange(6, dtype="f4").astype(ml_dtypes.float8_e4m3fn),
        "bf": np.arange(6, dtype="f4").astype(ml_dtypes.bfloat16),
        "w": np.arange(6, dtype="f4"),
        "w@0": np.arange(3, dtype="f4"),
        "w@0:2": np.arange(2, dtype="f4"),
        "w@...,-1": np.arange(2, dtype="f4"),
        "v@1": np.array(7, "i4"),
        "name@example.org": np.arange(2),
    }


def make_npz(top):
    np.savez(top / "a.npz", **{k: v for k, v in arrays().items() if v.dtype.kind != "V" and "f" not in k})
    return top / "a.npz"


def make_safetensors(top):
    safetensors.numpy.save_file(arrays(), top / "a.safetensors")
    return top / "a.safetensors"


def make_msgpack(top):
    tree = {"scalars": SCALARS, "w@0": np.arange(3), "w": np.arange(4), "raw": b"\0\1", "int": 5, "text": "5"}
    (top / "a.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    return top / "a.msgpack"


def make_folder(top):
    """Files beside shards are blobs, whatever their names and bytes."""
    folder = top / "folder"
    folder.mkdir()
    safetensors.numpy.save_file({"a": np.arange(3)}, folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "number.json").write_text("5\n")
    (folder / "truth.json").write_text("true")
    np.save(folder / "array.npy", np.arange(4))
    np.save(folder / "array@0:4.npy", np.arange(4))
    return folder


SOURCES = {
    "npz": make_npz,
    "safetensors": make_safetensors,
    "msgpack": make_msgpack,
    "folder": make_folder,
    "keys": lambda top: util.ORBAX / "prng_keys",
    "scalars": lambda top: util.ORBAX / "empties_strings_scalars",
    "dtypes": lambda top: util.ORBAX / "dtypes",
    "gguf": lambda top: util.DATA / "gguf/basic.gguf",
}


@pytest.fixture(scope="module", params=SOURCES)
def source(request, tmp_path_factory):
    return SOURCES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def store(tmp_path, source):
    """A store with the source as step 1."""
    ckptfs("init", tmp_path / "store")
    ckptfs("import", source, tmp_path / "store/1")
    return tmp_path / "store"


def same(source, store, step):
    """Nothing differs, nor what is told of any leaf."""
    ckptfs("diff", source, store / str(step))
    want, got = names(source), names(store, str(step))
    assert got == want
    ckptfs("verify", store, str(step))


def test_import(source, store):
    same(source, store, 1)


def test_import_from_a_store(source, store, tmp_path):
    ckptfs("init", tmp_path / "other")
    ckptfs("import", store / "1", tmp_path / "other/5")
    same(source, tmp_path / "other", 5)


@pytest.mark.parametrize("how", ["cp -r", "cp -a", "copytree", "read and write"])
def test_copy_in_a_mount(source, store, tmp_path, how):
    with util.Mount(store, folder=tmp_path / "m") as m:
        if how == "copytree":
            shutil.copytree(m / "1", m / "2")
        elif how == "read and write":  # the attributes alone say it
            for folder, dirs, files in os.walk(m / "1"):
                to = (m / "2").joinpath(os.path.relpath(folder, m / "1"))
                to.mkdir()
                for name in files:
                    (to / name).write_bytes(open(os.path.join(folder, name), "rb").read())
                    for key in os.listxattr(os.path.join(folder, name)):
                        os.setxattr(to / name, key, os.getxattr(os.path.join(folder, name), key))
        else:
            subprocess.run([*how.split(), m / "1", m / "2"], check=True)
        subprocess.run(["sync", m / "2"], check=True)
    same(source, store, 2)


def test_change_of_a_step(source, store, tmp_path):
    """What is not touched stays what it is; also what is linked, and moved away and back."""
    with util.Mount(store, folder=tmp_path / "m") as m:
        (m / "1/more").write_text("x")
        subprocess.run(["sync", m / "1"], check=True)
        (m / "1/more").unlink()
        subprocess.run(["sync", m / "1"], check=True)
    same(source, store, 1)


def test_copy_between_mounts(source, tmp_path):
    """Tools that keep attributes keep the types, from any format."""
    ckptfs("init", tmp_path / "store")
    with util.Mount(source, folder=tmp_path / "a") as a, util.Mount(tmp_path / "store", folder=tmp_path / "b") as b:
        shutil.copytree(a.top, b / "3")
        subprocess.run(["sync", b / "3"], check=True)
    same(source, tmp_path / "store", 3)


def test_several_writers(tmp_path):
    source = make_safetensors(tmp_path)
    ckptfs("init", tmp_path / "store")
    ckptfs("import", source, tmp_path / "store/1")
    options = ["writers=2", "commit_timeout=20"]
    with (
        util.Mount(tmp_path / "store", *options, "writer=0", folder=tmp_path / "a") as a,
        util.Mount(tmp_path / "store", *options, "writer=1", folder=tmp_path / "b") as b,
    ):
        leaves = sorted(os.listdir(a / "1"))
        for mount, part in ((a, leaves[::2]), (b, leaves[1::2])):
            (mount / "2").mkdir()
            for leaf in part:
                subprocess.run(["cp", "-r", mount / "1" / leaf, mount / "2" / leaf], check=True)
        syncs = [subprocess.Popen(["sync", mount / "2"]) for mount in (a, b)]
        assert [s.wait(60) for s in syncs] == [0, 0]
    same(source, tmp_path / "store", 2)


# --- what ends it


def test_content_that_changes(tmp_path):
    """What is told is told of the content: another one is what its bytes say."""
    source = make_msgpack(tmp_path)
    ckptfs("init", tmp_path / "store")
    ckptfs("import", source, tmp_path / "store/1")
    with util.Mount(tmp_path / "store", folder=tmp_path / "m") as m:
        subprocess.run(["cp", "-r", m / "1", m / "2"], check=True)
        (m / "2/scalars/f32.json").write_text("0.25\n")
        (m / "2/scalars/i8.json").write_text("300\n")
        (m / "2/scalars/u8.json").write_text('"three"')
        subprocess.run(["sync", m / "2"], check=True)
    store = tmp_path / "store"
    assert meta(store, "2/scalars/f32")["dtype"] == "float64"
    assert meta(store, "2/scalars/i8")["dtype"] == "int64"
    assert meta(store, "2/scalars/u8")["dtype"] is None
    assert meta(store, "2/scalars/f16")["dtype"] == "float16"


def test_a_key_that_is_moved(tmp_path):
    """Of another name it is a piece again, or an array as any other."""
    source = make_npz(tmp_path)
    ckptfs("init", tmp_path / "store")
    ckptfs("import", source, tmp_path / "store/1")
    with util.Mount(tmp_path / "store", folder=tmp_path / "m") as m:
        (m / "2").mkdir()
        subprocess.run(["cp", m / "1/w@0:2.npy", m / "2/new@0:2.npy"], check=True)
        subprocess.run(["cp", m / "1/w@0.npy", m / "2/plain.npy"], check=True)
        subprocess.run(["sync", m / "2"], check=True)
    assert sorted(names(tmp_path / "store", "2")) == ["new.npy", "plain.npy"]


def test_types_that_are_set(tmp_path):
    """By who writes a file; what is no type is refused."""
    ckptfs("init", tmp_path / "store")
    with util.Mount(tmp_path / "store", folder=tmp_path / "m") as m:
        (m / "1").mkdir()
        (m / "1/lr.json").write_text("0.5")
        (m / "1/blocks").write_bytes(bytes(144))
        np.save(m / "1/key.npy", np.array([0, 1], "u4"))
        np.save(m / "1/x@0.npy", np.array([0, 1], "u4"))
        for name, attribute, value in (
            ("lr.json", "dtype", "float16"),
            ("blocks", "dtype", "Q4_K"),
            ("blocks", "shape", "[1, 256]"),
            ("key.npy", "prng_impl", "threefry2x32"),
            ("x@0.npy", "key", "x@0"),
        ):
            os.setxattr(m / "1" / name, f"user.ckpt.{attribute}", value.encode())
        for name, attribute, value in (("blocks", "shape", "many"), ("key.npy", "prng_impl", "two words")):
            with pytest.raises(OSError):
                os.setxattr(m / "1" / name, f"user.ckpt.{attribute}", value.encode())
        subprocess.run(["sync", m / "1"], check=True)
        assert os.getxattr(m / "1/blocks", "user.ckpt.dtype") == b"Q4_K"
        assert os.getxattr(m / "1/blocks", "user.ckpt.shape") == b"[1,256]"
        assert os.getxattr(m / "1/key.npy", "user.ckpt.prng_impl") == b"threefry2x32"
        assert np.load(m / "1/lr.npy") == np.float16(0.5) and np.load(m / "1/lr.npy").dtype == np.float16
    assert set(names(tmp_path / "store", "1")) == {"lr.json", "blocks", "key.npy", "x@0.npy"}


def test_what_an_older_program_does(tmp_path):
    """A step with a leaf that is named like a piece asks for programs that know of it; others do not."""
    ckptfs("init", tmp_path / "store")
    ckptfs("import", make_npz(tmp_path), tmp_path / "store/1")
    ckptfs("import", make_msgpack(tmp_path), tmp_path / "store/2")
    os.truncate(tmp_path / "a.npz", 0)
    np.savez(tmp_path / "b.npz", w=np.arange(3))
    ckptfs("import", tmp_path / "b.npz", tmp_path / "store/3")
    heads = [(tmp_path / f"store/.ckptstore/steps/{n}.json").read_text().split("\n")[0] for n in (1, 2, 3)]
    assert ['"required":["whole"]' in head for head in heads] == [True, True, False]
