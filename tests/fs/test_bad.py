"""Bad input: truncated, bit-flipped, lying and looping files. The right bytes or a clean errno, and the neighbours live
on.
"""

import errno
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import util
from util import ORBAX, fails, wait_for

CLEAN = {errno.EBADMSG, errno.EUCLEAN, errno.EOPNOTSUPP, errno.ENODATA, errno.EIO, errno.ENOENT}
LIED = {errno.EBADMSG, errno.EUCLEAN, errno.EOPNOTSUPP}


def contents(top):
    """{path: bytes} of all files below a directory; an errno in place of what cannot be read or listed."""
    found = {}

    def visit(folder, name):
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as e:
            found[name] = e.errno
            return
        for entry in entries:
            path = f"{name}/{entry.name}"
            if entry.is_symlink():
                found[path] = os.readlink(entry.path).encode()
            elif entry.is_dir():
                visit(entry.path, path)
            else:
                try:
                    found[path] = Path(entry.path).read_bytes()
                except OSError as e:
                    found[path] = e.errno

    visit(top, "")
    return found


def damage(path, kind, rng):
    """Damage one file in place; False if it cannot be damaged so."""
    data = bytearray(path.read_bytes())
    if not data:
        return False
    if kind == "truncated":
        data = data[: len(data) // 2]
    elif kind == "emptied":
        data = b""
    elif kind == "flipped":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "zeroed":
        data = bytes(len(data))
    elif kind == "longer":
        data += b"\0more"
    path.chmod(0o644)
    path.write_bytes(data)
    return True


# Files that say nothing about the bytes of a leaf, so that damage to them may change names or metadata, not values.
SILENT = ("_sharding", "array_metadatas", "commit_success.txt", "_CHECKPOINT_METADATA")
# Where nothing has a checksum (plain Zarr without one, JSON), a flipped bit may be another valid file: it must be read
# without harm only.
UNCHECKED = ("_METADATA", "_strings.json", ".zarray", "zarr.json", "metrics", "metadata", "checkpoint")


@pytest.mark.parametrize("kind", ["truncated", "emptied", "flipped", "zeroed", "longer"])
@pytest.mark.parametrize(
    "case",
    [
        "manager_steps/4",
        "composite/1",
        "ocdbt_many_files",
        "btree_interior",
        "zarr3_no_ocdbt",
        "sharded_8dev_zarr3",
        "sharded_8dev_plain",
        "old_0_2_3/aggregate",
        "old_0_4_8/aggregate",
        "multiprocess/2",
    ],
)
def test_every_file_damaged(mount, tmp_path, case, kind):
    """Each file of a checkpoint is damaged in a copy of its own; all copies are in one mount, beside a good one."""
    rng = random.Random(f"{case} {kind}")
    runs, damaged = tmp_path / "runs", {}
    util.copy_tree(ORBAX / case, runs / "good")
    files = sorted(p.relative_to(runs / "good") for p in (runs / "good").rglob("*") if p.is_file())
    if len(files) > 24:
        files = sorted(rng.sample(files, 24))
    for n, file in enumerate(files):
        util.copy_tree(ORBAX / case, runs / f"bad_{n}x")
        if damage(runs / f"bad_{n}x" / file, kind, rng):
            damaged[f"bad_{n}x"] = file
    m = mount(runs, patience=200)
    good = contents(m / "good")
    assert good and not any(isinstance(v, int) for v in good.values())
    for name, file in damaged.items():
        got = contents(m / name)
        errors = {e for e in got.values() if isinstance(e, int)}
        assert errors <= CLEAN, (file, [(k, v) for k, v in got.items() if isinstance(v, int) and v not in CLEAN])
        if "" in got:
            assert got[""] in CLEAN
            if got[""] in LIED:
                assert os.getxattr(m / name, "user.ckpt.error"), file
        wrong = [p for p, v in got.items() if isinstance(v, bytes) and good.get(p) != v]
        if file.parts[-1].startswith(UNCHECKED) or kind == "longer":
            continue
        unsealed = (
            case
            in (
                "zarr3_no_ocdbt",
                "sharded_8dev_zarr3",
                "sharded_8dev_plain",
                "old_0_2_3/aggregate",
                "old_0_4_8/aggregate",
            )
            or "d" in file.parts
        )  # zstd frames have no checksum in these
        if kind == "truncated" or kind == "emptied" or (kind == "flipped" and not unsealed):
            if not any(part in SILENT for part in file.parts):
                assert not wrong, (file, wrong)
    assert contents(m / "good") == good
    assert name in os.listdir(m.top)


def test_bad_checkpoint_is_listed(mount, tmp_path):
    """It is listed, does not open, says why in an attribute and the log, and comes to life when it is mended."""
    util.copy_tree(ORBAX / "manager_steps", tmp_path / "run")
    manifest = tmp_path / "run/4/default/manifest.ocdbt"
    kept = manifest.read_bytes()
    manifest.chmod(0o644)
    manifest.write_bytes(kept[:-3])
    m = mount(tmp_path / "run", "refresh=1")
    assert sorted(os.listdir(m.top)) == ["3", "4", "latest"]
    error = util.read_error(m / "4/model/params/kernel.npy")
    assert error in LIED
    with fails(*LIED):
        np.load(m / "4/model/params/kernel.npy")
    assert np.load(m / "3/model/params/kernel.npy").shape == (5, 3)
    assert "manifest.ocdbt" in m.said()
    manifest.write_bytes(kept)
    wait_for(lambda: util.read_error(m / "4/model/params/kernel.npy") is None, 15)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"tree_metadata": 7}',
        b'{"tree_metadata": {"a": null}}',
        b"\xff" * 64,
        b'{"tree_metadata": {"a": {"key_metadata": [], "value_metadata": {"value_type": "jax.Array"}}, "b": 3}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"tree_metadata":' + b'{"x":' * 5000,
        b'"' + b"x" * 3_000_000,
    ],
)
def test_metadata(mount, tmp_path, text):
    """What is no _METADATA: its directory does not open, and the reason is there."""
    util.copy_tree(ORBAX / "single_save", tmp_path / "runs/bad")
    util.copy_tree(ORBAX / "single_save", tmp_path / "runs/good")
    (tmp_path / "runs/bad/_METADATA").chmod(0o644)
    (tmp_path / "runs/bad/_METADATA").write_bytes(text)
    m = mount(tmp_path / "runs")
    with fails(*LIED):
        os.listdir(m / "bad")
    assert os.getxattr(m / "bad", "user.ckpt.error")
    assert np.load(m / "good/model/params/kernel.npy").shape == (5, 3)
    assert m.memory() < 256 << 20 or util.SANITIZED


def metadata_of(paths, value_type="np.ndarray", stored=True):
    """A _METADATA with arrays at these paths (tuples of keys). stored: a missing chunk is lost, else it is all fill
    value.
    """
    entries = {
        str(p): {
            "key_metadata": [{"key": k, "key_type": 2} for k in p],
            "value_metadata": {"value_type": value_type, "skip_deserialize": False},
        }
        for p in paths
    }
    return json.dumps(
        {
            "tree_metadata": entries,
            "use_ocdbt": False,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": stored,
        }
    )


def plain_array(folder, shape, chunks, data=b"", dtype="<f4", **more):
    """A Zarr v2 array with at most its first chunk, not compressed."""
    folder.mkdir(parents=True)
    header = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunks,
        "dtype": dtype,
        "compressor": None,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "dimension_separator": ".",
    }
    (folder / ".zarray").write_text(json.dumps(header | more))
    if data:
        (folder / ".".join("0" * len(shape))).write_bytes(data)


def plain_item(folder, names, **more):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_METADATA").write_text(metadata_of([(n,) for n in names], **more))


def test_paths_lead_nowhere_else(mount, tmp_path):
    """Absolute names of arrays, and names with '..', are refused; nothing outside is read."""
    plain_array(tmp_path / "outside/secret", [4], [4], b"\1\2\3\4" * 4)
    item = tmp_path / "run/1"
    names = [str(tmp_path / "outside/secret"), "../../outside/secret", "in/../../../outside/secret", "ok"]
    plain_item(item, names)
    plain_array(item / "ok", [4], [4], b"\5\6\7\10" * 4)
    m = mount(tmp_path / "run")
    files = [f for f in os.listdir(m / "1") if f != "ok.npy"]
    assert len(files) == 3
    for file in files:
        with fails(*CLEAN):
            (m / "1" / file).read_bytes()
        with fails(*CLEAN):
            (m / "1" / file.removesuffix(".npy")).read_bytes()
    assert (m / "1/ok").read_bytes() == b"\5\6\7\10" * 4


def test_symlinks_stay_inside(mount, tmp_path):
    """A symlink in the source never leads outside of it, be it a folder, a file, a step or a part of one."""
    outside = tmp_path / "outside"
    util.copy_tree(ORBAX / "manager_steps/3", outside / "step")
    (outside / "secret.txt").write_text("secret")
    plain_array(outside / "array", [4], [4], b"secretsecretsecr")
    run = tmp_path / "run"
    util.copy_tree(ORBAX / "manager_steps", run)
    os.symlink(outside, run / "folder")
    os.symlink("../outside/secret.txt", run / "file")
    os.symlink(outside / "step", run / "9")
    os.symlink("/etc/passwd", run / "passwd")
    os.symlink("folder/secret.txt", run / "twice")
    os.symlink("loop", run / "loop")
    os.symlink("4", run / "inside")
    plain_item(run / "5", ["a", "b"])
    os.symlink(outside / "array", run / "5/a")
    plain_array(run / "5/b", [4], [4])
    os.symlink(outside / "array/0", run / "5/b/0")
    util.copy_tree(ORBAX / "single_save", run / "6")
    for p in list((run / "6").rglob("*")):
        if p.parent.name == "d" and p.is_file():
            shutil.copy(p, outside / p.name)
            p.unlink()
            p.symlink_to(outside / p.name)
    m = mount(run)
    assert b"secret" not in b"".join(
        v for v in contents(m.top).values() if isinstance(v, bytes) and not v.startswith(b"/")
    )
    for path in (
        "folder/secret.txt",
        "file",
        "passwd",
        "9/model/params/kernel.npy",
        "twice",
        "loop",
        "5/a.npy",
        "5/b.npy",
    ):
        with fails(*CLEAN, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR):
            (m / path).read_bytes()
    assert (m / "inside/model/params/kernel.npy").read_bytes() == (m / "4/model/params/kernel.npy").read_bytes()
    assert all(isinstance(v, int) for p, v in contents(m / "6").items() if p.endswith("kernel.npy"))
    assert np.load(m / "4/model/params/kernel.npy").shape == (5, 3)


def test_deep_tree(mount, tmp_path):
    """256 levels are shown, a thousand refused."""
    for name, depth in (("fine", 200), ("deep", 1000), ("abyss", 100_000)):
        item = tmp_path / "runs" / name
        item.mkdir(parents=True)
        (item / "_METADATA").write_text(metadata_of([("k",) * depth], "None"))
    m = mount(tmp_path / "runs")
    with fails(*LIED):
        os.listdir(m / "deep")
    with fails(*LIED):
        os.listdir(m / "abyss")
    assert os.listdir(m / "fine") == ["k"]
    fd = os.open(m / "fine", os.O_RDONLY)
    for _ in range(199):
        below = os.open("k", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert os.listdir(fd) == ["k.json"]
    os.close(fd)


@pytest.mark.parametrize(
    "shape,chunks",
    [
        ([2**62], [2**62]),
        ([2**40, 2**40], [1, 1]),
        ([2**31, 2**31], [2**31, 2**31]),
        ([-1], [1]),
        ([4], [0]),
        ([4], [-4]),
        ([1] * 100, [1] * 100),
        ([2.5], [1]),
        ([4, 4], [4]),
        (["4"], [4]),
        ([2**70], [1]),
    ],
)
def test_shapes(mount, tmp_path, shape, chunks):
    """Shapes that cannot be, or whose chunks would never fit."""
    plain_item(tmp_path / "run/1", ["a", "ok"])
    plain_array(tmp_path / "run/1/a", shape, chunks, b"\1\2\3\4")
    plain_array(tmp_path / "run/1/ok", [4], [4], b"\5\6\7\10" * 4)
    m = mount(tmp_path / "run")
    for path in ("1/a.npy", "1/a", "1/a.txt", "1/a@0.npy"):
        with fails(*CLEAN, errno.EFBIG):
            with open(m / path, "rb") as f:
                f.read(1 << 20)
    assert (m / "1/ok").read_bytes() == b"\5\6\7\10" * 4
    assert m.memory() < 256 << 20 or util.SANITIZED


def test_huge_sparse_array(mount, tmp_path):
    """1 TiB of fill value in small chunks: any part can be read at once."""
    plain_item(tmp_path / "run/1", ["a"], stored=False)
    plain_array(tmp_path / "run/1/a", [2**38], [2**18], np.arange(2**18, dtype="<f4").tobytes(), fill_value=1.5)
    m = mount(tmp_path / "run")
    assert os.stat(m / "1/a").st_size == 2**40
    with open(m / "1/a", "rb", buffering=0) as f:
        assert os.pread(f.fileno(), 8, 2**40 - 8) == np.array([1.5, 1.5], "<f4").tobytes()
        assert os.pread(f.fileno(), 8, 2**39) == np.array([1.5, 1.5], "<f4").tobytes()
        assert os.pread(f.fileno(), 8, 2**20 - 4) == np.array([2**18 - 1, 1.5], "<f4").tobytes()
    a = np.load(m / "1/a.npy", mmap_mode="r")
    assert a[-1] == 1.5 and a[5] == 5
    assert np.load(m / "1/a@-3:.npy").tolist() == [1.5] * 3
    assert "1.5" in (m / "1/a.txt").read_text()
    assert m.memory() < 256 << 20 or util.SANITIZED


def test_missing_chunk(mount, tmp_path):
    """Without a fill value to stand for it, a chunk that is not there is an error; the others can be read."""
    util.copy_tree(ORBAX / "sharded_8dev_plain", tmp_path / "run/1")
    (tmp_path / "run/1/both/0.0").unlink()
    m = mount(tmp_path / "run")
    want = np.load(mount(ORBAX / "sharded_8dev_plain") / "both.npy")
    with fails(errno.ENODATA):
        (m / "1/both").read_bytes()
    assert (np.load(m / "1/both@-1,-1.npy") == want[-1, -1]).all()


def test_wrong_sizes(mount, tmp_path):
    """A chunk that is too short or too long for its array is not read as one."""
    plain_item(tmp_path / "run/1", ["short", "long"])
    plain_array(tmp_path / "run/1/short", [4], [4], bytes(15))
    plain_array(tmp_path / "run/1/long", [4], [4], bytes(17))
    m = mount(tmp_path / "run")
    for name in ("short", "long"):
        with fails(errno.EBADMSG, errno.EUCLEAN):
            (m / "1" / name).read_bytes()


@pytest.mark.parametrize(
    "more",
    [
        {"compressor": {"id": "zfp"}},
        {"dtype": "|O"},
        {"dtype": "<x4"},
        {"zarr_format": 7},
        {"order": "X"},
        {"filters": [{"id": "delta"}]},
        {"dtype": [["x", "<f4"]]},
    ],
)
def test_unsupported(mount, tmp_path, more):
    """Valid but not supported: listed as KEY.npy, opening it is EOPNOTSUPP (or EUCLEAN for what is no Zarr)."""
    plain_item(tmp_path / "run/1", ["a", "ok"])
    plain_array(tmp_path / "run/1/a", [4], [4], bytes(16), **more)
    plain_array(tmp_path / "run/1/ok", [4], [4], bytes(16))
    m = mount(tmp_path / "run")
    assert sorted(os.listdir(m / "1")) == ["a.npy", "ok.npy"]
    with fails(errno.EOPNOTSUPP, errno.EUCLEAN):
        (m / "1/a.npy").read_bytes()
    assert (m / "1/ok").read_bytes() == bytes(16)
    assert json.loads((m / "1/.tree.json").read_text())["leaves"]


def test_special_files(mount, tmp_path):
    """A fifo or socket in the source blocks nobody."""
    util.copy_tree(ORBAX / "manager_steps", tmp_path / "run")
    os.mkfifo(tmp_path / "run/fifo")
    os.mkfifo(tmp_path / "run/9")
    plain_item(tmp_path / "run/5", ["a"])
    plain_array(tmp_path / "run/5/a", [4], [4])
    os.mkfifo(tmp_path / "run/5/a/0")
    util.copy_tree(ORBAX / "single_save", tmp_path / "run/6")
    (tmp_path / "run/6/manifest.ocdbt").unlink()
    os.mkfifo(tmp_path / "run/6/manifest.ocdbt")
    m = mount(tmp_path / "run", patience=30)
    assert {"3", "4", "latest"} <= set(os.listdir(m.top))
    got = contents(m / "5")
    assert set(got.values()) <= CLEAN | {errno.EPERM}, got
    assert util.read_error(m / "6/model/params/kernel.npy") in CLEAN | {errno.EPERM}
    assert np.load(m / "4/model/params/kernel.npy").shape == (5, 3)


def test_unreadable(mount, tmp_path):
    """Permissions of the source hold for an ordinary user; root reads all."""
    util.copy_tree(ORBAX / "manager_steps", tmp_path / "run")
    (tmp_path / "run/3").chmod(0)
    m = mount(tmp_path / "run")
    if os.geteuid() == 0:
        assert util.read_error(m / "3/model/params/kernel.npy") is None
    else:
        assert util.read_error(m / "3/model/params/kernel.npy") in (errno.EACCES, errno.ENOENT)
    assert np.load(m / "4/model/params/kernel.npy").shape == (5, 3)


def test_bad_source(tmp_path):
    """A source that is itself bad: mount exits with 4 and the reason; one that is not there with 3."""
    util.copy_tree(ORBAX / "single_save", tmp_path / "bad")
    (tmp_path / "bad/_METADATA").chmod(0o644)
    (tmp_path / "bad/_METADATA").write_text("{")
    (tmp_path / "mnt").mkdir()
    done = util.ckptfs("mount", tmp_path / "bad", tmp_path / "mnt", check=4)
    assert "_METADATA" in done.stderr and not util.mounted(tmp_path / "mnt")
    done = util.ckptfs("mount", tmp_path / "missing", tmp_path / "mnt", check=3)
    assert "missing" in done.stderr and not util.mounted(tmp_path / "mnt")
