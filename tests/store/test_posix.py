"""A staged step is an ordinary POSIX tree. The groups are those of pjdfstest.

Not here, since they do not apply:
- symlink, mkfifo, mknod of special files, bind: EPERM in steps (test_commit.py), so there is no ELOOP, no lchmod and no
dangling link;
- chflags, granular (NFSv4 lists): not on Linux;
- chown as an ordinary user, sticky directories between users, suid bits that a write clears: a mount belongs to one
user unless
  allow_other is given; test_other_users has what the kernel checks from modes then;
- ETXTBSY and EROFS of single files, EXDEV between file systems, EFBIG by resource limits: the kernel's, before a file
system is asked;
- ENOSPC: tests that fill or fail the disk are elsewhere.
"""

import concurrent.futures
import ctypes
import errno
import fcntl
import os
import stat
import struct
import subprocess
import sys
import time

import pytest

import trees
import util
from trees import EXPLICIT, commit, run
from util import fails

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, NOREPLACE, EXCHANGE = -100, 1, 2


@pytest.fixture(scope="module")
def step(module_mount, tmp_path_factory):
    root = tmp_path_factory.mktemp("posix") / "root"
    root.mkdir()
    util.ckptfs("init", root)
    m = module_mount(root, EXPLICIT)
    (m / "7").mkdir()
    return m / "7"


@pytest.fixture
def here(step, request):
    """A directory of the test's own in a staged step, which nothing is left open in."""
    folder = step / request.node.name[:100].replace("/", "_")
    folder.mkdir()
    return folder


def renameat2(a, b, flags):
    if LIBC.renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def opened(path, flags, mode=0o644):
    """open, then close."""
    os.close(os.open(path, flags, mode))


@pytest.fixture
def umask():
    old = os.umask(0o022)
    yield
    os.umask(old)


class Times:
    """Which of a path's times have moved on since."""

    def __init__(self, path):
        self.path, self.was = path, os.stat(path)
        time.sleep(0.02)  # more than the clock's tick of the file systems below

    def moved(self):
        now = os.stat(self.path)
        return {
            name for name in ("mtime", "ctime") if getattr(now, f"st_{name}_ns") > getattr(self.was, f"st_{name}_ns")
        }


# --- open


def test_open_creates(here, umask):
    before = Times(here)
    fd = os.open(here / "f", os.O_CREAT | os.O_WRONLY, 0o755)
    st = os.fstat(fd)
    os.close(fd)
    assert (st.st_size, stat.S_IMODE(st.st_mode), st.st_nlink, st.st_uid, st.st_gid) == (
        0,
        0o755,
        1,
        os.geteuid(),
        os.getegid(),
    )
    assert before.moved() == {"mtime", "ctime"}
    opened(here / "g", os.O_CREAT | os.O_WRONLY, 0o151)
    assert mode(here / "g") == 0o151
    os.umask(0o077)
    opened(here / "h", os.O_CREAT | os.O_WRONLY, 0o777)
    assert mode(here / "h") == 0o700
    opened(here / "h", os.O_CREAT | os.O_WRONLY, 0o644)  # there already
    assert mode(here / "h") == 0o700


def test_open_excl(here):
    opened(here / "f", os.O_CREAT | os.O_EXCL)
    (here / "d").mkdir()
    for name in ("f", "d"):
        with fails(errno.EEXIST):
            os.open(here / name, os.O_CREAT | os.O_EXCL)


def test_open_excl_among_many(here):
    """One of many processes and threads gets the name."""

    def one(n):
        try:
            opened(here / f"f{n // 16}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            return True
        except FileExistsError:
            return False

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(one, range(320))) == 20


def test_open_trunc(here):
    (here / "f").write_bytes(b"x" * 100_000)
    before = Times(here / "f")
    fd = os.open(here / "f", os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0 and os.stat(here / "f").st_size == 0
    os.close(fd)
    assert before.moved() == {"mtime", "ctime"}
    (here / "f").write_bytes(b"y" * 10)
    assert (here / "f").read_bytes() == b"y" * 10
    with open(here / "f", "rb", buffering=0) as reader:
        opened(here / "f", os.O_RDWR | os.O_TRUNC)
        assert reader.read() == b""


def test_open_append(here):
    a = os.open(here / "f", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    b = os.open(here / "f", os.O_RDWR | os.O_APPEND)
    for n in range(50):
        os.write((a, b)[n % 2], b"%03d\n" % n)
        os.lseek(a, 0, os.SEEK_SET)
    os.pwrite(a, b"last", 0)  # Linux appends this too
    os.close(a)
    os.close(b)
    assert (here / "f").read_bytes() == b"".join(b"%03d\n" % n for n in range(50)) + b"last"


def test_append_by_many(here):
    """Lines that several processes append at once stay whole, and none is lost."""
    code = (
        "import os, sys\nfd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\n"
        "for n in range(200): os.write(fd, b'%s %06d\\n' % (sys.argv[2].encode(), n))"
    )
    opened(here / "f", os.O_CREAT)
    writers = [subprocess.Popen([sys.executable, "-c", code, here / "f", f"w{n}"]) for n in range(4)]
    assert [w.wait(60) for w in writers] == [0] * 4
    lines = (here / "f").read_text().splitlines()
    assert sorted(lines) == sorted(f"w{w} {n:06}" for w in range(4) for n in range(200))


def test_open_errors(here):
    (here / "f").write_text("x")
    (here / "d").mkdir()
    for path, flags, wanted in [
        ("none", os.O_RDONLY, errno.ENOENT),
        ("none/f", os.O_CREAT | os.O_WRONLY, errno.ENOENT),
        ("f/x", os.O_CREAT | os.O_WRONLY, errno.ENOTDIR),
        ("f/x", os.O_RDONLY, errno.ENOTDIR),
        ("d", os.O_WRONLY, errno.EISDIR),
        ("d", os.O_RDWR, errno.EISDIR),
        ("d", os.O_CREAT | os.O_RDWR, errno.EISDIR),
        ("d", os.O_RDONLY | os.O_TRUNC, errno.EISDIR),
        ("f", os.O_DIRECTORY, errno.ENOTDIR),
        ("x" * 256, os.O_CREAT | os.O_WRONLY, errno.ENAMETOOLONG),
        ("x" * 256, os.O_RDONLY, errno.ENAMETOOLONG),
        ("f/", os.O_RDONLY, errno.ENOTDIR),
        ("new/", os.O_CREAT | os.O_WRONLY, errno.EISDIR),
    ]:
        with fails(wanted):
            os.open(f"{here}/{path}", flags)
    opened(here / ("x" * 255), os.O_CREAT)
    opened(here / ("\u00e9" * 127), os.O_CREAT)
    assert sorted(map(len, os.listdir(os.fsencode(here)))) == [1, 1, 254, 255]
    with fails(errno.ENAMETOOLONG):
        os.stat("x/" * 2100)


def test_access_modes(here):
    (here / "f").write_bytes(b"abc")
    fd = os.open(here / "f", os.O_RDONLY)
    with fails(errno.EBADF):
        os.write(fd, b"x")
    with fails(errno.EINVAL):
        os.ftruncate(fd, 0)
    os.close(fd)
    fd = os.open(here / "f", os.O_WRONLY)
    with fails(errno.EBADF):
        os.read(fd, 1)
    os.close(fd)
    with fails(errno.EISDIR):
        fd = os.open(here, os.O_RDONLY)
        try:
            os.read(fd, 1)
        finally:
            os.close(fd)


def test_tmpfile(here):
    """A file without a name, where the kernel lets FUSE have them; else as on any file system that cannot."""
    try:
        fd = os.open(here, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as e:
        assert e.errno in (errno.EOPNOTSUPP, errno.EISDIR), e
        return
    os.write(fd, b"abc")
    assert os.pread(fd, 3, 0) == b"abc" and os.listdir(here) == []
    os.close(fd)


def test_direct(here):
    """O_DIRECT and O_SYNC are taken."""
    import mmap

    block = mmap.mmap(-1, 4096)
    block[:] = b"d" * 4096
    try:
        fd = os.open(here / "f", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    except OSError as e:
        assert e.errno == errno.EINVAL
        return
    assert os.writev(fd, [block]) == 4096
    assert os.preadv(fd, [block], 0) == 4096
    os.close(fd)
    fd = os.open(here / "f", os.O_WRONLY | os.O_SYNC)
    os.pwrite(fd, b"s", 4096)
    os.close(fd)
    assert (here / "f").read_bytes() == b"d" * 4096 + b"s"


# --- link


def test_link(here):
    (here / "a").write_bytes(b"one")
    before = Times(here / "a"), Times(here)
    os.link(here / "a", here / "b")
    assert before[0].moved() == {"ctime"} and before[1].moved() == {"mtime", "ctime"}
    a, b = os.stat(here / "a"), os.stat(here / "b")
    assert a.st_ino == b.st_ino and a.st_nlink == b.st_nlink == 2
    with open(here / "b", "ab") as f:
        f.write(b" two")
    os.chmod(here / "b", 0o600)
    os.truncate(here / "b", 6)
    assert (here / "a").read_bytes() == b"one tw" and mode(here / "a") == 0o600
    os.link(here / "b", here / "c")
    os.unlink(here / "a")
    assert os.stat(here / "b").st_nlink == os.stat(here / "c").st_nlink == 2
    os.unlink(here / "b")
    assert os.stat(here / "c").st_nlink == 1 and (here / "c").read_bytes() == b"one tw"


def test_link_errors(here):
    (here / "f").write_text("x")
    (here / "g").write_text("y")
    (here / "d").mkdir()
    for source, target, wanted in [
        ("none", "x", errno.ENOENT),
        ("f", "g", errno.EEXIST),
        ("f", "f", errno.EEXIST),
        ("f", "d", errno.EEXIST),
        ("d", "x", errno.EPERM),
        ("f", "none/x", errno.ENOENT),
        ("f", "g/x", errno.ENOTDIR),
        ("g/x", "x", errno.ENOTDIR),
        ("f", "x" * 256, errno.ENAMETOOLONG),
    ]:
        with fails(wanted):
            os.link(here / source, here / target)
    assert os.stat(here / "f").st_nlink == 1


# --- unlink


def test_unlink(here):
    (here / "f").write_text("x")
    os.link(here / "f", here / "g")
    before = Times(here), Times(here / "g")
    os.unlink(here / "f")
    assert before[0].moved() == {"mtime", "ctime"} and before[1].moved() == {"ctime"}
    with fails(errno.ENOENT):
        os.stat(here / "f")
    (here / "d").mkdir()
    for path, wanted in [
        ("f", errno.ENOENT),
        ("d", errno.EISDIR),
        ("g/x", errno.ENOTDIR),
        ("none/x", errno.ENOENT),
        ("x" * 256, errno.ENAMETOOLONG),
    ]:
        with fails(wanted):
            os.unlink(here / path)


def test_unlinked_open_file(here):
    """Stays readable and writable, is another file than a new one of its name, and is not in the step."""
    with open(here / "f", "w+b", buffering=0) as f:
        f.write(b"first")
        os.unlink(here / "f")
        assert os.fstat(f.fileno()).st_nlink == 0 and os.listdir(here) == []
        f.write(b" second")
        (here / "f").write_bytes(b"another")
        os.ftruncate(f.fileno(), 20)
        os.fchmod(f.fileno(), 0o600)
        assert os.pread(f.fileno(), 100, 0) == b"first second" + bytes(8)
        assert os.fstat(f.fileno()).st_ino != os.stat(here / "f").st_ino
        os.fsync(f.fileno())
    assert (here / "f").read_bytes() == b"another" and os.listdir(here) == ["f"]


def test_unlinked_file_does_not_hinder_a_commit(mount, tmp_path):
    """Nor is it in the step."""
    root = tmp_path / "root"
    root.mkdir()
    util.ckptfs("init", root)
    m = mount(root, EXPLICIT)
    (m / "7").mkdir()
    with open(m / "7/f", "w+b", buffering=0) as f:
        f.write(b"gone")
        os.unlink(m / "7/f")
        try:
            trees.commit(m / "7")
        except OSError as e:
            assert e.errno == errno.EBUSY  # open for writing, after all
        assert os.pread(f.fileno(), 10, 0) == b"gone"
    trees.commit(m / "7")
    assert os.listdir(m / "7") == []


# --- rename


def test_rename(here):
    (here / "a").write_bytes(b"a")
    (here / "d").mkdir()
    ino = os.stat(here / "a").st_ino
    before = Times(here), Times(here / "d")
    os.rename(here / "a", here / "d/b")
    assert before[0].moved() == before[1].moved() == {"mtime", "ctime"}
    assert os.stat(here / "d/b").st_ino == ino and not os.path.lexists(here / "a")
    (here / "c").write_bytes(b"c")
    with open(here / "c", "rb") as old:
        os.rename(here / "d/b", here / "c")  # over a file that is open
        assert (here / "c").read_bytes() == b"a" and old.read() == b"c" and os.fstat(old.fileno()).st_nlink == 0
    os.rename(here / "c", here / "c")
    assert os.listdir(here / "d") == []


def test_rename_of_an_open_file(here):
    with open(here / "a", "w+b", buffering=0) as f:
        f.write(b"one")
        os.rename(here / "a", here / "b")
        f.write(b" two")
        assert os.fstat(f.fileno()).st_ino == os.stat(here / "b").st_ino
        (here / "a").write_bytes(b"another")
        f.write(b" three")
    assert (here / "b").read_bytes() == b"one two three" and (here / "a").read_bytes() == b"another"


def test_rename_of_hard_links_is_nothing(here):
    (here / "a").write_text("x")
    os.link(here / "a", here / "b")
    os.rename(here / "a", here / "b")
    assert sorted(os.listdir(here)) == ["a", "b"] and os.stat(here / "a").st_nlink == 2


def test_rename_of_directories(here):
    (here / "d/e").mkdir(parents=True)
    (here / "d/e/x").write_text("x")
    (here / "empty").mkdir()
    (here / "full").mkdir()
    (here / "full/y").write_text("y")
    (here / "f").write_text("f")
    for source, target, wanted in [
        ("d", "full", (errno.ENOTEMPTY, errno.EEXIST)),
        ("d", "f", (errno.ENOTDIR,)),
        ("f", "d", (errno.EISDIR,)),
        ("d", "d/e/inside", (errno.EINVAL,)),
        ("d", "d/inside", (errno.EINVAL,)),
        ("d/e", "d", (errno.ENOTEMPTY, errno.EEXIST)),
        ("none", "x", (errno.ENOENT,)),
        ("f", "none/x", (errno.ENOENT,)),
        ("f", "f/x", (errno.ENOTDIR,)),
        ("f", "x" * 256, (errno.ENAMETOOLONG,)),
        ("x" * 256, "x", (errno.ENAMETOOLONG,)),
        ("d/.", "x", (errno.EBUSY, errno.EINVAL)),
        ("d/e/..", "x", (errno.EBUSY, errno.EINVAL)),
    ]:
        with fails(*wanted):
            os.rename(f"{here}/{source}", f"{here}/{target}")
    with open(here / "d/e/x") as f:
        os.rename(here / "d", here / "empty")
        os.rename(here / "empty/e", here / "full/e")
        assert f.read() == "x" and (here / "full/e/x").read_text() == "x"
    assert sorted(os.listdir(here)) == ["empty", "f", "full"]
    assert os.stat(here / "full/e/..").st_ino == os.stat(here / "full").st_ino


def test_rename_flags(here):
    (here / "a").write_text("a")
    (here / "b").write_text("b")
    (here / "d").mkdir()
    with fails(errno.EEXIST):
        renameat2(here / "a", here / "b", NOREPLACE)
    renameat2(here / "a", here / "c", NOREPLACE)
    renameat2(here / "b", here / "c", EXCHANGE)
    assert (here / "b").read_text() == "a" and (here / "c").read_text() == "b"
    renameat2(here / "b", here / "d", EXCHANGE)
    assert (here / "b").is_dir() and (here / "d").read_text() == "a"
    with fails(errno.ENOENT):
        renameat2(here / "b", here / "none", EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(here / "b", here / "d", EXCHANGE | NOREPLACE)


def test_rename_is_atomic(here):
    """Who reads a name that is replaced again and again sees one of the files, whole."""
    (here / "f").write_bytes(b"0" * 10_000)
    code = """
import sys
seen = set()
while len(seen) < 40:
    data = open(sys.argv[1], "rb").read()
    assert len(data) == 10_000 and len(set(data)) == 1, len(data)
    seen.add(data[0])
    if data[0] == 255: break
"""
    reader = subprocess.Popen([sys.executable, "-c", code, here / "f"], stderr=subprocess.PIPE)
    end = time.monotonic() + 30
    n = 0
    while reader.poll() is None and time.monotonic() < end:
        (here / "beside").write_bytes(bytes([n % 250]) * 10_000)
        os.replace(here / "beside", here / "f")
        n += 1
    (here / "f").write_bytes(b"\xff" * 10_000)
    said = reader.communicate(timeout=30)[1].decode()
    assert reader.returncode == 0, said


# --- mkdir, rmdir


def test_mkdir(here, umask):
    before = Times(here)
    os.mkdir(here / "d", 0o751)
    assert before.moved() == {"mtime", "ctime"} and mode(here / "d") == 0o751
    assert os.listdir(here / "d") == [] and os.stat(here / "d").st_uid == os.geteuid()
    os.umask(0o077)
    os.mkdir(here / "e", 0o777)
    assert mode(here / "e") == 0o700
    os.mkdir(f"{here}/slash/")
    (here / "f").write_text("")
    for path, wanted in [
        ("d", errno.EEXIST),
        ("f", errno.EEXIST),
        ("none/x", errno.ENOENT),
        ("f/x", errno.ENOTDIR),
        (".", errno.EEXIST),
        ("..", errno.EEXIST),
        ("x" * 256, errno.ENAMETOOLONG),
    ]:
        with fails(wanted):
            os.mkdir(f"{here}/{path}")


def test_rmdir(here):
    (here / "d/e").mkdir(parents=True)
    (here / "f").write_text("")
    for path, wanted in [
        ("d", errno.ENOTEMPTY),
        ("f", errno.ENOTDIR),
        ("none", errno.ENOENT),
        ("f/x", errno.ENOTDIR),
        ("d/e/.", errno.EINVAL),
        ("d/e/..", errno.ENOTEMPTY),
        ("x" * 256, errno.ENAMETOOLONG),
    ]:
        with fails(wanted, *([errno.EEXIST] if wanted == errno.ENOTEMPTY else [])):
            os.rmdir(f"{here}/{path}")
    before = Times(here / "d")
    os.rmdir(here / "d/e")
    assert before.moved() == {"mtime", "ctime"}
    os.rmdir(here / "d")
    assert os.listdir(here) == ["f"]


def test_removed_directory_in_use(here):
    """Nothing can be made in a directory that is gone."""
    (here / "d").mkdir()
    fd = os.open(here / "d", os.O_RDONLY)
    os.rmdir(here / "d")
    with fails(errno.ENOENT, errno.ESTALE):
        os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    with fails(errno.ENOENT, errno.ESTALE):
        os.mkdir("x", dir_fd=fd)
    try:
        assert os.listdir(fd) == []
    except OSError as e:
        assert e.errno in (errno.ENOENT, errno.ESTALE)
    os.close(fd)
    (here / "d").mkdir()
    assert os.listdir(here / "d") == []


def test_directory_links(here):
    """Link counts of directories are the usual ones, or 1 as on file systems that do not count."""
    (here / "d/e").mkdir(parents=True)
    (here / "d/f").mkdir()
    (here / "d/x").write_text("")
    assert os.stat(here / "d").st_nlink in (4, 1)


# --- truncate


@pytest.mark.parametrize("how", ["path", "descriptor"])
def test_truncate(here, how):
    def truncate(size):
        if how == "path":
            os.truncate(here / "f", size)
        else:
            with open(here / "f", "r+b") as f:
                os.ftruncate(f.fileno(), size)

    data = os.urandom(100_000)
    (here / "f").write_bytes(data)
    for size in (100_000, 99_999, 4097, 4096, 4095, 1, 0, 5000, 70_000, 3):
        before = Times(here / "f")
        was = (here / "f").read_bytes()
        truncate(size)
        want = was[:size] + bytes(max(0, size - len(was)))
        assert os.stat(here / "f").st_size == size and (here / "f").read_bytes() == want
        assert before.moved() >= ({"mtime", "ctime"} if size != len(was) else set())


def test_truncate_errors(here):
    (here / "f").write_text("x")
    (here / "d").mkdir()
    for path, size, wanted in [
        ("none", 0, errno.ENOENT),
        ("d", 0, errno.EISDIR),
        ("f/x", 0, errno.ENOTDIR),
        ("f", -1, errno.EINVAL),
        ("x" * 256, 0, errno.ENAMETOOLONG),
    ]:
        with fails(wanted):
            os.truncate(here / path, size)
    with fails(errno.EFBIG, errno.EINVAL):
        os.truncate(here / "f", (1 << 63) - 1)
    assert (here / "f").read_text() == "x"


def test_truncate_under_a_reader(here):
    """Others' open descriptors and mappings see the new length and bytes."""
    import mmap

    (here / "f").write_bytes(b"a" * 10_000)
    with open(here / "f", "rb", buffering=0) as f, mmap.mmap(f.fileno(), 10_000, prot=mmap.PROT_READ) as view:
        assert f.read(5) == b"aaaaa" and view[4000] == 97
        os.truncate(here / "f", 3)
        assert os.pread(f.fileno(), 100, 0) == b"aaa" and os.fstat(f.fileno()).st_size == 3
        os.truncate(here / "f", 10_000)
        assert os.pread(f.fileno(), 10, 0) == b"aaa" + bytes(7) and view[:5] == b"aaa\0\0" and view[4000] == 0


def test_large_offsets(here):
    """Beyond 32 bits, and holes cost nothing."""
    with open(here / "f", "w+b", buffering=0) as f:
        for offset in (0, 1 << 20, (1 << 32) + 5, 1 << 40):
            os.pwrite(f.fileno(), b"here", offset)
        assert os.fstat(f.fileno()).st_size == (1 << 40) + 4
        assert os.pread(f.fileno(), 8, (1 << 32) + 3) == b"\0\0here\0\0"
        assert os.fstat(f.fileno()).st_blocks * 512 < 1 << 20
        os.unlink(here / "f")


def test_deleted_file_delays_nothing(mount, tmp_path):
    """What is being done with a large file that was closed ends with the file: commit and unmount do not wait for
    it.
    """
    root = tmp_path / "root"
    root.mkdir()
    util.ckptfs("init", root)
    m = mount(root, EXPLICIT)
    (m / "7").mkdir()
    with open(m / "7/f", "wb") as f:
        f.truncate(1 << 30)
    os.unlink(m / "7/f")
    begin = time.monotonic()
    trees.commit(m / "7")
    m.stop()
    assert time.monotonic() - begin < 10


def test_allocate_and_seek(here):
    with open(here / "f", "w+b", buffering=0) as f:
        os.posix_fallocate(f.fileno(), 1000, 5000)
        assert os.fstat(f.fileno()).st_size == 6000
        os.pwrite(f.fileno(), b"x", 3_000_000)
        at, ends = 0, os.fstat(f.fileno()).st_size
        while at < ends:  # data and holes alternate to the end
            data = os.lseek(f.fileno(), at, os.SEEK_DATA)
            assert data >= at
            at = os.lseek(f.fileno(), data, os.SEEK_HOLE)
            assert at > data
        assert at == ends
        with fails(errno.ENXIO):
            os.lseek(f.fileno(), ends + 1, os.SEEK_DATA)
        assert os.lseek(f.fileno(), -1, os.SEEK_END) == 3_000_000
        with fails(errno.EINVAL):
            os.lseek(f.fileno(), -5, os.SEEK_SET)


# --- write


def test_write_times(here):
    (here / "f").write_bytes(b"x")
    before = Times(here / "f")
    with open(here / "f", "r+b") as f:
        f.write(b"y")
    assert before.moved() == {"mtime", "ctime"}


def test_vectors(here):
    with open(here / "f", "w+b", buffering=0) as f:
        assert os.writev(f.fileno(), [b"one", b"", b"two" * 10_000]) == 30_003
        assert os.pwritev(f.fileno(), [b"1", b"2"], 1) == 2
        a, b = bytearray(4), bytearray(100_000)
        assert os.preadv(f.fileno(), [a, b], 0) == 30_003 and a == b"o12t" and b[:5] == b"wotwo"
        assert os.pread(f.fileno(), 10, 30_003) == b"" and os.pread(f.fileno(), 10, 30_001) == b"wo"


def test_two_descriptors(here):
    """What one writes the other reads at once, also through a mapping."""
    import mmap

    with open(here / "f", "w+b", buffering=0) as a, open(here / "f", "r+b", buffering=0) as b:
        a.write(b"x" * 5000)
        with mmap.mmap(b.fileno(), 5000) as view:
            assert view[4999] == 120
            os.pwrite(a.fileno(), b"y", 4999)
            assert view[4999] == 121 and os.pread(b.fileno(), 1, 4999) == b"y"
            view[0] = 122
            assert os.pread(a.fileno(), 1, 0) == b"z"
            view.flush()
        os.pwrite(b.fileno(), b"w", 1)
        assert os.pread(a.fileno(), 3, 0) == b"zwx"


# --- modes, owners, times


def test_chmod(here):
    (here / "f").write_text("")
    (here / "d").mkdir()
    for name in ("f", "d"):
        for bits in (0o000, 0o1777, 0o111, 0o600, 0o644, 0o755):
            before = Times(here / name)
            os.chmod(here / name, bits)
            assert mode(here / name) == bits and before.moved() == {"ctime"}
    for path, wanted in [("none", errno.ENOENT), ("f/x", errno.ENOTDIR), ("x" * 256, errno.ENAMETOOLONG)]:
        with fails(wanted):
            os.chmod(here / path, 0o600)
    with open(here / "f", "r+") as f:
        os.fchmod(f.fileno(), 0o640)
        assert mode(here / "f") == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_chown(here):
    (here / "f").write_text("")
    (here / "d").mkdir()
    for name in ("f", "d"):
        before = Times(here / name)
        os.chown(here / name, 123, 456)
        st = os.stat(here / name)
        assert (st.st_uid, st.st_gid) == (123, 456) and before.moved() == {"ctime"}
        os.chown(here / name, -1, 7)
        os.chown(here / name, 8, -1)
        st = os.stat(here / name)
        assert (st.st_uid, st.st_gid) == (8, 7)
    with fails(errno.ENOENT):
        os.chown(here / "none", 1, 1)


def test_utimens(here):
    (here / "f").write_text("")
    (here / "d").mkdir()
    for name in ("f", "d"):
        for ns in (0, 1, 981_173_106_789_012_345, (1 << 32) * 10**9 + 5, -1_000_000_000):
            before = Times(here / name)
            os.utime(here / name, ns=(ns + 7, ns))
            st = os.stat(here / name)
            assert (st.st_mtime_ns, st.st_atime_ns) == (ns, ns + 7)
            assert st.st_ctime_ns > before.was.st_ctime_ns
    begin = time.time()
    os.utime(here / "f")
    assert abs(os.stat(here / "f").st_mtime - begin) < 5
    run("touch", "-m", "-d", "@1000.5", here / "f")  # the other time stays (UTIME_OMIT)
    st = os.stat(here / "f")
    assert st.st_mtime_ns == 1_000_500_000_000 and abs(st.st_atime - begin) < 5
    run("touch", "-a", "-d", "@2000", here / "f")
    st = os.stat(here / "f")
    assert st.st_mtime_ns == 1_000_500_000_000 and st.st_atime == 2000
    for path, wanted in [("none", errno.ENOENT), ("f/x", errno.ENOTDIR)]:
        with fails(wanted):
            os.utime(here / path)


def test_times_of_an_open_file(here):
    """Times that are set while a file is open for writing stay when it is closed."""
    with open(here / "f", "wb") as f:
        f.write(b"x" * 10_000)
        f.flush()
        os.utime(f.fileno(), ns=(5, 5))
    assert os.stat(here / "f").st_mtime_ns == 5


OTHERS = r"""
import os, sys
os.fchdir(int(sys.argv[1]))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
def tried(call, *args):
    try:
        call(*args)
        return "ok"
    except OSError as e:
        return os.strerror(e.errno)
print(tried(open, "private"), tried(open, "public"), tried(open, "public", "r+"), tried(os.mkdir, "x"),
      tried(os.unlink, "public"), tried(os.chmod, "public", 0o777), tried(os.utime, "public", (1, 1)),
      tried(os.listdir, "closed"), tried(os.mkdir, "open/x"),
      tried(os.unlink, "sticky/f"), tried(os.truncate, "public", 0), tried(os.rename, "public", "open/y"), sep="\n")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_other_users(mount, tmp_path):
    """With allow_other, modes decide."""
    root = tmp_path / "root"
    root.mkdir()
    util.ckptfs("init", root)
    m = mount(root, EXPLICIT, "allow_other")
    step = m / "7"
    step.mkdir()
    for name, bits in ("private", 0o600), ("public", 0o644):
        (step / name).write_text(name)
        os.chmod(step / name, bits)
    for name, bits in ("closed", 0o700), ("open", 0o777), ("sticky", 0o1777):
        (step / name).mkdir()
        os.chmod(step / name, bits)
    (step / "sticky/f").write_text("f")
    fd = os.open(step, os.O_RDONLY)
    said = run(sys.executable, "-c", OTHERS, fd, pass_fds=[fd]).splitlines()
    os.close(fd)
    no, not_owner = os.strerror(errno.EACCES), os.strerror(errno.EPERM)
    assert said == [no, "ok", no, no, no, not_owner, not_owner, no, "ok", not_owner, no, no]
    st = os.stat(step / "open/x")
    assert (st.st_uid, st.st_gid) == (65534, 65534)
    trees.commit(step)
    assert os.stat(step / "open/x").st_uid == 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize(
    "change", ["open(sys.argv[1], 'r+').write('x')", "os.truncate(sys.argv[1], 1)", "open(sys.argv[1], 'w')"]
)
def test_set_id_bits(mount, tmp_path, change):
    """Who writes to another one's program takes away that it runs with its owner's rights."""
    root = tmp_path / "root"
    root.mkdir()
    util.ckptfs("init", root)
    m = mount(root, EXPLICIT, "allow_other")
    (m / "7").mkdir()
    (m / "7/program").write_text("#!")
    os.chmod(m / "7/program", 0o6777)
    assert os.stat(m / "7/program").st_mode & 0o7777 == 0o6777
    code = f"import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); {change}"
    fd = os.open(m / "7/program", os.O_RDONLY)  # the way there is root's own
    run(sys.executable, "-c", code, f"/proc/self/fd/{fd}", pass_fds=[fd])
    os.close(fd)
    assert os.stat(m / "7/program").st_mode & 0o7777 == 0o777
    os.chmod(m / "7/program", 0o4755)
    (m / "7/program").write_text("root may")
    trees.commit(m / "7")
    assert (m / "7/program").read_text() == "root may"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("state", ["staged", "committed"])
def test_chown_of_neither(mount, tmp_path, state):
    """As on a disk: set-id bits go, if the owner asks. Another user changes nothing, and makes no copy of a committed
    step.
    """
    root = tmp_path / "root"
    root.mkdir()
    util.ckptfs("init", root)
    m = mount(root, EXPLICIT, "allow_other")
    (m / "7").mkdir()
    (m / "7/program").write_text("#!")
    os.chmod(m / "7/program", 0o6755)
    if state == "committed":
        trees.commit(m / "7")
    code = (
        "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        "os.chown('program', -1, -1, dir_fd=int(sys.argv[1]))"
    )
    fd = os.open(m / "7", os.O_RDONLY)  # the way there is root's own
    run(sys.executable, "-c", code, fd, pass_fds=[fd])
    os.close(fd)
    assert os.stat(m / "7/program").st_mode & 0o7777 == 0o6755
    assert os.getxattr(m / "7", "user.ckpt.state").decode() == state
    os.chown(m / "7/program", -1, -1)
    assert os.stat(m / "7/program").st_mode & 0o7777 == 0o755


# --- locks


def try_lock(path, how):
    """Does another process get the lock, without waiting?"""
    code = (
        "import fcntl, os, sys\nfd = os.open(sys.argv[1], os.O_RDWR)\n"
        "try: eval(sys.argv[2])\nexcept BlockingIOError: print('taken')\nelse: print('free')"
    )
    return run(sys.executable, "-c", code, path, how).strip()


def test_flock(here):
    (here / "f").write_text("x")
    exclusive, shared = (
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)",
    )
    with open(here / "f", "r+") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert try_lock(here / "f", shared) == "taken"
        fcntl.flock(f, fcntl.LOCK_SH)
        assert try_lock(here / "f", shared) == "free" and try_lock(here / "f", exclusive) == "taken"
        fcntl.flock(f, fcntl.LOCK_UN)
        assert try_lock(here / "f", exclusive) == "free"
        with open(here / "f", "r+") as g:  # per open file
            fcntl.flock(f, fcntl.LOCK_EX)
            with pytest.raises(BlockingIOError):
                fcntl.flock(g, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert try_lock(here / "f", exclusive) == "free"  # closing gives it back
    fd = os.open(here, os.O_RDONLY)  # directories too
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)


def test_record_locks(here):
    (here / "f").write_text("x" * 100)
    with open(here / "f", "r+") as f:
        fcntl.lockf(f, fcntl.LOCK_EX, 10, 20)
        assert try_lock(here / "f", "fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 25)") == "taken"
        assert try_lock(here / "f", "fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 30)") == "free"
        ofd = struct.pack("hhlli4x", fcntl.F_WRLCK, os.SEEK_SET, 50, 10, 0)
        fcntl.fcntl(f, 37, ofd)  # F_OFD_SETLK
        assert try_lock(here / "f", "fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 55)") == "taken"
        fcntl.lockf(f, fcntl.LOCK_UN, 10, 20)
        assert try_lock(here / "f", "fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 25)") == "free"


def test_waiting_for_a_lock(here):
    (here / "f").write_text("")
    code = (
        "import fcntl, sys\nf = open(sys.argv[1])\nprint('waits', flush=True)\n"
        "fcntl.flock(f, fcntl.LOCK_EX)\nprint('has it', flush=True)"
    )
    with open(here / "f") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        other = subprocess.Popen([sys.executable, "-c", code, here / "f"], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "waits\n"
        time.sleep(0.3)
        assert other.poll() is None
        fcntl.flock(f, fcntl.LOCK_UN)
    assert other.communicate(timeout=20)[0] == "has it\n"


# --- directories as lists


def test_listing_a_large_directory(here):
    names = {f"file {n:04} {'x' * (n % 100)}" for n in range(1500)}
    for name in names:
        opened(here / name, os.O_CREAT)
    assert set(os.listdir(here)) == names and len(os.listdir(here)) == len(names)
    for name in sorted(names)[::2]:
        os.unlink(here / name)
    assert sorted(os.listdir(here)) == sorted(names)[1::2]


def test_listing_while_it_changes(here):
    """Names that are there all the time are listed once, whatever comes and goes."""
    stay = {f"stay{n}" for n in range(300)}
    for name in stay:
        opened(here / name, os.O_CREAT)
    with os.scandir(here) as entries:
        seen = []
        for n, e in enumerate(entries):
            seen.append(e.name)
            opened(here / f"new{n}", os.O_CREAT)
            if n % 2:
                os.unlink(here / f"new{n - 1}")
            if n > 2000:
                break
    assert sorted(name for name in seen if name in stay) == sorted(stay)


def test_entries(here):
    (here / "d").mkdir()
    (here / "f").write_text("")
    with os.scandir(here) as entries:
        found = {e.name: (e.is_dir(follow_symlinks=False), e.inode()) for e in entries}
    assert found == {"d": (True, os.stat(here / "d").st_ino), "f": (False, os.stat(here / "f").st_ino)}
    out = run("ls", "-fa", here).split()
    assert sorted(out) == [".", "..", "d", "f"]
    assert run("find", here, "-type", "f", "-empty").split() == [f"{here}/f"]
    assert run("rm", "-rf", here / "d", here / "f") == "" and os.listdir(here) == []


def test_deep(here):
    """200 levels down, by relative names, and all of it deleted again."""
    path = here
    for n in range(200):
        path = path / f"d{n}"
        path.mkdir()
    (path / "f").write_text("deep")
    assert (path / "f").read_text() == "deep"
    run("rm", "-r", here / "d0")


# --- attributes


def test_xattr(here):
    (here / "f").write_text("")
    (here / "d").mkdir()
    for path in (here / "f", here / "d"):
        with fails(errno.ENODATA):
            os.getxattr(path, "user.x")
        os.setxattr(path, "user.x", b"1\x00\xff", os.XATTR_CREATE)
        with fails(errno.EEXIST):
            os.setxattr(path, "user.x", b"2", os.XATTR_CREATE)
        os.setxattr(path, "user.x", b"", os.XATTR_REPLACE)
        with fails(errno.ENODATA):
            os.setxattr(path, "user.y", b"", os.XATTR_REPLACE)
        os.setxattr(path, "user.y", b"v" * 1000)
        assert os.getxattr(path, "user.x") == b"" and os.getxattr(path, "user.y") == b"v" * 1000
        assert {n for n in os.listxattr(path) if not n.startswith("user.ckpt.")} == {"user.x", "user.y"}
        os.removexattr(path, "user.x")
        with fails(errno.ENODATA):
            os.removexattr(path, "user.x")
        assert {n for n in os.listxattr(path) if not n.startswith("user.ckpt.")} == {"user.y"}


def test_statvfs(here):
    st = os.statvfs(here)
    assert st.f_namemax == 255 and st.f_bavail > 0 and not st.f_flag & os.ST_RDONLY


def test_access(here):
    (here / "f").write_text("")
    os.chmod(here / "f", 0o644)
    assert (
        os.access(here / "f", os.R_OK | os.W_OK)
        and not os.access(here / "f", os.X_OK)
        and os.access(here, os.W_OK | os.X_OK)
    )


def test_running_a_program(here):
    """A script and a binary in a step."""
    (here / "script").write_text("#!/bin/sh\necho it runs\n")
    os.chmod(here / "script", 0o755)
    assert run(here / "script") == "it runs\n"
    run("cp", "/bin/echo", here / "echo")
    assert run(here / "echo", "this too") == "this too\n"


# --- afterwards


def test_all_of_it_commits(here, step):
    """What the tests of this file have left in the step is a step (the last test)."""
    for below, _, files in os.walk(step):
        for name in files:
            if not os.access(os.path.join(below, name), os.R_OK):
                os.chmod(os.path.join(below, name), 0o600)
    before = trees.listing(step)
    trees.commit(step)
    trees.compare(trees.listing(step), before)


def test_whiteout(writable):
    """A rename that would leave a device behind."""
    (writable / "7").mkdir()
    (writable / "7/a").write_text("x")
    code = ctypes.CDLL(None, use_errno=True).renameat2(
        -100, os.fsencode(writable / "7/a"), -100, os.fsencode(writable / "7/b"), 4
    )
    assert code == -1 and ctypes.get_errno() == errno.EINVAL and os.listdir(writable / "7") == ["a"]


def test_special_bits(mount, root):
    """The sticky bit of the root and of a step; the group of a directory that has the set-group-id bit."""
    os.chmod(root, 0o1777)
    m = mount(root, EXPLICIT)
    assert stat.S_IMODE(os.stat(m.top).st_mode) == 0o1777
    step = m / "7"
    step.mkdir()
    os.chmod(step, 0o3777)
    os.chown(step, -1, 1234)
    os.chmod(step, 0o3777)
    (step / "d").mkdir()
    (step / "d/f").write_text("x")
    (step / "f").write_text("x")
    for name, mode in ("d", 0o2000), ("d/f", 0), ("f", 0):
        st = os.stat(step / name)
        assert st.st_gid == 1234 and st.st_mode & 0o6000 == mode, name
    commit(step)
    assert stat.S_IMODE(os.stat(step).st_mode) == 0o1777 and os.stat(step).st_gid == 1234
    assert os.stat(step / "d").st_mode & 0o6000 == 0o2000


def test_attributes_that_are_listed_can_be_removed(writable):
    """As rsync -X does when it copies once more: to no effect, where they follow from the file."""
    step = writable / "7"
    step.mkdir()
    (step / "f").write_text("x")
    commit(step)
    (step / "g").write_text("x")
    for path in step, step / "f":
        for name in os.listxattr(path):
            os.removexattr(path, name)
    commit(step)
