"""Roots of many steps: what listing them asks of the source, and the memory that it takes."""

import errno
import json
import os
import time

import numpy as np
import pytest

import trees
import util
from trees import EXPLICIT, MIB, commit
from util import fails

STEPS = 500


def many_steps(mount, root, count):
    """One step, committed, and its manifest under other names: the steps 1 to `count`."""
    m = mount(root, EXPLICIT)
    (m / "1").mkdir()
    trees.array(m / "1/w.npy", np.arange(6, dtype=np.float32))
    commit(m / "1")
    m.stop()
    steps = trees.store(root) / "steps"
    manifest = (steps / "1.json").read_bytes()
    for n in range(2, count + 1):
        (steps / f"{n}.json").write_bytes(manifest)


def stats(m):
    return json.loads((m / ".ckptfs/stats.json").read_text())


def list_long(folder, attributes=("security.selinux", "system.posix_acl_access", "system.posix_acl_default")):
    """What `ls -l` asks of each name: the older ones of the attributes of other kinds, newer ones of the list of
    all.
    """
    names = os.listdir(folder)
    for name in names:
        os.lstat(folder / name)
        for attribute in attributes:
            with fails(errno.EOPNOTSUPP):
                os.getxattr(folder / name, attribute, follow_symlinks=False)
        os.listxattr(folder / name, follow_symlinks=False)
    return names


@pytest.mark.parametrize("options", ["", "ro"])
def test_listing_opens_no_step(mount, root, options):
    many_steps(mount, root, STEPS)
    m = mount(root, *options.split())
    os.listdir(m.top)
    before = stats(m)
    assert len(list_long(m.top)) == STEPS + 1  # latest, too
    for name in ("step", "state", "pinned"):
        assert os.getxattr(m / "7", f"user.ckpt.{name}") == {"step": b"7", "state": b"committed", "pinned": b"0"}[name]
    after = stats(m)
    assert after["trees"] == 0
    # the head of a manifest, for mode and owner; what a writable mount looks at in the background is another matter
    assert options != "ro" or after["fetches"] - before["fetches"] <= STEPS
    assert os.getxattr(m / "7", "user.ckpt.format") == b"ckptfs" and stats(m)["trees"] == 1


def test_names_of_attributes_without_opening(mount, root):
    """They are those that the opened step has."""
    many_steps(mount, root, 2)
    m = mount(root, EXPLICIT)
    names = os.listxattr(m / "2")
    assert stats(m)["trees"] == 0
    values = {name: os.getxattr(m / "2", name) for name in names}
    assert (
        set(os.listxattr(m / "2"))
        == set(names)
        == {f"user.ckpt.{n}" for n in ("step", "state", "pinned", "metadata", "kind", "format")}
    )
    assert values["user.ckpt.kind"] == b"dict"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["stored", "foreign"])
def test_memory_of_a_hundred_thousand_steps(mount, root, tmp_path, kind):
    """Listed, listed with attributes, and listed anew when there is one more."""
    count = 100_000
    if kind == "stored":
        many_steps(mount, root, count)
    else:  # a root by its first step; the others are empty, and steps by their names
        root = tmp_path / "foreign"
        util.copy_tree(util.ORBAX / "manager_steps/3", root / "1")
        for n in range(2, count + 1):
            (root / str(n)).mkdir()
        time.sleep(3)  # as long as an empty step may be one on its way
    m = mount(root, "ro", patience=1700)
    assert len(os.listdir(m.top)) == count + 1
    print(f"listed: {m.memory('VmRSS') / MIB:.0f} MiB")
    list_long(m.top, ())
    print(f"with attributes: {m.memory('VmRSS') / MIB:.0f} MiB")
    if kind == "stored":
        steps = trees.store(root) / "steps"
        (steps / f"{count + 1}.json").write_bytes((steps / "1.json").read_bytes())
    else:
        (root / f"{count + 1}").mkdir()
    util.wait_for(lambda: (m / str(count + 1)).exists(), 60)
    now, peak = m.memory("VmRSS"), m.memory()
    print(f"listed anew: {now / MIB:.0f} MiB, peak: {peak / MIB:.0f} MiB")
    if not util.SANITIZED:  # two listings of other directories than steps of the store are in memory for a moment
        assert now < 64 * MIB and peak < (64 if kind == "stored" else 72) * MIB, (
            f"{now / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB"
        )


# --- arrays that are mostly holes


def sparse(mount, root):
    """A committed array of 64 MiB that is stored as it is, and its object, with holes where it has zeros."""
    a = np.zeros((64, 1 << 18), np.float32)
    a[5] = np.random.default_rng(1).random(a.shape[1])
    m = mount(root, EXPLICIT, "codec=none")
    (m / "1").mkdir()
    np.save(m / "1/w.npy", a)
    commit(m / "1")
    m.stop()
    sha256 = trees.manifest(root, "1")["nodes"][0]["sha256"]
    stored = trees.store(root) / "objects" / sha256[:2] / sha256
    trees.run("fallocate", "--dig-holes", stored)
    if os.stat(stored).st_blocks * 512 > 8 << 20:
        pytest.skip("the file system keeps no holes")
    return a, stored


def test_column_of_a_sparse_object(mount, root):
    """What is a hole is checked by its sum, and not read."""
    a, _ = sparse(mount, root)
    m = mount(root, "ro")
    assert (np.load(m / "1/w@5.npy") == a[5]).all()
    before = stats(m)
    for column in (0, 7, -1):
        assert (np.load(m / f"1/w@:,{column}.npy") == a[:, column]).all()
    assert stats(m)["bytes_fetched"] - before["bytes_fetched"] < 4 << 20
    assert (np.load(m / "1/w.npy") == a).all()


def test_hole_that_was_not_written(mount, root):
    """A hole in place of what the sums tell of is damage."""
    _, stored = sparse(mount, root)
    trees.run("fallocate", "--punch-hole", "--offset", 5 << 20, "--length", 1 << 20, stored)
    m = mount(root, "ro")
    for name in ("w@:,7.npy", "w@5,:9.npy", "w.npy"):
        with fails(errno.EBADMSG, errno.EIO):
            (m / "1" / name).read_bytes()
    assert not np.load(m / "1/w@8:,7.npy").any()
