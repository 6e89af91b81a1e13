"""Random operations on a step and on a plain directory, side by side: both must be the same all the time.

MODEL_SEED repeats a run (it is printed), MODEL_OPS is the number of operations.
"""

import errno
import fcntl
import io
import math
import mmap
import os
import random
import stat
import time

import numpy as np
import pytest

import trees
from trees import EXPLICIT, commit, is_committed, state

OPERATIONS = int(os.environ.get("MODEL_OPS", 1500))
SEED = int(os.environ.get("MODEL_SEED", time.time_ns() % 1_000_000_007))
BETWEEN_COMMITS = 120
FILES = [f"f{n}" for n in range(6)] + [
    "a b",
    "\u00fc%2F",
    "model.safetensors",
    "x.npy",
    "y.npy",
    "v.json",
    "-r",
    "l" * 200,
]
FOLDERS = ["d0", "d1", "e \u00e4"]


class Failed(Exception):
    pass


def attempt(call, *args, **kwargs):
    """What a call gives: its result, or its errno."""
    try:
        return "ok", call(*args, **kwargs)
    except OSError as e:
        return "error", errno.errorcode[e.errno]


class Sides:
    """The plain directory and the mount's step. Every operation is made on both and must give the same."""

    def __init__(self, rng, plain, step):
        self.rng, self.tops = rng, [plain, step]
        self.open = []  # (plain's descriptor, step's, path, may write)
        self.trace = []

    def both(self, what, *calls):
        """The same call on each side, plain first."""
        self.trace.append(what)
        results = [attempt(call) for call in calls]
        kinds = [
            (r[0], r[1] if r[0] == "error" or isinstance(r[1], (bytes, int, tuple, list)) else None) for r in results
        ]
        if kinds[0] != kinds[1]:
            raise Failed(f"{what}: plain {str(kinds[0])[:300]}, step {str(kinds[1])[:300]}")
        return results

    def paths(self, relative):
        return [os.path.join(top, relative) if relative else top for top in self.tops]

    def on_paths(self, what, relative, call):
        a, b = self.paths(relative)
        return self.both(f"{what} {relative!r}", lambda: call(a), lambda: call(b))

    # --- choices

    def folders(self):
        found = [""]
        for below, folders, _ in os.walk(self.tops[0]):
            found += [os.path.relpath(os.path.join(below, f), self.tops[0]) for f in folders]
        return found

    def files(self):
        return [
            os.path.relpath(os.path.join(below, f), self.tops[0]) for below, _, fs in os.walk(self.tops[0]) for f in fs
        ]

    def a_folder(self):
        folders = self.folders()
        return self.rng.choice(folders)

    def a_name(self):
        """A path that may or may not be there."""
        return os.path.join(self.a_folder(), self.rng.choice(FILES if self.rng.random() < 0.85 else FOLDERS))

    def a_file(self):
        files = self.files()
        return self.rng.choice(files) if files and self.rng.random() < 0.85 else self.a_name()

    def some_bytes(self):
        size = self.rng.choice([0, 1, 10, 100, 4096, 5000, 65536, 70_000, 200_000])
        size = self.rng.randint(0, size)
        return self.rng.randbytes(size) if self.rng.random() < 0.7 else bytes(size)

    def an_offset(self, top=150_000):
        return self.rng.choice([0, 1, 4095, 4096, self.rng.randrange(top)])

    # --- operations

    def create(self):
        flags = (
            os.O_CREAT
            | self.rng.choice([os.O_RDWR, os.O_WRONLY, os.O_RDWR])
            | self.rng.choice([0, os.O_EXCL, os.O_TRUNC, os.O_APPEND])
        )
        self.open_with(self.a_name(), flags, self.rng.choice([0o644, 0o600, 0o755, 0o444, 0o640]))

    def open_file(self):
        self.open_with(
            self.a_file(),
            self.rng.choice([os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_APPEND]),
            0,
        )

    def open_with(self, path, flags, mode):
        if len(self.open) >= 6:
            self.close()
        a, b = self.on_paths(f"open {flags:o} {mode:o}", path, lambda p: Descriptor(os.open(p, flags, mode)))
        if a[0] == "ok":
            self.open.append((a[1].number, b[1].number, path, bool(flags & (os.O_RDWR | os.O_WRONLY))))

    def close(self):
        if self.open:
            a, b, path, _ = self.open.pop(self.rng.randrange(len(self.open)))
            self.both(f"close {path!r}", lambda: os.close(a), lambda: os.close(b))

    def descriptor(self, what, call):
        if self.open:
            a, b, path, _ = self.rng.choice(self.open)
            self.both(f"{what} at open {path!r}", lambda: call(a), lambda: call(b))

    def write(self):
        data, offset = self.some_bytes(), self.an_offset()
        self.descriptor(f"pwrite {len(data)}@{offset}", lambda fd: os.pwrite(fd, data, offset))

    def write_on(self):
        data = self.some_bytes()
        self.descriptor(f"write {len(data)}", lambda fd: os.write(fd, data))

    def read(self):
        size, offset = self.rng.choice([1, 100, 5000, 300_000]), self.an_offset(300_000)
        self.descriptor(f"pread {size}@{offset}", lambda fd: os.pread(fd, size, offset))

    def truncate_open(self):
        size = self.rng.choice([0, self.an_offset(), self.an_offset(300_000)])
        self.descriptor(f"ftruncate {size}", lambda fd: os.ftruncate(fd, size))

    def stat_open(self):
        self.descriptor("fstat", lambda fd: about(os.fstat(fd)))

    def chmod_open(self):
        mode = self.rng.choice([0o600, 0o644, 0o755])
        self.descriptor(f"fchmod {mode:o}", lambda fd: os.fchmod(fd, mode))

    def sync_open(self):
        self.descriptor("fsync", os.fsync)

    def map_open(self):
        """Write through a mapping."""
        offset, data = self.an_offset(), self.rng.randbytes(50)

        def change(fd):
            size = os.fstat(fd).st_size
            if size < 100 or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
                return 0
            with mmap.mmap(fd, size) as view:
                at = offset % (size - 50)
                was = view[at : at + 50]
                view[at : at + 50] = data
            return was

        self.descriptor(f"mmap {offset}", change)

    def allocate(self):
        size, offset = self.rng.choice([1, 5000, 100_000]), self.an_offset()
        self.descriptor(f"posix_fallocate {size}@{offset}", lambda fd: os.posix_fallocate(fd, offset, size))

    def whole_file(self):
        """Written at one go, as most tools do."""
        data = self.some_bytes()
        path = self.a_name()

        def put(p):
            with open(p, "wb") as f:
                f.write(data)

        self.on_paths(f"put {len(data)}", path, put)

    def whole_array(self):
        a = np.full(
            self.rng.choice([0, 3, 1000, 50_000]), self.rng.randrange(100), self.rng.choice(["<f4", "<u2", "i1"])
        )
        path = os.path.join(self.a_folder(), self.rng.choice(["x.npy", "y.npy"]))
        self.on_paths("np.save", path, lambda p: np.save(p, a) if not os.path.isdir(p) else None)

    def replace(self):
        """Beside, then renamed over."""
        data, path = self.some_bytes(), self.a_name()

        def put(p):
            beside = os.path.join(os.path.dirname(p), ".beside")
            with open(beside, "wb") as f:
                f.write(data)
            try:
                os.replace(beside, p)
            except OSError:
                os.unlink(beside)
                raise

        self.on_paths(f"replace {len(data)}", path, put)

    def read_whole(self):
        def get(p):
            with open(p, "rb") as f:
                return f.read()

        self.on_paths("read", self.a_file(), get)

    def append(self):
        data = self.some_bytes()

        def add(p):
            with open(p, "ab") as f:
                f.write(data)

        self.on_paths(f"append {len(data)}", self.a_file(), add)

    def truncate(self):
        size = self.rng.choice([0, self.an_offset(300_000)])
        # to the length that a file has already: whether that is a change is not said
        self.on_paths(
            f"truncate {size}",
            self.a_file(),
            lambda p: os.truncate(p, size + (os.path.isfile(p) and os.path.getsize(p) == size)),
        )

    def rename(self):
        self.two_paths(
            "rename", self.a_file() if self.rng.random() < 0.8 else self.a_folder() or "d0", self.a_name(), os.rename
        )

    def link(self):
        self.two_paths("link", self.a_file(), self.a_name(), os.link)

    def two_paths(self, what, path, other, call):
        (a, b), (c, d) = self.paths(path), self.paths(other)
        self.both(f"{what} {path!r} to {other!r}", lambda: call(a, c), lambda: call(b, d))

    def unlink(self):
        self.on_paths("unlink", self.a_file() if self.rng.random() < 0.9 else self.a_name(), os.unlink)

    def mkdir(self):
        if len(self.folders()) < 12:
            self.on_paths(
                "mkdir", os.path.join(self.a_folder(), self.rng.choice(FOLDERS)), lambda p: os.mkdir(p, 0o750)
            )

    def rmdir(self):
        path = self.a_folder()
        if path:
            self.on_paths("rmdir", path, os.rmdir)

    def chmod(self):
        mode = self.rng.choice([0o600, 0o644, 0o755, 0o400, 0o777])
        path = self.a_file() if self.rng.random() < 0.7 else self.a_folder()
        if path:
            self.on_paths(f"chmod {mode:o}", path, lambda p: os.chmod(p, mode))

    def times(self):
        t = self.rng.randrange(1_600_000_000 * 10**9, 1_700_000_000 * 10**9)
        path = self.a_file() if self.rng.random() < 0.75 else self.a_folder() or self.a_file()
        self.on_paths(f"utime {t}", path, lambda p: (os.utime(p, ns=(t, t)), os.stat(p).st_mtime_ns)[1])

    def list(self):
        self.on_paths("list", self.a_folder(), lambda p: sorted(os.listdir(p)))

    def stat(self):
        self.on_paths("stat", self.a_name(), lambda p: about(os.stat(p)))

    def attribute(self):
        name, value = self.rng.choice(["user.a", "user.b"]), self.rng.randbytes(10)
        path = self.a_file()
        self.on_paths(f"setxattr {name}", path, lambda p: os.setxattr(p, name, value))
        self.on_paths("listxattr", path, own_attributes)

    def copy_range(self):
        """From one open file into another."""
        if len(self.open) < 2:
            return
        (a, b, path, _), (c, d, other, _) = self.rng.sample(self.open, 2)
        count, there, here = self.rng.choice([100, 10_000, 200_000]), self.an_offset(), self.an_offset()

        def copy(source, target):
            if os.path.sameopenfile(source, target):
                return 0
            done = 0
            while done < count:
                n = os.copy_file_range(source, target, count - done, here + done, there + done)
                if not n:
                    break
                done += n
            return done

        self.both(
            f"copy_file_range {count} of {path!r}@{here} to {other!r}@{there}", lambda: copy(a, c), lambda: copy(b, d)
        )

    WEIGHTS = {
        create: 8,
        open_file: 8,
        close: 6,
        write: 14,
        write_on: 5,
        read: 6,
        truncate_open: 4,
        stat_open: 2,
        chmod_open: 1,
        sync_open: 1,
        map_open: 3,
        allocate: 2,
        whole_file: 8,
        whole_array: 3,
        replace: 5,
        read_whole: 4,
        append: 4,
        truncate: 4,
        rename: 9,
        link: 4,
        unlink: 5,
        mkdir: 4,
        rmdir: 3,
        chmod: 3,
        times: 3,
        list: 2,
        stat: 4,
        attribute: 2,
        copy_range: 3,
    }

    def one(self):
        self.rng.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()))[0](self)

    # --- the whole

    def close_all(self):
        while self.open:
            self.close()

    def compare(self, links=True, times=True):
        a, b = (state_of(top, links, times) for top in self.tops)
        missing, more = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
        if missing or more:
            raise Failed(f"missing {missing}, not expected {more}")
        for path in sorted(a):
            if a[path] != b[path]:
                raise Failed(f"{path!r}: {b[path]}, wanted {a[path]}")

    def repair(self):
        """Before a commit: what would be refused is made acceptable on both sides."""
        for path in self.files():
            if path.endswith(".npy"):
                with open(os.path.join(self.tops[0], path), "rb") as f:
                    data = f.read()
                if MAGIC.startswith(data[:6]) and not is_whole(data):
                    self.on_paths("unlink before the commit", path, os.unlink)

    def separate_links(self):
        """What has several names in the plain directory is several files in a committed step."""
        for path in self.files():
            name = os.path.join(self.tops[0], path)
            st = os.stat(name)
            if st.st_nlink > 1:
                with open(name, "rb") as f:
                    data = f.read()
                attributes = own_attributes(name)
                beside = name.rsplit("/", 1)[0] + "/.beside"
                folder = os.stat(os.path.dirname(name))
                with open(beside, "wb") as f:
                    f.write(data)
                os.chmod(beside, stat.S_IMODE(st.st_mode))
                for attribute, value in attributes:
                    os.setxattr(beside, attribute, value)
                os.utime(beside, ns=(st.st_atime_ns, st.st_mtime_ns))
                os.rename(beside, name)
                os.utime(os.path.dirname(name), ns=(folder.st_atime_ns, folder.st_mtime_ns))


MAGIC = b"\x93NUMPY"


def is_whole(data):
    """Is it a complete NumPy file?"""
    f = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(f)
        shape, _, dtype = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ](f)
    except Exception:  # whatever NumPy stumbles over
        return False
    return len(data) - f.tell() == math.prod(shape) * dtype.itemsize


class Descriptor:
    """So that numbers of open files are not compared."""

    def __init__(self, number):
        self.number = number


def about(st):
    return (
        stat.S_IFMT(st.st_mode),
        stat.S_IMODE(st.st_mode),
        st.st_size if stat.S_ISREG(st.st_mode) else 0,
        st.st_nlink if stat.S_ISREG(st.st_mode) else 0,
    )


def own_attributes(path):
    return [
        (name, os.getxattr(path, name))
        for name in sorted(os.listxattr(path))
        if name.startswith("user.") and not name.startswith("user.ckpt.")
    ]


OLD = 1_700_000_000 * 10**9  # set by hand; anything later is the clock's


def state_of(top, links, times):
    found = {}
    for path, e in trees.listing(top, top=False).items():
        name = os.path.join(os.fsencode(top), path)
        found[path] = (
            e._replace(mtime=e.mtime if times and e.mtime < OLD else 0),
            os.lstat(name).st_nlink if links and e.kind == "file" else 0,
            own_attributes(name),
        )
    return found


def play(sides, count):
    try:
        for n in range(count):
            sides.one()
            if n % 40 == 39:
                sides.compare()
    except Failed as e:
        pytest.fail(f"MODEL_SEED={SEED}: {e}\nlast operations:\n" + "\n".join(sides.trace[-25:]), pytrace=False)


def checked(sides, what, call):
    try:
        return call()
    except (Failed, OSError) as e:
        pytest.fail(f"MODEL_SEED={SEED}: {what}: {e}\nlast operations:\n" + "\n".join(sides.trace[-25:]), pytrace=False)


@pytest.mark.parametrize("options", [[EXPLICIT], [EXPLICIT, "codec=lz4"]], ids=["auto", "lz4"])
def test_random_operations(mount, root, tmp_path, options):
    print(f"MODEL_SEED={SEED} MODEL_OPS={OPERATIONS}")
    rng = random.Random(f"{SEED} {options}")
    plain = tmp_path / "plain"
    plain.mkdir()
    m = mount(root, *options)
    os.mkdir(m / "7")
    done = turn = 0
    while done < OPERATIONS:
        sides = Sides(rng, str(plain), str(m / "7"))
        # from here on it is staged: whoever has a file of a committed step open sees no change of it, which is not what
        # plain files do
        checked(sides, "first change", lambda: sides.on_paths("utime", "", lambda p: os.utime(p)))
        count = min(BETWEEN_COMMITS, OPERATIONS - done)
        try:
            play(sides, count)
            done += count
            checked(sides, "before closing", sides.compare)
            if turn % 3 == 2:  # readers may stay
                for a, b, path, writes in [o for o in sides.open if o[3]]:
                    os.close(a), os.close(b)
                    sides.open.remove((a, b, path, writes))
            else:
                sides.close_all()
            checked(sides, "repair", sides.repair)
            if turn % 4 == 3:  # first with a remount while it is staged
                sides.close_all()
                m.stop()
                m = mount(root, *options)
                sides.tops[1] = str(m / "7")
                assert state(m / "7") == "staged"
                checked(sides, "staged, remounted", sides.compare)
            before = [(b, os.pread(b, 1 << 20, 0)) for _, b, _, _ in sides.open if stat.S_ISREG(os.fstat(b).st_mode)]
            checked(sides, "commit", lambda: commit(m / "7"))
            assert is_committed(m / "7")
            sides.separate_links()
            checked(sides, "committed", lambda: sides.compare(links=False))
            for fd, data in before:
                if os.pread(fd, 1 << 20, 0) != data:
                    pytest.fail(f"MODEL_SEED={SEED}: a reader's file changed by the commit")
        finally:
            for a, b, _, _ in sides.open:
                os.close(a), os.close(b)
        if turn % 2:
            m.stop()
            m = mount(root, *options)
            sides = Sides(rng, str(plain), str(m / "7"))
        checked(sides, "afterwards", lambda: sides.compare(links=False))
        turn += 1
    trees.verify(root)


# --- one file


def test_one_file(writable):
    """As fsx does it: reads, writes, truncations, mappings and copies on one staged file, against a buffer."""
    print(f"MODEL_SEED={SEED}")
    rng = random.Random(SEED)
    most = 300_000
    step = writable / "7"
    step.mkdir()
    path, shadow, trace = step / "file.bin", bytearray(), []
    path.write_bytes(b"")
    fd = os.open(path, os.O_RDWR)

    def same(got, offset, size, what):
        want = bytes(shadow[offset : offset + size])
        if got != want:
            at = next((n for n, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
            pytest.fail(
                f"MODEL_SEED={SEED}: {what} {size}@{offset}: differs at {offset + at}, "
                f"{len(got)} bytes, wanted {len(want)}\n" + "\n".join(trace[-20:]),
                pytrace=False,
            )

    def grow(size):
        if len(shadow) < size:
            shadow.extend(bytes(size - len(shadow)))

    try:
        for n in range(OPERATIONS):
            what = rng.choices(
                [
                    "read",
                    "write",
                    "truncate",
                    "map read",
                    "map write",
                    "append",
                    "punch",
                    "zero",
                    "reopen",
                    "commit",
                    "copy",
                    "check",
                ],
                [20, 20, 6, 12, 12, 3, 2, 2, 2, 1, 3, 2],
            )[0]
            offset = rng.randrange(most)
            size = rng.choice(
                [rng.randint(1, 100), rng.randint(1, 5000), rng.randint(1, most - offset) if most > offset else 1]
            )
            size = min(size, most - offset)
            trace.append(f"{what} {size}@{offset} of {len(shadow)}")
            if what == "read":
                same(os.pread(fd, size, offset), offset, size, what)
            elif what == "write":
                data = rng.randbytes(size)
                assert os.pwrite(fd, data, offset) == size
                grow(offset + size)
                shadow[offset : offset + size] = data
            elif what == "append" and len(shadow) + 500 < most:
                with open(path, "ab") as f:
                    f.write(b"appended")
                shadow += b"appended"
            elif what == "truncate":
                os.ftruncate(fd, offset) if rng.random() < 0.5 else os.truncate(path, offset)
                grow(offset)
                del shadow[offset:]
            elif what in ("map read", "map write") and offset < len(shadow):
                size = min(size, len(shadow) - offset)
                with mmap.mmap(fd, len(shadow)) as view:
                    if what == "map read":
                        same(view[offset : offset + size], offset, size, what)
                    else:
                        data = rng.randbytes(size)
                        view[offset : offset + size] = data
                        shadow[offset : offset + size] = data
            elif what in ("punch", "zero") and offset < len(shadow):
                size = min(size, len(shadow) - offset)
                if fallocate(
                    fd, 3 if what == "punch" else 0x11, offset, size
                ):  # FALLOC_FL_PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE
                    shadow[offset : offset + size] = bytes(size)
            elif what == "copy" and shadow:
                there = rng.randrange(most)
                size = min(size, len(shadow) - offset, most - there)
                if offset < len(shadow) and size > 0 and not (offset - size < there < offset + size):
                    done = 0
                    while done < size:
                        moved = os.copy_file_range(fd, fd, size - done, offset + done, there + done)
                        assert moved > 0, trace[-20:]
                        done += moved
                    grow(there + size)
                    shadow[there : there + size] = shadow[offset : offset + size]
            elif what == "reopen":
                os.close(fd)
                fd = -1
                fd = os.open(path, os.O_RDWR)
            elif what == "commit":
                os.close(fd)
                fd = -1
                commit(step)
                assert path.read_bytes() == shadow
                fd = os.open(path, os.O_RDWR)
            elif what == "check":
                assert os.fstat(fd).st_size == os.stat(path).st_size == len(shadow), trace[-20:]
        same(os.pread(fd, most + 1, 0), 0, most + 1, "all")
    finally:
        if fd >= 0:
            os.close(fd)
    commit(step)
    assert path.read_bytes() == shadow


def fallocate(fd, mode, offset, size):
    """True if it was done, False if the file system cannot."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size)) == 0:
        return True
    assert ctypes.get_errno() in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL), os.strerror(ctypes.get_errno())
    return False
