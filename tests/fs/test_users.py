"""Mounts by root and by an ordinary user (through fusermount3), with and without allow_other; and what other users see
and change.
"""

import json
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import numpy
import pytest

import other_users
import util

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")
USER, OTHER = 65534, 65533  # nobody, and an id that nobody has

# Runs in mount and process namespaces of its own: it may replace /etc/fuse.conf, and nothing is left when it ends. In
# containers /dev/fuse is often root's alone; here it is everybody's, as a system's udev makes it.
SCRIPT = r"""
set -u
user=$1 options=$2 conf=$3 program=$4 source=$5 top=$6 log=$7
printf '%%s\n' "$conf" >"$top.conf"
mount --bind "$top.conf" /etc/fuse.conf || exit 90
if [ "$(stat -c %%a /dev/fuse)" != 666 ]; then
    mkdir -p "$top.dev" && mount -t tmpfs -o mode=755 tmpfs "$top.dev" &&
        mknod -m 666 "$top.dev/fuse" c 10 229 || exit 91
    mount --bind "$top.dev/fuse" /dev/fuse || exit 92
fi
as() { who=$1; shift; setpriv --reuid="$who" --regid="$who" --clear-groups -- "$@"; }
as "$user" "$program" mount "$source" "$top" ${options:+-o "$options"} >"$log" 2>&1 </dev/null
echo "mount $?"
for who in 0 %(user)d %(other)d; do
    if text=$(as "$who" timeout 20 cat "$top/latest/model/step.json" 2>&1); then
        echo "reader $who $text"
    else
        echo "reader $who refused"
    fi
done
owner=$(as "$user" stat -c %%u:%%g "$top/latest/model/step.json" 2>/dev/null) && echo "owner $owner"
as "$user" timeout 30 "$program" umount "$top" >>"$log" 2>&1
echo "umount $?"
as "$user" stat -c %%m "$top" | grep -qx "$top" && echo "still mounted"
exit 0
""" % {"user": USER, "other": OTHER}


@pytest.fixture
def place(tmp_path_factory):
    """A folder, a source and the program, all within every user's reach."""
    top = tmp_path_factory.mktemp("users")
    for folder in [top, *top.parents]:
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    shutil.copy(util.CKPTFS, top / "ckptfs")
    (top / "ckptfs").chmod(0o755)
    util.copy_tree(util.ORBAX / "manager_steps", top / "run")
    (top / "mnt").mkdir()
    return top


def session(place, user, options="", conf="", owner=None):
    """What root, the user and another one see of the user's mount: {words: last word} of the script's lines, and the
    log.
    """
    owner = user if owner is None else owner
    os.chown(place / "mnt", owner, owner)
    command = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "bash",
        "-c",
        SCRIPT,
        "session",
        str(user),
        options,
        conf,
        place / "ckptfs",
        place / "run",
        place / "mnt",
        place / "log",
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    log = (place / "log").read_text()
    assert done.returncode == 0, done.stderr + log
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert "still mounted" not in done.stdout, log
    assert not util.SUSPICIOUS.search(log), log
    return {key: value for key, value in lines}, log


def seen(got):
    """Who of root, the user and the other one could read."""
    return [who for who in (0, USER, OTHER) if got[f"reader {who}"] != "refused"]


def test_root(place):
    got, log = session(place, 0)
    assert got["mount"] == "0", log
    assert seen(got) == [0] and got["umount"] == "0"


def test_root_allows_others(place):
    got, log = session(place, 0, "allow_other")
    assert got["mount"] == "0", log
    assert seen(got) == [0, USER, OTHER] and got["umount"] == "0"


def test_root_gives_files_away(place):
    got, log = session(place, 0, f"allow_other,uid={USER},gid={OTHER},umask=077")
    assert got["mount"] == "0", log
    assert seen(got) == [0, USER]
    assert got["owner"] == f"{USER}:{OTHER}"


def test_user(place):
    got, log = session(place, USER)
    assert got["mount"] == "0", log
    assert seen(got) == [USER] and got["umount"] == "0"
    assert got["owner"] in (f"{USER}:{USER}", "0:0")


def test_user_allows_others(place):
    got, log = session(place, USER, "allow_other", "user_allow_other")
    assert got["mount"] == "0", log
    assert seen(got) == [0, USER, OTHER] and got["umount"] == "0"


def test_user_may_not_allow_others(place):
    """Without user_allow_other in /etc/fuse.conf the mount fails, says so, and leaves nothing."""
    got, log = session(place, USER, "allow_other")
    assert got["mount"] == "2"
    assert "user_allow_other" in log
    assert got["umount"] != "0"


def test_user_at_a_foreign_mount_point(place):
    """A mount point that is not the user's is refused."""
    (place / "mnt").chmod(0o755)
    got, log = session(place, USER, owner=0)
    assert got["mount"] == "2" and "mnt" in log
    assert seen(got) == []


def test_user_reads_only_what_is_theirs(place):
    """The source's permissions hold for the user's daemon."""
    os.chmod(place / "run/4", 0o700)
    got, log = session(place, USER)
    assert got["mount"] == "0", log
    assert seen(got) == []


# --- what other users see and change, of steps of all modes

GROUP = 65532  # that USER is in where it is said
OWNER = 65531
PUBLIC, PRIVATE = (0o755, 0o644), (0o700, 0o600)


def make_step(top, owner, modes, special=()):
    """A step's tree of every kind of leaf at top: {path: (mode, uid, gid)}; modes are of directories and files, special
    overrides some.
    """
    top.mkdir()
    for folder in ("d", "d/in", "other"):
        (top / folder).mkdir()
    for n, name in enumerate(["w", "d/x", "d/in/z", "other/y"]):
        numpy.save(top / f"{name}.npy", numpy.random.default_rng([n, int(top.name)]).random(20_000 if n % 2 else 5))
    for name in "rate", "d/rate", "d/in/rate":
        (top / f"{name}.json").write_text(f"{int(top.name) + len(name) / 64}\n")
    (top / "note").write_text(f"note of {top.name}")
    data = numpy.full(8, int(top.name), "<f4").tobytes()
    head = json.dumps({"t.u": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}).encode()
    for name in "model.safetensors", "d/model.safetensors":
        (top / name).write_bytes(len(head).to_bytes(8, "little") + head + data)
    tree = {}
    paths = [p.relative_to(top) for p in sorted(top.rglob("*"), reverse=True)] + [Path()]
    for path in paths:
        name = "" if path == Path() else str(path)
        mode = dict(special).get(name, modes[0] if (top / path).is_dir() else modes[1])
        os.chown(top / path, owner, owner if owner != OWNER else GROUP)
        os.chmod(top / path, mode)
        tree[name] = (mode, owner, owner if owner != OWNER else GROUP)
    return tree


# name of the step: owner, modes, what differs
STEPS = {
    "1": (0, PUBLIC, {}),
    "2": (0, PRIVATE, {}),
    "3": (0, (0o755, 0o600), {}),
    "4": (0, PUBLIC, {"d/in": 0o700}),  # a public leaf in a private directory
    "5": (0, PUBLIC, {"d/in": 0o744}),  # that others may list, and not enter
    "6": (0, PUBLIC, {"d/in": 0o711}),  # that they may enter, and not list
    "7": (0, PUBLIC, {"d/in/z.npy": 0o600}),
    "8": (0, PUBLIC, {"": 0o744}),
    "9": (OWNER, PRIVATE, {}),
    "10": (OWNER, (0o750, 0o640), {}),
    "11": (OWNER, PUBLIC, {"other/y.npy": 0o640, "model.safetensors": 0o600}),
    "12": (0, PUBLIC, {"model.safetensors": 0o600, "rate.json": 0o000}),
}
READERS = {"nobody": (USER, ()), "member": (USER, (GROUP,)), "owner": (OWNER, ())}


@pytest.fixture
def steps(mount, tmp_path):
    """steps(*options): a mount with all of STEPS, committed and (mounted with commit=explicit) staged, and {name: what
    is in it}.
    """

    def make(*options):
        other_users.let_in(tmp_path)
        root = tmp_path / "root"
        root.mkdir()
        util.ckptfs("init", root)
        m = mount(root, "commit=explicit", *options)
        other_users.let_in(m.top.parent)
        trees = {name: make_step(m.top / name, *how) for name, how in STEPS.items()}
        return m, trees

    return make


def commit(m):
    for name in STEPS:
        fd = os.open(m.top / name, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def check_reads(m, user, groups, wanted):
    """wanted: {path: may it be read?}"""
    calls = [("names" if (m.top / p).is_dir() else "read", m.top / p) for p in wanted]
    got = other_users.as_user(user, calls, groups)
    wrong = {p: r for (p, may), r in zip(wanted.items(), got) if (r not in ("EACCES",)) != may}
    assert not wrong, wrong


def paths_of(trees, who):
    """Each file and directory of each step: may `who` read it?"""
    return {f"{step}/{p}".rstrip("/"): who.read(tree, p) for step, tree in trees.items() for p in tree}


def is_array(path):
    return path.endswith(".npy")


def view_paths(m, trees, who):
    """Every view of every file and directory that there is (for root, who sees all of them): may `who` read it?"""
    wanted = {}
    for step, tree in trees.items():
        for p in tree:
            full = f"{step}/{p}".rstrip("/")
            of = "DIR" if (m.top / full).is_dir() else "KEY" if p.endswith((".npy", ".json")) else "BLOB"
            for what, name in VIEWS:
                stem = full.rsplit(".", 1)[0] if of == "KEY" and what == "KEY" else full
                path = name.format(of=stem)
                if (
                    (what == "DIR") != (of == "DIR")
                    or path == full
                    or (what == "DIR" and not p and path.startswith(f"{step}.") and "/" in path)
                ):
                    continue
                if not os.path.exists(m.top / path):
                    continue
                if what == "DIR":
                    inside = path.startswith(full + "/")  # who cannot enter it does not even find the name
                    wanted[path] = who.read_below(tree, p) and (not inside or who.allowed(tree[p], 1))
                else:
                    wanted[path] = who.read(tree, p)
                if (m.top / path).is_dir():  # BLOB.tree and all in it, with its views
                    for inner in [
                        *(m.top / path).rglob("*"),
                        m.top / path / ".tree.json",
                        m.top / f"{path}.safetensors",
                    ]:
                        wanted[str(inner.relative_to(m.top))] = wanted[path]
    return wanted


VIEWS = other_users.views()


def test_views_are_listed():
    """The table in docs/using.md, from which the tests below take the views, has all kinds that there are."""
    shown = {
        "KEY": "RAW",
        "KEY.npy": "NPY",
        "KEY.txt": "TEXT",
        "KEY.meta.json": "META",
        "DIR/.tree.json": "TREE",
        "DIR.safetensors": "SAFETENSORS",
        "KEY@SLICE": "SLICE",
        "KEY@SLICE.npy": "SLICE_NPY",
    }
    listed = {name.format(of=of).replace(":1", "SLICE") for of, name in VIEWS}
    assert set(shown) <= listed
    assert len(other_users.view_kinds() - set(shown.values())) <= len(
        listed - set(shown) - {"DIR/.safetensors", "BLOB.tree"}
    )


@pytest.mark.parametrize("reader", READERS)
def test_what_is_read(steps, reader):
    """Files, directories and every view of them, staged and committed: what the modes allow, no more and no less."""
    user, groups = READERS[reader]
    who = other_users.Rights(user, groups)
    m, trees = steps("allow_other")
    check_reads(m, user, groups, paths_of(trees, who))
    commit(m)
    check_reads(m, user, groups, paths_of(trees, who))
    wanted = view_paths(m, trees, who)
    assert len(wanted) > 100 and {True, False} == set(wanted.values())
    check_reads(m, user, groups, wanted)


@pytest.mark.parametrize("reader", READERS)
def test_files_face(steps, reader):
    """The files of a step are made of all of it."""
    user, groups = READERS[reader]
    who = other_users.Rights(user, groups)
    m, trees = steps("allow_other")
    commit(m)
    wanted = {}
    for step, tree in trees.items():
        for path in [m.top / ".files" / step, *(m.top / ".files" / step).rglob("*")]:
            wanted[str(path.relative_to(m.top))] = who.read_below(tree, "")
    assert len(wanted) > 5 * len(trees)
    check_reads(m, user, groups, wanted)


def test_without_allow_other(steps):
    """Nothing at all, be it as public as can be."""
    m, trees = steps()
    commit(m)
    everything = [
        *paths_of(trees, other_users.Rights(0)),
        *view_paths(m, trees, other_users.Rights(0)),
        "",
        ".files",
        ".files/1",
        ".ckptfs",
        *(f".ckptfs/{n}" for n in os.listdir(m.top / ".ckptfs")),
    ]
    calls = [("text", m.top / p) for p in everything] + [("attribute", m.top / p, "user.ckpt.kind") for p in everything]
    assert set(other_users.as_user(USER, calls)) == {"EACCES"}


def test_attributes(steps):
    """Values of attributes are for who may read what they are of."""
    who = other_users.Rights(USER)
    m, trees = steps("allow_other")
    for step in trees:
        os.setxattr(m.top / step / "note", "user.mine", b"1")
    for _ in range(2):
        calls, may = [], []
        for path, allowed in paths_of(trees, who).items():
            for name in os.listxattr(m.top / path):
                calls.append(("attribute", m.top / path, name))
                may.append(allowed)
        assert len(calls) >= len(trees)
        got = other_users.as_user(USER, calls)
        assert [r != "EACCES" for r in got] == may, [c for c, r, a in zip(calls, got, may) if (r != "EACCES") != a]
        commit(m)


CHANGES = {
    "dir": [
        ("create", "{}/new"),
        ("mkdir", "{}/new"),
        ("rmdir", "{}"),
        ("chmod", "{}", 0o777),
        ("chown", "{}", USER, USER),
        ("touch", "{}"),
        ("set_attribute", "{}", "user.x", "1"),
        ("set_attribute", "{}", "user.ckpt.pinned", "1"),
        ("set_attribute", "{}", "user.ckpt.metadata", "{{}}"),
        ("set_attribute", "{}", "user.ckpt.kind", "list"),
        ("removexattr", "{}", "user.ckpt.metadata"),
        ("rename", "{}", "{}.new"),
        ("rename", "{}", "{top}/99"),
    ],
    "file": [
        ("write", "{}"),
        ("append", "{}"),
        ("truncate", "{}", 0),
        ("unlink", "{}"),
        ("chmod", "{}", 0o777),
        ("chown", "{}", USER, USER),
        ("touch", "{}"),
        ("set_attribute", "{}", "user.x", "1"),
        ("rename", "{}", "{}.new"),
        ("link", "{}", "{}.new"),
    ],
}


@pytest.mark.parametrize("state", ["staged", "committed"])
def test_what_is_changed(steps, state):
    """Nothing, by who is neither the owner nor may write: no call succeeds, and all is as it was."""
    m, trees = steps("allow_other")
    if state == "committed":
        commit(m)

    def look():
        found = {}
        for step in sorted(os.listdir(m.top)):
            for path in [m.top / step, *sorted((m.top / step).rglob("*"))]:
                st = os.lstat(path)
                found[str(path)] = (
                    st.st_mode,
                    st.st_uid,
                    st.st_mtime_ns,
                    path.read_bytes() if path.is_file() else None,
                    os.getxattr(path, "user.ckpt.state") if path.parent == m.top and not path.is_symlink() else None,
                )
        return found

    before = look()
    calls = []
    for step, tree in trees.items():
        for p in tree:
            path = f"{m.top}/{step}/{p}".rstrip("/")
            for call, *args in CHANGES["dir" if os.path.isdir(path) else "file"]:
                calls.append((call, *(a.format(path, top=m.top) if isinstance(a, str) else a for a in args)))
        calls += [
            ("write", f"{m.top}/.files/{step}"),
            ("unlink", f"{m.top}/.files/{step}/_METADATA"),
            ("rmdir", f"{m.top}/.files/{step}"),
            ("create", f"{m.top}/.files/{step}/x"),
            ("rename", f"{m.top}/.files/{step}", f"{m.top}/.files/99"),
        ]
    calls += [
        ("mkdir", f"{m.top}/99"),
        ("mkdir", f"{m.top}/.new"),
        ("mkdir", f"{m.top}/.files/99"),
        ("create", f"{m.top}/.files/x"),
        ("create", f"{m.top}/.ckptfs/x"),
        ("unlink", f"{m.top}/.ckptfs/steps.json"),
        ("write", f"{m.top}/.ckptfs/version"),
    ]
    got = other_users.as_user(USER, calls)
    done = [c for c, r in zip(calls, got) if r == "ok"]
    assert not done, done
    assert look() == before


def test_commit(steps):
    """By `sync` and by a rename: the owner, and who may write to the step; nobody else, who is told so."""
    m, trees = steps("allow_other")
    public = [s for s, t in trees.items() if other_users.Rights(USER).read(t, "")]
    assert set(other_users.as_user(USER, [("sync", m.top / s) for s in public])) == {"EACCES"}
    assert all(os.getxattr(m.top / s, "user.ckpt.state") == b"staged" for s in trees)
    assert other_users.as_user(OWNER, [("sync", m.top / "11"), ("sync", m.top / "1")]) == ["ok", "EACCES"]
    assert os.getxattr(m.top / "11", "user.ckpt.state") == b"committed"
    os.chmod(m.top / "10", 0o770)
    assert other_users.as_user(USER, [("sync", m.top / "10")], (GROUP,)) == ["ok"]
    assert os.getxattr(m.top / "10", "user.ckpt.state") == b"committed"
    os.chmod(m.top / "3", 0o777)
    assert other_users.as_user(USER, [("sync", m.top / "3")]) == ["ok"]
    os.chmod(m.source, 0o777)  # who may write to the root may rename in it, as anywhere
    (m.top / ".new").mkdir()
    assert other_users.as_user(USER, [("rename", m.top / ".new", m.top / "50")]) == ["EACCES"]
    assert other_users.as_user(OWNER, [("mkdir", m.top / ".own"), ("rename", m.top / ".own", m.top / "51")]) == [
        "ok",
        "ok",
    ]
    # a committed step of which its owner has removed something
    os.unlink(m.top / "11/note")
    assert other_users.as_user(USER, [("sync", m.top / "11")]) == ["EACCES"]


def test_commit_of_a_copy(steps):
    """What a stranger's directory descriptor cannot do to a committed step that its owner changes."""
    m, trees = steps("allow_other")
    commit(m)
    assert other_users.as_user(OWNER, [("append", m.top / "11/note")]) == ["ok"]
    assert other_users.as_user(USER, [("sync", m.top / "11")]) == ["EACCES"]
    assert os.getxattr(m.top / "11", "user.ckpt.state") == b"staged"


def test_reasons(steps):
    """Why a step does not commit may be a file that not everybody can list."""
    m, trees = steps("allow_other")
    with open(m.top / "4/d/in/hidden-name", "w"):
        with pytest.raises(OSError):
            fd = os.open(m.top / "4", os.O_RDONLY)
            os.fsync(fd)
    os.close(fd)
    assert b"hidden-name" in os.getxattr(m.top / "4", "user.ckpt.error")
    told = other_users.as_user(USER, [("attribute", m.top / "4", "user.ckpt.error")])[0]
    assert "hidden-name" not in told and "told why" in told


def make_runs(folder):
    """Directories of runs, each with a step and an unfinished one."""
    for name, mode in {
        "open": 0o755,
        "closed": 0o700,
        "listed": 0o744,
        "entered": 0o711,
        "closed/below": 0o755,
        "open/inner": 0o700,
    }.items():
        util.copy_tree(util.ORBAX / "manager_steps/3", folder / name / "3")
        (folder / name / "4.orbax-checkpoint-tmp-7").mkdir()
        os.chmod(folder / name, mode)
    os.chmod(folder / "open/3", 0o700)


def test_control_files(mount, tmp_path):
    """They name what the reader can list himself; whatever is added there is looked at too."""
    other_users.let_in(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    make_runs(source)
    m = mount(source, "allow_other")
    other_users.let_in(m.top.parent)
    hidden = ("closed", "below", "listed", "entered", "inner")
    for name in os.listdir(m.top / ".ckptfs"):
        everything, mine = (
            (m.top / ".ckptfs" / name).read_text(),
            other_users.as_user(USER, [("text", m.top / ".ckptfs" / name)])[0],
        )
        assert not any(f"{h}/" in mine or f'/{h}"' in mine or f'"{h}"' in mine for h in hidden), (name, mine)
        if name in ("steps.json", "unfinished"):
            assert all(h in everything for h in hidden) and "open" in mine
    steps = json.loads(other_users.as_user(USER, [("text", m.top / ".ckptfs/steps.json")])[0])
    assert [r["path"] for r in steps["roots"]] == ["open"]


@pytest.mark.parametrize(
    "options, paths",
    [(f"uid={USER}", ["closed", "closed/below", "entered", "listed", "open", "open/inner"]), ("umask=077", [])],
)
def test_control_files_as_shown(mount, tmp_path, options, paths):
    """The rights that the mount shows count."""
    other_users.let_in(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    make_runs(source)
    m = mount(source, "allow_other", options)
    other_users.let_in(m.top.parent)
    got = other_users.as_user(USER, [("text", m.top / ".ckptfs/steps.json")])[0]
    assert got == "EACCES" if not paths else [r["path"] for r in json.loads(got)["roots"]] == paths


@pytest.mark.parametrize(
    "closed",
    [
        "state",
        "state/_METADATA",
        "state/d",
        "state/manifest.ocdbt",
        "state/d/*",
        "state/ocdbt.process_0/d/*",
        "metrics",
        "metrics/metrics",
        "",
    ],
)
def test_orbax(mount, tmp_path, closed):
    """An item has the rights of its files, whichever of them they are in."""
    other_users.let_in(tmp_path)
    step = util.copy_tree(util.ORBAX / "composite/1", tmp_path / "source/7")
    for path in step.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    items = sorted(p.name for p in step.iterdir() if p.is_dir())
    for path in list(step.glob(closed)) if closed else [step]:
        os.chmod(path, 0o700 if path.is_dir() else 0o600)
    m = mount(tmp_path / "source", "allow_other")
    other_users.let_in(m.top.parent)
    shut = set(items) if not closed else {closed.split("/")[0]}
    wanted = {}
    for path in (m.top / "7").rglob("*"):
        name = str(path.relative_to(m.top))
        item = name.split("/")[1].split(".")[0]
        wanted[name] = item not in shut and closed != ""
    for path in ["7/.tree.json", "7.safetensors", "7/.safetensors"]:
        wanted[path] = False
    for item in items:
        if (m.top / "7" / item).is_dir():
            wanted[f"7/{item}.safetensors"] = wanted[f"7/{item}/.tree.json"] = item not in shut and closed != ""
    wanted = {p: may for p, may in wanted.items() if os.path.lexists(m.top / p)}
    assert True in wanted.values() or not closed
    check_reads(m, USER, (), wanted)


def test_shards(mount, tmp_path):
    """A folder of shards has the rights of all of them."""
    other_users.let_in(tmp_path)
    folder = util.copy_tree(util.DATA / "safetensors/sharded", tmp_path / "source/model")
    for path in [folder, *folder.rglob("*")]:
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    m = mount(tmp_path / "source", "allow_other")
    other_users.let_in(m.top.parent)
    views = [m.top / "model.safetensors", m.top / "model/.tree.json"]
    assert other_users.as_user(USER, [("read", v) for v in views]) == ["ok", "ok"]
    m.stop()
    os.chmod(sorted(folder.glob("*.safetensors"))[0], 0o600)
    m = mount(tmp_path / "source", "allow_other")
    other_users.let_in(m.top.parent)
    views = [m.top / "model.safetensors", m.top / "model/.tree.json"]
    assert other_users.as_user(USER, [("read", v) for v in views]) == ["EACCES", "EACCES"]


# --- on the disk

ROOT_OWNER = 65530


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_on_disk(mount, tmp_path, codec):
    """Whoever reads the disk finds there no leaf that the mount does not let him read; all of it is the root
    owner's.
    """
    other_users.let_in(tmp_path)
    root = tmp_path / "root"
    root.mkdir()
    os.chown(root, ROOT_OWNER, ROOT_OWNER)
    util.ckptfs("init", root)
    m = mount(root, "commit=explicit", "allow_other", f"codec={codec}")
    other_users.let_in(m.top.parent)
    trees = {name: make_step(m.top / name, *how) for name, how in STEPS.items()}
    shared = numpy.random.default_rng(7).random(30_000)  # one object of a public and of a private leaf
    for name in "1", "2":
        numpy.save(m.top / name / "shared.npy", shared)
        os.chmod(m.top / name / "shared.npy", STEPS[name][1][1])
    staged = [*(root / ".ckptstore/staging").iterdir()]
    assert staged and all(stat.S_IMODE(os.stat(p).st_mode) == 0o700 for p in staged)
    commit(m)
    util.wait_for(lambda: not [*(root / ".ckptstore/trash").glob("staging-*")])
    files = [p for p in (root / ".ckptstore").rglob("*")]
    assert {os.stat(p).st_uid for p in files} == {ROOT_OWNER}
    assert not [p for p in files if p.is_file() and p.parent.parent.name == "objects" and os.stat(p).st_mode & 0o333]
    named = {}  # object: the leaves that it holds
    for manifest in (root / ".ckptstore/steps").glob("*.json"):
        nodes = json.loads(manifest.read_text())["nodes"]
        paths = [""]
        for n in nodes:
            paths.append(f"{paths[n['parent']]}/{n['name']}".lstrip("/"))
            if n["kind"] in ("array", "blob"):
                named.setdefault(n.get("object", n["sha256"]), []).append((manifest.stem, paths[-1]))
    trees["1"]["shared.npy"], trees["2"]["shared.npy"] = (0o644, 0, 0), (0o600, 0, 0)
    for user, groups in READERS.values():
        who = other_users.Rights(user, groups)
        got = other_users.as_user(user, [("read", root / ".ckptstore/steps" / f"{s}.json") for s in trees], groups)
        may = {s: who.read_below(t, "") for s, t in trees.items()}
        assert not [s for s, r in zip(trees, got) if r == "ok" and not may[s]]
        got = other_users.as_user(user, [("read", root / ".ckptstore/objects" / h[:2] / h) for h in named], groups)
        assert not [h for h, r in zip(named, got) if r == "ok" and not all(who.read(trees[s], p) for s, p in named[h])]
    # What is public stays so, for the mounts of others.
    readable = other_users.as_user(USER, [("read", root / ".ckptstore/steps/1.json")])
    assert readable == ["ok"]
    lone = [h for h, leaves in named.items() if {s for s, _ in leaves} == {"1"}]
    assert lone and set(
        other_users.as_user(USER, [("read", root / ".ckptstore/objects" / h[:2] / h) for h in lone])
    ) == {"ok"}


def test_failed_commit_gives_back(mount, tmp_path):
    """Files that were to become objects are their maker's again when the commit fails."""
    other_users.let_in(tmp_path)
    root = tmp_path / "root"
    root.mkdir()
    util.ckptfs("init", root)
    m = mount(root, "commit=explicit", "allow_other", "codec=none")
    other_users.let_in(m.top.parent)
    make_step(m.top / "9", *STEPS["9"])
    (root / ".ckptstore/steps/9.json").mkdir()  # in its way
    before = [os.stat(p) for p in sorted((m.top / "9").rglob("*"))]
    with pytest.raises(OSError):
        fd = os.open(m.top / "9", os.O_RDONLY)
        os.fsync(fd)
    os.close(fd)
    time.sleep(1.1)  # the kernel remembers attributes of what is staged for a second
    after = [os.stat(p) for p in sorted((m.top / "9").rglob("*"))]
    assert [(s.st_mode, s.st_uid, s.st_gid) for s in after] == [(s.st_mode, s.st_uid, s.st_gid) for s in before]
    assert not [p for p in (root / ".ckptstore/objects").rglob("*") if p.is_file() and os.stat(p).st_uid != 0]
    (root / ".ckptstore/steps/9.json").rmdir()
    assert other_users.as_user(OWNER, [("append", m.top / "9/note"), ("sync", m.top / "9")]) == ["ok", "ok"]
    got = {
        str(p.relative_to(m.top / "9")): (stat.S_IMODE(os.stat(p).st_mode), os.stat(p).st_uid)
        for p in (m.top / "9").rglob("*")
    }
    assert set(got.values()) == {(0o600, OWNER), (0o700, OWNER)}
