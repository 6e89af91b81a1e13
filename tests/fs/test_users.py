"""Mounts by root and by an ordinary user (through fusermount3), with and without allow_other."""
import os
import shutil
import subprocess

import pytest

import util

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")
USER, OTHER = 65534, 65533                                 # nobody, and an id that nobody has

# Runs in mount and process namespaces of its own: it may replace /etc/fuse.conf, and nothing is left when it ends. In containers /dev/fuse
# is often root's alone; here it is everybody's, as a system's udev makes it.
SCRIPT = r"""
set -u
user=$1 options=$2 conf=$3 program=$4 source=$5 top=$6 log=$7
printf '%%s\n' "$conf" >"$top.conf"
mount --bind "$top.conf" /etc/fuse.conf || exit 90
if [ "$(stat -c %%a /dev/fuse)" != 666 ]; then
    mkdir -p "$top.dev" && mount -t tmpfs -o mode=755 tmpfs "$top.dev" && mknod -m 666 "$top.dev/fuse" c 10 229 || exit 91
    mount --bind "$top.dev/fuse" /dev/fuse || exit 92
fi
as() { who=$1; shift; setpriv --reuid="$who" --regid="$who" --clear-groups -- "$@"; }
as "$user" "$program" mount "$source" "$top" ${options:+-o "$options"} >"$log" 2>&1 </dev/null
echo "mount $?"
for who in 0 %(user)d %(other)d; do
    if text=$(as "$who" timeout 20 cat "$top/latest/model/step.json" 2>&1); then echo "reader $who $text"; else echo "reader $who refused"; fi
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
    """What root, the user and another one see of the user's mount: {words: last word} of the script's lines, and the log."""
    owner = user if owner is None else owner
    os.chown(place / "mnt", owner, owner)
    command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", SCRIPT, "session", str(user), options, conf,
               place / "ckptfs", place / "run", place / "mnt", place / "log"]
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
