"""Saves in the background: what the caller may do meanwhile, their order, their errors, the interpreter's end."""

import errno
import subprocess
import sys
import time

import numpy as np
import pytest

import ckptfs
import util


def test_arrays_may_change(mnt):
    """A save has what the tree was when it was called, whatever is done to it then; all are in order."""
    a, tree = np.zeros((500, 1000)), {"list": [1]}
    with ckptfs.AsyncCheckpointer() as checkpointer:
        for n in range(4):
            a[:], tree["list"] = n, [n]
            checkpointer.save(mnt / str(n), {"a": a, "t": a.T, "tree": tree})
            a[:] = -1
            tree["list"].append(5)
    for n in range(4):
        got = ckptfs.restore(mnt / str(n))
        assert (got["a"] == n).all() and (got["t"] == n).all() and got["tree"] == {"list": [n]}


def test_errors(mnt):
    """An error is raised by the next call, once."""
    checkpointer = ckptfs.AsyncCheckpointer()
    with pytest.raises(TypeError):
        checkpointer.save(mnt / "1", {"f": print})  # at once: nothing was begun
    for call in (
        checkpointer.wait_until_finished,
        lambda: checkpointer.save(mnt / "2", {}),
        lambda: checkpointer.restore(mnt / "1"),
        checkpointer.close,
    ):
        checkpointer.save(mnt / "1", {"n": 1}, overwrite=True)
        checkpointer.wait_until_finished()
        checkpointer.save(mnt / "1", {"n": 2})
        with pytest.raises(FileExistsError):
            call()
        checkpointer.wait_until_finished()
    checkpointer.save(mnt / "1", {"n": 2})
    while checkpointer.is_saving_in_progress():
        time.sleep(0.01)
    with pytest.raises(FileExistsError):
        checkpointer.check_for_errors()
    checkpointer.check_for_errors()


def test_manager(mnt):
    """A manager saves in the background, keeps what it should, and knows of the step that is being saved."""
    with ckptfs.CheckpointManager(mnt, max_to_keep=2, asynchronous=True) as manager:
        for n in range(6):
            assert manager.save(n, {"a": np.full(100_000, n)})
            assert not manager.should_save(n)
        assert manager.restore()["a"][0] == 5
        assert manager.all_steps() == [4, 5]


def test_foreign_root(mount):
    manager = ckptfs.CheckpointManager(mount(util.DATA / "demo").top, asynchronous=True)
    manager.save(400, {"n": 1})
    with pytest.raises(OSError) as e:
        manager.wait_until_finished()
    assert e.value.errno == errno.EROFS


END = """
import sys, time, numpy as np, ckptfs
checkpointer = ckptfs.AsyncCheckpointer()
for n in range(3):
    checkpointer.save(f"{sys.argv[1]}/{n}", {str(i): np.full(1000, i) for i in range(300)})
{then}
"""


@pytest.mark.parametrize("then, status", [("", 0), ("sys.exit(3)", 3), ("raise SystemError('mine')", 1)])
def test_end_of_the_interpreter(mnt, then, status):
    """A program that ends has saved what it began to save, however it ends."""
    done = subprocess.run(
        [sys.executable, "-c", END.replace("{then}", then), str(mnt)],
        env={"PYTHONPATH": str(util.TESTS.parent / "python")},
        capture_output=True,
        text=True,
        timeout=util.LIMIT,
    )
    assert done.returncode == status and ("mine" in done.stderr or not done.stderr), done.stderr
    assert len(ckptfs.restore(mnt / "2")) == 300


def test_error_at_the_end(mnt):
    """An error that nobody asked for is told."""
    ckptfs.save(mnt / "1", {})
    program = END.replace("{then}", 'checkpointer.save(f"{sys.argv[1]}/1", {})')
    done = subprocess.run(
        [sys.executable, "-c", program, str(mnt)],
        env={"PYTHONPATH": str(util.TESTS.parent / "python")},
        capture_output=True,
        text=True,
        timeout=util.LIMIT,
    )
    assert "FileExistsError" in done.stderr
