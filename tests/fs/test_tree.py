"""What a mount shows: names, views, attributes, control files, errors."""

import ast
import errno
import io
import json
import os
import random
import stat
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import util
from util import ORBAX, fails

KERNEL = "4/model/params/kernel"  # an array of manager_steps


@pytest.fixture
def steps(module_mount):
    return module_mount(ORBAX / "manager_steps")


@pytest.fixture
def all_runs(module_mount):
    return module_mount(ORBAX)


def truth_leaves(case, item=None):
    truth = json.loads((ORBAX / f"{case}.truth.json").read_text())
    return next(i["leaves"] for i in truth["items"] if item is None or i["dir"] == item)


# --- steps


def test_steps_and_latest(steps):
    assert sorted(os.listdir(steps.top)) == ["3", "4", "latest"]
    assert os.readlink(steps / "latest") == "4"
    assert (steps / "latest/model/params/kernel.npy").read_bytes() == (steps / f"{KERNEL}.npy").read_bytes()


def test_latest_is_by_number(mount, tmp_path):
    for name in ("ckpt_9", "ckpt_10", "ckpt_0008"):
        util.copy_tree(ORBAX / "manager_steps/3", tmp_path / "run" / name)
    assert os.readlink(mount(tmp_path / "run") / "latest") == "ckpt_10"


def test_entry_named_latest_wins(mount, tmp_path):
    util.copy_tree(ORBAX / "manager_steps", tmp_path / "run")
    (tmp_path / "run/latest").write_text("mine\n")
    m = mount(tmp_path / "run")
    assert (m / "latest").read_text() == "mine\n" and not (m / "latest").is_symlink()


def test_no_best_for_orbax(all_runs):
    assert "best" not in os.listdir(all_runs / "manager_best")
    assert not os.path.lexists(all_runs / "manager_best/best")


def test_source_is_one_step(mount):
    m = mount(ORBAX / "manager_steps/4")
    assert sorted(os.listdir(m.top)) == ["config", "data", "model"]


def test_source_is_an_item(mount):
    m = mount(ORBAX / "manager_steps/4/default")
    assert sorted(os.listdir(m.top)) == ["config", "data", "model"]


def test_plain_files_and_folders(mount, tmp_path):
    util.copy_tree(ORBAX / "single_save", tmp_path / "runs/a/final")
    (tmp_path / "runs/notes.txt").write_text("hello\n")
    (tmp_path / "runs/empty").mkdir()
    (tmp_path / "runs/large.bin").write_bytes(os.urandom(3_000_000))
    m = mount(tmp_path / "runs")
    assert sorted(os.listdir(m.top)) == ["a", "empty", "large.bin", "notes.txt"]
    assert (m / "notes.txt").read_text() == "hello\n"
    assert (m / "large.bin").read_bytes() == (tmp_path / "runs/large.bin").read_bytes()
    assert (m / "a/final/model/params/kernel.npy").is_file()
    assert os.listdir(m / "empty") == []


def test_unfinished(module_mount):
    m = module_mount(ORBAX / "unfinished_step")
    lines = [line.split("\t") for line in (m / ".ckptfs/unfinished").read_text().splitlines()]
    assert sorted(line[0].split("/")[-1] for line in lines) == [
        "3.orbax-checkpoint-tmp",
        "4.orbax-checkpoint-tmp-1700000000000000",
        "5.orbax-checkpoint-tmp",
    ]
    assert all(len(line) == 2 and line[1] for line in lines)
    assert os.readlink(m / "latest") == "2"
    with fails(errno.ENOENT):
        os.listdir(m / "3.orbax-checkpoint-tmp")


# --- names


def test_lookup_takes_the_listed_name_only(all_runs):
    """Other ways to write an escape are not names, and nothing that need not be escaped can be."""
    names = set(os.listdir(all_runs / "awkward_keys"))
    others = {n.replace("%2F", "%2f").replace("%0A", "%0a") for n in names} | {n.replace(" ", "%20") for n in names}
    assert others - names
    for name in others - names:
        with fails(errno.ENOENT):
            os.stat(all_runs / "awkward_keys" / name)
    with fails(errno.ENOENT):
        os.stat(all_runs / "manager_steps/4/model/params/%6Bernel.npy")


def test_missing_names(steps):
    for path in (
        "5",
        "4/nothing",
        "4/model/params/kernel.npz",
        "4/model/params/kernel.npy/x",
        "04",
        "4/default",
        "4/model.npy",
        "4/model.json",
        "4/model.txt",
        ".hidden",
        "4/.tree",
        "4/kernel.safetensors",
    ):
        with fails(errno.ENOENT, errno.ENOTDIR):
            os.stat(steps / path)


def test_name_too_long(steps):
    with fails(errno.ENAMETOOLONG):
        os.stat(steps / "4" / ("x" * 256))
    with fails(errno.ENAMETOOLONG):
        os.stat(steps / "4/model/params" / ("kernel@" + "0:5," * 80 + ".npy"))


def test_names_at_the_top(mount, tmp_path):
    """What would hide the control directory and the files face is escaped, at the top only."""
    for top in (tmp_path / "run", tmp_path / "run/below"):
        top.mkdir()
        for name in (".ckptfs", ".files"):
            (top / name).mkdir()
            (top / name / "inside").write_text(name)
    m = mount(tmp_path / "run")
    assert sorted(os.listdir(m.top)) == ["%2Eckptfs", "%2Efiles", "below"]
    assert (m / "%2Eckptfs/inside").read_text() == ".ckptfs"
    assert sorted(os.listdir(m / "below")) == [".ckptfs", ".files"]
    assert (m / ".ckptfs/version").is_file()


# --- leaves


@pytest.mark.parametrize("case", ["dtypes", "dtypes_plain", "dtypes_zarr3"])
def test_npy_of_each_dtype(all_runs, case):
    for leaf in truth_leaves(case):
        if leaf["kind"] != "array":
            continue
        path = all_runs / case / "/".join(str(k["key"]) for k in leaf["path"])
        a = np.load(f"{path}.npy")
        assert a.shape == tuple(leaf["shape"]) and a.flags.c_contiguous
        dtype = leaf["dtype"]
        if dtype in ("int4", "int2"):
            assert a.dtype == np.int8
            low = -(1 << int(dtype[3:]) - 1)
            assert a.min() >= low and a.max() < -low
        elif dtype in ("uint4", "uint2"):
            assert a.dtype == np.uint8 and a.max() < 1 << int(dtype[4:])
        elif dtype == "bfloat16":
            assert a.dtype == np.dtype("V2") and a.view(ml_dtypes.bfloat16).shape == a.shape
        elif dtype.startswith("float8"):
            assert a.dtype == np.dtype("V1") and a.view(getattr(ml_dtypes, dtype)).shape == a.shape
        else:
            assert a.dtype == np.dtype(dtype)
        assert (path.parent / path.name).read_bytes() == a.tobytes()


def test_npy_header(steps):
    data = (steps / f"{KERNEL}.npy").read_bytes()
    assert data[:8] == b"\x93NUMPY\x01\x00"
    length = struct.unpack("<H", data[8:10])[0]
    assert (10 + length) % 64 == 0 and data[10 + length - 1 : 10 + length] == b"\n"
    assert ast.literal_eval(data[10 : 10 + length].decode()) == {
        "descr": "<f4",
        "fortran_order": False,
        "shape": (5, 3),
    }


def test_mmap(steps):
    assert (np.load(steps / f"{KERNEL}.npy", mmap_mode="r") == np.load(steps / f"{KERNEL}.npy")).all()


def test_values(module_mount):
    m = module_mount(ORBAX / "empties_strings_scalars")
    for leaf in truth_leaves("empties_strings_scalars"):
        path = m.top.joinpath(*(str(k["key"]) for k in leaf["path"]))
        if leaf["kind"] == "string":
            assert (path.parent / f"{path.name}.json").read_text() == json.dumps(
                leaf["value"], ensure_ascii=False
            ) + "\n" or json.loads((path.parent / f"{path.name}.json").read_text()) == leaf["value"]
            with fails(errno.ENOENT):
                os.stat(f"{path}.npy")
        elif leaf["kind"] == "scalar":
            text = (path.parent / f"{path.name}.json").read_text()
            number = np.load(f"{path}.npy")
            assert number.shape == () and text == path.read_text()
            if number.dtype.kind == "f":
                assert np.float64(number).tobytes() == np.float64(json.loads(text)).tobytes() or np.isnan(number)
                assert any(c in text for c in ".eNI")
            else:
                assert number.item() == json.loads(text)
        elif leaf["kind"] == "empty" and leaf["value_type"] == "None":
            assert (path.parent / f"{path.name}.json").read_text() == "null\n"
            with fails(errno.ENOENT):
                os.stat(f"{path}.npy")
        elif leaf["kind"] == "empty":
            assert os.listdir(path) == []
            kind = {"Dict": "dict", "List": "list", "Tuple": "tuple"}[leaf["value_type"]]
            assert os.getxattr(path, "user.ckpt.kind") == kind.encode()


# --- slices


def random_index(rng, size):
    """One index of a NumPy slice as text."""

    def edge():
        return str(rng.randint(-size - 3, size + 3)) if rng.random() < 0.7 else ""

    if rng.random() < 0.25 and size:
        return str(rng.randrange(-size, size))
    text = edge() + ":" + edge()
    return (
        text + ":" + (str(rng.choice([-3, -2, -1, 1, 2, 3, size + 1])) if rng.random() < 0.8 else "")
        if rng.random() < 0.5
        else text
    )


def index_of(text):
    """The text of a slice as NumPy takes it."""
    return eval(f"numpy_index[{text}]", {"numpy_index": np.s_})


@pytest.mark.parametrize(
    "case,leaf",
    [
        ("sharded_8dev", "both"),
        ("sharded_8dev_plain", "cols"),
        ("sharded_8dev_zarr3", "both"),
        ("save_args", "chunk3"),
        ("ocdbt_many_files", "b"),
        ("dtypes", "bfloat16"),
        ("dtypes", "int4"),
        ("dtypes", "complex64"),
        ("zarr3_variants", "gzip"),
        ("manager_steps", KERNEL),
    ],
)
def test_slices(all_runs, case, leaf):
    """Random basic slices are what NumPy makes of the whole array."""
    rng = random.Random(f"{case}/{leaf}")
    whole = np.load(all_runs / case / f"{leaf}.npy")
    texts = {",".join(random_index(rng, n) for n in whole.shape[: rng.randint(1, whole.ndim)]) for _ in range(60)}
    for text in sorted(texts | {"...", "::-1", "-1", "0:0", "-99:99"}):
        want = np.ascontiguousarray(whole[index_of(text)]).reshape(whole[index_of(text)].shape)
        got = np.load(all_runs / case / f"{leaf}@{text}.npy")
        assert got.dtype == whole.dtype and got.shape == want.shape and got.tobytes() == want.tobytes(), text
        assert (all_runs / case / f"{leaf}@{text}").read_bytes() == want.tobytes(), text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "-6",
        "0,0,0",
        "a",
        "::0",
        "0:1:2:3",
        "1.0",
        " 1",
        "0:1 ",
        "+1",
        "1_0",
        "0x1",
        ",",
        "0,,",
        ":,3",
        "99999999999999999999999",
        "...,...",
        "None",
        "[0]",
        "0;1",
        "--1",
    ],
)
def test_bad_slices(steps, text):
    for suffix in ("", ".npy"):
        with fails(errno.ENOENT):
            os.stat(steps / f"{KERNEL}@{text}{suffix}")


def test_slices_of_what_has_none(steps):
    for path in (
        "4/model/step@0",
        "4/model@0.npy",
        "4/model/opt_state/0@0",
        "4@0",
        f"{KERNEL}.npy@0",
        f"{KERNEL}.txt@0",
    ):
        with fails(errno.ENOENT):
            os.stat(steps / path)


# --- other views


def test_txt(all_runs):
    whole = np.load(all_runs / "manager_steps" / f"{KERNEL}.npy")
    text = (all_runs / "manager_steps" / f"{KERNEL}.txt").read_text()
    assert "float32" in text and str(whole) in text
    for word in ("min", "max", "mean", "nan"):
        assert word in text.lower()
    assert "60" in text.split(str(whole))[0]
    summarised = np.load(all_runs / "big_values/ramp.npy")
    assert str(summarised) in (all_runs / "big_values/ramp.txt").read_text()


def test_txt_counts_nans(all_runs):
    a = np.load(all_runs / "dtypes/float32.npy")
    lines = (all_runs / "dtypes/float32.txt").read_text().split(str(a))[0].splitlines()
    head = dict(line.split(None, 1) for line in lines if line)
    assert int(head["nan"]) == np.isnan(a).sum()
    assert head["min"] == "-inf" and head["max"] == "inf"
    assert head["mean"] == "nan"  # of inf and -inf


def test_meta_json(steps):
    meta = json.loads((steps / f"{KERNEL}.meta.json").read_text())
    assert meta["path"] == ["model", "params", "kernel"] and meta["kind"] == "array"
    assert meta["dtype"] == "float32" and meta["shape"] == [5, 3] and meta["bytes"] == 60
    assert meta["format"].startswith("orbax") and meta["codec"]
    assert meta["chunks"] == [5, 3] and isinstance(meta["stored"], int) and "sharding" in meta
    meta = json.loads((steps / "4/data/0.meta.json").read_text())
    assert meta["path"] == ["data", 0]
    meta = json.loads((steps / "4/model/step.meta.json").read_text())
    assert meta["kind"] == "value" and meta["dtype"] == "int64"


def test_meta_of_a_prng_key(all_runs):
    assert json.loads((all_runs / "prng_keys/typed.meta.json").read_text())["prng_impl"] == "threefry2x32"


def test_tree_json(steps):
    tree = json.loads((steps / "4/.tree.json").read_text())
    leaves = {tuple(leaf["path"]): leaf for leaf in tree["leaves"]}
    assert set(leaves) == {
        ("config", "dimensions"),
        ("data", 0),
        ("model", "step"),
        ("model", "params", "bias"),
        ("model", "params", "kernel"),
        ("model", "opt_state", 0),
        ("model", "opt_state", 1),
    }
    kernel = leaves["model", "params", "kernel"]
    assert kernel["file"] == "model/params/kernel.npy" and kernel["kind"] == "array"
    assert kernel["dtype"] == "float32" and kernel["shape"] == [5, 3] and kernel["bytes"] == 60
    assert leaves["model", "step"]["value"] == 1 and leaves["model", "opt_state", 0]["value"] is None
    containers = {tuple(c["path"]): c["kind"] for c in tree["containers"]}
    assert containers["data",] == "list" and containers["model",] == "dict"
    below = json.loads((steps / "4/model/.tree.json").read_text())
    assert ["params", "kernel"] in [leaf["path"] for leaf in below["leaves"]]


def test_tree_json_keeps_true_keys(all_runs):
    """Escaped names, and keys that look like numbers."""
    tree = json.loads((all_runs / "awkward_keys/.tree.json").read_text())
    want = {
        tuple(k["key"] if k["kind"] != "sequence" else int(k["key"]) for k in leaf["path"])
        for leaf in truth_leaves("awkward_keys")
    }
    assert {tuple(leaf["path"]) for leaf in tree["leaves"]} == want
    for leaf in tree["leaves"]:
        assert (all_runs / "awkward_keys" / leaf["file"]).is_file()


def test_tree_json_of_all_cases(all_runs):
    """Files, sizes and values agree with what is listed and read."""
    for case in (
        "dtypes",
        "empties_strings_scalars",
        "composite/1",
        "old_0_4_8/aggregate",
        "multiprocess/2",
        "zarr2_variants",
    ):
        top = all_runs / case
        for leaf in json.loads((top / ".tree.json").read_text())["leaves"]:
            if leaf["kind"] == "array":
                a = np.load(top / leaf["file"])
                assert list(a.shape) == leaf["shape"], leaf
            elif leaf["kind"] == "value":
                text = (top / leaf["file"]).read_text()
                assert json.dumps(json.loads(text)) == json.dumps(leaf["value"]), leaf


def test_safetensors(steps):
    tensors = safetensors.numpy.load((steps / "4.safetensors").read_bytes())
    assert set(tensors) >= {"config.dimensions", "data.0", "model.params.bias", "model.params.kernel"}
    for name, a in tensors.items():
        if name != "model.step":  # a value may be a tensor, too
            want = np.load(steps / "4" / (name.replace(".", "/") + ".npy"))
            assert a.dtype == want.dtype and (a == want).all()
    assert set(safetensors.numpy.load_file(steps / "4/model/params.safetensors")) == {"bias", "kernel"}


def test_safetensors_dtypes(all_runs):
    with safetensors.safe_open(all_runs / "dtypes.safetensors", framework="np") as f:
        names = set(f.keys())
    assert {"bfloat16", "bool", "float16", "float32", "int64"} <= names
    data = (all_runs / "dtypes.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert header["bfloat16"]["dtype"] == "BF16"
    begin, end = header["bfloat16"]["data_offsets"]
    start = 8 + struct.unpack("<Q", data[:8])[0]
    assert data[start + begin : start + end] == (all_runs / "dtypes/bfloat16").read_bytes()


def test_views_are_not_listed(steps):
    assert sorted(os.listdir(steps / "4/model/params")) == ["bias.npy", "kernel.npy"]
    for name in ("kernel", "kernel.txt", "kernel@0.npy", "kernel.meta.json", ".tree.json"):
        assert (steps / "4/model/params" / name).is_file()
    assert sorted(os.listdir(steps / "4/model/params")) == ["bias.npy", "kernel.npy"]


def test_listed_name_wins(all_runs):
    """name_collision holds arrays a and a.b; the raw view of an array never hides a listed name."""
    names = os.listdir(all_runs / "name_collision")
    assert "a.npy" in names and "a.b.npy" in names
    for name in names:
        if name.endswith(".npy"):
            assert len(np.load(all_runs / "name_collision" / name).shape) >= 0


# --- attributes


def attributes(path):
    return {name: os.getxattr(path, name).decode() for name in os.listxattr(path)}


def test_attributes_of_an_array(steps):
    got = attributes(steps / f"{KERNEL}.npy")
    assert got["user.ckpt.key"] == "kernel" and got["user.ckpt.kind"] == "array" and got["user.ckpt.dtype"] == "float32"
    assert json.loads(got["user.ckpt.shape"]) == [5, 3] and json.loads(got["user.ckpt.chunks"]) == [5, 3]
    assert int(got["user.ckpt.stored"]) > 0 and got["user.ckpt.format"].startswith("orbax")
    assert got["user.ckpt.codec"]


def test_attributes_of_a_step(steps):
    got = attributes(steps / "4")
    assert got["user.ckpt.step"] == "4" and got["user.ckpt.state"] == "committed"
    assert os.getxattr(steps / "4", "user.ckpt.format").startswith(b"orbax")


def test_attributes_hold_true_keys(all_runs):
    keys = {
        os.getxattr(all_runs / "awkward_keys" / n, "user.ckpt.key").decode()
        for n in os.listdir(all_runs / "awkward_keys")
    }
    assert keys == {leaf["path"][0]["key"] for leaf in truth_leaves("awkward_keys")}


def test_attributes_that_are_not_there(steps):
    for name in ("user.ckpt.nothing", "user.other", "security.selinux", "system.posix_acl_access", "trusted.x"):
        with fails(errno.ENODATA, errno.EOPNOTSUPP):
            os.getxattr(steps / f"{KERNEL}.npy", name)


def test_stat(steps):
    for path in (
        "4",
        "4/model",
        f"{KERNEL}.npy",
        KERNEL,
        f"{KERNEL}@0.npy",
        "4/model/step.json",
        f"{KERNEL}.txt",
        "4/.tree.json",
    ):
        st = os.stat(steps / path)
        if stat.S_ISREG(st.st_mode):
            assert st.st_size == len((steps / path).read_bytes()), path
            assert not st.st_mode & 0o222
        assert st.st_mtime > 1e9, path
    assert os.stat(steps / f"{KERNEL}.npy").st_nlink == 1
    assert os.stat(steps / f"{KERNEL}.npy").st_mtime == os.stat(steps / "4").st_mtime


def test_du_tells_stored_bytes(all_runs, tmp_path):
    """A leaf of zeros takes little, one of noise about its size."""
    noise = os.stat(all_runs / "big_values/noise.npy")
    assert noise.st_blocks * 512 >= 0.8 * 60 * 50 * 4
    ramp = os.stat(all_runs / "big_values/ramp.npy")
    assert ramp.st_blocks * 512 < ramp.st_size
    assert int(os.getxattr(all_runs / "big_values/ramp.npy", "user.ckpt.stored")) <= ramp.st_blocks * 512


def test_inode_numbers(steps):
    paths = [
        "4",
        "4/model",
        f"{KERNEL}.npy",
        KERNEL,
        f"{KERNEL}.txt",
        f"{KERNEL}@0",
        f"{KERNEL}@1",
        "3",
        "3/model/params/kernel.npy",
        "latest",
    ]
    first = [os.lstat(steps / p).st_ino for p in paths]
    assert len(set(first)) == len(paths)
    listed = {e.name: e.inode() for e in os.scandir(steps / "4/model/params")}
    assert listed["kernel.npy"] == first[2]
    if os.geteuid() == 0:  # forget what the kernel knows
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("2")
    assert [os.lstat(steps / p).st_ino for p in paths] == first


def test_statfs(steps):
    st = os.statvfs(steps.top)
    assert st.f_namemax == 255 and st.f_flag & os.ST_RDONLY or st.f_bavail == 0


# --- reading


def test_read_anywhere(all_runs):
    rng = random.Random(1)
    for path in ("big_values/noise.npy", "save_args/chunk3.npy", "sharded_8dev/both", "big_values.safetensors"):
        data = (all_runs / path).read_bytes()
        with open(all_runs / path, "rb", buffering=0) as f:
            for _ in range(50):
                offset, size = rng.randrange(len(data) + 20), rng.choice([1, 7, 64, 1000, 5000])
                assert os.pread(f.fileno(), size, offset) == data[offset : offset + size]
            assert f.seek(0, io.SEEK_END) == len(data)


def test_readers_in_parallel(all_runs):
    from concurrent.futures import ThreadPoolExecutor

    folder = all_runs / "many_small/layer_00"
    names = sorted(os.listdir(folder))
    want = {n: (folder / n).read_bytes() for n in names}
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(lambda n: (folder / n).read_bytes() == want[n], names)) == [True] * len(names)


# --- not writable


def test_writes_are_refused(steps, tmp_path):
    file, folder = steps / f"{KERNEL}.npy", steps / "4"
    attempts = [
        lambda: open(file, "r+b"),
        lambda: open(file, "wb"),
        lambda: open(file, "ab"),
        lambda: open(folder / "new", "wb"),
        lambda: os.mkdir(steps / "5"),
        lambda: os.mkdir(folder / "x"),
        lambda: os.unlink(file),
        lambda: os.rmdir(folder / "model"),
        lambda: os.rename(steps / "4", steps / "5"),
        lambda: os.rename(file, folder / "x.npy"),
        lambda: os.symlink("x", steps / "x"),
        lambda: os.link(file, steps / "x"),
        lambda: os.chmod(file, 0o600),
        lambda: os.truncate(file, 0),
        lambda: os.utime(file, (1, 1)),
        lambda: os.setxattr(file, "user.ckpt.pinned", b"1"),
        lambda: os.removexattr(file, "user.ckpt.key"),
        lambda: os.mkfifo(steps / "f"),
        lambda: os.chown(file, 1, 1),
        lambda: os.unlink(steps / "latest"),
    ]
    for attempt in attempts:
        with fails(errno.EROFS):
            attempt()
    assert not os.access(file, os.W_OK)


# --- control directory


def test_control_directory(steps):
    assert ".ckptfs" not in os.listdir(steps.top) and ".files" not in os.listdir(steps.top)
    assert sorted(os.listdir(steps / ".ckptfs")) == ["metrics", "stats.json", "steps.json", "unfinished", "version"]
    version = util.ckptfs("--version").stdout.split()
    assert (steps / ".ckptfs/version").read_text().strip().split()[-1] in version


def stats(m):
    return json.loads((m / ".ckptfs/stats.json").read_text())


def test_stats_count(mount):
    m = mount(ORBAX / "big_values")
    before = stats(m)
    os.listdir(m.top)
    listed = stats(m)
    assert listed["chunks_decoded"] == before["chunks_decoded"]
    size = len((m / "noise.npy").read_bytes())
    after = stats(m)
    assert after["chunks_decoded"] > before["chunks_decoded"]
    assert after["bytes_read"] - before["bytes_read"] >= size
    fetched = after["bytes_fetched"] - listed["bytes_fetched"]
    assert 0 < fetched < 4 * size
    assert after["resident"] > 100_000


def test_metrics(steps):
    lines = (steps / ".ckptfs/metrics").read_text().splitlines()
    samples = [line for line in lines if line and not line.startswith("#")]
    assert samples and all(line.startswith("ckptfs_") and float(line.rsplit(None, 1)[1]) >= 0 for line in samples)
    assert any(line.startswith("# TYPE ckptfs_") for line in lines)


def test_steps_json(steps):
    roots = json.loads((steps / ".ckptfs/steps.json").read_text())["roots"]
    assert [root["path"] for root in roots] == [""]
    assert [(s["name"], s["step"], s["latest"]) for s in roots[0]["steps"]] == [("3", 3, False), ("4", 4, True)]


def test_lazy(mount):
    """A slice of one chunk fetches that chunk; a listing fetches none."""
    m = mount(ORBAX / "sharded_8dev")
    for _, _, _ in os.walk(m.top):
        pass
    before = stats(m)
    np.load(m / "both@0,0.npy")
    after = stats(m)
    assert before["chunks_decoded"] == 0
    assert after["chunks_decoded"] == 1
