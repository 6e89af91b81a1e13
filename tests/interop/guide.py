"""The calls of Flax's guide "Save and load checkpoints", in its order, as it writes them; where an older edition of it,
or its page on moving to Orbax, has another call for the same, that too.

CALLS lists them. Each takes the Guide it belongs to, which has the folder that the guide calls /tmp/flax_ckpt and the
objects that the guide keeps from one call to the next, and returns what the call returns or what it has left. ERRORS
are those that are to fail, REFUSED those that the installed libraries refuse although the guide has them, wherever the
folder is.
"""

import json
import os
import shutil
from dataclasses import dataclass, fields
from typing import Any, Callable

import flax
import jax
import numpy as np
import optax
import orbax.checkpoint
from flax import linen as nn
from flax.training import checkpoints, orbax_utils, train_state
from jax import numpy as jnp, random
from jax.sharding import NamedSharding, PartitionSpec

MANAGED, LEGACY = "orbax/managed", "flax-checkpointing"


@dataclass
class Call:
    section: str
    name: str
    run: Callable
    saves: dict  # {path: tree} that are to be there afterwards
    gone: tuple  # paths that are not


class Guide:
    def __init__(self, folder):
        self.folder = folder

    def __truediv__(self, path):
        return os.path.join(self.folder, path)

    def relative(self, path):
        return os.path.relpath(path, self.folder)

    def close(self):
        for name in (
            "checkpoint_manager",
            "async_checkpoint_manager",
            "named_manager",
            "orbax_checkpointer",
            "async_checkpointer",
            "multi_checkpointer",
        ):
            if hasattr(self, name):
                getattr(self, name).close()


CALLS = []


def call(section, saves=None, gone=(), name=None):
    def add(run):
        CALLS.append(Call(section, name or run.__name__, run, saves or {}, gone))
        return run

    return add


# --- what is saved, and what it is restored to


class CustomTrainState(train_state.TrainState):
    batch_stats: Any = None


key1, key2 = random.split(random.key(0))
x1 = random.normal(key1, (5,))
model = nn.Dense(features=3)
variables = model.init(key2, x1)
tx = optax.sgd(learning_rate=0.001)
state = train_state.TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)
state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
config = {"dimensions": np.array([5, 3])}
ckpt = {"model": state, "config": config, "data": [x1]}
named_ckpt = {"model": state, "config": config | {"name": "dense"}, "data": [x1]}
save_args = orbax_utils.save_args_from_target(ckpt)
options = orbax.checkpoint.CheckpointManagerOptions(max_to_keep=2, create=True)

empty_state = train_state.TrainState.create(
    apply_fn=model.apply, params=jax.tree.map(np.zeros_like, variables["params"]), tx=tx
)
empty_config = {"dimensions": np.array([0, 0])}
target = {"model": empty_state, "config": empty_config, "data": [jnp.zeros_like(x1)]}

custom_state = CustomTrainState.create(
    apply_fn=state.apply_fn, params=state.params, tx=state.tx, batch_stats=np.arange(10)
)
custom_ckpt = {"model": custom_state, "config": config, "data": [x1]}
custom_target = {"model": custom_state, "config": None, "data": [jnp.zeros_like(x1)]}

mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ("x", "y"))
mp_array = jax.device_put(np.arange(8 * 2).reshape(8, 2), NamedSharding(mesh, PartitionSpec("x", "y")))
mp_ckpt = {"model": mp_array}
mp_smaller = jax.device_put(np.arange(8).reshape(4, 2), NamedSharding(mesh, PartitionSpec("x", "y")))
ref_ckpt = {"model": mp_smaller}

CKPT_PYTREE = [12, {"foo": "str", "bar": np.array((2, 3))}, [1, 4, 10]]
TARGET_PYTREE = [0, {"foo": "", "bar": np.array((0))}, [0, 0, 0]]
LEAVES = {
    "none": None,
    "int": 3,
    "float": 0.5,
    "bool": True,
    "text": "adam",
    "numpy": np.float32(1.5),
    "zero": jnp.zeros(()),
    "no": {},
    "list": [],
}


# --- Setup


@call("Setup", gone=("old",))
def remove_existing(g):
    ckpt_dir = g.folder
    os.makedirs(g / "old/run")
    checkpoints.save_checkpoint(g / "old/run", {"a": np.arange(3)}, 0)
    if os.path.exists(ckpt_dir):
        shutil.rmtree(ckpt_dir)
    return os.path.exists(ckpt_dir)


@call("Setup")
def tree_map(g):
    return jax.tree_map(jnp.ones_like, state.params)


# --- Save checkpoints


@call("Save", {"orbax/single_save": ckpt})
def save_single(g):
    g.orbax_checkpointer = orbax.checkpoint.PyTreeCheckpointer()
    return g.orbax_checkpointer.save(g / "orbax/single_save", ckpt, save_args=save_args)


@call("Save", {"orbax_checkpoint": named_ckpt})
def save_aggregated(g):
    args = jax.tree_util.tree_map(lambda _: orbax.checkpoint.SaveArgs(aggregate=True), named_ckpt)
    return g.orbax_checkpointer.save(os.path.join(g.folder, "orbax_checkpoint"), named_ckpt, save_args=args)


@call("Save")
def save_again(g):
    return g.orbax_checkpointer.save(g / "orbax/single_save", ckpt, save_args=save_args)


@call("Save", {"orbax/single_save": ckpt})
def save_force(g):
    return g.orbax_checkpointer.save(g / "orbax/single_save", ckpt, save_args=save_args, force=True)


@call("Save")
def manager(g):
    g.checkpoint_manager = orbax.checkpoint.CheckpointManager(g / MANAGED, g.orbax_checkpointer, options)
    return g.checkpoint_manager.all_steps()


def managed(step):
    kept = {f"{MANAGED}/{n}": ckpt for n in range(max(0, step - 1), step + 1)}

    @call("Save", kept, (f"{MANAGED}/{step - 2}",), f"manager_save({step})")
    def manager_save(g):
        return g.checkpoint_manager.save(step, ckpt, save_kwargs={"save_args": save_args})


for n in range(5):
    managed(n)


@call("Save")
def listdir(g):
    return sorted(os.listdir(g / MANAGED))


@call("Save", {f"{LEGACY}/checkpoint_0": ckpt})
def legacy_save(g):
    return g.relative(checkpoints.save_checkpoint(ckpt_dir=g / LEGACY, target=ckpt, step=0, overwrite=True, keep=2))


@call("Save", {"old-edition/checkpoint_0": named_ckpt})
def legacy_save_with_checkpointer(g):
    return g.relative(
        checkpoints.save_checkpoint(
            ckpt_dir=g / "old-edition",
            target=named_ckpt,
            step=0,
            overwrite=False,
            keep=2,
            orbax_checkpointer=g.orbax_checkpointer,
        )
    )


@call("Save")
def legacy_save_earlier_step(g):
    return checkpoints.save_checkpoint(g / "old-edition", ckpt, step=0, overwrite=False, keep=2)


# --- Restore checkpoints


@call("Restore")
def restore_single(g):
    return g.orbax_checkpointer.restore(g / "orbax/single_save")


@call("Restore")
def restore_aggregated(g):
    return g.orbax_checkpointer.restore(g / "orbax_checkpoint")


@call("Restore")
def latest_step(g):
    return g.checkpoint_manager.latest_step(), sorted(g.checkpoint_manager.all_steps())


@call("Restore")
def manager_restore(g):
    return g.checkpoint_manager.restore(g.checkpoint_manager.latest_step())


@call("Restore")
def manager_restore_deleted(g):
    return g.checkpoint_manager.restore(0)


@call("Restore")
def legacy_restore(g):
    return checkpoints.restore_checkpoint(ckpt_dir=g / LEGACY, target=None)


@call("Restore")
def legacy_restore_missing(g):
    return checkpoints.restore_checkpoint(ckpt_dir=g / LEGACY, target=None, step=77)


@call("Restore")
def legacy_latest(g):
    return g.relative(checkpoints.latest_checkpoint(g / LEGACY))


# --- Restore with custom dataclasses


@call("Dataclasses")
def restore_target(g):
    return g.orbax_checkpointer.restore(g / "orbax/single_save", item=target)


@call("Dataclasses")
def restore_target_args(g):
    return g.orbax_checkpointer.restore(
        g / "orbax/single_save", item=target, restore_args=orbax_utils.restore_args_from_target(target)
    )


@call("Dataclasses")
def manager_restore_target(g):
    return g.checkpoint_manager.restore(4, items=target)


@call("Dataclasses")
def legacy_restore_target(g):
    return checkpoints.restore_checkpoint(ckpt_dir=g / LEGACY, target=target)


# --- Restore when checkpoint structures differ


@call("Structures differ", {f"{MANAGED}/5": custom_ckpt, f"{MANAGED}/4": ckpt}, (f"{MANAGED}/3",))
def save_custom(g):
    return g.checkpoint_manager.save(
        5, custom_ckpt, save_kwargs={"save_args": orbax_utils.save_args_from_target(custom_ckpt)}
    )


@call("Structures differ")
def partial_target(g):
    return g.checkpoint_manager.restore(5, items=target)


@call("Structures differ")
def partial_restore(g):
    args = orbax.checkpoint.args.PyTreeRestore(
        {"config": empty_config, "data": [jnp.zeros_like(x1)]}, partial_restore=True
    )
    return g.orbax_checkpointer.restore(g / "orbax/single_save", args=args)


@call("Structures differ")
def partial_checkpoint(g):
    return g.checkpoint_manager.restore(4, items=custom_target)


@call("Structures differ")
def transforms(g):
    args = orbax_utils.restore_args_from_target(custom_target)
    return g.checkpoint_manager.restore(4, items=custom_target, restore_kwargs={"transforms": {}, "restore_args": args})


@call("Structures differ")
def transforms_of_target(g):
    args = orbax_utils.restore_args_from_target(target)
    return g.checkpoint_manager.restore(5, items=target, restore_kwargs={"transforms": {}, "restore_args": args})


@call("Structures differ", {f"{LEGACY}/checkpoint_0": ckpt, f"{LEGACY}/checkpoint_4": ckpt})
def legacy_save_orbax(g):
    flax.config.update("flax_use_orbax_checkpointing", True)
    return g.relative(checkpoints.save_checkpoint(ckpt_dir=g / LEGACY, target=ckpt, step=4, overwrite=True, keep=2))


@call("Structures differ")
def legacy_transforms(g):
    return checkpoints.restore_checkpoint(g / LEGACY, target=custom_target, step=4, orbax_transforms={})


@call(
    "Structures differ", {f"{LEGACY}/checkpoint_4": ckpt, f"{LEGACY}/checkpoint_5": ckpt}, (f"{LEGACY}/checkpoint_0",)
)
def legacy_save_msgpack(g):
    flax.config.update("flax_use_orbax_checkpointing", False)
    return g.relative(checkpoints.save_checkpoint(ckpt_dir=g / LEGACY, target=ckpt, step=5, overwrite=True, keep=2))


@call("Structures differ")
def legacy_from_state_dict(g):
    raw_state_dict = checkpoints.restore_checkpoint(g / LEGACY, target=None, step=5)
    raw_state_dict["model"]["batch_stats"] = np.flip(np.arange(10))
    return flax.serialization.from_state_dict(custom_target, raw_state_dict)


@call("Structures differ")
def legacy_partial_checkpoint(g):
    return checkpoints.restore_checkpoint(g / LEGACY, target=custom_target, step=5)


@call("Structures differ")
def deserialize_tree(g):
    raw_state_dict = checkpoints.restore_checkpoint(g / LEGACY, target=None, step=4)
    raw_state_dict["model"]["batch_stats"] = np.flip(np.arange(10))
    return orbax.checkpoint.utils.deserialize_tree(custom_target, raw_state_dict, keep_empty_nodes=True)


# --- Asynchronized checkpointing


@call("Async")
def initialize(g):
    return jax.distributed.initialize("localhost:8889", num_processes=1, process_id=0)


@call("Async", {"orbax/single_save_async": ckpt})
def async_save(g):
    g.async_checkpointer = orbax.checkpoint.AsyncCheckpointer(
        orbax.checkpoint.PyTreeCheckpointHandler(), timeout_secs=50
    )
    g.async_checkpointer.save(g / "orbax/single_save_async", ckpt, save_args=save_args)
    g.async_checkpointer.wait_until_finished()


@call("Async")
def async_restore(g):
    return g.async_checkpointer.restore(g / "orbax/single_save_async", item=target)


@call("Async")
def async_manager(g):
    g.async_checkpoint_manager = orbax.checkpoint.CheckpointManager(
        g / "orbax/managed_async", g.async_checkpointer, options
    )
    return g.async_checkpoint_manager.wait_until_finished()


@call("Async", {f"{LEGACY}/checkpoint_6": ckpt})
def legacy_async_checkpointer(g):
    flax.config.update("flax_use_orbax_checkpointing", True)
    checkpoints.save_checkpoint(
        g / LEGACY, ckpt, step=6, overwrite=True, keep=3, orbax_checkpointer=g.async_checkpointer
    )
    g.async_checkpointer.wait_until_finished()
    return checkpoints.restore_checkpoint(g / LEGACY, target=None, step=6)


@call("Async", {f"{LEGACY}/checkpoint_7": ckpt})
def legacy_async_manager(g):
    flax.config.update("flax_use_orbax_checkpointing", False)
    am = checkpoints.AsyncManager()
    checkpoints.save_checkpoint(g / LEGACY, ckpt, step=7, overwrite=True, keep=3, async_manager=am)
    am.wait_previous_save()
    return checkpoints.restore_checkpoint(g / LEGACY, target=None, step=7)


# --- Multi-host/multi-process checkpointing


@call("Multi-process")
def pjit_resources(g):
    from jax.experimental import pjit

    return pjit.pjit(lambda x: x, in_axis_resources=None, out_axis_resources=PartitionSpec("x", "y"))


@call("Multi-process", {"orbax/managed_async/0": mp_ckpt})
def sharded_save(g):
    g.async_checkpoint_manager.save(0, mp_ckpt)
    return g.async_checkpoint_manager.wait_until_finished()


@call("Multi-process")
def sharded_restore_raw(g):
    return g.async_checkpoint_manager.restore(0)


@call("Multi-process")
def sharded_restore(g):
    restore_args = orbax_utils.restore_args_from_target(ref_ckpt)
    return g.async_checkpoint_manager.restore(0, items=ref_ckpt, restore_kwargs={"restore_args": restore_args})


@call("Multi-process")
def sharded_restore_smaller(g):
    args = {"model": orbax.checkpoint.ArrayRestoreArgs(sharding=mp_smaller.sharding, global_shape=(4, 2), strict=False)}
    return g.async_checkpoint_manager.restore(0, items=ref_ckpt, restore_kwargs={"restore_args": args})


@call("Multi-process")
def sharded_restore_otherwise(g):
    args = {"model": orbax.checkpoint.ArrayRestoreArgs(sharding=NamedSharding(mesh, PartitionSpec(None, "y")))}
    return g.async_checkpoint_manager.restore(0, items=mp_ckpt, restore_kwargs={"restore_args": args})


@call("Multi-process", {"multiprocess/checkpoint_3": mp_ckpt})
def legacy_save_multiprocess(g):
    flax.config.update("flax_use_orbax_checkpointing", True)
    g.multi_checkpointer = orbax.checkpoint.AsyncCheckpointer(
        orbax.checkpoint.PyTreeCheckpointHandler(), timeout_secs=50
    )
    path = checkpoints.save_checkpoint_multiprocess(
        g / "multiprocess", mp_ckpt, step=3, overwrite=True, keep=4, orbax_checkpointer=g.multi_checkpointer
    )
    g.multi_checkpointer.wait_until_finished()
    return g.relative(path)


@call("Multi-process")
def legacy_restore_multiprocess(g):
    return checkpoints.restore_checkpoint(
        g / "multiprocess", target=ref_ckpt, step=3, orbax_checkpointer=g.multi_checkpointer
    )


@call("Multi-process")
def legacy_gda_manager(g):
    from jax.experimental.array_serialization.serialization import GlobalAsyncCheckpointManager

    flax.config.update("flax_use_orbax_checkpointing", False)
    gacm = GlobalAsyncCheckpointManager(timeout_secs=50)
    checkpoints.save_checkpoint_multiprocess(g / "gda", mp_ckpt, step=3, overwrite=True, keep=4, gda_manager=gacm)
    gacm.wait_until_finished()
    return sorted(os.listdir(g / "gda"))


@call("Multi-process")
def legacy_gda_restore(g):
    from jax.experimental.array_serialization.serialization import GlobalAsyncCheckpointManager

    return checkpoints.restore_checkpoint(
        g / "gda", target=ref_ckpt, step=3, gda_manager=GlobalAsyncCheckpointManager(timeout_secs=50)
    )


# --- If you don't save pytrees; what a leaf may be


@call("Leaves", {"singleton": {"checkpoint": jnp.arange(10)}})
def single_array(g):
    ckptr = orbax.checkpoint.Checkpointer(orbax.checkpoint.ArrayCheckpointHandler())
    ckptr.save(g / "singleton", jnp.arange(10))
    return ckptr.restore(g / "singleton", item=None)


@call("Leaves", {"singleton-flax/checkpoint_0": jnp.arange(10)})
def legacy_single_array(g):
    flax.config.update("flax_use_orbax_checkpointing", False)
    checkpoints.save_checkpoint(g / "singleton-flax", jnp.arange(10), step=0)
    return checkpoints.restore_checkpoint(g / "singleton-flax", target=None)


@call("Leaves", {"bare": jnp.arange(10)})
def single_array_as_tree(g):
    g.orbax_checkpointer.save(g / "bare", jnp.arange(10))
    return g.orbax_checkpointer.restore(g / "bare")


@call("Leaves", {"leaves": LEAVES})
def all_leaves(g):
    g.orbax_checkpointer.save(g / "leaves", LEAVES, save_args=orbax_utils.save_args_from_target(LEAVES))
    return g.orbax_checkpointer.restore(g / "leaves")


@call("Leaves")
def all_leaves_target(g):
    known = LEAVES | {"numpy": 0.0}
    return g.orbax_checkpointer.restore(
        g / "leaves", item=known, restore_args=orbax_utils.restore_args_from_target(known)
    )


@call("Leaves", {"leaves-flax/checkpoint_1": LEAVES})
def legacy_all_leaves(g):
    checkpoints.save_checkpoint(g / "leaves-flax", LEAVES, step=1)
    return checkpoints.restore_checkpoint(g / "leaves-flax", target=None)


# --- Migrate checkpointing to Orbax


@call("Migrate", {f"prefix/test_{n}": CKPT_PYTREE for n in (1, 2, 3, 4)}, ("prefix/test_0",))
def legacy_prefix(g):
    flax.config.update("flax_use_orbax_checkpointing", False)
    for step in range(5):
        checkpoints.save_checkpoint(g / "prefix", CKPT_PYTREE, step=step, prefix="test_", keep=3, keep_every_n_steps=2)
    return sorted(os.listdir(g / "prefix")), checkpoints.restore_checkpoint(
        g / "prefix", target=TARGET_PYTREE, step=4, prefix="test_"
    )


@call("Migrate", {f"named/test_{n}": CKPT_PYTREE for n in (0, 2, 3, 4)}, ("named/test_1",))
def manager_prefix(g):
    mgr_options = orbax.checkpoint.CheckpointManagerOptions(
        create=True, max_to_keep=3, keep_period=2, step_prefix="test"
    )
    g.named_manager = orbax.checkpoint.CheckpointManager(
        g / "named", orbax.checkpoint.Checkpointer(orbax.checkpoint.PyTreeCheckpointHandler()), mgr_options
    )
    for step in range(5):
        args = orbax_utils.save_args_from_target(CKPT_PYTREE)
        g.named_manager.save(step, CKPT_PYTREE, save_kwargs={"save_args": args})
    return sorted(os.listdir(g / "named"))


@call("Migrate")
def manager_prefix_restore(g):
    restore_args = orbax_utils.restore_args_from_target(TARGET_PYTREE, mesh=None)
    return g.named_manager.restore(4, items=TARGET_PYTREE, restore_kwargs={"restore_args": restore_args})


@call(
    "Migrate",
    {f"best/{n}": {"n": n, "metrics.json": json.dumps({"loss": loss}).encode()} for n, loss in [(2, 0.5), (4, 0.7)]},
    ("best/3",),
)
def manager_best(g):
    best = orbax.checkpoint.CheckpointManagerOptions(
        create=True, max_to_keep=2, best_fn=lambda m: m["loss"], best_mode="min"
    )
    with orbax.checkpoint.CheckpointManager(g / "best", orbax.checkpoint.PyTreeCheckpointer(), best) as kept:
        for step, loss in enumerate([3.0, 2.0, 0.5, 1.0, 0.7]):
            kept.save(step, {"n": step}, metrics={"loss": loss})
        return kept.best_step(), kept.latest_step(), sorted(kept.all_steps()), kept.metrics(2)


# --- what came of a call

ERRORS = {
    "save_again": ValueError,
    "legacy_save_earlier_step": ValueError,
    "manager_restore_deleted": FileNotFoundError,
    "legacy_restore_missing": ValueError,
    "partial_checkpoint": ValueError,
    "legacy_partial_checkpoint": ValueError,
}
REFUSED = {
    "tree_map": AttributeError,
    "partial_target": ValueError,
    "deserialize_tree": TypeError,
    "initialize": RuntimeError,
    "pjit_resources": TypeError,
    "sharded_restore": ValueError,
    "manager_prefix_restore": ValueError,
}


def outcome(one, g):
    """What a call returned, or the exception."""
    try:
        return one.run(g)
    except Exception as e:
        return e


def assert_same(a, b):
    """Are two results the same: structure, types, values, and where the arrays are?"""
    assert type(a) is type(b), f"{a!r}\n{b!r}"
    if isinstance(a, Exception):
        return
    (a, structure), (b, other) = (jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None) for tree in (a, b))
    assert structure == other
    for x, y in zip(a, b):
        assert type(x) is type(y)
        if isinstance(x, jax.Array):
            assert x.sharding == y.sharding
            x, y = ([np.asarray(shard.data) for shard in leaf.addressable_shards] for leaf in (x, y))
            assert all(
                p.dtype == q.dtype and p.shape == q.shape and p.tobytes() == q.tobytes()
                for p, q in zip(x, y, strict=True)
            )
        elif isinstance(x, np.ndarray):
            assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        else:
            assert repr(x) == repr(y)


def as_saved(tree, flax_file):
    """A tree as dicts, lists and leaves; an empty named tuple is None for Orbax, and an empty dict in Flax's own
    files.
    """
    if hasattr(tree, "_fields"):
        return as_saved(tree._asdict(), flax_file) if tree._fields else {} if flax_file else None
    if isinstance(tree, flax.struct.PyTreeNode):
        return {
            f.name: as_saved(getattr(tree, f.name), flax_file)
            for f in fields(tree)
            if f.metadata.get("pytree_node", True)
        }
    if isinstance(tree, dict):
        return {key: as_saved(value, flax_file) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [as_saved(value, flax_file) for value in tree]
    return np.asarray(tree) if isinstance(tree, jax.Array) else tree
