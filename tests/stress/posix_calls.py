#!/usr/bin/env python3
"""The same calls, as several users, in a step and in a plain directory of the disk below: errors, modes, owners, times
must be the same.

    tests/stress/posix_calls.py [--share PERCENT] [--seed S] [--state staged|committed] [--only PATTERN]

The groups are those of pjdfstest: chmod, chown, link, mkdir, mkfifo, mknod, open, posix_fallocate, rename, rmdir,
symlink, truncate, ftruncate, unlink, utimensat; and access, xattr, write. Every call is made on every path of a small
tree that has each kind of file and directory: of other owners, closed, sticky, set-id, set-group-id, full, empty,
hard-linked, with the longest name. What differs on purpose is in DIFFERENCES. A call that changes something gets a new
tree. With --state committed the tree is committed first, so each call is the first change of a committed step. Needs
root.
"""

import argparse
import ctypes
import errno
import fnmatch
import itertools
import os
import random
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util

OWNER, OTHER, GROUP = 1001, 1002, 500
USERS = {"root": (0, 0, []), "owner": (OWNER, OWNER, [GROUP]), "other": (OTHER, OTHER, [])}
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, NOREPLACE, EXCHANGE = -100, 1, 2
OLD = 1_000_000_000
TICK = 0.012  # seconds within which two changes may get one time
LONG = "l" * 255
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

# (path, mode, owner, group); directories end in a slash
TREE = [
    ("f", 0o644, OWNER, OWNER),
    ("g", 0o600, OTHER, OTHER),
    ("q", 0o640, 0, GROUP),
    ("p", 0o6755, OWNER, OWNER),
    ("e/", 0o755, OWNER, OWNER),
    ("n/", 0o755, OWNER, OWNER),
    ("n/x", 0o644, OWNER, OWNER),
    ("n/d/", 0o755, OWNER, OWNER),
    ("w/", 0o777, 0, 0),
    ("w/x", 0o644, OWNER, OWNER),
    ("w/d/", 0o755, OWNER, OWNER),
    ("t/", 0o1777, 0, 0),
    ("t/a", 0o666, OWNER, OWNER),
    ("t/b", 0o666, OTHER, OTHER),
    ("t/d/", 0o777, OWNER, OWNER),
    ("c/", 0o700, OWNER, OWNER),
    ("c/x", 0o644, OWNER, OWNER),
    ("r/", 0o555, OWNER, OWNER),
    ("r/x", 0o666, OWNER, OWNER),
    ("i/", 0o2775, OWNER, GROUP),
    ("i/x", 0o2711, OWNER, GROUP),
    (LONG, 0o644, OWNER, OWNER),
]
PATHS = [path.rstrip("/") for path, *_ in TREE] + [
    "w/h",
    "w/new",
    "t/new",
    "c/new",
    "r/new",
    "i/new",
    "new",
    "none/x",
    "f/x",
    "f/",
    "e/",
    "new/",
    "e/.",
    "n/..",
    "l" * 256,
    "",
]
PAIRS = [
    "f",
    "g",
    "w/h",
    "e",
    "n",
    "n/d",
    "w/x",
    "w/d",
    "w/new",
    "t/a",
    "t/b",
    "t/d",
    "t/new",
    "c/x",
    "c/new",
    "r/x",
    "i/new",
    "i/x",
    "f/x",
    "none/x",
    "n/d/new",
    "l" * 256,
]


def system(name, *args):
    """A call that Python does not have as it is."""
    if getattr(LIBC, name)(*(os.fsencode(a) if isinstance(a, str) else a for a in args)) < 0:
        raise OSError(ctypes.get_errno(), name)


def opened(flags, mode=0o666, then=None):
    def call(path):
        fd = os.open(path, flags, mode)
        try:
            return then(fd) if then else None
        finally:
            os.close(fd)

    return call


class Time(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def times(a, m):
    def call(path):
        both = (Time * 2)(Time(*a), Time(*m))
        system("utimensat", AT_FDCWD, path, both, 0)

    return call


def stay(path, change):
    """A descriptor outlives what happens to its name."""
    fd = os.open(path, os.O_RDONLY)
    try:
        change()
        return os.fstat(fd).st_nlink, os.fstat(fd).st_size
    finally:
        os.close(fd)


ONE = {
    "open r": opened(os.O_RDONLY),
    "open w": opened(os.O_WRONLY),
    "open rw": opened(os.O_RDWR),
    "open append": opened(os.O_WRONLY | os.O_APPEND),
    "open create": opened(os.O_CREAT | os.O_WRONLY),
    "open create r 0": opened(os.O_CREAT | os.O_RDONLY, 0),
    "open create rw 0444": opened(os.O_CREAT | os.O_RDWR, 0o444),
    "open create set-id": opened(os.O_CREAT | os.O_RDWR, 0o6777),
    "open exclusive": opened(os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "open trunc": opened(os.O_WRONLY | os.O_TRUNC),
    "open r trunc": opened(os.O_RDONLY | os.O_TRUNC),
    "open create trunc": opened(os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600),
    "open directory": opened(os.O_RDONLY | os.O_DIRECTORY),
    "open nofollow": opened(os.O_RDONLY | os.O_NOFOLLOW),
    "open noatime": opened(os.O_RDONLY | os.O_NOATIME),
    "open create directory": opened(os.O_CREAT | os.O_DIRECTORY | os.O_RDONLY),
    "write": opened(os.O_WRONLY, then=lambda fd: os.write(fd, b"y")),
    "write nothing": opened(os.O_WRONLY, then=lambda fd: os.write(fd, b"")),
    "write behind": opened(os.O_WRONLY, then=lambda fd: os.pwrite(fd, b"y", 5000)),
    "read": opened(os.O_RDONLY, then=lambda fd: os.read(fd, 10)),
    "read at the end": opened(os.O_RDONLY, then=lambda fd: os.pread(fd, 10, 100)),
    "seek before": opened(os.O_RDONLY, then=lambda fd: os.lseek(fd, -1, os.SEEK_SET)),
    "posix_fallocate": opened(os.O_WRONLY, then=lambda fd: os.posix_fallocate(fd, 50, 200)),
    "posix_fallocate within": opened(os.O_WRONLY, then=lambda fd: os.posix_fallocate(fd, 0, 10)),
    "posix_fallocate r": opened(os.O_RDONLY, then=lambda fd: os.posix_fallocate(fd, 0, 200)),
    "posix_fallocate 0": opened(os.O_WRONLY, then=lambda fd: os.posix_fallocate(fd, 0, 0)),
    "posix_fallocate -1": opened(os.O_WRONLY, then=lambda fd: os.posix_fallocate(fd, -1, 10)),
    "ftruncate 0": opened(os.O_WRONLY, then=lambda fd: os.ftruncate(fd, 0)),
    "ftruncate same": opened(os.O_WRONLY, then=lambda fd: os.ftruncate(fd, 100)),
    "ftruncate 200": opened(os.O_RDWR, then=lambda fd: os.ftruncate(fd, 200)),
    "ftruncate r": opened(os.O_RDONLY, then=lambda fd: os.ftruncate(fd, 0)),
    "ftruncate -1": opened(os.O_WRONLY, then=lambda fd: os.ftruncate(fd, -1)),
    "truncate 0": lambda p: os.truncate(p, 0),
    "truncate 50": lambda p: os.truncate(p, 50),
    "truncate 200": lambda p: os.truncate(p, 200),
    "truncate -1": lambda p: os.truncate(p, -1),
    "truncate most": lambda p: os.truncate(p, (1 << 63) - 1),
    "chmod 0600": lambda p: os.chmod(p, 0o600),
    "chmod 0": lambda p: os.chmod(p, 0),
    "chmod 0644": lambda p: os.chmod(p, 0o644),
    "chmod 06755": lambda p: os.chmod(p, 0o6755),
    "chmod 02777": lambda p: os.chmod(p, 0o2777),
    "chmod 01777": lambda p: os.chmod(p, 0o1777),
    "fchmod": opened(os.O_RDONLY, then=lambda fd: os.fchmod(fd, 0o711)),
    "chown -1 -1": lambda p: os.chown(p, -1, -1),
    "chown other": lambda p: os.chown(p, OTHER, -1),
    "chown owner": lambda p: os.chown(p, OWNER, -1),
    "chown group": lambda p: os.chown(p, -1, GROUP),
    "chown other group": lambda p: os.chown(p, -1, OTHER),
    "chown both": lambda p: os.chown(p, OWNER, OWNER),
    "fchown": opened(os.O_RDONLY, then=lambda fd: os.fchown(fd, -1, GROUP)),
    "lchown": lambda p: os.lchown(p, 0, 0),
    "utimens now": lambda p: os.utime(p),
    "utimens set": lambda p: os.utime(p, ns=(5, 7)),
    "utimens atime": times((5, 0), (0, UTIME_OMIT)),
    "utimens mtime": times((0, UTIME_OMIT), (5, 0)),
    "utimens now omit": times((0, UTIME_NOW), (0, UTIME_OMIT)),
    "utimens omit now": times((0, UTIME_OMIT), (0, UTIME_NOW)),
    "utimens omit": times((0, UTIME_OMIT), (0, UTIME_OMIT)),
    "utimens set now": times((5, 0), (0, UTIME_NOW)),
    "utimens bad": times((5, 1_000_000_000), (5, 0)),
    "futimens": opened(os.O_RDONLY, then=lambda fd: os.utime(fd, ns=(5, 7))),
    "mkdir": lambda p: os.mkdir(p, 0o777),
    "mkdir 0700": lambda p: os.mkdir(p, 0o700),
    "mkdir 01777": lambda p: os.mkdir(p, 0o1777),
    "mkdir 02777": lambda p: os.mkdir(p, 0o2777),
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "mkfifo": lambda p: os.mkfifo(p, 0o644),
    "mknod file": lambda p: os.mknod(p, stat.S_IFREG | 0o640),
    "mknod device": lambda p: os.mknod(p, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "mknod socket": lambda p: os.mknod(p, stat.S_IFSOCK | 0o600),
    "symlink": lambda p: os.symlink("f", p),
    "readlink": os.readlink,
    "access r": lambda p: system("faccessat", AT_FDCWD, p, os.R_OK, 0x200),
    "access w": lambda p: system("faccessat", AT_FDCWD, p, os.W_OK, 0x200),
    "access x": lambda p: system("faccessat", AT_FDCWD, p, os.X_OK, 0x200),
    "stat": lambda p: os.stat(p).st_uid,
    "list": lambda p: sorted(os.listdir(p or "/none")),
    "setxattr": lambda p: os.setxattr(p, "user.x", b"1"),
    "getxattr": lambda p: os.getxattr(p, "user.none"),
    "removexattr": lambda p: os.removexattr(p, "user.none"),
    "setxattr replace": lambda p: os.setxattr(p, "user.none", b"1", os.XATTR_REPLACE),
    "unlink beside": lambda p: stay(p, lambda: os.unlink(p)),
}
TWO = {
    "rename": os.rename,
    "link": os.link,
    "rename noreplace": lambda a, b: system("renameat2", AT_FDCWD, a, AT_FDCWD, b, NOREPLACE),
    "rename exchange": lambda a, b: system("renameat2", AT_FDCWD, a, AT_FDCWD, b, EXCHANGE),
}


# What is not as on the disk, on purpose: (calls, how they differ, why)
DIFFERENCES = [
    ("symlink *", "refused", "there are no links in steps"),
    ("mkfifo *", "refused", "there are no special files in steps"),
    ("mknod device *", "refused", "there are no special files in steps"),
    ("mknod socket *", "refused", "there are no special files in steps"),
    ("chown -1 -1 *", "not asked", "the kernel has nothing to ask a FUSE file system for"),
    (
        "unlink beside *",
        "of the step that was",
        "the first change copies a committed step; who has a file of it open has that of the step as it was committed",
    ),
    (
        "*",
        "set-id",
        "the bits go when somebody but root opens a file to change it, or tries to, not only when he changes it",
    ),
]


def is_difference(how, results, changes, is_committed):
    """Is that all there is between (disk, step)?"""
    disk, step = (r[0] for r in results)
    if how == "of the step that was":
        links = [r[1][0] for r in results if r[0] == "ok"]
        return is_committed and links == [0, 1] and results[0][1][1:] == results[1][1][1:] and changes[0] == changes[1]
    if how == "refused":
        return (disk, step) == ("ok", "EPERM") and not changes[1]
    if how == "not asked":
        return step == "ok" and not changes[1]
    lost = {path: what for path, (what, _) in changes[1].items() if path not in changes[0]}
    if disk != step or not lost or any(changes[1].get(p) != changes[0][p] for p in changes[0]):
        return False
    return all(what and what[0] == stat.S_IFREG and not int(what[1], 8) & stat.S_ISUID for what in lost.values())


class Side:
    """A directory in which trees are made."""

    def __init__(self, top, is_committed, commit=None):
        self.top, self.is_committed, self.commit = Path(top), is_committed, commit
        self.fd, self.before = None, None

    def close(self):
        if self.fd is not None:
            os.close(self.fd)
        self.fd = None

    def renew(self):
        self.close()
        if self.top.exists():
            shutil.rmtree(self.top)
        self.top.mkdir()
        os.chmod(self.top, 0o755)
        for path, mode, *_ in TREE:
            full = self.top / path
            full.mkdir() if path.endswith("/") else full.write_bytes(b"x" * 100)
        if not self.is_committed:  # where names are files of their own
            os.link(self.top / "f", self.top / "w/h")
        for path, mode, uid, gid in reversed(TREE):
            os.chown(self.top / path, uid, gid)
            os.chmod(self.top / path, mode)
            os.utime(self.top / path, (OLD, OLD))
        if self.commit:
            self.commit(self.top)
        self.fd = os.open(self.top, os.O_RDONLY | os.O_DIRECTORY)
        self.before = self.look()
        self.made = time.monotonic()

    def look(self):
        """{path: (what it is, its times)}"""
        found = {}
        for below, folders, files in os.walk(self.top):
            for name in ["", *files] if below == str(self.top) else ["", *files]:
                full = os.path.join(below, name) if name else below
                st = os.lstat(full)
                is_file = stat.S_ISREG(st.st_mode)
                of_file = (st.st_nlink, st.st_size) if is_file else (0, 0)
                what = stat.S_IFMT(st.st_mode), oct(stat.S_IMODE(st.st_mode)), st.st_uid, st.st_gid, *of_file
                found[os.path.relpath(full, self.top)] = what, (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
        return found

    def make(self, user, call, paths):
        uid, gid, groups = USERS[user]
        os.fchdir(self.fd)
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)
        try:
            return "ok", call(*paths)
        except OSError as e:
            return errno.errorcode[e.errno], None
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups([])

    def changes(self, name, paths):
        """What the call has made of the tree: {path: what it is now, and which times have moved}; atimes where they are
        set.
        """
        now, changed = self.look(), {}
        for path in now.keys() | self.before.keys():
            was, is_now = self.before.get(path), now.get(path)
            if was == is_now:
                continue
            moved = ()
            if was and is_now:
                sets_atime = "utimens" in name and path in paths and not self.is_committed
                seen = ("atime" if sets_atime else "", "mtime", "ctime")
                moved = tuple(t for t, a, b in zip(seen, was[1], is_now[1]) if t and a != b)
            changed[path] = is_now and is_now[0], moved

        def counts(path, what, moved):
            return moved or what is None or path not in self.before or self.before[path][0] != what

        return {path: change for path, change in changed.items() if counts(path, *change)}


class Comparison:
    """Both sides, and what differs between them."""

    def __init__(self, disk, step):
        self.sides = [disk, step]
        self.counts, self.wrong, self.fresh = Counter(), [], False

    def without_copying(self, disk, step):
        """The first change of a committed step makes a copy of all that is in it: all inodes have changed then."""
        was = self.sides[1].before
        return {p: c for p, c in step.items() if p in disk or c[1] != ("ctime",) or p not in was or was[p][0] != c[0]}

    def one(self, user, name, call, paths):
        if not self.fresh:
            for side in self.sides:
                side.renew()
            self.fresh = True
        time.sleep(max(0, TICK - (time.monotonic() - self.sides[1].made)))
        results = [side.make(user, call, paths) for side in self.sides]
        changes = [side.changes(name, paths) for side in self.sides]
        self.counts["calls"] += 1
        if self.sides[1].commit:
            changes[1] = self.without_copying(*changes)
        if any(changes) or self.sides[1].commit and results[0][0] == "ok":
            self.counts["changes"] += 1
            self.fresh = False
        what = f"{name} {' '.join(p if len(p) < 20 else f'{p[:3]}..{len(p)}' for p in paths)} as {user}"
        if results == [results[0]] * 2 and changes == [changes[0]] * 2:
            return
        for pattern, how, _ in DIFFERENCES:
            if fnmatch.fnmatchcase(what, pattern) and is_difference(how, results, changes, self.sides[1].is_committed):
                self.counts[f"{how} on purpose"] += 1
                return
        if results[0] != results[1]:
            self.wrong.append(f"{what}: disk {results[0]}, step {results[1]}")
            self.fresh = False
        elif changes[0] != changes[1]:
            both = {p: (changes[0].get(p), changes[1].get(p)) for p in changes[0].keys() | changes[1].keys()}
            differ = {p: (a, b) for p, (a, b) in both.items() if a != b}
            self.wrong.append(f"{what}: {results[0][0]}, (disk, step): {differ}")


def calls(only="*"):
    for user in USERS:
        for (name, call), path in itertools.product(ONE.items(), PATHS):
            if fnmatch.fnmatch(name, only):
                yield user, name, call, (path,)
        for (name, call), a, b in itertools.product(TWO.items(), PAIRS, PAIRS):
            if fnmatch.fnmatch(name, only):
                yield user, name, call, (a, b)


def run(folder, share=100, seed=None, state="staged", only="*"):
    """One sentence of what was compared; fails with all that differed."""
    seed = random.randrange(1 << 30) if seed is None else int(seed)
    folder, rng = Path(folder), random.Random(seed)
    print(f"posix: {state}, {share} % of the calls, seed {seed}", flush=True)
    root, plain = folder / "root", folder / "plain"
    root.mkdir()
    plain.mkdir()
    util.ckptfs("init", root)
    chosen = [c for c in calls(only) if rng.random() * 100 < share]
    old, here = os.umask(0o022), os.open(".", os.O_RDONLY)
    try:
        with util.Mount(root, "allow_other", "commit=explicit", folder=folder / "mount", patience=3600) as m:
            (m / "7").mkdir()

            def commit(_):
                fd = os.open(m / "7", os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)

            is_committed = state == "committed"
            step = Side(m / "7/tree", is_committed, commit if is_committed else None)
            comparison = Comparison(Side(plain / "tree", is_committed), step)
            try:
                for c in chosen:
                    comparison.one(*c)
            finally:
                for side in comparison.sides:
                    side.close()
                os.fchdir(here)
    finally:
        os.umask(old)
        os.close(here)
    assert not comparison.wrong, f"{len(comparison.wrong)} differ, seed {seed}:\n" + "\n".join(
        comparison.wrong[:200]
    ).replace(LONG, "l*255")
    unseen = [
        how for _, how, _ in DIFFERENCES if share == 100 and only == "*" and not comparison.counts[f"{how} on purpose"]
    ]
    assert not unseen, f"these are no differences any more: {unseen}"
    return ", ".join(f"{n} {what}" for what, n in sorted(comparison.counts.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=100, help="percent of the calls, chosen by the seed")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--state", choices=["staged", "committed"], action="append", help="both, if none is given")
    parser.add_argument("--only", default="*", help="calls, such as 'rename*'")
    given = parser.parse_args()
    for state in given.state or ["staged", "committed"]:
        with tempfile.TemporaryDirectory(prefix="ckptfs-posix-", ignore_cleanup_errors=True) as folder:
            print(run(folder, given.share, given.seed, state, given.only), flush=True)


if __name__ == "__main__":
    main()
