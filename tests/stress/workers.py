"""A worker: random changes of one process's files of a step, and a model that knows what they were after each call."""

import errno
import os
import random
import stat
import time
from collections import Counter

GONE = {errno.ENOTCONN, errno.ECONNABORTED}  # the daemon is
PAGE = 4096
NAMES = ["a", "b", "c.json", "d", "e.bin"]
FOLDERS = ["", "x", "y"]
ATTRIBUTE = "user.stress"


class Fault(AssertionError):
    pass


class Killed(Exception):
    """The daemon has gone under a call."""


# --- what is in a step


def read_tree(top, mine=lambda path: True):
    """{path: what is there} of a worker's files; "" is the step itself. Modes are left out of what is read outside of a
    mount.
    """
    found = {}

    def look(path):
        full = os.path.join(top, path) if path else top
        try:
            st = os.lstat(full)
            try:
                attribute = os.getxattr(full, ATTRIBUTE)
            except OSError as e:
                if e.errno != errno.ENODATA:
                    raise
                attribute = None
            if stat.S_ISDIR(st.st_mode):
                names = os.listdir(full)
                found[path] = "directory", stat.S_IMODE(st.st_mode), attribute
                for name in names:
                    below = f"{path}/{name}" if path else name
                    if mine(below):
                        look(below)
            else:
                with open(full, "rb", buffering=0) as f:
                    found[path] = "file", stat.S_IMODE(st.st_mode), attribute, f.readall()
        except FileNotFoundError:
            if path:
                raise Fault(f"{path} is listed, and is not there") from None

    look("")
    return found


def read_links(top, tree):
    """{path: a name of the file} of the files in a tree that share theirs with others."""
    inodes = {path: os.lstat(os.path.join(top, path)).st_ino for path, state in tree.items() if state[0] == "file"}
    names = Counter(inodes.values())
    return {path: f"inode {number}" for path, number in inodes.items() if names[number] > 1}


def said(state):
    """A state, in short."""
    if state is None:
        return "nothing"
    if state[0] == "directory":
        return f"directory {state[1]:o} {state[2]}"
    data = state[3]
    return f"file {state[1]:o} {state[2]} {len(data)} bytes {data[:6].hex()}..{data[-6:].hex()} zeros {data.count(0)}"


def differences(got, want):
    differ = sorted(path for path in {*got, *want} if got.get(path) != want.get(path))
    return [f"{path!r}: {said(got.get(path))}, wanted {said(want.get(path))}" for path in differ]


class Partial:
    """A write under way: any part of it, up to the end of a page."""

    def __init__(self, before, path, offset, data):
        self.before, self.path, self.offset, self.data = before, path, offset, data

    def trees(self):
        old = self.before[self.path]
        ends = {
            0,
            len(self.data),
            *(n - self.offset for n in range(0, self.offset + len(self.data), PAGE) if n > self.offset),
        }
        for n in sorted(ends):
            yield {**self.before, self.path: (*old[:3], written(old[3], self.offset, self.data[:n]))}


def written(old, offset, data):
    if not data:
        return old
    return old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]


# --- a worker


class Worker:
    """One process's files of one step. History: the trees after each call since the last sync that succeeded."""

    def __init__(self, number, step, shared, seed):
        self.number, self.step, self.shared = number, step, shared
        self.rng = random.Random(seed)
        self.tree, self.links = {}, {}  # links: path -> name of the file that both are
        self.history, self.since = [{}], 0  # since: where a crash cannot go back behind
        self.committed = [{}]  # what the step in the store may be
        self.under_way, self.syncing = None, None
        self.trace, self.counts, self.serial = [], Counter(), 0
        self.phase = "writing"  # of mode writers
        self.has_changed = True  # anything since the last crash

    def mine(self, path):
        return not self.shared or path.startswith(f"{self.number}-") or f"/{self.number}-" in path

    def name(self, name):
        return f"{self.number}-{name}" if self.shared else name

    def path(self, path):
        return os.path.join(self.mount, self.step, path) if path else os.path.join(self.mount, self.step)

    # one call: what it makes of the tree is known before it is made

    def call(self, what, change, function, *args):
        after = dict(self.tree)
        change(after)
        self.trace = self.trace[-30:] + [what]
        self.under_way = self.under_way or after
        try:
            result = self.patiently(function, *args)
        except OSError as e:
            if e.errno in GONE:
                raise Killed(what) from None
            raise Fault(f"{what}: {e.strerror}") from None
        self.under_way = None
        self.has_changed = True
        self.tree = after
        self.history.append(after)
        if self.shared or self.settles:
            self.committed.append(after)
        return result

    def patiently(self, function, *args):
        """A call, again while it is ESTALE. How often that happens is counted, since programs do not do this."""
        end = time.monotonic() + 5
        while True:
            try:
                return function(*args)
            except OSError as e:
                if e.errno != errno.ESTALE or time.monotonic() > end:
                    raise
                self.counts["ESTALE"] += 1
                self.trace.append("ESTALE")
                time.sleep(0.005)

    def same(self, what, function, *args):
        return self.call(what, lambda tree: None, function, *args)

    # --- choices

    def a_path(self):
        folder = self.rng.choice([f for f in FOLDERS if not f or self.name(f) in self.tree])
        name = self.name(self.rng.choice(NAMES))
        return f"{self.name(folder)}/{name}" if folder else name

    def a_file(self, change=False):
        """One that is there; that has one name, if it shall be changed."""
        names = Counter(self.links.get(p, p) for p in self.tree)
        files = [
            p
            for p, state in self.tree.items()
            if state[0] == "file" and not (change and names[self.links.get(p, p)] > 1)
        ]
        return self.rng.choice(sorted(files)) if files else None

    def some_bytes(self):
        self.serial += 1
        size = self.rng.choice([0, 5, 100, 3000, 70_000, 300_000])
        head = b"%d.%d " % (self.number, self.serial)  # no two contents are equal
        return head + (self.rng.randbytes(size) if self.rng.random() < 0.7 else bytes([self.serial % 256]) * size)

    # --- changes

    def begin(self):
        if "" not in self.tree:

            def make():
                try:
                    os.mkdir(self.path(""), 0o755)
                except FileExistsError:
                    if not self.shared:
                        raise

            self.call("mkdir of the step", lambda t: t.update({"": ("directory", 0o755, None)}), make)

    def write(self, fd, path, offset, data):
        for at in range(0, len(data), 100_000):
            part = data[at : at + 100_000]
            old, there = self.tree[path], offset + at
            self.under_way = Partial(self.tree, path, there, part)
            self.call(
                f"pwrite {len(part)} at {there} to {path!r}",
                lambda t: t.update({path: (*old[:3], written(old[3], there, part))}),
                os.pwrite,
                fd,
                part,
                there,
            )

    def close(self, fd, path):
        if self.rng.random() < 0.25:
            self.same(f"fsync {path!r}", os.fsync, fd)
            self.since = len(self.history) - 1
        self.same(f"close {path!r}", os.close, fd)

    def create(self):
        path = self.a_path()
        old = self.tree.get(path)
        if old and path != self.a_file_of_one_name(path):
            return
        state = (*old[:3], b"") if old else ("file", 0o644, None, b"")
        fd = self.call(
            f"open {path!r}, truncated",
            lambda t: t.update({path: state}),
            os.open,
            self.path(path),
            os.O_CREAT | os.O_TRUNC | os.O_WRONLY,
            0o644,
        )
        self.write(fd, path, 0, self.some_bytes())
        self.close(fd, path)

    def a_file_of_one_name(self, path):
        name = self.links.get(path, path)
        return path if sum(self.links.get(p, p) == name for p in self.tree) == 1 else None

    def change(self):
        path = self.a_file(change=True)
        if path is None:
            return
        size = len(self.tree[path][3])
        fd = self.same(f"open {path!r}", os.open, self.path(path), os.O_RDWR)
        offset = size if self.rng.random() < 0.4 else self.rng.randrange(size + 1)
        self.write(fd, path, offset, self.some_bytes())
        self.close(fd, path)

    def truncate(self):
        path = self.a_file(change=True)
        if path is None:
            return
        old = self.tree[path]
        size = self.rng.choice([0, 2, len(old[3]) // 2, len(old[3]) + 5000])
        self.call(
            f"truncate {path!r} to {size}",
            lambda t: t.update({path: (*old[:3], old[3][:size].ljust(size, b"\0"))}),
            os.truncate,
            self.path(path),
            size,
        )

    def replace(self):
        """Beside, then renamed over; or a plain rename."""
        path, other = self.a_file(), self.a_path()
        if path is None or path == other or self.links.get(path, path) == self.links.get(other, other):
            return

        def change(tree):
            tree[other] = tree.pop(path)

        self.call(f"rename {path!r} to {other!r}", change, os.rename, self.path(path), self.path(other))
        self.links.pop(other, None)
        self.links[other] = self.links.pop(path, f"{path} {self.serial}")
        self.serial += 1

    def link(self):
        path, other = self.a_file(), self.a_path()
        if path is None or other in self.tree:
            return
        self.links[path] = self.links.get(path, f"{path} {self.serial}")
        self.serial += 1
        self.call(
            f"link {path!r} to {other!r}",
            lambda t: t.update({other: t[path]}),
            os.link,
            self.path(path),
            self.path(other),
        )
        self.links[other] = self.links[path]

    def unlink(self):
        path = self.a_file()
        if path is not None:
            self.call(f"unlink {path!r}", lambda t: t.pop(path), os.unlink, self.path(path))
            self.links.pop(path, None)

    def make_folder(self):
        missing = [f for f in map(self.name, FOLDERS[1:]) if f not in self.tree]
        if missing:
            folder = self.rng.choice(missing)
            self.call(
                f"mkdir {folder!r}",
                lambda t: t.update({folder: ("directory", 0o755, None)}),
                os.mkdir,
                self.path(folder),
                0o755,
            )

    def remove_folder(self):
        there = [f for f in map(self.name, FOLDERS[1:]) if f in self.tree]
        if not there:
            return
        folder = self.rng.choice(there)
        for path in sorted(p for p in self.tree if p.startswith(f"{folder}/")):
            self.call(f"unlink {path!r}", lambda t: t.pop(path), os.unlink, self.path(path))
            self.links.pop(path, None)
        self.call(f"rmdir {folder!r}", lambda t: t.pop(folder), os.rmdir, self.path(folder))

    def chmod(self):
        path, mode = self.a_file(change=True), self.rng.choice([0o600, 0o644, 0o755])
        if path is not None:
            self.call(
                f"chmod {path!r} {mode:o}",
                lambda t: t.update({path: (t[path][0], mode, *t[path][2:])}),
                os.chmod,
                self.path(path),
                mode,
            )

    def attribute(self):
        path, value = self.a_file(change=True), self.rng.randbytes(self.rng.choice([1, 30, 500])).replace(b"\0", b"0")
        if path is not None:
            self.call(
                f"setxattr {path!r}",
                lambda t: t.update({path: (*t[path][:2], value, *t[path][3:])}),
                os.setxattr,
                self.path(path),
                ATTRIBUTE,
                value,
            )

    def look(self):
        self.check_now("beside others")

    def sync(self):
        """True if the step is committed now."""
        if self.writers and self.phase == "writing":
            return False
        self.trace = self.trace[-30:] + ["sync"]
        self.syncing = self.tree
        try:
            fd = os.open(self.path(""), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as e:
            if e.errno in GONE:
                raise Killed("sync") from None
            self.syncing = None
            self.counts[f"sync {errno.errorcode[e.errno]}"] += 1
            waits = e.errno == errno.ETIMEDOUT and self.writers
            others_write = e.errno in (errno.EBUSY, errno.ESTALE) and (self.shared or self.settles)
            if not waits and not others_write:
                reason = os.getxattr(self.path(""), "user.ckpt.error") if e.errno != errno.ENOENT else b""
                raise Fault(f"sync: {e.strerror} {reason}") from None
            return False
        self.syncing = None
        self.settled()
        return True

    def settled(self):
        """All that is there now is committed."""
        self.history, self.since, self.committed = [self.tree], 0, [self.tree]
        self.counts["commits"] += 1

    WEIGHTS = {
        create: 12,
        change: 12,
        truncate: 5,
        replace: 6,
        link: 3,
        unlink: 4,
        make_folder: 3,
        remove_folder: 1,
        chmod: 2,
        attribute: 2,
        look: 1,
        sync: 3,
    }

    def check_now(self, when):
        """Nobody was killed: everything must be there."""
        found = self.patiently(read_tree, self.path(""), self.mine)
        wrong = differences(found, self.tree)
        if wrong:
            raise Fault(f"{when}, step {self.step}: " + "\n  ".join(wrong))

    # --- a round, in a process of its own

    def run(self, mount, until, mode):
        self.mount, self.settles, self.writers = str(mount), mode == "settle", mode == "writers"
        try:
            self.begin()
            while time.monotonic() < until and self.phase == "writing":
                self.rng.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()))[0](self)
                self.counts["operations"] += 1
            if self.writers:
                self.phase = "syncing"
                if self.sync() or self.sync():
                    self.phase = "synced"
            return None
        except Killed as e:
            return f"killed in {e}"
        except OSError as e:
            if e.errno in GONE:
                return "killed while looking"
            raise

    # --- afterwards

    def after_crash(self, mount):
        """What is there now is one of the moments since the last sync or fsync, in all files."""
        self.mount = str(mount)
        found = read_tree(self.path(""), self.mine)
        moments = list(reversed(self.history[self.since :]))
        if isinstance(self.under_way, Partial):
            moments += self.under_way.trees()
        elif self.under_way is not None:
            moments.append(self.under_way)
        if self.shared and "" in found:  # the step's directory is everybody's
            moments += [{**moment, "": found[""]} for moment in moments]
        for back, moment in enumerate(moments):
            if found == moment:
                is_under_way = back >= len(self.history) - self.since
                self.counts["as under way" if is_under_way else "older" if back else "as it was"] += 1
                break
        else:
            self.explain(found, moments)
        self.under_way = self.syncing = None
        self.tree, self.history, self.since = found, [found], 0
        self.committed.append(found)
        self.links = read_links(self.path(""), found)  # a call that died may have made one, or moved one
        self.trace = self.trace[-30:] + ["crash"]
        self.has_changed = False

    def explain(self, found, moments):
        mixed = all(any(found.get(p) == m.get(p) for m in moments) for p in {*found, *(q for m in moments for q in m)})
        best = min(moments, key=lambda m: len(differences(found, m)))
        raise Fault(
            f"after the crash, step {self.step}: "
            f"{'each file was so once, not all at once' if mixed else 'what never was'}:\n  "
            + "\n  ".join(differences(found, best))
            + f"\n  calls: {self.trace}\n  {len(moments)} moments"
        )

    def check_store(self, copy):
        """The step in the store is one that a commit may have made."""
        found = read_tree(copy, self.mine)
        candidates = self.committed + ([self.syncing] if self.syncing is not None else [])
        if self.shared and "" in found:
            candidates = [{**c, "": found[""]} for c in candidates]

        def plain(tree):
            return {p: (s[0], s[3:]) for p, s in tree.items()}

        if not any(plain(found) == plain(c) for c in candidates):
            best = min(candidates, key=lambda c: len(differences(found, c)))
            raise Fault(
                f"in the store, step {self.step}: not as it was committed:\n  "
                + "\n  ".join(differences(found, best))
                + f"\n  calls: {self.trace}\n  {len(candidates)} may be"
            )
