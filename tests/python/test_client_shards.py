"""Arrays on eight devices: written as pieces, read into other shardings, each slice once."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ckptfs

WHOLE = np.arange(64 * 48, dtype="f4").reshape(64, 48)
SPECS = [(), ("x",), ("y", "x"), (("x", "y"),), (None, "y")]


def sharding(*spec, shape=(4, 2)):
    return NamedSharding(Mesh(np.array(jax.devices()[:8]).reshape(shape), ("x", "y")), PartitionSpec(*spec))


def listed(folder):
    """The files of a staged step, while it is there."""
    return sorted(name for _, _, names in os.walk(folder) for name in names)


def stats(mnt):
    return json.loads((mnt / ".ckptfs/stats.json").read_text())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_reshard(mnt, spec):
    """From any sharding into any other, of another mesh too; and the whole."""
    ckptfs.save(
        mnt / "1",
        {"w": jax.device_put(WHOLE, sharding(*spec)), "b": jax.device_put(WHOLE.astype("bfloat16"), sharding(*spec))},
    )
    np.testing.assert_array_equal(np.load(mnt / "1/w.npy"), WHOLE)
    for shape, other in [((4, 2), spec) for spec in SPECS] + [((2, 4), ("y",)), ((8, 1), (None, "x"))]:
        place = sharding(*other, shape=shape)
        target = {
            "w": jax.ShapeDtypeStruct(WHOLE.shape, "float32", sharding=place),
            "b": jax.device_put(jnp.zeros_like(WHOLE, "bfloat16"), place),
        }
        got = ckptfs.restore(mnt / "1", target)
        assert got["w"].sharding == place and got["b"].sharding == place
        np.testing.assert_array_equal(got["w"], WHOLE)
        np.testing.assert_array_equal(got["b"], WHOLE.astype("bfloat16"))


def test_pieces(mnt, monkeypatch):
    """One file a shard, one replica of each; a replicated array is one file."""
    seen = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (seen.extend(listed(a)), rename(a, b)))
    ckptfs.save(
        mnt / "1",
        {
            "w": jax.device_put(WHOLE, sharding("y")),
            "r": jax.device_put(WHOLE, sharding()),
            "int": jax.device_put(jnp.arange(8, dtype="int4"), sharding("x")),
        },
    )
    assert seen == [
        "int@0:2.npy",
        "int@2:4.npy",
        "int@4:6.npy",
        "int@6:8.npy",
        "r.npy",
        "w@0:32,0:48.npy",
        "w@32:64,0:48.npy",
    ]
    for place in None, sharding("y"):
        assert ckptfs.restore(mnt / "1/int", sharding=place).astype(int).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_sharding_argument(mnt):
    """One sharding for all arrays, or a function; without a target too. What JAX has no type for stays on the host."""
    ckptfs.save(mnt / "1", {"w": WHOLE, "text": np.array(["a"]), "n": 1})
    got = ckptfs.restore(mnt / "1", sharding=sharding("x"))
    assert got["w"].sharding == sharding("x") and isinstance(got["text"], np.ndarray) and got["n"] == 1
    got = ckptfs.restore(
        mnt / "1",
        {"w": np.zeros((64, 48), "f2")},
        cast=True,
        sharding=lambda path, shape, dtype: sharding(None, "y") if path == ("w",) and shape == (64, 48) else None,
    )
    assert got["w"].sharding == sharding(None, "y") and got["w"].dtype == jnp.float16
    np.testing.assert_array_equal(got["w"], WHOLE.astype("f2"))


def test_smaller_reference(mnt):
    """The guide's target that is smaller than the checkpoint: only its sharding counts."""
    ckptfs.save(mnt / "1", {"model": WHOLE})
    target = {"model": jax.device_put(jnp.zeros((4, 2)), sharding("x", "y"))}
    with pytest.raises(ValueError, match=r"stored is float32 \(64, 48\), wanted float32 \(4, 2\)"):
        ckptfs.restore(mnt / "1", target)
    got = ckptfs.restore(mnt / "1", target, check=False)
    assert got["model"].shape == (64, 48) and got["model"].sharding == sharding("x", "y")


def test_only_what_is_addressed(mnt, monkeypatch):
    """A process that has one device of eight reads an eighth."""
    rows = 1 << 19
    ckptfs.save(
        mnt / "1", {"w": np.random.default_rng(0).random((8 * rows, 2), np.float32)}
    )  # 32 MiB that do not compress
    place = sharding(("x", "y"))
    full = place.addressable_devices_indices_map((8 * rows, 2))
    before = stats(mnt)["bytes_read"]
    box = next(
        tuple(part.indices(size)[:2] for part, size in zip(index, (8 * rows, 2)))
        for device, index in full.items()
        if device.id == 3
    )
    from ckptfs import array

    got = array.read_box(str(mnt / "1/w"), "float32", (8 * rows, 2), box)
    assert 4 << 20 <= stats(mnt)["bytes_read"] - before < 5 << 20
    np.testing.assert_array_equal(got, np.load(mnt / "1/w.npy", mmap_mode="r")[box[0][0] : box[0][1]])


def test_together(mnt):
    """The way of several processes, with one: files in MOUNT/STEP, committed by fsync."""
    ckptfs.save(mnt / "7", {"w": jax.device_put(WHOLE, sharding("x", "y")), "n": 1}, metadata={"a": 1}, together=True)
    got = ckptfs.restore(mnt / "latest")
    np.testing.assert_array_equal(got["w"], WHOLE)
    assert got["n"] == 1 and ckptfs.metadata(mnt / "7") == {"a": 1}
    with pytest.raises(FileExistsError):
        ckptfs.save(mnt / "7", {"m": 1}, together=True)
