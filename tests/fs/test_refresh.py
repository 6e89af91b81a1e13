"""Steps that come and go in the source, and readers that outlive them."""

import errno
import os
import shutil
import time

import numpy as np
import pytest

import util
from util import ORBAX, fails, wait_for

SEEN = 15  # seconds within which a change must show, at refresh=1


def publish(source, root, name):
    """A step that appears as Orbax publishes it: written beside, then renamed."""
    util.copy_tree(source, root / f"{name}.orbax-checkpoint-tmp")
    os.rename(root / f"{name}.orbax-checkpoint-tmp", root / name)


def remove(step):
    """Delete a step as a CheckpointManager does."""
    shutil.rmtree(step)


@pytest.fixture
def root(tmp_path):
    util.copy_tree(ORBAX / "manager_steps", tmp_path / "run")
    return tmp_path / "run"


def test_step_appears(mount, root):
    m = mount(root, "refresh=1")
    assert os.readlink(m / "latest") == "4"
    with fails(errno.ENOENT):
        os.stat(m / "5")
    publish(root / "4", root, "5")
    wait_for(lambda: (m / "5").exists(), SEEN)
    wait_for(lambda: os.readlink(m / "latest") == "5", SEEN)
    assert "5" in os.listdir(m.top)
    assert np.load(m / "5/model/params/kernel.npy").shape == (5, 3)
    assert np.load(m / "latest/model/params/kernel.npy").shape == (5, 3)


def test_step_goes(mount, root):
    m = mount(root, "refresh=1")
    np.load(m / "4/model/params/kernel.npy")
    remove(root / "4")
    wait_for(lambda: "4" not in os.listdir(m.top), SEEN)
    wait_for(lambda: os.readlink(m / "latest") == "3", SEEN)
    wait_for(lambda: util.read_error(m / "4/model/params/kernel.npy") == errno.ENOENT, SEEN)
    assert np.load(m / "3/model/params/kernel.npy").shape == (5, 3)


def test_all_steps_go(mount, root):
    m = mount(root, "refresh=1")
    remove(root / "3")
    remove(root / "4")
    wait_for(lambda: os.listdir(m.top) == [], SEEN)
    with fails(errno.ENOENT):
        os.readlink(m / "latest")
    publish(ORBAX / "manager_steps/3", root, "7")
    wait_for(lambda: os.listdir(m.top) and os.readlink(m / "latest") == "7", SEEN)


def test_first_step_of_an_empty_folder(mount, tmp_path):
    (tmp_path / "run").mkdir()
    m = mount(tmp_path / "run", "ro", "refresh=1")
    assert os.listdir(m.top) == []
    publish(ORBAX / "manager_steps/3", tmp_path / "run", "1")
    wait_for(lambda: sorted(os.listdir(m.top)) == ["1", "latest"], SEEN)


def test_run_appears(mount, tmp_path):
    """In a folder of runs, also below the top."""
    (tmp_path / "runs/group").mkdir(parents=True)
    m = mount(tmp_path / "runs", "ro", "refresh=1")
    assert os.listdir(m / "group") == []
    util.copy_tree(ORBAX / "manager_steps", tmp_path / "runs/group/new")
    wait_for(lambda: (m / "group/new").exists(), SEEN)
    wait_for(lambda: sorted(os.listdir(m / "group/new")) == ["3", "4", "latest"], SEEN)


def test_unfinished_becomes_finished(mount, root):
    util.copy_tree(root / "4", root / "5.orbax-checkpoint-tmp")
    m = mount(root, "refresh=1")
    assert "5.orbax-checkpoint-tmp" in (m / ".ckptfs/unfinished").read_text()
    assert sorted(os.listdir(m.top)) == ["3", "4", "latest"]
    os.rename(root / "5.orbax-checkpoint-tmp", root / "5")
    wait_for(lambda: "5" in os.listdir(m.top), SEEN)
    wait_for(lambda: (m / ".ckptfs/unfinished").read_text() == "", SEEN)


def test_commit_file(mount, tmp_path):
    """A step that is written in place is seen when its mark appears, and not before."""
    util.copy_tree(ORBAX / "commit_file", tmp_path / "run")
    m = mount(tmp_path / "run", "refresh=1")
    assert sorted(os.listdir(m.top)) == ["1", "2", "latest"]
    time.sleep(2.5)
    assert sorted(os.listdir(m.top)) == ["1", "2", "latest"]
    for mark in (tmp_path / "run/2").rglob("commit_success.txt"):
        shutil.copy(mark, tmp_path / "run/3" / mark.relative_to(tmp_path / "run/2"))
    wait_for(lambda: sorted(os.listdir(m.top)) == ["1", "2", "3", "latest"], SEEN)
    assert (m / "latest/params/dense/kernel.npy").is_file()


# --- readers that outlive their step


def large_step(folder, seed, ocdbt, **more):
    """A step as Orbax saves it: 1.5 MB of noise in chunks, so that reads come in pieces."""
    import orbax.checkpoint as ocp

    rng = np.random.default_rng(seed)
    tree = {"a": rng.random((600, 640), np.float32), "b": rng.random((64, 64), np.float32)}
    args = ocp.args.PyTreeSave(tree, save_args={k: ocp.SaveArgs(chunk_byte_size=300_000) for k in tree})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, **more)) as saver:
        saver.save(folder, args)
    return tree


@pytest.fixture(scope="module", params=["ocdbt", "plain", "zarr3"])
def two_steps(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    more = {"use_zarr3": True} if request.param == "zarr3" else {}
    trees = [large_step(folder / str(n), n, request.param == "ocdbt", **more) for n in (1, 2)]
    return folder, trees


def read_rest(f, want):
    """Read the open file from its beginning, past what the kernel has cached; True if it is `want`."""
    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return os.pread(f.fileno(), len(want) + 1, 0) == want


@pytest.mark.parametrize("when", ["opened", "read in part"])
def test_reader_outlives_deletion(mount, tmp_path, two_steps, when):
    folder, (tree, _) = two_steps
    util.copy_tree(folder / "1", tmp_path / "run/7")
    m = mount(tmp_path / "run", "refresh=1")
    with open(m / "7/a", "rb", buffering=0) as f, open(m / "7/a@::2,3:9.npy", "rb", buffering=0) as g:
        if when == "read in part":
            assert os.pread(f.fileno(), 4096, 0) == tree["a"].tobytes()[:4096]
        remove(tmp_path / "run/7")
        wait_for(lambda: "7" not in os.listdir(m.top), SEEN)
        assert read_rest(f, tree["a"].tobytes())
        assert (np.load(g) == tree["a"][::2, 3:9]).all()
    wait_for(lambda: util.read_error(m / "7/a") == errno.ENOENT, SEEN)


@pytest.mark.parametrize("when", ["opened", "read in part"])
def test_reader_outlives_replacement(mount, tmp_path, two_steps, when):
    folder, (old, new) = two_steps
    util.copy_tree(folder / "1", tmp_path / "run/7")
    m = mount(tmp_path / "run", "refresh=1")
    number = os.stat(m / "7/a").st_ino
    with open(m / "7/a", "rb", buffering=0) as f:
        if when == "read in part":
            assert os.pread(f.fileno(), 4096, 0) == old["a"].tobytes()[:4096]
        remove(tmp_path / "run/7")
        publish(folder / "2", tmp_path / "run", "7")
        wait_for(lambda: (m / "7/a").exists() and (m / "7/a").read_bytes() == new["a"].tobytes(), SEEN)
        assert read_rest(f, old["a"].tobytes())
        assert os.stat(m / "7/a").st_ino != number
        assert os.fstat(f.fileno()).st_ino == number
    assert np.load(m / "7/b.npy").tobytes() == new["b"].tobytes()


def test_mapping_outlives_its_step(mount, tmp_path, two_steps):
    folder, (tree, _) = two_steps
    util.copy_tree(folder / "1", tmp_path / "run/7")
    m = mount(tmp_path / "run", "refresh=1")
    a = np.load(m / "7/a.npy", mmap_mode="r")
    assert a[0, 0] == tree["a"][0, 0]
    remove(tmp_path / "run/7")
    wait_for(lambda: "7" not in os.listdir(m.top), SEEN)
    assert (a == tree["a"]).all()
    del a


def test_never_mixed(mount, tmp_path, two_steps):
    """A step that is replaced again and again: each read gives one of the two, whole, or ENOENT."""
    folder, (old, new) = two_steps
    root = tmp_path / "run"
    root.mkdir()
    publish(folder / "1", root, "7")
    m = mount(root, "refresh=1")
    wanted = {old["b"].tobytes(), new["b"].tobytes()}
    end, turn, seen = time.monotonic() + 8, 0, set()
    while time.monotonic() < end or (
        seen != wanted and time.monotonic() < end + 60
    ):  # on a busy machine both take long to be seen
        turn += 1
        remove(root / "7")
        publish(folder / str(turn % 2 + 1), root, "7")
        pause = time.monotonic() + 1.3
        while time.monotonic() < pause:
            try:
                data = (m / "7/b").read_bytes()
            except OSError as e:
                assert e.errno in (errno.ENOENT, errno.ESTALE), e
                continue
            assert data in wanted
            seen.add(data)
    assert seen == wanted


def test_directory_handle_of_a_replaced_step(mount, root):
    """A directory that was open when its step was replaced lists what it had, or is stale."""
    m = mount(root, "refresh=1")
    handle = os.open(m / "4/model", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert sorted(os.listdir(handle)) == ["opt_state", "params", "step.json"]
        remove(root / "4")
        publish(ORBAX / "composite/1", root, "4")
        wait_for(lambda: (m / "4/state").exists(), SEEN)
        try:
            assert sorted(os.listdir(handle)) == ["opt_state", "params", "step.json"]
        except OSError as e:
            assert e.errno in (errno.ESTALE, errno.ENOENT)
        try:
            st = os.stat("params/kernel.npy", dir_fd=handle)
            assert st.st_size > 0
        except OSError as e:
            assert e.errno in (errno.ESTALE, errno.ENOENT)
    finally:
        os.close(handle)


def test_descriptors_are_given_back(mount, tmp_path):
    """Steps that were read and are gone leave no open file in the daemon."""
    root = tmp_path / "run"
    root.mkdir()
    publish(ORBAX / "manager_steps/3", root, "0")
    m = mount(root, "refresh=1")
    counts = []
    for n in range(1, 7):
        publish(ORBAX / "manager_steps/3", root, str(n))
        wait_for(lambda: (m / str(n)).exists(), SEEN)
        for name in ("kernel.npy", "bias.npy"):
            assert util.read_error(m / str(n) / "model/params" / name) is None
        remove(root / str(n - 1))
        wait_for(lambda: str(n - 1) not in os.listdir(m.top), SEEN)
        counts.append(m.descriptors())
    wait_for(lambda: m.descriptors() <= counts[0] + 8, SEEN)


def test_source_goes(mount, tmp_path):
    """A source that vanishes and comes back does not take the mount down."""
    util.copy_tree(ORBAX / "manager_steps", tmp_path / "run")
    m = mount(tmp_path / "run", "refresh=1")
    os.listdir(m.top)
    os.rename(tmp_path / "run", tmp_path / "away")
    time.sleep(2.5)
    try:
        os.listdir(m.top)
    except OSError as e:
        assert e.errno in (errno.ENOENT, errno.EIO, errno.ESTALE)
    os.rename(tmp_path / "away", tmp_path / "run")
    wait_for(lambda: np.load(m / "4/model/params/kernel.npy").shape == (5, 3), SEEN)
