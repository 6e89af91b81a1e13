"""What a disk may hold after the power was cut, told from a trace of the calls that changed it (core/io/disk.h).

Every file and every directory has two states: what it is, and what must be there after a cut, which is what the last
fsync of that very file or directory made durable; and the calls that lie between the two. A cut leaves, of a directory,
the durable entries and any first part of the changes after them; of a file, the durable bytes and any part of the
changes after them, where bytes that did not arrive read as zeros, or the file is shorter. Nothing orders one file
against another. A rename within a directory is one change; one from directory to directory is two, a gain in one and a
loss in the other, each durable by an fsync of its own directory.
"""

import collections
import os
import stat
from pathlib import Path

RENAME_EXCHANGE = 2
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
DELETED = " (deleted)"
PIECE = 65536  # of one write, which may arrive in part

File = collections.namedtuple(
    "File", "data xattrs mode inode settled"
)  # settled: these very bytes are seen again at other points


class Inode:
    """A file: bytes and attributes. `ops` are the changes since the last fsync."""

    def __init__(self, mode, data=b"", xattrs=None):
        self.mode = mode
        self.data, self.xattrs = bytearray(data), dict(xattrs or {})
        self.snapshot = bytes(data)  # of data, None when it is out of date
        self.durable, self.durable_xattrs = self.snapshot, dict(self.xattrs)
        self.ops = []

    def current(self):
        if self.snapshot is None:
            self.snapshot = bytes(self.data)
        return self.snapshot

    def change(self, *op):
        self.ops.append(op)
        apply(op, self.data, self.xattrs)
        if op[0] in ("write", "truncate", "punch", "allocate"):
            self.snapshot = None

    def fsync(self):
        self.durable, self.durable_xattrs, self.ops = self.current(), dict(self.xattrs), []


def apply(op, data, xattrs):
    if op[0] == "write":
        if len(data) < op[1]:
            data.extend(bytes(op[1] - len(data)))
        data[op[1] : op[1] + len(op[2])] = op[2]
    elif op[0] == "truncate":
        del data[op[1] :]
        data.extend(bytes(op[1] - len(data)))
    elif op[0] == "punch":
        allocate(data, KEEP_SIZE | PUNCH_HOLE, 0, op[1])
    elif op[0] == "allocate":
        allocate(data, *op[1:])
    elif op[0] == "setxattr":
        xattrs[op[1]] = op[2]
    else:
        xattrs.pop(op[1], None)


def allocate(data, mode, off, length):
    end = off + length
    if not mode & KEEP_SIZE:
        data.extend(bytes(end - len(data)))
    if mode & (PUNCH_HOLE | ZERO_RANGE):
        end = min(end, len(data))
        data[off:end] = bytes(max(0, end - off))
    assert not mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE), f"fallocate {mode:#x} is not in the model"


class Directory:
    """`ops` are the changes since the last fsync, each a list of (name, inode or None for a loss) that comes or stays
    away as one.
    """

    def __init__(self, mode):
        self.mode = mode
        self.names, self.durable, self.ops = {}, {}, []
        self.place = None  # (directory, name)

    def change(self, *names):
        self.ops.append(names)
        put(self.names, names)
        for name, inode in names:
            if isinstance(inode, Directory):
                inode.place = (self, name)

    def fsync(self):
        self.durable, self.ops = dict(self.names), []


def put(names, op):
    for name, inode in op:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def unescape(word):
    plain, *parts = os.fsencode(word).split(b"%")
    return os.fsdecode(plain + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in parts))


class Trace:
    """The lines of a trace, each a list of words, and the data of its writes."""

    def __init__(self, path):
        self.lines = [line.split(" ") for line in Path(path).read_text().splitlines()]
        self.data = Path(f"{path}.data").read_bytes()

    def around(self, k, before=12, after=4):
        """As text, the calls around a cut after k calls."""
        rows = [f"{'->' if n + 1 == k else '  '} {n + 1}: {' '.join(line)}" for n, line in enumerate(self.lines)]
        return "\n".join(rows[max(0, k - before) : k + after])


def lines_of(path):
    """How many calls a trace has so far; it may be growing."""
    try:
        return Path(path).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


class Disk:
    """A folder as it was when the trace began, all of it durable; then the calls of the trace, one by one."""

    def __init__(self, folder):
        self.path = os.path.realpath(folder)
        self.gone = {}  # path: what had that name last
        self.unknown = set()  # paths that were removed and never made
        links = {}

        def load(path):
            st = os.lstat(path)
            if stat.S_ISREG(st.st_mode):
                if st.st_ino not in links:
                    xattrs = {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")}
                    links[st.st_ino] = Inode(st.st_mode & 0o7777, Path(path).read_bytes(), xattrs)
                return links[st.st_ino]
            assert stat.S_ISDIR(st.st_mode), path
            made = Directory(st.st_mode & 0o7777)
            for name in os.listdir(path):
                made.change((name, load(os.path.join(path, name))))
            made.fsync()
            return made

        self.top = load(self.path)

    # --- the calls

    def find(self, path):
        """A file or directory by the path that a descriptor had."""
        at = self.top
        for name in self.parts(path):
            at = at.names.get(name) if isinstance(at, Directory) else None
            if at is None:
                break
        if at is None and path.endswith(DELETED):
            at = self.gone.get(os.path.normpath(path.removesuffix(DELETED)))
        assert at is not None, f"{path} is not known"
        return at

    def parts(self, path):
        path = os.path.normpath(path)
        assert path == self.path or path.startswith(self.path + "/"), f"{path} is not below {self.path}"
        return path[len(self.path) + 1 :].split("/") if path != self.path else []

    def parent(self, path):
        path = os.path.normpath(path)
        return self.find(os.path.dirname(path)), os.path.basename(path)

    def lose(self, path, inode):
        """Remember what had a name; all that is below it goes with it."""
        path = os.path.normpath(path)
        self.gone[path] = inode
        if isinstance(inode, Directory):
            for name, below in inode.names.items():
                self.lose(f"{path}/{name}", below)

    def play(self, line, data):
        op, path, *rest = line[0], unescape(line[1]), *line[2:]
        if op == "none":  # a call that a test has taken out
            pass
        elif op == "open":
            self.open(path, int(rest[0]), int(rest[1], 8))
        elif op == "write":
            off, length, at = map(int, rest)
            self.find(path).change("write", off, data[at : at + length])
        elif op in ("truncate", "punch"):
            self.find(path).change(op, int(rest[0]))
        elif op == "allocate":
            self.find(path).change(op, *map(int, rest))
        elif op == "chmod":  # it arrives at once, and so do owners and times, which are not in the model
            self.find(path).mode = int(rest[0], 8)
        elif op in ("chown", "times"):
            self.find(path)
        elif op == "fsync":
            self.find(path).fsync()
        elif op == "syncfs":
            self.sync(self.top)
        elif op == "mkdir":
            parent, name = self.parent(path)
            assert name not in parent.names, path
            parent.change((name, Directory(int(rest[0], 8) & ~0o022)))
        elif op == "rename":
            self.rename(path, unescape(rest[0]), int(rest[1]))
        elif op == "link":
            parent, name = self.parent(unescape(rest[0]))
            assert name not in parent.names, rest[0]
            parent.change((name, self.find(path)))
        elif op == "unlink":
            parent, name = self.parent(path)
            if name in parent.names:  # else it was made by a call that is not traced: `unknown` has it
                self.lose(path, parent.names[name])
                parent.change((name, None))
            else:
                self.unknown.add(path)
        elif op == "setxattr":
            length, at = map(int, rest[1:])
            self.find(path).change("setxattr", unescape(rest[0]), data[at : at + length])
        elif op == "removexattr":
            self.find(path).change("removexattr", unescape(rest[0]))
        else:
            raise AssertionError(f"unknown call {line}")

    def sync(self, directory):
        """Everything is durable."""
        directory.fsync()
        for inode in directory.names.values():
            self.sync(inode) if isinstance(inode, Directory) else inode.fsync()

    def open(self, path, flags, mode):
        assert flags & os.O_TMPFILE != os.O_TMPFILE, "files without names are not in the model"
        parent, name = self.parent(path)
        there = parent.names.get(name)
        if there is None:
            assert flags & os.O_CREAT, path
            parent.change((name, Inode(mode & ~0o022)))
        elif flags & os.O_TRUNC:
            there.change("truncate", 0)

    def rename(self, path, to, flags):
        old, name = self.parent(path)
        new, new_name = self.parent(to)
        moved, there = old.names[name], new.names.get(new_name)
        if moved is there:
            return  # two names of one file both stay
        if flags & RENAME_EXCHANGE:
            gain, loss = [(new_name, moved)], [(name, there)]
        else:
            gain, loss = [(new_name, moved)], [(name, None)]
            if there is not None:
                self.lose(to, there)
        if old is new:
            old.change(*loss, *gain)
        else:
            new.change(*gain)
            old.change(*loss)

    # --- what a cut leaves

    def outcomes(self, rng, count):
        """(name, tree) of what may be on the disk if the power is cut now. A tree is {name: tree or File}.

        Those that are least and most, all the names without the data, all the data without the names, and `count`
        random ones.
        """
        arrived = lambda d: d.names  # noqa: E731
        durable = lambda d: d.durable  # noqa: E731
        yield "durable", self.tree(durable, self.durable_content)
        yield "all", self.tree(arrived, self.current_content)
        yield "names, durable data", self.tree(arrived, self.durable_content)
        yield "names, zeros", self.tree(arrived, self.zeros)
        yield "data", self.tree(durable, self.current_content)
        for n in range(count):
            names = rng.choice((0.0, 0.5, 1.0, None))
            data = rng.choice((0.0, 0.5, 1.0))
            yield (
                f"random {n}",
                self.tree(lambda d: self.some_names(d, rng, names), lambda i: self.some_content(i, rng, data)),
            )

    def outcome_all(self):
        """Without a cut."""
        return self.tree(lambda d: d.names, self.current_content)

    def tree(self, names_of, content_of):
        chosen, contents = {}, {}

        def names(d):
            if d not in chosen:
                chosen[d] = names_of(d)
            return chosen[d]

        def build(d):
            made = {}
            for name, inode in names(d).items():
                if not isinstance(inode, Directory):
                    if inode not in contents:
                        contents[inode] = content_of(inode)
                    made[name] = contents[inode]
                elif (d, name) == inode.place or names(inode.place[0]).get(inode.place[1]) is not inode:
                    made[name] = build(inode)  # no disk has one directory in two places: the new one counts
            return made

        return build(self.top)

    @staticmethod
    def durable_content(inode):
        return File(inode.durable, inode.durable_xattrs, inode.mode, inode, True)

    @staticmethod
    def current_content(inode):
        return File(inode.current(), inode.xattrs, inode.mode, inode, True)

    @staticmethod
    def zeros(inode):
        """The length has arrived, and nothing else."""
        data = inode.durable[: len(inode.current())]
        data += bytes(len(inode.current()) - len(data))
        return File(data, inode.durable_xattrs, inode.mode, inode, not inode.ops)

    @staticmethod
    def some_names(d, rng, share):
        names = dict(d.durable)
        count = rng.randint(0, len(d.ops)) if share is None else sum(rng.random() < share for _ in d.ops)
        for op in d.ops[:count]:
            put(names, op)
        return names

    @staticmethod
    def some_content(inode, rng, share):
        if not inode.ops:
            return Disk.durable_content(inode)
        data, xattrs, least = bytearray(inode.durable), dict(inode.durable_xattrs), len(inode.durable)
        for op in inode.ops:
            if op[0] == "write":
                for at in range(0, len(op[2]), PIECE):
                    if rng.random() < share:
                        apply(("write", op[1] + at, op[2][at : at + PIECE]), data, xattrs)
                end = op[1] + len(op[2])
                if len(data) < end and rng.random() < 0.5:  # the length alone
                    data.extend(bytes(end - len(data)))
            elif rng.random() < share:
                apply(op, data, xattrs)
                least = min(least, len(data))
        if len(data) > least and rng.random() < 0.25:
            del data[rng.randint(least, len(data)) :]
        return File(bytes(data), xattrs, inode.mode, inode, False)


def materialise(tree, folder):
    """An outcome as a real directory; files that share an inode are hard links."""
    folder = Path(folder)
    folder.mkdir()
    made = {}

    def write(below, at):
        for name, node in below.items():
            path = os.path.join(at, name)
            if isinstance(node, dict):
                os.mkdir(path)
                write(node, path)
            elif node.inode in made:
                os.link(made[node.inode], path)
            else:
                made[node.inode] = path
                Path(path).write_bytes(node.data)
                for key, value in node.xattrs.items():
                    os.setxattr(path, key, value)
                os.chmod(path, node.mode)

    write(tree, folder)
    return folder
