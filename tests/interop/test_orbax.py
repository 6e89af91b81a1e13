"""What the mount shows of trees that Orbax has just saved is, bit for bit, what Orbax restores."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training import train_state
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import util
from comparing import compare

INTERPROCESS = 240  # seconds for processes that save together


# --- trees


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(17)(x)))


def guide_tree():
    """The tree of Flax's guide: a TrainState, a config and data."""
    net = Net()
    state = train_state.TrainState.create(
        apply_fn=net.apply, params=net.init(jax.random.key(0), jnp.ones((1, 5)))["params"], tx=optax.adam(1e-3)
    )
    return {"model": state, "config": {"dimensions": np.array([5, 3]), "name": "dense"}, "data": [jnp.arange(8.0)]}


def varied_tree():
    """Types, scalars, strings, None, empty containers, keys."""
    rng = np.random.default_rng(7)
    numbers = rng.normal(size=(6, 10)).astype(np.float32)
    numbers.flat[:4] = np.nan, np.inf, -np.inf, -0.0
    return {
        "arrays": {
            name: jnp.asarray(numbers).astype(name)
            for name in ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
        },
        "integers": {
            name: jnp.asarray(rng.integers(-8, 8, (5, 7))).astype(name) for name in ("int4", "int8", "int16", "int32")
        }
        | {name: jnp.asarray(rng.integers(0, 16, (5, 7))).astype(name) for name in ("uint8", "uint16", "uint32")},
        "wide": {
            "int64": rng.integers(-(2**62), 2**62, (3, 3)),
            "float64": rng.random((2, 5)),
            "complex64": numbers.view("c8"),
        },
        "bool": jnp.asarray(numbers > 0),
        "scalar array": jnp.float32(1.5),
        "one": np.array([7]),
        "many dims": rng.random((2, 3, 2, 3, 2)),
        "values": {
            "int": 42,
            "negative": -1,
            "float": 0.1,
            "true": True,
            "np": np.float32(0.1),
            "large": 2**62,
            "tiny": 5e-324,
        },
        "text": {"plain": "adam", "empty": "", "odd": "zwölf\n\"\\ \u2028 🎉"},
        "nothing": None,
        "empties": {"dict": {}, "list": [], "tuple": ()},
        "nested": [[jnp.ones(2)], [None, {"x": jnp.zeros((2, 2))}]],
        "keys": {
            "raw": jax.random.PRNGKey(1),
            "typed": jax.random.key(2),
            "several": jax.random.split(jax.random.key(3), 5),
            "rbg": jax.random.key(4, impl="rbg"),
        },
    }


def sharded_tree():
    """Over 8 devices: both dimensions, one, none, uneven chunks, few elements."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))

    def shard(a, *spec):
        return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))

    rng = np.random.default_rng(8)
    return {
        "both": shard(rng.random((64, 32), np.float32), "x", "y"),
        "rows": shard(rng.random((16, 9), np.float32), ("x", "y")),
        "columns": shard(rng.random((3, 20), np.float32).astype(ml_dtypes.bfloat16), None, "x"),
        "depth": shard(rng.random((2, 4, 6), np.float32), None, "x", "y"),
        "copied": shard(rng.random((5, 5), np.float32)),
        "single": jnp.arange(11),
    }


def saver(**options):
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options))


LAYOUTS = {
    "ocdbt": {},
    "ocdbt-zarr3": {"use_zarr3": True},
    "plain": {"use_ocdbt": False},
    "plain-zarr3": {"use_ocdbt": False, "use_zarr3": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [guide_tree, varied_tree, sharded_tree])
def test_single_save(mount, tmp_path, make, layout):
    """Trees saved by themselves, in each layout that Orbax has."""
    tree = make()
    with saver(**LAYOUTS[layout]) as checkpointer:
        checkpointer.save(tmp_path / "saved", tree)
        restored = checkpointer.restore(tmp_path / "saved")
    compare(mount(tmp_path / "saved").top, restored, seed=f"{make.__name__} {layout}")


@pytest.mark.parametrize(
    "options", [{"chunk_byte_size": 64}, {"chunk_byte_size": 1000}, {"dtype": np.dtype(ml_dtypes.bfloat16)}]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_save_args(mount, tmp_path, layout, options):
    """Small chunks, and arrays cast when they are saved."""
    rng = np.random.default_rng(9)
    tree = {"a": jnp.asarray(rng.random((33, 21), np.float32)), "b": jnp.asarray(rng.random((7, 6, 5), np.float32))}
    with saver(**LAYOUTS[layout]) as checkpointer:
        checkpointer.save(
            tmp_path / "saved", args=ocp.args.PyTreeSave(tree, save_args={k: ocp.SaveArgs(**options) for k in tree})
        )
        restored = checkpointer.restore(tmp_path / "saved")
    compare(mount(tmp_path / "saved").top, restored, seed=str(options))


@pytest.mark.parametrize("layout", ["ocdbt", "plain"])
def test_managed_steps(mount, tmp_path, layout):
    """CheckpointManager with max_to_keep=2: the last two steps, `latest`, and each step's own values."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(
        tmp_path / "run", options=options, item_handlers=ocp.PyTreeCheckpointHandler(**LAYOUTS[layout])
    ) as manager:
        for step in range(5):
            tree = guide_tree()
            tree["model"] = tree["model"].replace(
                step=step, params=jax.tree.map(lambda a: a + step, tree["model"].params)
            )
            manager.save(step, args=ocp.args.PyTreeSave(tree))
        manager.wait_until_finished()
        restored = {step: manager.restore(step, args=ocp.args.PyTreeRestore()) for step in manager.all_steps()}
        assert sorted(restored) == [3, 4]
    m = mount(tmp_path / "run")
    assert sorted(os.listdir(m.top)) == ["3", "4", "latest"] and os.readlink(m / "latest") == "4"
    for step, tree in restored.items():
        compare(m / str(step), tree, seed=step)
    assert (m / "4/model/step.json").read_text() == "4\n"
    with ocp.CheckpointManager(
        m / ".files",
        options=ocp.CheckpointManagerOptions(read_only=True),
        item_handlers=ocp.PyTreeCheckpointHandler(**LAYOUTS[layout]),
    ) as manager:
        assert sorted(manager.all_steps()) == [3, 4]
        for step, tree in restored.items():  # unmodified Orbax, through the mount
            again = manager.restore(step, args=ocp.args.PyTreeRestore())
            assert jax.tree.structure(again) == jax.tree.structure(tree)
            assert all(
                np.array_equal(np.asarray(a), np.asarray(b))
                for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree))
            )


def test_composite(mount, tmp_path):
    """Several items, JSON among them, with a prefix and padding in the names of steps."""
    options = ocp.CheckpointManagerOptions(step_prefix="ckpt", step_format_fixed_length=6)
    state, metrics = guide_tree(), {"loss": 0.25, "note": "größer"}
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        manager.save(
            12,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),
                ema=ocp.args.StandardSave(state["model"].params),
                metrics=ocp.args.JsonSave(metrics),
            ),
        )
        manager.wait_until_finished()
        restored = manager.restore(
            12, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(), ema=ocp.args.StandardRestore())
        )
    m = mount(tmp_path / "run")
    assert sorted(os.listdir(m.top)) == ["ckpt_000012", "latest"]
    assert sorted(os.listdir(m / "latest/")) == ["ema", "metrics.json", "state"]
    assert json.loads((m / "latest/metrics.json").read_text()) == metrics
    compare(m / "ckpt_000012/state", restored["state"], seed=1)
    compare(m / "ckpt_000012/ema", restored["ema"], seed=2)


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.mark.timeout(INTERPROCESS + 60)
def test_two_processes(mount, tmp_path):
    """A step that two processes with four devices each saved together."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    port = free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, Path(__file__).parent / "two_processes.py", tmp_path / "run", str(port), "2", str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [worker.communicate(timeout=INTERPROCESS)[0] for worker in workers]
    finally:
        for worker in workers:
            util.end_process(worker)
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)[-4000:]
    item = tmp_path / "run/3/default"
    assert sorted(p.name for p in item.glob("ocdbt.process_*")) == ["ocdbt.process_0", "ocdbt.process_1"]
    with saver() as checkpointer:
        arguments = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(item).item_metadata.tree
        )
        restored = checkpointer.restore(item, args=ocp.args.PyTreeRestore(restore_args=arguments))
    compare(mount(tmp_path / "run") / "3", restored, seed=3)
