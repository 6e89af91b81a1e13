"""mount(8) and fstab lines, for root and for an ordinary user, with what is installed.

Each test runs a script in mount and process namespaces of its own, where /sbin holds the helpers alone, /usr/local/bin
the installed program, and /etc/fstab is the test's. Nothing of that is seen outside, and no daemon outlives it.
"""

import os
import shutil

import pytest

import util

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
USER = 65534  # nobody
SOURCE = util.DATA / "demo"
STEPS = "100 200 300 latest "

PREPARE = r"""
set -u
[ $$ = 1 ] || exit 93
here=$1 program=$2
mount -t tmpfs tmpfs /run && mount --bind "$here/sbin" /sbin && mount --bind "$here/fstab" /etc/fstab || exit 90
mount --bind "$program" /usr/local/bin || exit 91
if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
    mount -t tmpfs -o mode=755 tmpfs "$here/dev" && mknod -m 666 "$here/dev/fuse" c 10 229 &&
        mount --bind "$here/dev/fuse" /dev/fuse || exit 92
fi
cd "$here"
user() { setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; }
what() { findmnt -n -o FSTYPE,OPTIONS --mountpoint "$here/mnt" | tr -s ' '; }
list() { timeout 20 ls "$here/mnt" | tr '\n' ' '; echo; }
"""


class Place:
    def __init__(self, folder, installed):
        self.folder, self.installed = folder, installed
        for name in "sbin", "mnt", "dev":
            (folder / name).mkdir()
        (folder / "fstab").write_text("")
        self.add_helpers("mount.ckptfs", "mount.fuse.ckptfs")

    def add_helpers(self, *names):
        """All that /sbin will hold."""
        shutil.rmtree(self.folder / "sbin")
        (self.folder / "sbin").mkdir()
        for name in names:
            if "ckptfs" in name:
                os.symlink(self.installed / "sbindir" / name, self.folder / "sbin" / name)
            else:
                shutil.copy("/sbin/mount.fuse3", self.folder / "sbin" / name)

    def run(self, script):
        """The lines that a script prints, stderr included."""
        done = util.run(
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "bash",
            "-c",
            f"{PREPARE}exec 2>&1\n{script}",
            "script",
            self.folder,
            self.installed / "bindir",
            limit=120,
        )
        assert not util.SUSPICIOUS.search(done.stdout), done.stdout
        return done.stdout.splitlines()


@pytest.fixture
def place(tmp_path_factory, installed):
    """A folder within every user's reach, with a mount point mnt."""
    folder = tmp_path_factory.mktemp("helper")
    folder.chmod(0o755)
    return Place(folder, installed)


# --- by the types ckptfs and fuse.ckptfs


@ROOT_ONLY
@pytest.mark.parametrize("kind", ["ckptfs", "fuse.ckptfs"])
def test_mount(place, kind):
    """It has returned when the mount answers; umount(8) takes it away."""
    assert place.run(f"""
timeout 60 mount -t {kind} {SOURCE} mnt; echo "mount $?"
what; list
timeout 20 umount mnt; echo "umount $?"
what""") == [
        "mount 0",
        "fuse.ckptfs rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions",
        STEPS,
        "umount 0",
    ]


@ROOT_ONLY
def test_mount_by_the_helper_of_fuse(place):
    """mount.fuse3 runs the program itself."""
    place.add_helpers("mount.fuse")
    lines = place.run(f"""
timeout 60 mount -t fuse.ckptfs {SOURCE} mnt -o ro,nofail,relatime,x-systemd.automount,_netdev; echo "mount $?"
what; list
timeout 20 umount mnt; echo "umount $?"
timeout 60 mount -t fuse.ckptfs "$here/nothing" mnt; echo "mount $?" """)
    assert lines[:-2] == [
        "mount 0",
        "fuse.ckptfs ro,relatime,user_id=0,group_id=0,default_permissions",
        STEPS,
        "umount 0",
    ]
    assert "nothing: No such file" in lines[-2] and lines[-1] == "mount 3"


@ROOT_ONLY
def test_options_of_mount(place):
    """mount(8)'s own options are taken, and change what they mean; ours arrive."""
    assert place.run(f"""
options=defaults,noauto,users,nofail,_netdev,comment=x,strictatime,lazytime,nodiratime,x-gvfs-show,X-a.b=c
timeout 60 mount -t ckptfs {SOURCE} mnt -o $options,ro,noatime,umask=077
what; stat -c %A mnt/300/metrics.json
timeout 20 umount mnt""") == [
        "fuse.ckptfs ro,nosuid,nodev,noexec,noatime,user_id=0,group_id=0,default_permissions",
        "-r--------",
    ]


@ROOT_ONLY
def test_writing(place):
    """mount(8) says rw of every mount that is not to be read-only, and it is one."""
    assert place.run("""
mkdir root
timeout 60 mount -t ckptfs root mnt && mkdir mnt/7 && echo 1 >mnt/7/a.json && timeout 20 sync mnt/7 &&
    readlink mnt/latest
timeout 20 umount mnt
timeout 60 mount -r -t ckptfs root mnt && cat mnt/7/a.json; mkdir mnt/8
timeout 20 umount mnt""")[:2] == ["7", "1"]


@ROOT_ONLY
def test_failures(place):
    """The exit statuses are those of mount(8), the reason is told, and nothing is left."""
    lines = place.run(f"""
for arguments in "{place.folder}/nothing mnt" "{util.ORBAX}/commit_file/3 mnt" "{SOURCE} nowhere" \\
    "{SOURCE} mnt -o refresh=x" "{SOURCE} mnt -o nonsense"; do
    timeout 60 mount -t ckptfs $arguments; echo "exit $?"
done
what; list
timeout 60 mount -t ckptfs {SOURCE} mnt && timeout 60 mount -o remount,rw mnt; echo "exit $?"
list""")
    assert [line for line in lines if line.startswith("exit")] == ["exit 32"] * 3 + ["exit 1"] * 3
    for reason in "nothing: No such file", "not committed", "nowhere", "refresh=x", "nonsense", "cannot be changed":
        assert any(reason in line for line in lines), reason
    assert lines[-1] == STEPS and "" in lines


@ROOT_ONLY
def test_fake_verbose_and_namespace(place):
    """-f mounts nothing; -v says what is run; -N mounts in another namespace."""
    lines = place.run(f"""
timeout 60 mount -f -v -t ckptfs {SOURCE} mnt -o ro; echo "mount $?"; what
unshare --mount timeout 60 mount -v -N $$ -t ckptfs {SOURCE} "$here/mnt"; echo "mount $?"; list
timeout 20 umount mnt""")
    ran = [line for line in lines if "bin/ckptfs mount " in line]
    assert len(ran) == 2 and "-o ro" in ran[0] and "nsenter" in ran[1]
    assert [line for line in lines if line not in ran] == ["mount 0", "mount 0", STEPS]


# --- fstab


@ROOT_ONLY
def test_fstab(place):
    place.folder.joinpath("fstab").write_text(
        f"{SOURCE} {place.folder}/mnt ckptfs ro,nofail,_netdev,refresh=5,x-systemd.automount 0 0\n"
        f"{place.folder}/nothing {place.folder}/gone fuse.ckptfs noauto,X-mount.mkdir 0 0\n"
    )
    assert place.run("""
timeout 60 mount -a; echo "mount $?"; what; list
timeout 60 mount -a; findmnt -n --mountpoint "$here/mnt" | wc -l
timeout 20 umount mnt; timeout 60 mount mnt; echo "mount $?"; list
timeout 20 umount mnt; echo "umount $?"; what
timeout 60 mount gone 2>/dev/null; echo "mount $?"
timeout 60 mount -T fstab --target mnt; list""") == [
        "mount 0",
        "fuse.ckptfs ro,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions",
        STEPS,
        "1",
        "mount 0",
        STEPS,
        "umount 0",
        "mount 32",
        STEPS,
    ]


@ROOT_ONLY
def test_fstab_names(place):
    """Blanks and commas in names."""
    util.copy_tree(SOURCE, place.folder / "a b, c")
    place.folder.joinpath("fstab").write_text(f"{place.folder}/a\\040b,\\040c {place.folder}/mnt ckptfs ro 0 0\n")
    assert place.run("timeout 60 mount mnt; list; findmnt -n -o SOURCE mnt; timeout 20 umount mnt") == [
        STEPS,
        f"{place.folder}/a b, c",
    ]


@ROOT_ONLY
def test_fstab_of_a_user(place):
    """A line with `user`: a user mounts and unmounts, and it is the user's; others may not unmount it."""
    place.folder.joinpath("fstab").write_text(f"{SOURCE} {place.folder}/mnt ckptfs noauto,user,ro 0 0\n")
    os.chown(place.folder / "mnt", USER, USER)
    assert place.run("""
user timeout 60 mount "$here/mnt"; echo "mount $?"; what; user ls mnt | wc -l
setpriv --reuid=65533 --regid=65533 --clear-groups -- timeout 20 umount "$here/mnt" 2>/dev/null
[ $? = 0 ] || echo refused
user timeout 20 umount "$here/mnt"; echo "umount $?"; what""") == [
        "mount 0",
        f"fuse.ckptfs ro,nosuid,nodev,noexec,relatime,user_id={USER},group_id={USER},default_permissions",
        "4",
        "refused",
        "umount 0",
    ]


# --- the helper by itself


@pytest.fixture
def helper(installed):
    return lambda *args, **kwargs: util.run(installed / "sbindir" / "mount.ckptfs", *args, **kwargs)


@pytest.mark.parametrize("args", [[], ["a"], ["a", "b", "c"], ["a", "b", "-x"], ["a", "b", "-o"], ["-o", "ro"]])
def test_wrong_use(helper, args):
    done = helper(*args, check=1)
    assert "Usage: mount.ckptfs" in done.stderr and not done.stdout


@pytest.mark.parametrize(
    "args,want",
    [
        (["a", "b"], "mount -- a b"),
        (["a", "b", "-o", "rw,x"], "mount -o rw,x -- a b"),
        (["-sn", "a", "-orw", "b", "-t", "fuse.ckptfs"], "mount -o rw -- a b"),
        (["-o", "x", "a", "b", "-o", "y"], "mount -o x,y -- a b"),
        (["--", "-a", "-b"], "mount -- ./-a ./-b"),
        (["a", "b", "-N", "n"], "mount -- a b"),
    ],
)
def test_arguments(helper, args, want):
    """In any order, also joined: what the program would be run with."""
    assert helper("-fv", *args).stdout.strip().partition("bin/ckptfs ")[2] == want


def test_no_program(helper, installed, tmp_path):
    shutil.copy(installed / "sbindir" / "mount.ckptfs", tmp_path / "mount.ckptfs")
    done = util.run(tmp_path / "mount.ckptfs", "a", "b", check=32, env={"PATH": "/usr/bin:/bin"})
    assert "program ckptfs" in done.stderr


def test_helper_of_both_types(installed):
    assert os.readlink(installed / "sbindir" / "mount.fuse.ckptfs") == "mount.ckptfs"


# --- systemd

GENERATOR = "/lib/systemd/system-generators/systemd-fstab-generator"


@ROOT_ONLY
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_units_are_well_formed(place):
    """systemd has nothing to say about the units."""
    units = [place.installed.prefix / "lib/systemd" / kind / "ckptfs@.service" for kind in ("system", "user")]
    units += sorted((place.installed / "datadir" / "doc/ckptfs/examples").glob("*mount"))
    assert len(units) == 4
    for unit in units:
        assert place.run(f"timeout 60 systemd-analyze verify --man=no {unit}; echo $?") == ["0"]


@pytest.mark.skipif(not os.path.exists(GENERATOR), reason="systemd is not here")
def test_fstab_becomes_units(installed, tmp_path):
    """What systemd makes of the lines of the example."""
    folders = [tmp_path / name for name in ("normal", "early", "late")]
    for folder in folders:
        folder.mkdir()
    example = installed / "datadir" / "doc/ckptfs/examples/fstab.example"
    util.run(GENERATOR, *folders, env=os.environ | {"SYSTEMD_FSTAB": str(example)})
    runs, train, mine = [(folders[0] / f"mnt-{name}.mount").read_text() for name in ("runs", "train", "mine")]
    assert "Type=ckptfs" in runs and "What=/srv/runs" in runs and "Options=ro,allow_other,nofail" in runs
    assert (
        "RequiresMountsFor=/net/train" in train
        and "Where=/mnt/train" in (folders[0] / "mnt-train.automount").read_text()
    )
    wanted = os.listdir(folders[0] / "local-fs.target.wants")
    assert "mnt-runs.mount" in wanted and "mnt-train.automount" in wanted and "mnt-mine.mount" not in wanted


@ROOT_ONLY
def test_service(place):
    """What the service runs, with the settings that it reads; and a start after the daemon has died. Processes are
    those of the namespace alone.
    """
    unit = (place.installed.prefix / "lib/systemd/system/ckptfs@.service").read_text()
    start, stop = [
        next(line.partition("=")[2] for line in unit.splitlines() if line.startswith(key))
        for key in ("ExecStart=", "ExecStop=")
    ]
    quoted = [command.replace("${", '"${').replace("}", '}"') for command in (start, stop)]
    for options in "ro,allow_other", "":
        (place.folder / "settings").write_text(f"SOURCE={SOURCE}\nMOUNTPOINT={place.folder}/mnt\nOPTIONS={options}\n")
        assert place.run(f"""
PATH=/usr/local/bin:$PATH; . ./settings
timeout 60 {quoted[0]}; echo "start $?"; list
kill -9 $(pgrep -P 1 -x ckptfs); sleep 0.2; timeout 20 ls mnt >/dev/null 2>&1 || echo dead
timeout 60 {quoted[0]}; echo "start $?"; list
timeout 20 {quoted[1]}; echo "stop $?"; what""") == ["start 0", STEPS, "dead", "start 0", STEPS, "stop 0"]
