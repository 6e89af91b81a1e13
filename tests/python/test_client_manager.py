"""Numbered steps: which are kept, which is the best, what a manager sees that others do."""

import os

import pytest

import ckptfs
import util


def losses(manager, values):
    for step, loss in enumerate(values, 1):
        manager.save(step, {"n": step}, metrics=None if loss is None else {"loss": loss})


def test_keeps_the_latest(mnt):
    manager = ckptfs.CheckpointManager(mnt, max_to_keep=2, keep_period=4)
    losses(manager, [None] * 9)
    assert manager.all_steps() == [4, 8, 9]
    manager.pin(8), manager.pin(4)
    manager.save(10, {}), manager.save(11, {}), manager.delete(8)
    assert manager.all_steps() == [4, 10, 11]


def test_keeps_what_is_pinned(mnt):
    manager = ckptfs.CheckpointManager(mnt, max_to_keep=1)
    manager.save(1, {})
    manager.pin(1)
    manager.save(2, {}), manager.save(3, {})
    assert manager.all_steps() == [1, 3]
    manager.pin(1, False)
    manager.save(4, {})
    assert manager.all_steps() == [4]


def test_keeps_the_best_and_the_latest(mnt):
    manager = ckptfs.CheckpointManager(
        mnt, max_to_keep=2, best_metric="loss", best_mode="min", keep_checkpoints_without_metrics=False
    )
    losses(manager, [3, 1, 2, None, float("nan"), 9])
    assert manager.all_steps() == [2, 3, 6] and manager.best_step() == 2 and manager.latest_step() == 6
    assert manager.metrics(3) == {"loss": 2}
    assert ckptfs.CheckpointManager(mnt, best_fn=lambda found: found["loss"]).best_step() == 6


def test_keeps_without_metrics(mnt):
    manager = ckptfs.CheckpointManager(mnt, max_to_keep=1, best_metric="loss")
    losses(manager, [3, 1, None, 2, 3])
    assert manager.all_steps() == [3, 5] and manager.best_step() == 5


def test_rules_of_the_root(mount, tmp_path):
    """What `ckptfs config` has set holds for the client too, and MOUNT/best is the root's best."""
    (tmp_path / "root").mkdir()
    util.ckptfs("init", tmp_path / "root")
    util.ckptfs("config", tmp_path / "root", "keep_last=1", "best_metric=loss", "best_mode=min", "keep_best=1")
    mnt = mount(tmp_path / "root", "commit=explicit").top
    manager = ckptfs.CheckpointManager(mnt)
    losses(manager, [3, 1, 2, 4])
    util.wait_for(lambda: manager.all_steps() == [2, 4])
    util.wait_for(lambda: manager.best_step() == 2)
    both = ckptfs.CheckpointManager(mnt, max_to_keep=1, best_metric="loss", best_mode="min")
    for step in range(5, 20):  # each set of rules deletes, side by side
        both.save(step, {"n": step}, metrics={"loss": step})
        assert both.restore() == {"n": step}
    util.wait_for(lambda: both.all_steps() == [2, 19])


def test_what_save_refuses(mnt):
    manager = ckptfs.CheckpointManager(mnt, save_interval_steps=5)
    assert manager.latest_step() is None and manager.best_step() is None and manager.all_steps() == []
    assert [step for step in range(12) if manager.save(step, {"n": step})] == [0, 5, 10]
    assert not manager.should_save(10) and not manager.save(5, {}) and manager.save(7, {}, force=True)
    with pytest.raises(FileExistsError):
        manager.save(7, {}, force=True)
    assert (
        manager.save(7, {"n": 77}, overwrite=True)
        and manager.restore(7) == {"n": 77}
        and manager.restore() == {"n": 10}
    )
    for step in (3, 99):
        with pytest.raises(FileNotFoundError):
            manager.restore(step)
    with pytest.raises(FileNotFoundError):
        manager.delete(3)
    for step in (-1, 1.5):
        with pytest.raises(ValueError):
            manager.save(step, {}, force=True)
    reader = ckptfs.CheckpointManager(mnt, read_only=True)
    assert not reader.save(20, {}) and reader.all_steps() == [0, 5, 7, 10]


def test_metadata_and_names(mnt):
    manager = ckptfs.CheckpointManager(mnt, step_prefix="ckpt", step_format_fixed_length=6)
    manager.save(12, {"n": 1}, metadata={"commit": "abc"})
    assert (
        os.listdir(mnt) == ["ckpt_000012", "latest"]
        and manager.metadata(12) == {"commit": "abc"}
        and manager.metrics(12) is None
    )
    assert ckptfs.CheckpointManager(mnt).restore(12) == {"n": 1}


def test_staged_steps_are_none(mnt):
    """Steps that others are writing through this mount are no steps yet; what died saves left can be removed."""
    (mnt / "3").mkdir()
    (mnt / ".1.saving-0123456789ab").mkdir()
    manager = ckptfs.CheckpointManager(mnt, cleanup_tmp_directories=True)
    assert manager.all_steps() == [] and sorted(os.listdir(mnt)) == ["3"]


def test_orbax_root(mount):
    """Steps of Orbax, with its metrics."""
    mnt = mount(util.DATA / "demo").top
    manager = ckptfs.CheckpointManager(mnt, best_metric="loss", best_mode="min")
    assert manager.all_steps() == [100, 200, 300] and manager.latest_step() == 300 and manager.best_step() == 300
    assert set(manager.restore(200)) == {"state"} and set(manager.metrics(100)) == {"loss"}
    with pytest.raises(OSError):
        manager.save(400, {})


def test_two_mounts(mount, tmp_path):
    """A reader in another mount sees steps when they are whole, and never part of one."""
    (tmp_path / "root").mkdir()
    writer = ckptfs.CheckpointManager(mount(tmp_path / "root", "commit=explicit").top, max_to_keep=2)
    writer.save(1, {"n": 1})
    reader = ckptfs.CheckpointManager(mount(tmp_path / "root", "ro", "refresh=0").top)
    for step in range(2, 6):
        writer.save(step, {"n": step})
        assert util.wait_for(lambda: reader.latest_step() == step) and reader.restore() == {"n": step}
    util.wait_for(lambda: reader.all_steps() == [4, 5])


def test_names_of_steps():
    """The rule of the store (docs/format.md)."""
    number = ckptfs.manager.names.step_number
    for name in ("7", "0007", "step_7", "step-7", "step=7", "epoch=3-step=7", "a_1-7", "a-_7"):
        assert number(name) == 7, name
    for name in ("", "x", "_7", "-7", "=7", "x7", "7x", "step-", "1.5", "step-1.5", "v1.2-7", "lr=-7", "1e-7", "a--7"):
        assert number(name) is None, name


def test_steps_that_others_named(mnt):
    """What is in the root under another name of the kind is a step of the manager's too."""
    ckptfs.save(os.path.join(mnt, "checkpoint-5"), {"n": 5})
    manager = ckptfs.CheckpointManager(mnt)
    manager.save(6, {"n": 6})
    assert manager.all_steps() == [5, 6] and manager.latest_step() == 6
    assert manager.restore(5) == {"n": 5}
