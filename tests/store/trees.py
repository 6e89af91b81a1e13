"""What the tests of the store put into steps, and how they look at steps and at the store itself."""

import collections
import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np

import util

MIB = 1 << 20
SETTLED = 20  # seconds within which a step with settle=1 must have committed itself
EXPLICIT = "commit=explicit"


# --- commands


def run(*command, check=0, limit=util.LIMIT, **kwargs):
    """Run an ordinary tool; its output as text. check: the exit status to expect, None for any."""
    kwargs.setdefault("env", {**os.environ, "LC_ALL": "C.UTF-8"})
    done = subprocess.run(
        [c if isinstance(c, bytes) else str(c) for c in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=limit,
        umask=0o022,
        **kwargs,
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert check is None or done.returncode == check, f"{command[0]}: exit {done.returncode}: {said[:4000]}"
    return done.stdout.decode(errors="replace") if check is not None else done


# --- steps


def commit(step):
    """As `sync STEP` does it: returns when the step is on stable storage."""
    fd = os.open(step, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def attribute(path, name):
    """An attribute as text, None where there is none."""
    try:
        return os.getxattr(path, f"user.ckpt.{name}").decode()
    except OSError:
        return None


def state(step):
    return attribute(step, "state")


def is_committed(step):
    return state(step) == "committed"


def steps(m):
    """The names of the steps that a mount lists."""
    return sorted(name for name in os.listdir(m.top) if name not in ("latest", "best"))


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def array(path, a, version=None):
    """A NumPy file, of the bytes that np.save writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        np.lib.format.write_array(f, a, version=version)


def noise(nbytes, seed=0):
    """Bytes that do not compress."""
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8).tobytes()


def noise_array(count, seed=0):
    """An array that does not compress, whatever the filter."""
    return np.random.default_rng(seed).integers(0, 1 << 32, count, np.uint32)


def floats(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


# --- trees of files

Entry = collections.namedtuple("Entry", "kind mode mtime size digest")


def entry(path):
    st = os.lstat(path)
    if stat.S_ISDIR(st.st_mode):
        return Entry("directory", stat.S_IMODE(st.st_mode), st.st_mtime_ns, 0, "")
    assert stat.S_ISREG(st.st_mode), path
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return Entry("file", stat.S_IMODE(st.st_mode), st.st_mtime_ns, st.st_size, digest)


def listing(folder, top=True):
    """{relative path as bytes: Entry} of all that is below a folder, and of itself (b"")."""
    folder = os.fsencode(folder)
    found = {b"": entry(folder)} if top else {}
    for below, folders, files in os.walk(folder, onerror=fail):
        for name in folders + files:
            path = os.path.join(below, name)
            found[os.path.relpath(path, folder)] = entry(path)
    return found


def fail(error):
    raise error


def compare(got, want, modes=True, times=True):
    """Two listings must be equal; says what differs."""

    def kept(e):
        return e._replace(mode=e.mode if modes else 0, mtime=e.mtime if times else 0)

    missing, more = sorted(want.keys() - got.keys()), sorted(got.keys() - want.keys())
    assert not missing and not more, f"missing {missing[:10]}, not expected {more[:10]}"
    other = [(name, kept(got[name]), kept(want[name])) for name in sorted(want) if kept(got[name]) != kept(want[name])]
    assert not other, "\n".join(f"{name!r}: {a}, wanted {b}" for name, a, b in other[:10])


ODD_NAMES = [
    "with space.npy",
    "100%.npy",
    "per%2Fcent.npy",
    "wei\u00df-\u65e5\u672c\u8a9e.npy",
    "x" * 196 + ".npy",
    "\u00e9" * 98 + ".npy",
    "-leading.npy",
    "new\nline.txt",
    "tab\t.json",
    "back\\slash.npy",
    "quote'\".txt",
    "star*?[0].npy",
    "mail@host.npy",
    "trailing.",
    "...",
    ".hidden",
    ".hidden.npy",
    "latest",
    ".ckptfs",
    ".tree.json.txt",
    "\udcff\udcfe.bin",
    "%",
    "%.npy",
    "~",
    "#1#",
]


def odd_files(folder):
    for n, name in enumerate(ODD_NAMES):
        if name.endswith(".npy"):
            array(folder / name, np.arange(n + 1, dtype=np.int16))
        elif name.endswith(".json"):
            put(folder / name, f"{n}\n")
        else:
            put(folder / name, f"file {n}")


def arrays(folder):
    """One of each kind of array that a .npy file can hold."""
    folder.mkdir(parents=True)
    for dtype in ("bool", "int8", "uint16", "int64", "float16", "float32", "float64", "complex64"):
        array(folder / f"{dtype}.npy", np.arange(12).astype(dtype).reshape(3, 4))
    array(folder / "big_endian.npy", np.arange(6, dtype=">f4"))
    array(folder / "fortran.npy", np.asfortranarray(np.arange(12.0).reshape(3, 4)))
    array(folder / "scalar.npy", np.array(2.5))
    array(folder / "nothing.npy", np.empty((0, 3), np.float32))
    array(folder / "text.npy", np.array(["one", "four"]))
    array(folder / "fields.npy", np.array([(1, 2.0)], [("a", "<i4"), ("b", "<f8")]))
    array(folder / "version2.npy", np.arange(5), (2, 0))
    array(folder / "version3.npy", np.arange(5), (3, 0))
    np.save(folder / "bfloat16.npy", np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3))
    np.save(folder / "float8.npy", np.arange(6, dtype=ml_dtypes.float8_e4m3fn))
    np.save(folder / "float8_e5m2.npy", np.arange(6, dtype=ml_dtypes.float8_e5m2))  # '<f1', which np.load does not know
    np.save(folder / "object.npy", np.array([{}], object), allow_pickle=True)
    put(folder / "not_an_array.npy", "hello")


VALUES = {
    "none": "null\n",
    "true": "true\n",
    "false": "false\n",
    "int": "12\n",
    "negative": "-1\n",
    "float": "0.001\n",
    "string": '"adam"\n',
    "nan": "NaN\n",
    "infinity": "-Infinity\n",
    "big": f"{10**30}\n",
    "no_newline": "7",
    "spaces": "  1.50  \n",
    "exponent": "1E3",
    "unicode": '"\u65e5\u672c"\n',
    "escaped": '"\\u00e9\\n"\n',
    "empty_string": '""',
}
JSON_BLOBS = {"object": '{"loss": 0.5}', "list": "[1, 2]", "broken": "{", "empty": "", "two": "1 2"}


def make_tree(folder, small=300, large=40_000_000):
    """A tree of every kind of leaf and directory. Its modes are those that a umask of 022 leaves; times are odd
    ones.
    """
    folder.mkdir(parents=True)
    array(folder / "params/dense/kernel.npy", floats((64, 32)))
    np.save(folder / "params/dense/bias.npy", np.arange(32, dtype=ml_dtypes.bfloat16))
    array(folder / "params/w.npy", floats((100, 7), 1))
    array(folder / "params/w/inner.npy", floats(3, 2))  # a directory where the raw view of w.npy would be
    for n in range(11):
        array(folder / f"opt/{n}/mu.npy", floats((16, 16), n))
    (folder / "opt/11").mkdir()
    put(folder / "tuple/0.json", "1\n")
    put(folder / "tuple/1.json", "null\n")
    for name, text in (VALUES | JSON_BLOBS).items():
        put(folder / f"values/{name}.json", text)
    for n in range(small):
        array(folder / f"many/{n // 100}/leaf_{n:05}.npy", np.full(n % 50, n, np.int32))
    (folder / "empty/nested/deeper").mkdir(parents=True)
    put(folder / ("/".join(["deep"] * 40) + "/x.json"), "1\n")
    arrays(folder / "arrays")
    odd_files(folder / "odd")
    put(folder / "notes.txt", "hello\n")
    put(folder / "nothing.bin", b"")
    put(folder / "noise.bin", noise(300_000))
    put(folder / "repeated.bin", b"0123456789abcdef" * 100_000)
    with open(folder / "holes.bin", "wb") as f:
        f.truncate(3 * MIB)
        f.seek(MIB)
        f.write(b"in the middle")
    put(folder / "script", "#!/bin/sh\n")
    if large:
        array(folder / "large.npy", floats(large // 4, 5))
    array(folder / "zeros.npy", np.zeros((1000, 1000), np.float32))
    for name, mode in (
        ("script", 0o755),
        ("notes.txt", 0o600),
        ("noise.bin", 0o444),
        ("empty", 0o700),
        ("empty/nested", 0o555),
    ):
        os.chmod(folder / name, mode)
    for name, kind in (("opt", "list"), ("tuple", "tuple")):
        os.setxattr(folder / name, "user.ckpt.kind", kind.encode())
    old_times(folder)
    return folder


def old_times(folder):
    """Times long ago, another for each file, with nanoseconds."""
    for n, (below, folders, files) in enumerate(os.walk(folder, topdown=False)):
        for k, name in enumerate([*files, ""]):
            t = (1_600_000_000 + n * 1000 + k) * 10**9 + 123_456_789 + k
            os.utime(os.path.join(below, name), ns=(t, t), follow_symlinks=False)


# --- the store's own files


def store(root):
    return Path(root) / ".ckptstore"


def manifest(root, name):
    """A committed step's manifest, None if there is none."""
    try:
        return json.loads((store(root) / f"steps/{name}.json").read_bytes())
    except FileNotFoundError:
        return None


def committed(root):
    """The names of the steps that are committed, by the store's files alone."""
    return sorted(name.removesuffix(".json") for name in os.listdir(store(root) / "steps") if name.endswith(".json"))


def objects(root):
    """{hash: bytes on disk} of the payloads; sums files count as bytes of their payload."""
    found = collections.Counter()
    for below, _, files in os.walk(store(root) / "objects"):
        for name in files:
            found[name.removesuffix(".sums")] += os.lstat(os.path.join(below, name)).st_size
    return dict(found)


def needed(root):
    """The hashes of all payloads that manifests name."""
    return {
        node.get("object", node["sha256"])
        for name in committed(root)
        for node in manifest(root, name)["nodes"]
        if node["kind"] != "dir" and "text" not in node
    }


def disk_usage(root):
    """Bytes that the store takes, staged steps included; a file with several links counts once."""
    seen, total = set(), 0
    for below, _, files in os.walk(store(root)):
        for name in files:
            try:
                st = os.lstat(os.path.join(below, name))
            except FileNotFoundError:
                continue
            if st.st_ino not in seen:
                seen.add(st.st_ino)
                total += st.st_blocks * 512
    return total


def snapshot(root):
    """All that is committed, as the store's files have it: to tell that nothing has changed."""
    return {name: (store(root) / f"steps/{name}.json").read_bytes() for name in committed(root)}, objects(root)


def check_hashes(m, name):
    """Every leaf of a committed step has the bytes that its manifest's SHA-256 tells."""
    paths = [""]
    for node in manifest(m.source, name)["nodes"]:
        path = os.path.join(paths[node["parent"]], node["name"])
        paths.append(path)
        if node["kind"] != "dir":
            data = (m / name / path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == node["sha256"] and len(data) == node["size"], path


def verify(root):
    """Every committed byte against its checksums, read by a command without a mount."""
    util.ckptfs("verify", root)


def wait_committed(step, limit=SETTLED):
    util.wait_for(lambda: is_committed(step), limit)
