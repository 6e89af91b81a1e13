"""Unmodified libraries save to MOUNT/.files of a native root, and read there: what they save is a step of their own
format, and opens up as a tree.
"""

import os

import flax.serialization
import jax
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax.training import checkpoints, train_state

import flax

import util
from util import wait_for


@pytest.fixture
def native(mount, tmp_path):
    (tmp_path / "root").mkdir()
    util.ckptfs("init", tmp_path / "root")
    return mount(tmp_path / "root")


def tree(step=0):
    return {
        "params": {
            "w": np.arange(12, dtype=np.float32).reshape(3, 4) + step,
            "b": np.arange(4).astype(ml_dtypes.bfloat16),
        },
        "list": [np.arange(3), np.float32(1.5)],
        "step": step,
        "none": None,
    }


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert np.asarray(x).dtype == np.asarray(y).dtype and np.array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize(
    "kind",
    [ocp.PyTreeCheckpointer, ocp.StandardCheckpointer, lambda: ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())],
)
@pytest.mark.parametrize("ocdbt", [True, False])
def test_checkpointers(native, tmp_path, kind, ocdbt):
    """The same calls with a plain directory give the same."""
    saved = tree(3)
    if isinstance(made := kind(), ocp.StandardCheckpointer):
        saved = {k: v for k, v in saved.items() if k != "none"}
        if not ocdbt:
            made.close()
            pytest.skip("StandardCheckpointer has no such option")
    elif not ocdbt:
        made.close()
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
        made = (
            ocp.AsyncCheckpointer(handler)
            if isinstance(made, ocp.AsyncCheckpointer) and type(made) is ocp.AsyncCheckpointer
            else ocp.Checkpointer(handler)
        )
    with made as checkpointer:
        for folder in native / ".files", tmp_path / "plain":
            checkpointer.save(folder / "single", saved)
            if hasattr(checkpointer, "wait_until_finished"):
                checkpointer.wait_until_finished()
        equal(checkpointer.restore(native / ".files/single"), checkpointer.restore(tmp_path / "plain/single"))
    wait_for(lambda: (native / "single").exists(), 10)
    np.testing.assert_array_equal(np.load(native / "single/params/w.npy"), saved["params"]["w"])
    assert (native / "single/step.json").read_text() == "3\n"


@pytest.mark.parametrize("background", [True, False])
def test_manager(native, background):
    """max_to_keep, latest and best of the library's own, which deletes its steps there. What others have in the folder
    stays.
    """
    (native / ".files/notes").mkdir()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=background, best_fn=lambda m: m["loss"], best_mode="min"
    )
    with ocp.CheckpointManager(native / ".files", options=options) as manager:
        for step in range(5):
            manager.save(step, args=ocp.args.PyTreeSave(tree(step)), metrics={"loss": abs(step - 1.2)})
        manager.wait_until_finished()
        assert sorted(manager.all_steps()) == [1, 2] and manager.best_step() == 1
        equal(
            manager.restore(2, args=ocp.args.PyTreeRestore())["params"]["w"], jax.numpy.asarray(tree(2)["params"]["w"])
        )
    assert sorted(os.listdir(native.top)) == ["1", "2", "latest", "notes"]
    np.testing.assert_array_equal(np.load(native / "2/params/w.npy"), tree(2)["params"]["w"])


def commit(step):
    fd = os.open(step, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def store(m, step):
    """A step of the store, written by plain np.save calls."""
    (m / step / "params").mkdir(parents=True)
    for name, value in tree(int(step))["params"].items():
        np.save(m / step / f"params/{name}.npy", value)
    (m / step / "list").mkdir()
    os.setxattr(m / step / "list", "user.ckpt.kind", b"list")
    np.save(m / step / "list/0.npy", np.arange(3))
    (m / step / "list/1.json").write_text("1.5")
    (m / step / "step.json").write_text(step)
    (m / step / "none.json").write_text("null")
    commit(m / step)


def test_steps_of_the_store(native):
    """They are Orbax checkpoints there: for StandardCheckpointer and for a manager, which takes them over, old ones to
    delete included.
    """
    for step in "0", "1":
        store(native, step)
    assert sorted(os.listdir(native / ".files")) == ["0", "1"]
    want = {"params": tree(1)["params"], "list": [np.arange(3), 1.5], "step": 1, "none": None}
    for checkpointer in ocp.StandardCheckpointer(), ocp.PyTreeCheckpointer():
        equal(checkpointer.restore(native / ".files/1"), want)
    target = {"params": jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), want["params"])}
    part = ocp.PyTreeCheckpointer().restore(native / ".files/1", ocp.args.PyTreeRestore(target, partial_restore=True))
    np.testing.assert_array_equal(part["params"]["w"], want["params"]["w"])
    with ocp.CheckpointManager(native / ".files", options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        assert manager.all_steps() == [0, 1] and manager.latest_step() == 1
        equal(manager.restore(1, args=ocp.args.PyTreeRestore()), want)
        for step in 2, 3:
            manager.save(step, args=ocp.args.PyTreeSave(tree(step)))
        manager.wait_until_finished()
        assert manager.all_steps() == [2, 3]
    assert (
        sorted(os.listdir(native.top)) == ["2", "3", "latest"]
        and util.ckptfs("info", native.source, "--fast").returncode == 0
    )


def test_a_step_of_the_store_is_not_lost_by_half(native, mount):
    """What is removed of its files there is removed of nothing else, and the step goes with its last file and directory
    only.
    """
    store(native, "4")
    files = native / ".files/4"
    os.unlink(files / "_METADATA")
    assert "_METADATA" not in os.listdir(files) and not (files / "_METADATA").exists()
    with pytest.raises(OSError):
        os.rmdir(files)
    for attempt in (
        lambda: open(files / "x", "w"),
        lambda: open(files / "manifest.ocdbt", "a"),
        lambda: os.mkdir(files / "x"),
    ):
        with util.fails(30):
            attempt()
    np.testing.assert_array_equal(np.load(native / "4/params/w.npy"), tree(4)["params"]["w"])
    assert "_METADATA" in os.listdir(mount(native.source, "ro") / ".files/4")


@pytest.mark.parametrize("orbax", [True, False])
def test_flax(native, orbax):
    """flax.training.checkpoints with both of its backends: keep, overwrite, restore to a target, latest."""
    before = flax.config.flax_use_orbax_checkpointing
    flax.config.update("flax_use_orbax_checkpointing", orbax)
    try:
        folder = native / ".files"
        state = train_state.TrainState.create(apply_fn=None, params=tree()["params"], tx=optax.adam(1e-3))
        for step in range(4):
            state = state.replace(step=step)
            checkpoints.save_checkpoint(folder, state, step, keep=2)
        assert checkpoints.latest_checkpoint(folder) == str(folder / "checkpoint_3")
        back = checkpoints.restore_checkpoint(folder, state.replace(step=0))
        assert int(back.step) == 3 and np.array_equal(back.params["w"], state.params["w"])
        checkpoints.save_checkpoint(folder, state, 1, keep=2, overwrite=True)
        assert sorted(n for n in os.listdir(native.top) if n != "latest") == ["checkpoint_1"]
        np.testing.assert_array_equal(np.load(native / "checkpoint_1/params/w.npy"), state.params["w"])
    finally:
        flax.config.update("flax_use_orbax_checkpointing", before)


def test_files(native):
    """Single files: to_bytes, safetensors."""
    (native / ".files/weights.msgpack").write_bytes(flax.serialization.to_bytes(tree(2)["params"]))
    safetensors.numpy.save_file({"a.b": np.arange(6.0), "c": np.arange(3)}, native / ".files/model.safetensors")
    assert sorted(os.listdir(native.top)) == ["model.safetensors", "weights.msgpack"]
    np.testing.assert_array_equal(np.load(native / "model.safetensors/a/b.npy"), np.arange(6.0))
    np.testing.assert_array_equal(np.load(native / "weights.msgpack/w.npy"), tree(2)["params"]["w"])
    np.testing.assert_array_equal(
        safetensors.numpy.load_file(native / ".files/model.safetensors")["a.b"], np.arange(6.0)
    )
