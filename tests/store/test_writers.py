"""What ordinary tools and libraries write becomes a step, in each of the ways to commit, and reads back byte for
byte.
"""

import ctypes
import errno
import json
import mmap
import os
import struct
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import trees
import util
from trees import EXPLICIT, commit, is_committed, run, state, wait_committed
from util import fails


# --- whole trees, by the tools that copy them


def cp_r(source, target):
    run("cp", "-r", source, target)


def cp_a(source, target):
    run("cp", "-a", source, target)


def rsync(source, target):
    run("rsync", "-a", f"{source}/", f"{target}/")


def tar(source, target):
    run("mkdir", target)  # not by this process, which lives on
    archive = target.parent.parent / "archive.tar"
    run("tar", "--format=posix", "-C", source, "-cf", archive, ".")
    run("tar", "-C", target, "-xf", archive)
    archive.unlink()


def python(source, target):
    """shutil in a process of its own, so that it ends."""
    run(
        sys.executable,
        "-c",
        "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2], copy_function=shutil.copyfile)",
        source,
        target,
    )


TOOLS = [cp_r, cp_a, rsync, tar, python]
KEEPS_MODES = cp_r, cp_a, rsync, tar  # as far as the umask lets them; trees.make_tree has no others
KEEPS_TIMES = cp_a, rsync, tar


def same_as_source(step, source, tool):
    """The step holds what the tool can keep of the source."""
    got, want = trees.listing(step), trees.listing(source)
    trees.compare(got, want, modes=tool in KEEPS_MODES, times=tool in KEEPS_TIMES)
    return got


@pytest.mark.parametrize("way", ["rename", "sync", "itself"])
@pytest.mark.parametrize("tool", TOOLS)
def test_tree(mount, root, tree, small_tree, tool, way):
    source = tree if way == "sync" and tool is not python else small_tree
    # the mount of each way would commit by that way alone
    m = mount(root, {"rename": EXPLICIT, "sync": "settle=600", "itself": "settle=1"}[way])
    target = m / (".new" if way == "rename" else "7")
    tool(source, target)
    if way == "rename":
        assert state(target) == "staged" and trees.committed(root) == []
        run("mv", "-T", target, m / "7")
        assert not os.path.lexists(target)
    elif way == "sync":
        assert state(target) == "staged" and not os.path.lexists(m / "latest")
        same_as_source(target, source, tool)
        run("sync", target)
    else:
        wait_committed(target)
    assert is_committed(m / "7") and trees.steps(m) == ["7"] and os.readlink(m / "latest") == "7"
    before = same_as_source(m / "7", source, tool)
    assert trees.committed(root) == ["7"]
    m.stop()
    m = mount(root, EXPLICIT)
    assert is_committed(m / "7")
    trees.compare(trees.listing(m / "7"), before)
    if way == "sync":
        trees.verify(root)


@pytest.mark.parametrize("flags", ["-a", "-aHS"])
def test_rsync_twice(writable, small_tree, flags):
    """
    What rsync has brought it does not bring again, whether the step is staged or committed. (With -X it would: the
    attributes that ckptfs gives are not in the source.)
    """
    again = "--itemize-changes", f"{small_tree}/", f"{writable.top}/7/"
    assert "zeros.npy" in run("rsync", flags, *again)
    assert run("rsync", flags, *again) == ""
    commit(writable / "7")
    assert run("rsync", flags, *again) == "" and is_committed(writable / "7")
    assert run("rsync", flags, "--checksum", *again) == "" and is_committed(writable / "7")


def test_rsync_changes_one_file(writable, root, small_tree, tmp_path):
    """rsync onto a committed step sends what differs, and the next commit has it."""
    run("rsync", "-a", f"{small_tree}/", f"{writable.top}/7/")
    commit(writable / "7")
    run("cp", "-a", small_tree, tmp_path / "changed")
    trees.put(tmp_path / "changed/notes.txt", "other\n")
    os.unlink(tmp_path / "changed/values/none.json")
    os.utime(tmp_path / "changed/values", (1_500_000_000, 1_500_000_000))
    said = run(
        "rsync", "-a", "--delete-before", "--itemize-changes", f"{tmp_path}/changed/", f"{writable.top}/7/"
    ).splitlines()
    assert {line.split(" ", 1)[1].strip() for line in said} == {"notes.txt", "values/", "values/none.json"}
    assert state(writable / "7") == "staged"
    commit(writable / "7")
    trees.compare(trees.listing(writable / "7"), trees.listing(tmp_path / "changed"))


def test_attributes_of_a_mount_travel(writable, small_tree, tmp_path):
    """Tools that copy attributes copy a step out of a mount and into it again; the kinds of containers stay."""
    run("cp", "-a", small_tree, writable / "1")
    commit(writable / "1")
    run("cp", "-a", writable / "1", writable / "2")
    run("rsync", "-aX", f"{writable.top}/1/", f"{writable.top}/3/")
    run("cp", "-a", writable / "1", tmp_path / "out")
    run("rsync", "-aX", f"{tmp_path}/out/", f"{writable.top}/4/")
    run(
        "tar",
        "-C",
        writable / "1",
        "--xattrs",
        "--xattrs-include=user.*",
        "--format=posix",
        "-cf",
        tmp_path / "t.tar",
        ".",
    )
    os.mkdir(writable / "5")
    run("tar", "-C", writable / "5", "--xattrs", "--xattrs-include=user.*", "-xf", tmp_path / "t.tar")
    want = trees.listing(small_tree)
    for step in "12345":
        commit(writable / step)
        trees.compare(trees.listing(writable / step), want)
        assert os.getxattr(writable / step / "opt", "user.ckpt.kind") == b"list"
        assert os.getxattr(writable / step / "tuple", "user.ckpt.kind") == b"tuple"
        assert os.getxattr(writable / step / "params", "user.ckpt.kind") == b"dict"


# --- the views of what was written


def walk_leaves(m, step):
    text = (m / step / ".tree.json").read_text()
    tree = json.loads(text)
    return {leaf["file"]: leaf for leaf in tree["leaves"]}, {tuple(c["path"]): c["kind"] for c in tree["containers"]}


def test_views_of_a_committed_step(writable, small_tree):
    run("cp", "-a", small_tree, writable / "7")
    commit(writable / "7")
    top = writable / "7"
    for name in (
        "params/dense/kernel",
        "opt/10/mu",
        "arrays/int64",
        "arrays/complex64",
        "arrays/bool",
        "arrays/scalar",
        "arrays/nothing",
        "zeros",
    ):
        a = np.load(small_tree / f"{name}.npy")
        assert (top / name).read_bytes() == a.tobytes(), name
        meta = json.loads((top / f"{name}.meta.json").read_text())
        assert (meta["kind"], meta["dtype"], meta["shape"], meta["bytes"]) == (
            "array",
            a.dtype.name,
            list(a.shape),
            a.nbytes,
        )
        assert a.dtype.name in (top / f"{name}.txt").read_text()
        loaded = np.load(top / f"{name}.npy", mmap_mode="r" if a.size and a.shape else None)
        assert (loaded == a).all() and loaded.shape == a.shape
    kernel = np.load(small_tree / "params/dense/kernel.npy")
    assert (np.load(top / "params/dense/kernel@3:50:7,::-5.npy") == kernel[3:50:7, ::-5]).all()
    assert (top / "params/dense/kernel@-1,:4").read_bytes() == kernel[-1, :4].tobytes()
    with fails(errno.ENOENT):
        os.stat(top / "params/dense/kernel@64")
    # C order, little-endian, whatever the file on disk has
    for name in ("fortran", "big_endian"):
        a = np.load(small_tree / f"arrays/{name}.npy")
        assert (top / f"arrays/{name}").read_bytes() == np.ascontiguousarray(
            a.astype(a.dtype.newbyteorder("<"))
        ).tobytes()
        assert (np.load(top / f"arrays/{name}@1:3.npy") == a[1:3]).all()
    # an exact name wins: params/w is a directory
    assert os.listdir(top / "params/w") == ["inner.npy"]
    assert np.load(top / "values/float.npy") == 0.001 and np.load(top / "values/int.npy") == 12
    assert (top / "values/string").read_text() == '"adam"\n'
    assert json.loads((top / "notes.txt.meta.json").read_text())["kind"] == "blob"


def test_tree_json_of_a_committed_step(writable, small_tree):
    run("cp", "-a", small_tree, writable / "7")
    commit(writable / "7")
    leaves, containers = walk_leaves(writable, "7")
    files = {os.fsdecode(name) for name, e in trees.listing(small_tree, top=False).items() if e.kind == "file"}
    assert {f for f in leaves if "odd" not in f} == {f for f in files if "odd" not in f}
    assert len(leaves) == len(files)
    assert leaves["opt/10/mu.npy"]["path"] == ["opt", 10, "mu"]
    assert leaves["tuple/1.json"]["path"] == ["tuple", 1] and leaves["tuple/1.json"]["value"] is None
    assert leaves["values/big.json"]["value"] == 10**30
    assert leaves["values/string.json"] | {"path": 0, "file": 0} == {
        "path": 0,
        "file": 0,
        "kind": "value",
        "value": "adam",
    }
    assert leaves["params/dense/bias.npy"]["dtype"] == "bfloat16"
    assert {leaves[f"values/{name}.json"]["kind"] for name in trees.JSON_BLOBS} == {"blob"}
    assert {leaves[f"values/{name}.json"]["kind"] for name in trees.VALUES} == {"value"}
    assert leaves["arrays/not_an_array.npy"]["kind"] == "blob"
    assert containers[("opt",)] == "list" and containers[("tuple",)] == "tuple" and containers[("params",)] == "dict"
    assert containers[("opt", 11)] == "dict" and ("empty", "nested", "deeper") in containers


def test_safetensors_view_of_a_committed_step(writable, small_tree):
    run("cp", "-a", small_tree, writable / "7")
    commit(writable / "7")
    tensors = safetensors.numpy.load_file(writable / "7/params.safetensors")
    assert set(tensors) == {"dense.kernel", "dense.bias", "w", "w.inner"}
    assert (tensors["dense.kernel"] == np.load(small_tree / "params/dense/kernel.npy")).all()
    assert tensors["dense.bias"].view(np.uint16).tobytes() == np.load(small_tree / "params/dense/bias.npy").tobytes()
    assert len(safetensors.numpy.load_file(writable / "7/opt.safetensors")) == 11


def test_dtypes(writable):
    """<V2 is bfloat16, other types of NumPy's V are what user.ckpt.dtype says."""
    step = writable / "7"
    step.mkdir()
    b = np.arange(6, dtype=ml_dtypes.bfloat16)
    np.save(step / "plain.npy", b)
    np.save(step / "named.npy", b)
    os.setxattr(step / "named.npy", "user.ckpt.dtype", b"bfloat16")
    for dtype in ("float8_e4m3fn", "float8_e5m2"):
        np.save(step / f"{dtype}.npy", np.arange(6, dtype=getattr(ml_dtypes, dtype)).view("V1"))
        os.setxattr(step / f"{dtype}.npy", "user.ckpt.dtype", dtype.encode())
    np.save(step / "int4.npy", np.array([-8, 7], np.int8))
    os.setxattr(step / "int4.npy", "user.ckpt.dtype", b"int4")
    header = (step / "plain.npy").read_bytes()[:64]
    assert b"'<V2'" in header
    commit(step)
    assert (step / "plain.npy").read_bytes()[:64] == header
    for name, dtype in (
        ("plain", "bfloat16"),
        ("named", "bfloat16"),
        ("float8_e4m3fn",) * 2,
        ("float8_e5m2",) * 2,
        ("int4",) * 2,
    ):
        assert os.getxattr(step / f"{name}.npy", "user.ckpt.dtype").decode() == dtype
        assert json.loads((step / f"{name}.meta.json").read_text())["dtype"] == dtype
    assert (np.load(step / "plain.npy").view(ml_dtypes.bfloat16) == b).all()
    with safetensors.safe_open(writable / "7.safetensors", "numpy") as f:
        assert f.get_tensor("plain").view(np.uint16).tobytes() == b.tobytes()
    assert "5" in (step / "plain.txt").read_text()


# --- libraries


def test_numpy(writable, root):
    """np.save, np.savez, ndarray.tofile and open_memmap from a process that lives on."""
    step = writable / "7"
    (step / "a").mkdir(parents=True)
    a = trees.floats((300, 400))
    np.save(step / "a/saved.npy", a)
    np.savez(step / "a/several.npz", a=a, b=np.arange(3))
    np.savez_compressed(step / "a/packed.npz", a=np.zeros(1000))
    a.tofile(step / "a/raw.bin")
    mapped = np.lib.format.open_memmap(step / "a/mapped.npy", "w+", np.float32, a.shape)
    mapped[:] = a
    mapped.flush()
    del mapped
    changed = np.lib.format.open_memmap(step / "a/saved.npy", "r+")
    changed[7] = -1
    del changed
    np.savetxt(step / "a/text.txt", a[:3])
    commit(step)
    want = a.copy()
    want[7] = -1
    assert (np.load(step / "a/saved.npy") == want).all() and (np.load(step / "a/mapped.npy") == a).all()
    with np.load(step / "a/several.npz") as z:
        assert (z["a"] == a).all() and (z["b"] == np.arange(3)).all()
    assert (step / "a/raw.bin").read_bytes() == a.tobytes()
    assert (np.loadtxt(step / "a/text.txt", dtype=np.float32) == a[:3]).all()


def test_safetensors(writable, mount, root):
    """save_file writes a temporary file, sets its mode, and renames it."""
    tensors = {"a.b": trees.floats((50, 60)), "c": np.arange(7)}
    step = writable / "7"
    step.mkdir()
    safetensors.numpy.save_file(tensors, step / "model.safetensors", {"made": "here"})
    assert os.listdir(step) == ["model.safetensors"]
    safetensors.numpy.save_file(tensors, step / "model.safetensors", {"made": "again"})
    commit(step)
    data = (step / "model.safetensors").read_bytes()
    writable.stop()
    m = mount(root)
    assert (m / "7/model.safetensors").read_bytes() == data
    with safetensors.safe_open(m / "7/model.safetensors", "numpy") as f:
        assert f.metadata() == {"made": "again"}
        assert all((f.get_tensor(name) == tensors[name]).all() for name in tensors)


def test_tensorstore(writable, mount, root):
    """Its file driver takes locks, writes beside, fsyncs files and directories, and renames."""
    import tensorstore as ts

    def spec(top):
        return {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{top}/7/w/"}}

    (writable / "7").mkdir()
    want = trees.floats((200, 300))
    a = ts.open(
        spec(writable.top),
        create=True,
        dtype=ts.float32,
        shape=want.shape,
        chunk_layout=ts.ChunkLayout(chunk_shape=[64, 64]),
    ).result()
    a.write(want).result()
    a[:10, :10].write(np.zeros((10, 10), np.float32)).result()
    want[:10, :10] = 0
    assert (a.read().result() == want).all()
    assert state(writable / "7") == "staged"  # its fsync of w/ is not that of the step
    commit(writable / "7")
    writable.stop()
    m = mount(root, "ro")
    assert (ts.open(spec(m.top), read=True).result().read().result() == want).all()
    assert not [name for name in os.listdir(m / "7/w") if "lock" in name]


def test_orbax_files(writable):
    """Another library's checkpoint is a tree of blobs, and comes back as it was."""
    run("cp", "-r", util.DATA / "demo/300", writable / "7")
    commit(writable / "7")
    trees.compare(trees.listing(writable / "7"), trees.listing(util.DATA / "demo/300"), modes=False, times=False)


def test_torch(writable):
    try:
        import torch
    except ImportError as e:
        pytest.skip(f"PyTorch is not installed: {e}")
    (writable / "7").mkdir()
    want = {"w": torch.arange(1000.0).reshape(10, 100), "step": 3}
    torch.save(want, writable / "7/model.pt")
    commit(writable / "7")
    got = torch.load(writable / "7/model.pt", mmap=True)
    assert got["step"] == 3 and (got["w"] == want["w"]).all()


def test_dd(writable):
    """Blocks written into a file that is there, while it is staged and once it is committed."""
    data = bytearray(trees.noise(300_000))
    step = writable / "7"
    step.mkdir()
    (step / "f.bin").write_bytes(data)
    for seek, byte in (3, b"x"), (290, b"y"):
        (writable.top.parent / "block").write_bytes(byte * 2000)
        run("dd", f"if={writable.top.parent}/block", f"of={step}/f.bin", "bs=1000", f"seek={seek}", "conv=notrunc")
        data[seek * 1000 : seek * 1000 + 2000] = byte * 2000
        assert state(step) == "staged"
        assert (step / "f.bin").read_bytes() == data
        commit(step)
        assert (step / "f.bin").read_bytes() == data
    run("dd", "if=/dev/zero", f"of={step}/f.bin", "bs=1000", "count=1", "oflag=append", "conv=notrunc")
    commit(step)
    assert (step / "f.bin").read_bytes() == data + bytes(1000)


def modified(path):
    """The time of the last change in ns, by statx, as the file system has it at this moment."""
    buf = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).statx(
        -100, os.fsencode(path), 0x2000, 0x7FF, buf
    ):  # AT_FDCWD, AT_STATX_FORCE_SYNC
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    seconds, ns = struct.unpack_from("qI", buf, 112)
    return seconds * 10**9 + ns


def test_times_stay(mount, root):
    """A time that was set is seen at every moment, also while the bytes are stored otherwise behind it."""
    m = mount(root, trees.EXPLICIT, prefix=("env", "CKPTFS_DISK_SLOW=punch:30"))
    when = 1_600_000_000_123_456_789
    data = trees.floats(500_000)  # compresses, so that it is an object at once
    (m / "7").mkdir()
    path = m / "7/f.npy"
    for _ in range(2):
        with open(path, "r+b" if path.exists() else "wb") as f:  # the second time it gets its own bytes again
            assert not path.stat().st_size or modified(path) == when
            np.save(f, data)
            f.flush()
            os.utime(f.fileno(), ns=(when, when))
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert modified(path) == when
    commit(m / "7")
    assert os.stat(path).st_mtime_ns == when and (np.load(path) == data).all()


def test_mmap(writable):
    step = writable / "7"
    step.mkdir()
    with open(step / "f.bin", "w+b") as f:
        f.truncate(100_000)
        with mmap.mmap(f.fileno(), 100_000) as view:
            view[:5] = b"begin"
            view[50_000:50_006] = b"middle"
            view.flush()
            view[-3:] = b"end"
    want = bytearray(100_000)
    want[:5], want[50_000:50_006], want[-3:] = b"begin", b"middle", b"end"
    commit(step)
    assert (step / "f.bin").read_bytes() == want
    with open(step / "f.bin", "r+b") as f, mmap.mmap(f.fileno(), 0) as view:
        view[10_000] = 7
    want[10_000] = 7
    commit(step)
    assert (step / "f.bin").read_bytes() == want


def test_shell(writable):
    """Redirections, mv, sed -i, patch-like edits, tee -a, install, truncate, touch."""
    script = r"""
        set -e
        mkdir 7; cd 7; mkdir -p a/b
        echo one > a/x; echo two >> a/x; printf '0.5\n' > lr.json
        sed -i s/one/1/ a/x
        echo three | tee -a a/x > /dev/null
        mv a/x a/b/y; cp a/b/y a/z; ln a/z a/zz; rm a/z
        truncate -s 100 a/pad; touch -d '2001-02-03 04:05:06.789' a/pad; install -m 640 a/b/y installed
        echo 0.25 > tmp && mv tmp lr.json
        cat a/b/y a/zz
    """
    want = "1\ntwo\nthree\n"
    assert run("bash", "-c", script, cwd=writable.top) == 2 * want
    commit(writable / "7")
    found = trees.listing(writable / "7")
    assert set(found) == {b"", b"a", b"a/b", b"a/b/y", b"a/zz", b"a/pad", b"installed", b"lr.json"}
    assert (writable / "7/a/zz").read_text() == want and (writable / "7/lr.json").read_text() == "0.25\n"
    assert (
        found[b"installed"].mode == 0o640
        and found[b"a/pad"].mtime == 981173106_789000000
        and found[b"a/pad"].size == 100
    )


# --- by itself

WRITER = """
import os, sys, time
step, wait = sys.argv[1], float(sys.argv[2])
os.mkdir(step)
f = open(step + "/x.bin", "wb")
f.write(b"x" * 1000)
f.flush()
if "open" not in sys.argv[3:]:
    f.close()
print("written", flush=True)
time.sleep(wait)
"""


def start_writer(step, seconds, *how):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(step), str(seconds), *how], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"written\n"
    process.stdout.close()
    return process


def test_not_before_its_time(mount, root):
    """A step commits itself when its writers have ended, nothing is open, and its arrays are whole; and only under a
    step's name.
    """
    m = mount(root, "settle=1")
    whole = m.top.parent / "whole.npy"
    np.save(whole, np.arange(1000))
    lives = start_writer(m / "1", 600)
    opened = start_writer(m / "2", 600, "open")
    ends = start_writer(m / "3", 0)
    try:
        ends.wait(20)
        run(
            "bash",
            "-c",
            'mkdir 4 5 6 .new 7.tmp; head -c 1000 "$1" > 4/x.npy; echo x > .new/x; echo x > 7.tmp/x; '
            'cp "$1" "5/x@0:1000.npy"; '
            'cp "$1" "6/x@1000:2000.npy"',
            "-",
            whole,
            cwd=m.top,
        )
        # a file that this process has open for writing, in a step that others wrote
        run("bash", "-c", "mkdir 8; echo x > 8/x", cwd=m.top)
        with open(m / "8/x", "r+b"):
            wait_committed(m / "3")
            wait_committed(m / "5")
            for _ in range(12):
                assert trees.committed(root) == ["3", "5"]
                time.sleep(0.2)
        for name in ("1", "2", "4", "6", ".new", "7.tmp", "8"):
            assert state(m / name) == "staged", name
        assert os.readlink(m / "latest") == "5"
        # each gets what it lacked
        run("cp", whole, m / "4/x.npy")
        run("cp", whole, m / "6/x@0:1000.npy")
        run("bash", "-c", "echo y > 8/x", cwd=m.top)
        lives.kill()
        opened.kill()
        lives.wait(20)
        opened.wait(20)
        for name in ("1", "2", "4", "6"):
            wait_committed(m / name)
        assert np.load(m / "6/x.npy").shape == (2000,)
        assert os.readlink(m / "latest") in ("6", "8")
    finally:
        for process in (lives, opened, ends):
            process.kill()
            process.wait(20)


def test_settle(mount, root):
    """Each change starts the time anew."""
    m = mount(root, "settle=1.5")
    run("mkdir", m / "7")
    for n in range(5):
        run("bash", "-c", 'echo "$1" > "$2"', "-", n, m / "7/x")
        time.sleep(0.5)
        assert state(m / "7") == "staged"
    wait_committed(m / "7")
    assert (m / "7/x").read_text() == "4\n"


def test_explicit(writable, root, small_tree):
    run("cp", "-r", small_tree, writable / "7")
    time.sleep(3)
    assert state(writable / "7") == "staged" and trees.committed(root) == []


def test_default_settles(mount, root, small_tree):
    """Without any option: cp alone is enough, and nothing else is needed to read it elsewhere."""
    m = mount(root)
    run("cp", "-r", small_tree, m / "7")
    wait_committed(m / "7")
    other = mount(root, "ro")
    trees.compare(trees.listing(other / "7"), trees.listing(small_tree), modes=False, times=False)


def test_empty_directory_becomes_a_root(mount, tmp_path):
    (tmp_path / "empty").mkdir()
    m = mount(tmp_path / "empty", "rw", EXPLICIT)
    (m / "7").mkdir()
    np.save(m / "7/a.npy", np.arange(3))
    commit(m / "7")
    assert trees.committed(tmp_path / "empty") == ["7"]


def test_empty_step(writable, mount, root):
    (writable / "7").mkdir()
    commit(writable / "7")
    writable.stop()
    assert os.listdir(mount(root) / "7") == []


# --- names beside views


def test_files_named_as_views(writable, mount, root):
    """A file whose name is also that of another's view is a file: while staged, when a committed step is changed, and
    afterwards.
    """
    step = writable / "7"
    step.mkdir()
    np.save(step / "w.npy", np.arange(4))
    (step / "lr.json").write_text("0.5\n")
    names = ["w", "w.txt", "w.meta.json", "w@0:2", "lr", "lr.txt", "lr.meta.json", "notes.txt"]
    for name in names[::2]:
        with open(step / name, "x") as f:
            f.write(f"my {name}")
    os.mkdir(step / "d")
    (step / "d.safetensors").write_text("no tensors")
    (step / "d/.tree.json").write_text("{}")
    commit(step)
    assert (step / "w.txt").read_text().startswith("dtype") and (step / "w@0:2").stat().st_size == 16
    for name in names[1::2]:
        (step / name).write_text(f"my {name}")  # opens what is a view now
    run("bash", "-c", "echo 1 > new; mv new lr.npy", cwd=step)
    run("cp", "/dev/null", step / "d/.safetensors")
    commit(step)
    writable.stop()
    m = mount(root)
    for name in names:
        assert (m / "7" / name).read_text() == f"my {name}"
    assert (m / "7/lr.npy").read_text() == "1\n" and (m / "7/d.safetensors").read_text() == "no tensors"
    assert sorted(os.listdir(m / "7")) == sorted([*names, "w.npy", "lr.json", "lr.npy", "d", "d.safetensors"])
    assert (
        sorted(os.listdir(m / "7/d")) == [".safetensors", ".tree.json"] and (m / "7/d/.tree.json").read_text() == "{}"
    )


def test_no_views_of_a_staged_step(writable):
    """A staged step is an ordinary tree: names that are not there are not there."""
    step = writable / "7"
    step.mkdir()
    np.save(step / "w.npy", np.arange(4))
    for name in ("w", "w.txt", "w@0", "w.meta.json", ".tree.json"):
        with fails(errno.ENOENT):
            os.stat(step / name)


# --- much of it


@pytest.mark.slow
def test_many_leaves(mount, root, tmp_path):
    source = trees.make_tree(tmp_path / "tree", small=10_000, large=0)
    m = mount(root, "settle=1")
    run("cp", "-a", source, m / "7", limit=200)
    wait_committed(m / "7", 120)
    run("rsync", "-a", f"{source}/", f"{m.top}/8/", limit=200)
    run("sync", m / "8", limit=200)
    m.stop()
    assert len(trees.objects(root)) < 1000  # small ones share
    m = mount(root, EXPLICIT)
    want = trees.listing(source)
    for step in "78":
        trees.compare(trees.listing(m / step), want)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_gigabytes(mount, root, tmp_path):
    """One leaf of 2 GB that does not compress, and one that does."""
    path = tmp_path / "large"
    path.mkdir()
    a = np.lib.format.open_memmap(path / "noise.npy", "w+", np.float32, (500, 1_000_000))
    for n in range(500):
        a[n] = trees.floats(1_000_000, n)
    del a
    a = np.lib.format.open_memmap(path / "zeros.npy", "w+", np.float32, (500, 1_000_000))
    a[::7] = 1
    del a
    m = mount(root, EXPLICIT, patience=800)
    run("cp", "-r", path, m / "7", limit=300)
    run("sync", m / "7", limit=300)
    m.stop()
    m = mount(root, "ro", patience=800)
    for name in ("noise.npy", "zeros.npy"):
        run("cmp", path / name, m / "7" / name, limit=300)
    trees.run(util.CKPTFS, "verify", root, limit=300)
    b = np.load(m / "7/noise@137,1000:2000.npy")
    assert (b == trees.floats(1_000_000, 137)[1000:2000]).all()
