"""What the mount shows of trees that Flax has just written as msgpack is, bit for bit, what Flax restores."""

import errno
import os

os.environ["JAX_PLATFORMS"] = "cpu"

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training import checkpoints, train_state
from safetensors.numpy import load_file

import util
from comparing import compare, compare_leaf, flatten, stored

CHUNK = 64  # bytes, for arrays in pieces
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
    "longdouble",
    "clongdouble",
]
OTHER = [
    "bfloat16",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float6_e2m3fn",
    "float6_e3m2fn",
    "float4_e2m1fn",
    "complex32",
    "bcomplex32",
    "int1",
    "int2",
    "int4",
    "uint1",
    "uint2",
    "uint4",
]
TIMES = ["datetime64[ns]", "datetime64[D]", "timedelta64[us]", "timedelta64[25s]"]


@pytest.fixture
def legacy():
    """Flax writes its own files, as it did before it used Orbax."""
    flax.config.update("flax_use_orbax_checkpointing", False)
    yield
    flax.config.update("flax_use_orbax_checkpointing", True)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(17)(x)))


def train_step(state, step):
    grads = jax.tree.map(lambda a: jnp.full_like(a, 0.01 * (step + 1)), state.params)
    return state.apply_gradients(grads=grads)


def first_state():
    net = Net()
    params = net.init(jax.random.key(0), jnp.ones((1, 5)))["params"]
    params["Dense_1"] = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params["Dense_1"])
    return train_state.TrainState.create(apply_fn=net.apply, params=params, tx=optax.adam(1e-3))


def arrays(names, shape):
    """An array of each type with bytes that are valid for it."""
    rng = np.random.default_rng(3)
    found = {}
    for name in names:
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        a = rng.integers(0, 2 if "1" == name[-1] else 100, shape)
        found[name] = (
            (a % 2 == 0)
            if name == "bool"
            else a.astype(np.float32).astype(dtype)
            if dtype.kind == "V" or "float" in name
            else a.astype(dtype)
        )
    return found


def varied_tree():
    rng = np.random.default_rng(7)
    numbers = rng.normal(size=(6, 10)).astype(np.float32)
    numbers.flat[:4] = np.nan, np.inf, -np.inf, -0.0
    return {
        "types": arrays(NUMPY + OTHER + TIMES, (4, 3)),
        "scalars": {name: a[()] for name, a in arrays(NUMPY + TIMES + ["bfloat16"], ()).items()},
        "shapes": {
            "0-d": np.array(2.5),
            "empty": np.zeros((3, 0, 2), np.int16),
            "none": np.zeros(0),
            "one": np.array([7]),
            "fortran": np.asfortranarray(numbers),
            "strided": numbers[::2, ::-3],
            "many": rng.random((2, 3, 2, 3, 2)),
            "jax": jnp.arange(12.0).reshape(3, 4),
        },
        "values": {
            "int": 42,
            "negative": -129,
            "large": 2**64 - 1,
            "small": -(2**63),
            "float": 0.1,
            "nan": float("nan"),
            "inf": float("-inf"),
            "tiny": 5e-324,
            "true": True,
            "none": None,
            "complex": 1.5 - 2.25j,
        },
        "text": {"plain": "adam", "empty": "", "odd": "zwölf\n\"\\ \u2028 🎉", "long": "x" * 100_000},
        "bytes": {"some": b"\0\xff/", "none": b"", "many": os.urandom(70_000)},
        "empties": {"dict": {}, "list": [], "tuple": ()},
        "nested": [[jnp.ones(2)], (None, {"x": jnp.zeros((2, 2))})],
        "ints as keys": {1: 5, -2: np.arange(3)},
        "odd names": {
            key: np.float32(n)
            for n, key in enumerate(
                [
                    "a/b",
                    ".",
                    "..",
                    "",
                    " ",
                    "%",
                    "%41",
                    "a%2Fb",
                    "new\nline",
                    "x" * 300,
                    "é" * 200,
                    "Ab",
                    "aB",
                    "x",
                    ".tree.json",
                    "latest",
                    "tab\t",
                    "\x7f",
                    "ﬁ",
                    "fi",
                ]
            )
        },
    }


# --- loose files


def write(path, tree):
    path.write_bytes(serialization.to_bytes(tree))
    return serialization.msgpack_restore(path.read_bytes())


def test_to_bytes(mount, tmp_path):
    """All types, shapes, values and names, as one file in a folder and as the source itself."""
    (tmp_path / "files").mkdir()
    restored = write(tmp_path / "files/varied.msgpack", varied_tree())
    compare(mount(tmp_path / "files") / "varied.msgpack", restored, seed=1)
    compare(mount(tmp_path / "files/varied.msgpack").top, restored, seed=2)


def test_pieces(mount, tmp_path, monkeypatch):
    """Arrays above the limit are cut: at it, one element over it, elements that are larger than it, types that are
    widened.
    """
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", CHUNK)
    rng = np.random.default_rng(4)
    tree = {
        "at": np.arange(CHUNK, dtype=np.uint8),
        "over": np.arange(CHUNK + 1, dtype=np.uint8),
        "matrix": rng.random((7, 9), np.float32),
        "deep": {"cube": rng.integers(0, 1000, (5, 4, 3)), "half": rng.random((5, 41)).astype(ml_dtypes.bfloat16)},
        "complex": rng.random(19) * 1j,
        "tiny": (rng.integers(0, 16, 300) - 8).astype(ml_dtypes.int4),
        "list": [rng.random(20), rng.random(3)],
        "wide": np.arange(40, dtype=np.longdouble),
    }
    restored = write(tmp_path / "pieces.msgpack", tree)
    m = mount(tmp_path / "pieces.msgpack")
    compare(m.top, restored, seed=3)
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1)
    restored = write(tmp_path / "single.msgpack", {"a": np.arange(15, dtype=np.int32).reshape(3, 5)})
    compare(mount(tmp_path / "single.msgpack").top, restored, seed=4)


@pytest.mark.parametrize(
    "leaf",
    [np.arange(6.0).reshape(2, 3), np.float32(1.5), 3, None, True, "text", b"bytes", 2j, {}, {"a": 1}],
    ids=lambda leaf: type(leaf).__name__,
)
def test_bare(mount, tmp_path, leaf):
    """One leaf and nothing else."""
    restored = write(tmp_path / "bare.msgpack", leaf)
    top = mount(tmp_path / "bare.msgpack").top
    [[path, value]] = flatten(restored)
    if isinstance(value, np.ndarray):
        assert np.load(top / "%.npy").tobytes() == value.tobytes() and os.listdir(top) == ["%.npy"]
        assert np.array_equal(np.load(top / "%@1,::-1.npy"), value[1, ::-1])
    elif not isinstance(value, dict):
        compare_leaf(top, path, value)
        assert len(os.listdir(top)) == 1
    else:
        assert os.listdir(top) == []


def test_native(mount, tmp_path):
    """msgpack_serialize keeps lists, and integers as keys."""
    tree = {
        "list": [1, [2, np.arange(3)], {"x": None}, [], "y"],
        "ints": {7: {-1: np.float64(0.5)}},
        "long": list(range(300)),
    }
    path = tmp_path / "native.msgpack"
    path.write_bytes(serialization.msgpack_serialize(tree))
    top = mount(path).top
    assert sorted(os.listdir(top / "long"), key=lambda n: int(n.removesuffix(".json"))) == [
        f"{n}.json" for n in range(300)
    ]
    assert np.load(top / "list/1/1.npy").tolist() == [0, 1, 2] and (top / "list/2/x.json").read_text() == "null\n"
    assert os.listdir(top / "list/3") == [] and np.load(top / "ints/7/-1.npy") == 0.5
    assert (
        os.getxattr(top / "list", "user.ckpt.kind") == b"list"
        and os.getxattr(top / "ints/7", "user.ckpt.kind") == b"dict"
    )


def test_not_loadable(mount, tmp_path):
    """What Flax writes and cannot load: an error for that leaf alone."""
    tree = {
        "strings": np.array(["ab", "c"]),
        "bytes": np.array([b"ab"]),
        "record": np.zeros(2, "i4,f4"),
        "good": np.arange(4),
    }
    path = tmp_path / "strings.msgpack"
    path.write_bytes(serialization.msgpack_serialize(tree))
    top = mount(path).top
    assert sorted(os.listdir(top)) == ["bytes.npy", "good.npy", "record.npy", "strings.npy"]
    for name in ("strings", "bytes", "record"):
        with util.fails(errno.EOPNOTSUPP):
            open(top / f"{name}.npy")
        assert b'"dtype":' in (top / f"{name}.meta.json").read_bytes()
    assert np.load(top / "good.npy").tolist() == [0, 1, 2, 3]


def test_safetensors(mount, tmp_path):
    """The view of a part of a TrainState loads with the real library."""
    (tmp_path / "files").mkdir()
    write(tmp_path / "files/state.msgpack", first_state())
    m = mount(tmp_path / "files")
    with open(m / "state.msgpack/params.safetensors", "rb") as f:
        (tmp_path / "copy.safetensors").write_bytes(f.read())
    tensors = load_file(tmp_path / "copy.safetensors")
    params = serialization.to_state_dict(first_state().params)
    assert {name: stored(a).tobytes() for name, a in tensors.items()} == {
        ".".join(p): stored(a).tobytes() for p, a in flatten(params)
    }


# --- roots


def steps_of(root):
    return sorted(p.name for p in root.iterdir())


def compare_root(m, root, prefix="checkpoint_"):
    """All files of a root, and `latest`."""
    assert sorted(os.listdir(m.top)) == sorted(steps_of(root) + ["latest"])
    assert os.readlink(m / "latest") == os.path.basename(checkpoints.latest_checkpoint(root, prefix))
    for name in steps_of(root):
        compare(m / name, checkpoints.restore_checkpoint(root / name, target=None), seed=name)


@pytest.mark.parametrize("options", [{"keep": 2}, {"keep": 1, "keep_every_n_steps": 4}, {"keep": 100}], ids=str)
def test_root(mount, tmp_path, legacy, options):
    """A training run, with what each kind of retention leaves of it."""
    state = first_state()
    for step in range(11):
        state = train_step(state, step)
        checkpoints.save_checkpoint(tmp_path / "run", state, step, **options)
    m = mount(tmp_path / "run")
    compare_root(m, tmp_path / "run")
    assert os.readlink(m / "latest") == "checkpoint_10"
    assert (
        os.getxattr(m / "latest/", "user.ckpt.step") == b"10"
        and os.getxattr(m / "latest/", "user.ckpt.format") == b"flax-msgpack"
    )


def test_overwrite(mount, tmp_path, legacy):
    """An earlier step is written again: those after it go, and it has new content."""
    for step in range(4):
        checkpoints.save_checkpoint(tmp_path / "run", {"a": np.full(4, step)}, step, keep=9)
    m = mount(tmp_path / "run")
    compare_root(m, tmp_path / "run")
    checkpoints.save_checkpoint(tmp_path / "run", {"a": np.full(4, 7)}, 1, keep=9, overwrite=True)
    util.wait_for(lambda: os.readlink(m / "latest") == "checkpoint_1", 15)
    compare_root(m, tmp_path / "run")
    assert np.load(m / "latest/a.npy").tolist() == [7] * 4


@pytest.mark.parametrize(
    "prefix, steps",
    [("checkpoint_", [-1.0, 1e-05, 0.5, 2.0, 10.0, 1e16]), ("ckpt_", [1, 9, 10, 11, 100]), ("run2_model_", [3, 20])],
)
def test_order(mount, tmp_path, legacy, prefix, steps):
    """Steps are compared as numbers, with whatever sign, fraction and exponent."""
    for step in steps:
        checkpoints.save_checkpoint(tmp_path / "run", {"a": np.array(step)}, step, prefix=prefix, keep=100)
    m = mount(tmp_path / "run")
    compare_root(m, tmp_path / "run", prefix)
    assert os.readlink(m / "latest") == f"{prefix}{steps[-1]}"


def test_mixed_root(mount, tmp_path):
    """Files of Flax beside the directories that it makes with Orbax."""
    tree = {"a": np.arange(3), "b": {"c": np.ones((2, 2), np.float32)}}
    for step, orbax in [(1, True), (2, False), (3, True), (4, False)]:
        flax.config.update("flax_use_orbax_checkpointing", orbax)
        checkpoints.save_checkpoint(tmp_path / "run", tree | {"step": np.array(step)}, step, keep=100)
    flax.config.update("flax_use_orbax_checkpointing", True)
    m = mount(tmp_path / "run")
    assert sorted(os.listdir(m.top)) == [f"checkpoint_{n}" for n in range(1, 5)] + ["latest"]
    for step in range(1, 5):
        compare(m / f"checkpoint_{step}", tree | {"step": np.array(step)}, seed=step)
        assert os.getxattr(m / f"checkpoint_{step}", "user.ckpt.format") == (b"orbax" if step % 2 else b"flax-msgpack")
    assert (
        os.readlink(m / "latest") == "checkpoint_4" == os.path.basename(checkpoints.latest_checkpoint(tmp_path / "run"))
    )
