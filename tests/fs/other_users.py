"""What other users can do: calls tried as one of them, and what the modes of a tree allow. For test_users.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import util

# Reads [[call, argument, ...], ...] and prints a result each: "ok", or the name of the error; of reads the length, and
# of what tells names all that it told. It becomes the user when it has begun: whose Python this is does not matter.
TRY = r"""
import errno, json, os, sys
uid, gids = json.loads(sys.argv[1])
calls = json.load(sys.stdin)
os.setgroups(gids[1:]); os.setgid(gids[0]); os.setuid(uid)
def read(path):
    with open(path, "rb") as f:
        while f.read(1 << 20):
            pass
def text(path):
    with open(path, "rb") as f:
        return f.read().decode(errors="replace")
def names(path):
    return sorted(os.listdir(path))
def attribute(path, name):
    return os.getxattr(path, name).decode(errors="replace")
def write(path):
    os.close(os.open(path, os.O_WRONLY))
def append(path):
    with open(path, "ab") as f:
        f.write(b"x")
def create(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
def set_attribute(path, name, value):
    os.setxattr(path, name, value.encode())
def touch(path):
    os.utime(path, (1, 1))
own = {f.__name__: f for f in (read, text, names, attribute, write, append, create, sync, set_attribute, touch)}
def tried(call, *args):
    try:
        got = (own.get(call) or getattr(os, call))(*args)
        return got if call in ("text", "names", "attribute") else "ok"
    except OSError as e:
        return errno.errorcode[e.errno]
json.dump([tried(*c) for c in calls], sys.stdout)
"""


def as_user(user, calls, groups=()):
    """The results of calls made by a user, one each."""
    done = subprocess.run(
        [sys.executable, "-c", TRY, json.dumps([user, [user, *groups]])],
        input=json.dumps(calls, default=str),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def let_in(folder):
    """Every user gets as far as a folder of the tests."""
    for path in [Path(folder), *Path(folder).parents]:
        if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)


class Rights:
    """Who may do what in a tree of a mount, by the mode and owner of each file and directory as they were made. Modes
    are what was set.
    """

    def __init__(self, user, groups=()):
        self.user, self.groups = user, {user, *groups}

    def allowed(self, st, want):
        """st: (mode, uid, gid)."""
        mode, uid, gid = st
        shift = 6 if self.user == uid else 3 if gid in self.groups else 0
        return self.user == 0 or mode >> shift & want == want

    def reach(self, tree, path):
        """May enter every directory on the way to a path ("" is the tree's own top)."""
        parts = path.split("/") if path else []
        return all(self.allowed(tree["/".join(parts[:n])], 1) for n in range(len(parts)))

    def read(self, tree, path):
        return self.reach(tree, path) and self.allowed(tree[path], 4)

    def read_below(self, tree, path):
        """May read all of what a directory holds, from outside of it."""
        below = [p for p in tree if p == path or not path or p.startswith(path + "/")]
        dirs = {p for p in below if p == path or any(q.startswith(p + "/") for q in tree)}
        return self.reach(tree, path) and all(self.allowed(tree[p], 5 if p in dirs else 4) for p in below)


def views():
    """The views that docs/using.md lists: (what they are of: KEY, DIR or BLOB, their name for it as a format of
    `of`).
    """
    text = (util.TESTS.parent / "docs/using.md").read_text()
    table = re.search(r"^## Views\n.*?\n\n(\|.*?)\n\n", text, re.M | re.S)[1]
    found = []
    for row in table.splitlines()[2:]:
        for name in re.findall(r"`([^`]+)`", row.split("|")[1]):
            of = re.match(r"KEY|DIR|BLOB", name)[0]
            found.append((of, name.replace(of, "{of}", 1).replace("SLICE", ":1")))
    return found


def view_kinds():
    """How many kinds of view the program has: each must be in the table."""
    header = (util.TESTS.parent / "core/view/view.h").read_text()
    return set(re.findall(r"CKPT_VIEW_(?!LISTED)([A-Z_]+),", header))
