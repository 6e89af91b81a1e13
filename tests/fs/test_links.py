"""Links that lead out of the source: which are followed, and that no others can be."""

import errno
import json
import os
import threading
import time

import numpy as np
import pytest
import safetensors.numpy

import util

W = np.arange(12, dtype=np.float32).reshape(3, 4)
MODEL = safetensors.numpy.save({"w": W})
SECRET = b"not for anybody\n"


@pytest.fixture
def hub(tmp_path):
    """A cache with the repositories one and two; the snapshot of the first, and what else is there."""
    (tmp_path / "secret").write_bytes(SECRET)
    for name in ("one", "two"):
        repository = tmp_path / f"hub/models--acme--{name}"
        (repository / "blobs").mkdir(parents=True)
        (repository / "blobs/aa11").write_bytes(MODEL)
        (repository / "blobs/bb22").write_bytes(name.encode())
        (repository / "snapshots/abc/sub").mkdir(parents=True)
    return tmp_path / "hub/models--acme--one/snapshots/abc"


def names(top):
    return sorted(os.listdir(top))


def test_blobs_of_a_snapshot(mount, hub):
    """They are files of the names that they have there, in every view, whatever part of the cache is the source."""
    os.symlink("../../blobs/aa11", hub / "model.safetensors")
    os.symlink("../../blobs/bb22", hub / "name.txt")
    os.symlink("../../../blobs/bb22", hub / "sub/name.txt")
    os.symlink("../../blobs/gone", hub / "gone.txt")
    for source in (hub, hub.parent, hub.parents[1], hub.parents[2]):
        m = mount(source)
        at = m / hub.relative_to(source)
        assert names(at) == ["model.safetensors", "name.txt", "sub"], source
        assert np.array_equal(np.load(at / "model.safetensors/w.npy"), W)
        assert (at / "name.txt").read_bytes() == (at / "sub/name.txt").read_bytes() == b"one"
        assert not (at / "name.txt").is_symlink()
        files = m / ".files" / hub.relative_to(source)
        assert (files / "model.safetensors").read_bytes() == MODEL and (files / "name.txt").read_bytes() == b"one"
    assert (mount(hub / "sub") / "name.txt").read_bytes() == b"one"


OUT = {
    "up": "..",
    "parent": "../../refs",
    "absolute": "{top}/secret",
    "absolute-blob": "{top}/hub/models--acme--one/blobs/bb22",
    "of-another": "../../../models--acme--two/blobs/bb22",
    "too-far": "../../../blobs/bb22",
    "round": "../../blobs/../../../secret",
    "deeper": "../../blobs/sub/file",
    "to-a-folder": "../../blobs/sub",
    "to-a-link": "../../blobs/link",
    "itself": "../../blobs",
    "with-a-point": "../.././blobs/bb22",
    "hidden": "../../blobs/..",
}


@pytest.mark.parametrize("kind", ["models", "datasets", "spaces"])
def test_kinds_of_repositories(mount, tmp_path, kind):
    snapshot = tmp_path / f"hub/{kind}--acme--name/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot.parents[1] / "blobs/0a").write_bytes(b"here")
    os.symlink("../../blobs/0a", snapshot / "name.txt")
    assert (mount(snapshot) / "name.txt").read_bytes() == b"here"


def test_other_links_of_a_snapshot(mount, hub, tmp_path):
    blobs = hub.parents[1] / "blobs"
    (blobs / "sub").mkdir()
    (blobs / "sub/file").write_bytes(SECRET)
    os.symlink(tmp_path / "secret", blobs / "link")
    (hub.parents[1] / "refs").mkdir()
    for name, target in OUT.items():
        os.symlink(target.format(top=tmp_path), hub / name)
    os.symlink("../../blobs/bb22", hub / "name.txt")
    os.symlink("../../blobs/bb22", hub / "sub/one-level-short")
    m = mount(hub)
    assert names(m.top) == names(m / ".files") == ["name.txt", "sub"] and names(m / "sub") == []
    for name in OUT:
        assert util.read_error(m / name) == util.read_error(m / ".files" / name) == errno.ENOENT
        util.ckptfs("cat", hub, name, check=3)


def test_only_of_a_cache(mount, tmp_path):
    """The same links in a folder that is no cache's are not followed."""
    (tmp_path / "models/blobs").mkdir(parents=True)
    (tmp_path / "models/snapshots/abc").mkdir(parents=True)
    (tmp_path / "models/blobs/aa").write_bytes(SECRET)
    os.symlink("../../blobs/aa", tmp_path / "models/snapshots/abc/name")
    assert names(mount(tmp_path / "models/snapshots/abc").top) == []


@pytest.mark.parametrize("whole", [False, True], ids=["snapshot", "cache"])
def test_renamed_blobs(mount, hub, tmp_path, whole):
    """Whatever is renamed while they are read, nothing comes from elsewhere."""
    blobs, evil = hub.parents[1] / "blobs", tmp_path / "evil"
    evil.mkdir()
    (evil / "bb22").write_bytes(SECRET)
    os.symlink("../../blobs/bb22", hub / "name.txt")
    os.symlink(evil, tmp_path / "link")
    source = hub.parents[2] if whole else hub
    inside = hub.relative_to(source)
    m, until, seen = mount(source, "refresh=0"), time.monotonic() + 2, set()

    def swap():
        while time.monotonic() < until:
            os.rename(blobs, tmp_path / "aside")
            os.rename(tmp_path / "link", blobs)
            os.rename(blobs, tmp_path / "link")
            os.rename(tmp_path / "aside", blobs)

    thread = threading.Thread(target=swap)
    thread.start()
    while time.monotonic() < until:
        for name in (inside / "name.txt", ".files" / inside / "name.txt"):
            try:
                seen.add((m / name).read_bytes())
            except OSError as e:
                assert e.errno in (errno.ENOENT, errno.ESTALE, errno.EXDEV), e
    thread.join()
    assert seen == {b"one"}


# --- a link as the source


@pytest.mark.parametrize("name", ["model.npz", "model.safetensors", "model"])
def test_link_as_the_source(mount, tmp_path, name):
    """It goes by its own name, and its neighbours are not followed."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    if name == "model.npz":
        with open(there / "0123abcd", "wb") as f:
            np.savez(f, w=W)
    else:
        (there / "0123abcd").write_bytes(MODEL)
    os.symlink("../there/0123abcd", here / name)
    os.symlink("../there/0123abcd", here / "other.safetensors")
    m = mount(here / name)
    assert names(m.top) == ["w.npy"] and np.array_equal(np.load(m / "w.npy"), W)
    util.ckptfs("ls", here / name)
    util.ckptfs("export", here / name, tmp_path / "out", "--format=npy")
    assert np.array_equal(np.load(tmp_path / "out/w.npy"), W)
    assert names(mount(here).top) == []


# --- -o follow


@pytest.fixture
def outside(tmp_path):
    """A source with links to files and folders beside it."""
    source, there = tmp_path / "source", tmp_path / "there"
    source.mkdir(), (there / "run").mkdir(parents=True)
    (there / "model").write_bytes(MODEL)
    (there / "run/7.safetensors").write_bytes(MODEL)
    (there / "note.txt").write_bytes(b"note")
    os.symlink("../there/model", source / "model.safetensors")
    os.symlink(there / "note.txt", source / "note.txt")
    os.symlink("../there/run", source / "run")
    os.symlink("note.txt", source / "inside")
    return source


def test_follow(mount, outside):
    assert names(mount(outside).top) == []
    m = mount(outside, "follow")
    assert names(m.top) == ["inside", "model.safetensors", "note.txt", "run"]
    assert np.array_equal(np.load(m / "model.safetensors/w.npy"), W)
    assert np.array_equal(np.load(m / "run/7.safetensors/w.npy"), W)
    assert (m / "note.txt").read_bytes() == (m / ".files/note.txt").read_bytes() == b"note"
    assert not any((m / name).is_symlink() for name in ("model.safetensors", "note.txt", "run"))


def test_follow_in_commands(outside, tmp_path):
    assert util.ckptfs("ls", outside).stdout == ""
    assert util.ckptfs("ls", "--follow", outside).stdout.split() == ["inside", "model.safetensors", "note.txt", "run"]
    assert util.ckptfs("cat", outside, "note.txt", "--follow").stdout == "note"
    assert [s["name"] for s in json.loads(util.ckptfs("info", outside, "--json", "--follow").stdout)["steps"]] == [
        "model.safetensors",
        "7.safetensors",
    ]
    util.ckptfs("cp", outside, "run", tmp_path / "copy", "--follow")
    assert np.array_equal(np.load(tmp_path / "copy/7.safetensors/w.npy"), W)
    util.ckptfs("umount", outside, "--follow", check=1)


def test_follow_ends(mount, outside, tmp_path):
    """Links to where they lie, or above, and folders that link to each other, do not go on for ever."""
    os.symlink("..", outside / "up")
    os.symlink(outside, outside / "self")
    for name in "abcdef":
        (tmp_path / "there" / name).mkdir()
        os.symlink(f"../there/{name}", outside / name)
        for other in "abcdef":
            os.symlink(f"../{other}", tmp_path / "there" / name / other)
    m = mount(outside, "follow")
    assert "self" not in names(m.top) and "a" in names(m / "b")
    deepest = max(len(os.path.relpath(top, m.top).split("/")) for top, _, _ in os.walk(m / "a"))
    assert deepest <= 6


def test_follow_into_its_own_mount(mount, outside):
    """What lies in the mount itself is not looked at, which would ask the very process that looks."""
    os.symlink(outside.parent / "mount0/mnt/note.txt", outside / "again")
    m = mount(outside, "follow")
    assert "again" not in names(m.top) and util.read_error(m / "again") == errno.ENOENT


def test_what_a_link_leads_to_in_an_index(outside):
    """The error says what to do."""
    os.rename(outside / "model.safetensors", outside / "m-1.safetensors")
    (outside / "m.safetensors.index.json").write_text('{"weight_map": {"w": "m-1.safetensors"}}')
    said = util.ckptfs("verify", outside, check=4).stdout
    assert "follow" in said and "link" in said
    util.ckptfs("verify", outside, "--follow")
