"""Sizes that the daemon must hold, with its peak memory under 256 MiB."""

import json
import os
import random
import time

import numpy as np
import pytest
import tensorstore as ts
import zstandard

import util
from util import ORBAX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LIMIT = 256 << 20
MIB = 1 << 20


def check_memory(m):
    peak = m.memory()
    print(f"peak {peak / MIB:.0f} MiB")
    assert util.SANITIZED or peak < LIMIT, f"peak {peak / MIB:.0f} MiB"


def write_ocdbt(folder, entries, leaves, **more):
    """A finished pytree item whose database TensorStore writes; entries are (key, bytes), leaves are (path,
    value_type).
    """
    database = ts.KvStore.open(
        {"driver": "ocdbt", "base": folder.as_uri() + "/", "config": {"max_inline_value_bytes": 1024}}
    ).result()
    with ts.Transaction() as transaction:
        for key, value in entries:
            database.with_transaction(transaction)[key] = value
    metadata = {
        "tree_metadata": {
            str(path): {
                "key_metadata": [{"key": k, "key_type": 2} for k in path],
                "value_metadata": {"value_type": kind, "skip_deserialize": False},
            }
            for path, kind in leaves
        },
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    (folder / "_METADATA").write_text(json.dumps(metadata))
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps({"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": 2}))


def zarray(shape, dtype, compressor):
    return json.dumps(
        {
            "zarr_format": 2,
            "shape": shape,
            "chunks": shape or [],
            "dtype": dtype,
            "compressor": compressor,
            "fill_value": None,
            "filters": None,
            "order": "C",
            "dimension_separator": ".",
        }
    ).encode()


# --- 4 GiB in one chunk, as Orbax stores an array that is not sharded

ROWS, COLUMNS = 8192, 131072  # uint32
BLOCK = 128  # rows that are made at a time


def rows(first):
    """BLOCK rows from `first` on: each element tells where it is, and compresses well."""
    y = np.arange(first, first + BLOCK, dtype=np.uint32)[:, None] * 2654435761
    return y + (np.arange(COLUMNS, dtype=np.uint32) // 64)[None]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=ROWS * COLUMNS * 4)
    chunk = b"".join([compressor.compress(rows(y).tobytes()) for y in range(0, ROWS, BLOCK)] + [compressor.flush()])
    folder = tmp_path_factory.mktemp("large")
    (folder / "1").mkdir()
    write_ocdbt(
        folder / "1",
        [("w/.zarray", zarray([ROWS, COLUMNS], "<u4", {"id": "zstd", "level": 1})), ("w/0.0", chunk)],
        [(("w",), "jax.Array")],
    )
    return folder


def test_large_array_sequentially(mount, large):
    m = mount(large, patience=500)
    size = ROWS * COLUMNS * 4
    assert os.stat(m / "1/w").st_size == size
    begin = time.monotonic()
    with open(m / "1/w.npy", "rb", buffering=0) as f:
        assert np.lib.format.read_magic(f) == (1, 0)
        assert np.lib.format.read_array_header_1_0(f) == ((ROWS, COLUMNS), False, np.dtype("<u4"))
        buffer = bytearray(BLOCK * COLUMNS * 4)
        for y in range(0, ROWS, BLOCK):
            got = 0
            while got < len(buffer):
                n = f.readinto(memoryview(buffer)[got:])
                assert n
                got += n
            assert (np.frombuffer(buffer, np.uint32).reshape(BLOCK, COLUMNS) == rows(y)).all(), y
        assert f.read(1) == b""
    print(f"{size / MIB / (time.monotonic() - begin):.0f} MiB/s, compared")
    decoded = json.loads((m / ".ckptfs/stats.json").read_text())["bytes_decoded"]
    assert decoded <= size * 1.1  # no chunk twice
    check_memory(m)


def test_large_array_in_parts(mount, large):
    """Slices and random reads, first from the end: the chunk is decoded once for all of them, or nearly so."""
    m = mount(large, patience=500)
    rng = random.Random(4)
    last = rows(ROWS - BLOCK)
    assert (np.load(m / "1/w@-1,-5:.npy") == last[-1, -5:]).all()
    with open(m / "1/w", "rb", buffering=0) as f:
        for _ in range(100):
            y, x = rng.randrange(ROWS), rng.randrange(COLUMNS - 100)
            got = np.frombuffer(os.pread(f.fileno(), 400, (y * COLUMNS + x) * 4), np.uint32)
            assert (got == rows(y // BLOCK * BLOCK)[y % BLOCK, x : x + 100]).all()
    assert (np.load(m / "1/w@::1024,7.npy") == np.concatenate([rows(y)[0, 7:8] for y in range(0, ROWS, 1024)])).all()
    a = np.load(m / "1/w.npy", mmap_mode="r")
    assert (a[4096, :1000] == rows(4096)[0, :1000]).all()
    del a
    assert "uint32" in (m / "1/w.txt").read_text()
    decoded = json.loads((m / ".ckptfs/stats.json").read_text())["bytes_decoded"]
    assert decoded <= 3 * ROWS * COLUMNS * 4
    check_memory(m)


# --- 100,000 leaves

LEAVES, GROUPS = 100_000, 100


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    (folder / "1").mkdir()
    header = zarray([2], "<i4", None)

    def entries():
        for n in range(LEAVES):
            yield f"g{n % GROUPS}.leaf_{n}/.zarray", header
            yield f"g{n % GROUPS}.leaf_{n}/0", np.array([n, -n], "<i4").tobytes()

    write_ocdbt(folder / "1", entries(), [((f"g{n % GROUPS}", f"leaf_{n}"), "jax.Array") for n in range(LEAVES)])
    return folder


def test_many_leaves(mount, wide):
    m = mount(wide, patience=500)
    begin, count, size = time.monotonic(), 0, 0
    for folder, _, files in os.walk(m / "1"):
        for entry in os.scandir(folder):
            if entry.is_file(follow_symlinks=False):
                count += 1
                size += entry.stat().st_size
    print(f"listed in {time.monotonic() - begin:.1f} s")
    assert count == LEAVES and size == LEAVES * (128 + 8)
    assert json.loads((m / ".ckptfs/stats.json").read_text())["chunks_decoded"] == 0
    for n in random.Random(5).sample(range(LEAVES), 200):
        assert np.load(m / f"1/g{n % GROUPS}/leaf_{n}.npy").tolist() == [n, -n]
    check_memory(m)
    tree = json.loads((m / "1/.tree.json").read_text())
    assert len(tree["leaves"]) == LEAVES
    with open(m / "1/g7.safetensors", "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    assert sum(name != "__metadata__" for name in header) == LEAVES // GROUPS
    check_memory(m)


# --- 10,000 steps

STEPS = 10_000


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """Hard links of one real step."""
    folder = tmp_path_factory.mktemp("long")
    first = util.copy_tree(ORBAX / "manager_steps/3", folder / "run/0")
    for n in range(1, STEPS):
        util.link_tree(first, folder / "run" / str(n))
    return folder / "run"


def test_many_steps(mount, long_run):
    m = mount(long_run, "refresh=1", patience=500)
    begin = time.monotonic()
    assert len(os.listdir(m.top)) == STEPS + 1
    print(f"listed in {time.monotonic() - begin:.1f} s")
    assert os.readlink(m / "latest") == str(STEPS - 1)
    assert sum(entry.is_dir(follow_symlinks=False) for entry in os.scandir(m.top)) == STEPS
    want = (m / "0/model/params/kernel.npy").read_bytes()
    for n in random.Random(6).sample(range(STEPS), 1000):
        assert (m / str(n) / "model/params/kernel.npy").read_bytes() == want
    check_memory(m)
    util.copy_tree(ORBAX / "manager_steps/4", long_run.parent / "new")
    os.rename(long_run.parent / "new", long_run / str(STEPS))
    begin = time.monotonic()
    util.wait_for(lambda: os.readlink(m / "latest") == str(STEPS), 30)
    print(f"new step seen after {time.monotonic() - begin:.1f} s")
    check_memory(m)


def test_every_step_with_few_descriptors(mount, long_run):
    """find over 1,000 of the steps, and a read of each, by a daemon that may have 300 files open."""
    m = mount(long_run, patience=500, prefix=("prlimit", "--nofile=300:300"))
    want, leaves = (m / "0/model/params/kernel.npy").read_bytes(), 0
    for n in range(1000):
        for _, _, files in os.walk(m / str(n)):
            leaves += len(files)
        assert (m / str(n) / "model/params/kernel.npy").read_bytes() == want
    assert leaves == 1000 * 7
    check_memory(m)
