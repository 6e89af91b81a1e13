"""Flax's guide "Save and load checkpoints", section by section, with this client."""

import os
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze
from flax.training import checkpoints, orbax_utils, train_state
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import PyTreeCheckpointer

import ckptfs
import util
from test_client_leaves import same


class CustomTrainState(train_state.TrainState):
    batch_stats: Any = None


MODEL = nn.Dense(features=3)
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.1, 0.01, 10)))


def make_state(kind=train_state.TrainState, seed=0, **more):
    params = MODEL.init(jax.random.key(seed), jnp.ones(5))["params"]
    return kind.create(apply_fn=MODEL.apply, params=params, tx=TX, **more)


def make_checkpoint():
    state = make_state()
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    return {"model": state, "config": {"dimensions": np.array([5, 3])}, "data": [jnp.arange(5.0)]}


def make_target(**more):
    return {"model": make_state(seed=1), "config": {"dimensions": np.array([0, 0])}, "data": [jnp.zeros(5)]} | more


def equal(a, b):
    """Are two pytrees the same, types of nodes and leaves included?"""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert type(x) is type(y)
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def saved(mnt):
    checkpoint = make_checkpoint()
    ckptfs.save(mnt / "4", checkpoint)
    return mnt, checkpoint


def test_raw(saved):
    """Restore in the raw form: dicts, lists and NumPy's arrays."""
    mnt, checkpoint = saved
    raw = ckptfs.restore(mnt / "4")
    assert set(raw) == {"model", "config", "data"} and set(raw["model"]) == {"step", "params", "opt_state"}
    assert raw["model"]["step"] == 1
    assert same(raw["model"]["params"]["kernel"], np.asarray(checkpoint["model"].params["kernel"]))
    assert type(raw["model"]["opt_state"]) is tuple and raw["model"]["opt_state"][0] == {}
    assert same(
        raw["model"]["opt_state"][1][0]["mu"]["bias"], np.asarray(checkpoint["model"].opt_state[1][0].mu["bias"])
    )


def test_to_target(saved):
    """Restore with custom dataclasses: TrainState, states of optax with named tuples, functions taken from the
    target.
    """
    mnt, checkpoint = saved
    target = make_target()
    got = ckptfs.restore(mnt / "4", target)
    equal(got, checkpoint)
    assert type(got["model"]) is train_state.TrainState and got["model"].tx is target["model"].tx
    got["model"].apply_gradients(grads=got["model"].params)


def test_abstract_target(saved):
    """A target that eval_shape makes: no array of it exists."""
    mnt, checkpoint = saved
    target = jax.eval_shape(make_state)
    got = ckptfs.restore(mnt / "4/model", target)
    assert got.step == 1 and isinstance(got.params["kernel"], np.ndarray)
    np.testing.assert_array_equal(got.params["kernel"], checkpoint["model"].params["kernel"])


def test_partial_target(mnt):
    """Scenario 1: the checkpoint has more than the target. Nothing else is read."""
    state = make_state(CustomTrainState, batch_stats=np.arange(10))
    ckptfs.save(mnt / "5", {"model": state, "config": {"dimensions": np.array([5, 3])}, "data": [jnp.arange(5.0)]})
    got = ckptfs.restore(mnt / "5", make_target(config=None))
    assert type(got["model"]) is train_state.TrainState and got["config"] is None
    equal(got["model"].params, state.params)
    equal(ckptfs.restore(mnt / "5/model/params", state.params), state.params)


def test_partial_checkpoint(saved):
    """Scenario 2: the target has more than the checkpoint."""
    mnt, checkpoint = saved
    target = make_target(model=make_state(CustomTrainState, batch_stats=np.arange(10)), more=[1, 2])
    with pytest.raises(KeyError, match="lacks model/batch_stats, more/0, more/1"):
        ckptfs.restore(mnt / "4", target)
    got = ckptfs.restore(mnt / "4", target, missing="target")
    assert type(got["model"]) is CustomTrainState and got["more"] == [1, 2]
    np.testing.assert_array_equal(got["model"].batch_stats, np.arange(10))
    equal(got["model"].params, checkpoint["model"].params)


def test_what_does_not_fit(saved):
    """Shapes and types are those of the target, or an error says both; types are cast on request."""
    mnt, _ = saved
    both = (
        r"config/dimensions: stored is int64 \(2,\), wanted int64 \(3,\); "
        r"data/0: stored is float32 \(5,\), wanted bfloat16 \(5,\)"
    )
    with pytest.raises(ValueError, match=both):
        ckptfs.restore(mnt / "4", {"config": {"dimensions": np.zeros(3, int)}, "data": [jnp.zeros(5, jnp.bfloat16)]})
    got = ckptfs.restore(mnt / "4", {"data": [jnp.zeros(5, jnp.bfloat16)]}, cast=True)
    assert got["data"][0].dtype == jnp.bfloat16 and got["data"][0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError):
        ckptfs.restore(mnt / "4", {"data": [np.zeros(4, "f4")]}, cast=True)
    got = ckptfs.restore(mnt / "4", {"config": {"dimensions": 0}, "data": ["x"]}, check=False)
    assert got["config"]["dimensions"].tolist() == [5, 3] and got["data"][0].shape == (5,)


def test_managed(mnt):
    """Versions and bookkeeping."""
    checkpoint = make_checkpoint()
    with ckptfs.CheckpointManager(mnt, max_to_keep=2) as manager:
        for step in range(5):
            manager.save(step, checkpoint)
        assert manager.all_steps() == [3, 4] and manager.latest_step() == 4
        equal(manager.restore(4, make_target()), checkpoint)
        equal(manager.restore(target=make_target()), checkpoint)


def test_legacy(mnt):
    """save_checkpoint(dir, target, step, prefix, keep, overwrite) and restore_checkpoint(dir, target), in the terms of
    this client.
    """
    manager = ckptfs.CheckpointManager(mnt, step_prefix="checkpoint", max_to_keep=2)
    for step in 0, 1, 2, 2:
        manager.save(step, {"n": step}, overwrite=True)
    assert manager.all_steps() == [1, 2]
    assert ckptfs.restore(mnt / "latest") == {"n": 2} and ckptfs.restore(mnt / "checkpoint_1") == {"n": 1}


def test_legacy_keep(mnt):
    """prefix, keep_every_n_steps and latest_checkpoint; an earlier step is not saved over a later one."""
    manager = ckptfs.CheckpointManager(mnt, step_prefix="test", max_to_keep=3, keep_period=2)
    for step in range(6):
        assert manager.save(step, {"n": step})
    assert (
        sorted(os.listdir(mnt)) == ["latest", "test_0", "test_2", "test_3", "test_4", "test_5"]
        and os.readlink(mnt / "latest") == "test_5"
    )
    assert not manager.save(1, {"n": 9}) and manager.all_steps() == [0, 2, 3, 4, 5]
    assert manager.restore() == ckptfs.restore(mnt / "latest") == {"n": 5}


def test_best(mnt):
    """max_to_keep of the best by their metrics, as with best_fn of Orbax; the latest stays."""
    with ckptfs.CheckpointManager(
        mnt, max_to_keep=2, best_fn=lambda metrics: metrics["loss"], best_mode="min", asynchronous=True
    ) as manager:
        for step, loss in enumerate([3.0, 2.0, 0.5, 1.0, 0.7]):
            manager.save(step, {"n": step}, metrics={"loss": loss})
        manager.wait_until_finished()
        assert (
            manager.all_steps() == [2, 4]
            and manager.best_step() == 2
            and manager.latest_step() == 4
            and manager.metrics(2) == {"loss": 0.5}
        )


def test_by_hand(saved):
    """What transforms are for: a raw restore, a change of the dicts, and a save."""
    mnt, checkpoint = saved
    raw = ckptfs.restore(mnt / "4")
    raw["model"]["batch_stats"] = np.flip(np.arange(10))
    raw["settings"] = raw.pop("config")
    ckptfs.save(mnt / "5", raw)
    target = {
        "model": make_state(CustomTrainState, batch_stats=np.arange(10)),
        "settings": {"dimensions": np.array([0, 0])},
    }
    got = ckptfs.restore(mnt / "5", target)
    equal(got["model"].opt_state, checkpoint["model"].opt_state)
    assert got["model"].batch_stats.tolist() == list(range(9, -1, -1)) and got["settings"]["dimensions"].tolist() == [
        5,
        3,
    ]


def test_sharded(mnt):
    """Several devices: to the shardings of a reference that is smaller, to others, and without any; in the
    background.
    """
    mesh = Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ("x", "y"))
    both, columns = NamedSharding(mesh, PartitionSpec("x", "y")), NamedSharding(mesh, PartitionSpec(None, "y"))
    array = jax.device_put(np.arange(8 * 2).reshape(8, 2), both)
    with ckptfs.CheckpointManager(mnt, max_to_keep=2, asynchronous=True) as manager:
        manager.save(0, {"model": array})
        reference = {"model": jax.device_put(np.arange(8).reshape(4, 2), both)}
        with pytest.raises(ValueError, match=r"model: stored is int\d+ \(8, 2\), wanted int\d+ \(4, 2\)"):
            manager.restore(0, reference)
        got = manager.restore(0, reference, check=False)
        equal(got, {"model": array})
        assert got["model"].sharding == both and got["model"].addressable_shards[0].data.shape == (2, 1)
        got = manager.restore(0, sharding=columns)
        equal(got, {"model": array})
        assert got["model"].sharding == columns
        equal(manager.restore(0), {"model": np.asarray(array)})


def test_what_orbax_and_flax_save(mnt):
    """In .files, by their own calls, each restored to the same target."""
    checkpoint, before = make_checkpoint(), flax.config.flax_use_orbax_checkpointing
    try:
        for orbax in False, True:
            flax.config.update("flax_use_orbax_checkpointing", orbax)
            checkpoints.save_checkpoint(mnt / ".files", checkpoint, int(orbax), keep=2)
    finally:
        flax.config.update("flax_use_orbax_checkpointing", before)
    with PyTreeCheckpointer() as checkpointer:
        checkpointer.save(mnt / ".files/7", checkpoint)
        for name in "checkpoint_0", "checkpoint_1", "7":
            util.wait_for((mnt / name).is_dir, 10)
            equal(ckptfs.restore(mnt / name, make_target()), checkpoint)
        ckptfs.save(mnt / "8", checkpoint)
        target = make_target()
        got = checkpointer.restore(
            mnt / ".files/8", item=target, restore_args=orbax_utils.restore_args_from_target(target)
        )
        equal(got["model"].params, checkpoint["model"].params)
        np.testing.assert_array_equal(
            got["model"].opt_state[1][0].mu["bias"], checkpoint["model"].opt_state[1][0].mu["bias"]
        )


def test_async(mnt):
    """Continue with your work until a time when you want to wait; donated arrays stay whole in the checkpoint."""
    step = jax.jit(lambda params: jax.tree.map(lambda a: a + 1, params), donate_argnums=0)
    params = {"w": jnp.zeros((256, 256)), "b": [jnp.ones(3)]}
    with ckptfs.AsyncCheckpointer() as checkpointer:
        for n in range(5):
            checkpointer.save(mnt / str(n), {"params": params, "n": n})
            params = step(params)
        checkpointer.wait_until_finished()
        for n in range(5):
            got = checkpointer.restore(mnt / str(n))
            assert got["n"] == n and (got["params"]["w"] == n).all() and (got["params"]["b"][0] == n + 1).all()


def test_single_array(mnt):
    """Single arrays or numbers need no tree around them."""
    ckptfs.save(mnt / "1", jnp.arange(6.0).reshape(2, 3))
    equal(ckptfs.restore(mnt / "1", jnp.zeros((2, 3))), jnp.arange(6.0).reshape(2, 3))
    ckptfs.save(mnt / "2", 0.25)
    assert ckptfs.restore(mnt / "2") == 0.25


def test_leaves(mnt):
    """None, numbers, strings and empty containers, raw and to a target."""
    tree = {
        "none": None,
        "int": 3,
        "float": 0.5,
        "bool": True,
        "text": "adam",
        "numpy": np.float32(1.5),
        "zero": jnp.zeros(()),
        "no": {},
        "list": [],
        "tuple": (),
    }
    ckptfs.save(mnt / "1", tree)
    raw = ckptfs.restore(mnt / "1")
    assert {k: v for k, v in raw.items() if k not in ("numpy", "zero")} == {
        k: v for k, v in tree.items() if k not in ("numpy", "zero")
    }
    assert raw["numpy"] == 1.5 and raw["numpy"].dtype == np.float32 and same(raw["zero"], np.zeros((), "f4"))
    got = ckptfs.restore(mnt / "1", tree | {"int": 0, "float": 0.0, "bool": False, "text": ""})
    assert (
        jax.tree.structure(got) == jax.tree.structure(tree)
        and got["text"] == "adam"
        and got["int"] == 3
        and got["zero"].shape == ()
    )


def test_random_keys(mnt):
    tree = {"key": jax.random.key(3), "many": jax.random.split(jax.random.key(4, impl="rbg"), 3)}
    ckptfs.save(mnt / "1", tree)
    target = {"key": jax.random.key(0), "many": jax.random.split(jax.random.key(0, impl="rbg"), 3)}
    got = ckptfs.restore(mnt / "1", target)
    for name in tree:
        assert (
            got[name].dtype == tree[name].dtype
            and (jax.random.key_data(got[name]) == jax.random.key_data(tree[name])).all()
        )
    with pytest.raises(ValueError, match="key: stored is uint32"):
        ckptfs.restore(mnt / "1", {"key": jax.random.key(0, impl="rbg")})


def test_nnx(mnt):
    """The state of an NNX module, into that of another."""

    def state(seed):
        return nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(seed)))[1]

    ckptfs.save(mnt / "1", state(0))
    assert set(ckptfs.restore(mnt / "1")) == {"bias", "kernel"}
    equal(ckptfs.restore(mnt / "1", state(1)), state(0))


def test_other_nodes(mnt):
    """Frozen dicts, nodes of JAX's registry, dataclasses that it does not know, the usual jitted step count."""
    tree = {
        "frozen": freeze({"a": {"b": jnp.ones(2)}}),
        "partial": jax.tree_util.Partial(max, jnp.ones(1), key=jnp.zeros(1)),
    }
    ckptfs.save(mnt / "1", tree)
    equal(ckptfs.restore(mnt / "1", tree), tree)
    ckptfs.save(mnt / "2", make_state())
    got = ckptfs.restore(mnt / "2", make_state().replace(step=jnp.int32(9)))
    assert got.step == 0 and got.step.dtype == jnp.int32
    ckptfs.save(mnt / "3", make_state().replace(step=jnp.int32(9)))
    assert ckptfs.restore(mnt / "3", make_state()).step == 9
