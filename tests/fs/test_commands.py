"""The commands: help, JSON, exit statuses, and the same bytes as through a mount."""

import itertools
import json
import os
import pty
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import util
from util import CKPTFS, ORBAX, ckptfs

COMMANDS = [
    "mount",
    "umount",
    "info",
    "ls",
    "cat",
    "cp",
    "verify",
    "diff",
    "wait",
    "init",
    "config",
    "import",
    "export",
    "prune",
    "gc",
]
FINE, USAGE, MOUNT_FAILED, UNREACHABLE, INTEGRITY, PARTLY, DIFFERS = range(7)
STEPS = ORBAX / "manager_steps"
KERNEL = "4/model/params/kernel"


@pytest.fixture
def run(tmp_path):
    """A copy of a root that a test may change."""
    util.copy_tree(STEPS, tmp_path / "run")
    for p in (tmp_path / "run").rglob("*"):
        p.chmod(0o755 if p.is_dir() else 0o644)
    return tmp_path / "run"


@pytest.fixture
def damaged(run):
    """The step 4 of this root has lost the end of each of its data files."""
    for p in (run / "4").rglob("d/*"):
        if p.is_file():
            p.write_bytes(p.read_bytes()[:-20])
    return run


def read_json(done):
    """The one JSON document on stdout."""
    return json.loads(done.stdout)


# --- all commands


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    done = ckptfs(command, "--help")
    assert done.stdout.startswith("Usage: ckptfs " + command) and not done.stderr
    assert all(len(line) < 160 for line in done.stdout.splitlines())


def test_general_help():
    text = ckptfs("--help").stdout
    assert all(re.search(rf"^ +{command} ", text, re.M) for command in COMMANDS)
    assert re.fullmatch(r"ckptfs \d+\.\d+\.\d+\n", ckptfs("--version").stdout)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["nothing"],
        ["--nothing"],
        ["mount"],
        ["mount", "a"],
        ["umount"],
        ["info"],
        ["ls"],
        ["cat", "a"],
        ["cp", "a", "b"],
        ["verify"],
        ["diff", "a"],
        ["wait", "a"],
        ["wait", "a", "--after", "x"],
        ["info", "--nothing", "a"],
        ["cat"],
        ["diff", "a", "b", "c"],
        ["info", "a", "b"],
    ],
)
def test_usage(args):
    done = ckptfs(*args, check=USAGE)
    assert done.stderr.strip() and not done.stdout


@pytest.mark.parametrize(
    "args", [["info"], ["ls"], ["cat", "x"], ["cp", "x", "y"], ["verify"], ["diff", STEPS], ["wait", "--after=1"]]
)
def test_source_is_not_there(args, tmp_path):
    missing = tmp_path / "missing"
    done = ckptfs(args[0], missing, *args[1:], check=UNREACHABLE)
    assert "missing" in done.stderr
    done = ckptfs(args[0], missing, *args[1:], "--json", check=UNREACHABLE)
    if args[0] != "cat":  # its errors are on stderr
        assert read_json(done)["error"]["code"] == "ENOENT"


def test_options_anywhere():
    assert ckptfs("ls", "--json", STEPS).stdout == ckptfs("ls", STEPS, "--json").stdout
    assert ckptfs("ls", "--", STEPS).stdout == ckptfs("ls", STEPS).stdout


# --- mount, umount


def test_mount_returns_when_it_answers(tmp_path):
    for command in (
        ["mount", STEPS, tmp_path, "-o", "ro"],
        [STEPS, tmp_path, "-o", "ro"],
        ["mount", "-o", "ro,refresh=2", STEPS, tmp_path],
    ):
        try:
            done = ckptfs(*command)
            assert util.mounted(tmp_path) and not done.stdout
            assert sorted(os.listdir(tmp_path)) == ["3", "4", "latest"]
        finally:
            done = ckptfs("umount", tmp_path, check=None)
            util.unmount(tmp_path, "-f")
        assert done.returncode == FINE, done.stderr
        assert not util.mounted(tmp_path)


def test_mount_fails(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for top in (file, tmp_path / "missing"):
        done = ckptfs("mount", STEPS, top, check=MOUNT_FAILED)
        assert top.name in done.stderr
    done = ckptfs("mount", STEPS, tmp_path, "-o", "nonsense=1", check=None)
    assert done.returncode in (USAGE, MOUNT_FAILED) and "nonsense" in done.stderr
    for option in ("refresh=x", "cache=-1", "umask=9", "uid=nobody-at-all"):
        ckptfs("mount", STEPS, tmp_path, "-o", option, check=USAGE)
    assert not util.mounted(tmp_path)


def test_umount_of_what_is_not_mounted(tmp_path):
    done = ckptfs("umount", tmp_path, check=None)
    assert done.returncode in (MOUNT_FAILED, UNREACHABLE) and done.stderr.strip()


def test_umount_lazily(mount):
    m = mount(STEPS)
    with open(m / f"{KERNEL}.npy", "rb") as f:
        assert ckptfs("umount", m.top, check=None).returncode != FINE  # busy
        assert util.mounted(m.top)
        ckptfs("umount", "--lazy", m.top)
        assert not util.mounted(m.top)
        assert np.load(f).shape == (5, 3)
    assert m.daemon.wait(30) == 0


def test_terminated_daemon_unmounts(mount):
    m = mount(STEPS)
    m.daemon.terminate()
    assert m.daemon.wait(30) == 0
    assert not util.mounted(m.top)


def test_mount_after_a_crash(tmp_path):
    """A mount whose daemon has died is taken away first, also while the kernel still knows its attributes."""
    (tmp_path / "mnt").mkdir()
    daemon = subprocess.Popen(
        [CKPTFS, "mount", "-f", STEPS, "mnt", "-o", "refresh=3600"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        util.wait_for(lambda: util.mounted(tmp_path / "mnt"))
        os.stat(tmp_path / "mnt")
        daemon.kill()
        daemon.wait(30)
        ckptfs("mount", STEPS, "mnt", cwd=tmp_path)
        assert sorted(os.listdir(tmp_path / "mnt")) == ["3", "4", "latest"]
        ckptfs("umount", "mnt", cwd=tmp_path)
        assert not util.mounted(tmp_path / "mnt")
    finally:
        daemon.kill()
        daemon.wait(30)
        while util.mounted(tmp_path / "mnt") and util.unmount(tmp_path / "mnt", "-l").returncode == 0:
            pass


def test_mount_options(mount):
    m = mount(STEPS, "uid=12", "gid=34", "umask=077")
    st = os.stat(m / f"{KERNEL}.npy")
    assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (12, 34, 0o400)
    assert os.stat(m / "4").st_mode & 0o777 == 0o500


# --- info


def test_info():
    text = ckptfs("info", STEPS).stdout
    assert re.search(r"^\s*3\b.*orbax", text, re.M) and re.search(r"^\s*4\b.*orbax", text, re.M)
    steps = read_json(ckptfs("info", STEPS, "--json"))["steps"]
    assert [(s["name"], s["step"], s["format"], s["latest"]) for s in steps] == [
        ("3", 3, "orbax", False),
        ("4", 4, "orbax", True),
    ]
    assert all(s["leaves"] == 7 and s["bytes"] > 0 and s["stored"] > 0 for s in steps)


def test_info_of_one_checkpoint():
    got = read_json(ckptfs("info", ORBAX / "single_save", "--json"))
    assert got["format"] == "orbax" and got["leaves"] == 7


def test_info_of_a_folder_of_runs(tmp_path):
    for name in ("a", "b"):
        util.copy_tree(STEPS, tmp_path / name)
    assert [(s["root"], s["name"]) for s in read_json(ckptfs("info", tmp_path, "--json"))["steps"]] == [
        ("a", "3"),
        ("a", "4"),
        ("b", "3"),
        ("b", "4"),
    ]


def test_info_of_damage(run):
    (run / "4/default/_METADATA").write_text("{")
    steps = read_json(ckptfs("info", run, "--json", check=PARTLY))["steps"]
    assert (
        "leaves" in steps[0]
        and steps[1]["error"]["code"] in ("EUCLEAN", "EBADMSG")
        and "_METADATA" in steps[1]["error"]["message"]
    )
    (run / "3/default/_METADATA").write_text("{")
    ckptfs("info", run, check=INTEGRITY)


# --- ls


def names(done):
    return done.stdout.split()


def test_ls_is_what_a_mount_lists(module_mount):
    m = module_mount(ORBAX)
    for case in (
        "manager_steps",
        "manager_steps/4/model",
        "awkward_keys",
        "empties_strings_scalars",
        "composite/1",
        "old_0_2_3",
    ):
        want = sorted(os.listdir(m / case))
        listed = read_json(ckptfs("ls", "-a", ORBAX, case, "--json"))
        assert sorted(e["name"] for e in listed) == want, case
        if not any(re.search(r"\s", n) for n in want):
            assert sorted(names(ckptfs("ls", ORBAX, case))) == [n for n in want if not n.startswith(".")]
        for e in listed:
            st = os.lstat(m / case / e["name"])
            if e["type"] == "file":
                assert e["size"] == st.st_size, e


def test_ls_long():
    line = next(line for line in ckptfs("ls", "-l", STEPS, "4/model/params").stdout.splitlines() if "kernel" in line)
    assert "float32" in line and "(5,3)" in line and "60" in line


def test_ls_recursive():
    text = ckptfs("ls", "-R", STEPS, "4").stdout
    assert "kernel.npy" in text and "step.json" in text
    paths = [e["path"] for e in read_json(ckptfs("ls", "-R", "--json", STEPS))]
    assert "4/model/params/kernel.npy" in paths and "3/model/opt_state/0.json" in paths
    assert not [p for p in paths if p.startswith("latest/")]


def test_ls_of_a_file():
    assert names(ckptfs("ls", STEPS, f"{KERNEL}.npy"))[-1].endswith("kernel.npy")
    assert read_json(ckptfs("ls", "--json", STEPS, f"{KERNEL}@0"))[0]["size"] == 12


def test_ls_control_directory():
    assert {"version", "stats.json", "metrics", "steps.json", "unfinished"} == set(
        names(ckptfs("ls", STEPS, ".ckptfs"))
    )
    assert ".ckptfs" not in names(ckptfs("ls", STEPS)) and ".ckptfs" in names(ckptfs("ls", "-a", STEPS))


def test_ls_of_what_is_not_there():
    ckptfs("ls", STEPS, "5", check=UNREACHABLE)
    ckptfs("ls", STEPS, "../composite", check=UNREACHABLE)


def test_ls_of_a_bad_checkpoint(run):
    (run / "4/default/_METADATA").write_text("{")
    done = ckptfs("ls", run, "4", check=INTEGRITY)
    assert "_METADATA" in done.stderr
    assert names(ckptfs("ls", run)) == ["3", "4", "latest"]
    ckptfs("ls", "-R", run, check=PARTLY)


# --- cat

PATHS = [
    f"{KERNEL}.npy",
    KERNEL,
    f"{KERNEL}@1:3,::2",
    f"{KERNEL}@-1.npy",
    f"{KERNEL}.txt",
    f"{KERNEL}.meta.json",
    "4/model/step.json",
    "4/model/step",
    "4/model/step.npy",
    "4/.tree.json",
    "4.safetensors",
    "latest/data/0.npy",
    "4/model/opt_state/0.json",
    ".ckptfs/version",
    ".ckptfs/steps.json",
]


@pytest.mark.parametrize("path", PATHS)
def test_cat_is_what_a_mount_gives(module_mount, path):
    want = (module_mount(STEPS) / path).read_bytes()
    assert ckptfs("cat", STEPS, path, text=False).stdout == want
    if not path.startswith(".ckptfs"):
        assert ckptfs("cat", ORBAX, f"manager_steps/{path}", text=False).stdout == want


def test_cat_all_leaves(module_mount):
    """Every leaf of several cases, in one call each."""
    m = module_mount(ORBAX)
    for case in (
        "dtypes",
        "zarr3_variants",
        "sharded_8dev",
        "awkward_keys",
        "composite/1",
        "old_0_4_8/aggregate",
        "multiprocess",
    ):
        files = sorted(
            os.path.relpath(os.path.join(folder, f), m.top)
            for folder, _, fs in os.walk(m / case)
            for f in fs
            if not os.path.islink(os.path.join(folder, f))
        )
        got = ckptfs("cat", ORBAX, *files, text=False).stdout
        assert got == b"".join((m / f).read_bytes() for f in files), case


def test_cat_of_what_is_not_there():
    for path in (
        "5/x",
        f"{KERNEL}@9",
        f"{KERNEL}@x.npy",
        "nothing",
        "../composite/1/metrics.json",
        "/etc/passwd",
        "4/../../composite",
    ):
        done = ckptfs("cat", STEPS, path, check=UNREACHABLE)
        assert done.stderr.strip() and not done.stdout
    ckptfs("cat", STEPS, "4", check=USAGE)  # a directory


def test_cat_of_some():
    """What can be had is written, and the rest told."""
    done = ckptfs("cat", STEPS, "4/model/step.json", "5/none", "3/model/step.json", check=PARTLY)
    assert done.stdout == "1\n1\n" and "5/none" in done.stderr
    done = ckptfs("cat", "--json", STEPS, "4/model/step.json", "5/none", check=PARTLY)
    assert [json.loads(line)["error"]["code"] for line in done.stderr.splitlines()] == ["ENOENT"]


def test_cat_of_damage(damaged):
    ckptfs("cat", damaged, f"{KERNEL}.npy", check=INTEGRITY)
    assert len(ckptfs("cat", damaged, KERNEL.replace("4", "3"), text=False).stdout) == 60


def test_cat_into_a_closed_pipe():
    """`ckptfs cat ... | head -c 1` ends quietly."""
    done = subprocess.run(
        f"timeout 20 '{CKPTFS}' cat '{ORBAX}' big_values.safetensors | head -c 1 | wc -c",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "1" and not util.SUSPICIOUS.search(done.stderr)


def test_cat_onto_a_full_disk():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([CKPTFS, "cat", STEPS, f"{KERNEL}.npy"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode not in (0, None) and done.returncode > 0 and done.stderr


# --- cp


def same_trees(a, b):
    listed = [
        sorted(os.path.relpath(os.path.join(f, n), top) for f, ds, fs in os.walk(top) for n in ds + fs)
        for top in (a, b)
    ]
    assert listed[0] == listed[1]
    for path in listed[0]:
        if os.path.islink(Path(a) / path):
            assert os.readlink(Path(a) / path) == os.readlink(Path(b) / path)
        elif (Path(a) / path).is_file():
            assert (Path(a) / path).read_bytes() == (Path(b) / path).read_bytes(), path


def test_cp_a_file(tmp_path, module_mount):
    m = module_mount(STEPS)
    ckptfs("cp", STEPS, f"{KERNEL}@0:2.npy", tmp_path / "slice.npy")
    assert (tmp_path / "slice.npy").read_bytes() == (m / f"{KERNEL}@0:2.npy").read_bytes()
    ckptfs("cp", STEPS, f"{KERNEL}.npy", tmp_path)
    assert (tmp_path / "kernel.npy").read_bytes() == (m / f"{KERNEL}.npy").read_bytes()
    assert os.stat(tmp_path / "kernel.npy").st_mtime == pytest.approx(os.stat(m / f"{KERNEL}.npy").st_mtime)


def test_cp_a_step(tmp_path, module_mount):
    m = module_mount(STEPS)
    done = ckptfs("cp", "--json", STEPS, "4", tmp_path / "step")
    assert read_json(done)["files"] == 7 and read_json(done)["errors"] == []
    same_trees(m / "4", tmp_path / "step")


def test_cp_a_source(tmp_path, module_mount):
    ckptfs("cp", STEPS, ".", tmp_path / "all")
    same_trees(module_mount(STEPS).top, tmp_path / "all")


def test_cp_some(tmp_path, damaged):
    """The leaves that can be read are there, the others are not."""
    done = ckptfs("cp", "--json", damaged, ".", tmp_path / "all", check=None)
    assert done.returncode in (INTEGRITY, PARTLY)
    assert read_json(done)["errors"]
    assert (tmp_path / "all/3/model/params/kernel.npy").stat().st_size == 188
    assert not list((tmp_path / "all/4").rglob("kernel*"))


def test_cp_of_what_is_not_there(tmp_path):
    ckptfs("cp", STEPS, "5", tmp_path / "x", check=UNREACHABLE)
    assert not (tmp_path / "x").exists()
    ckptfs("cp", STEPS, "4", tmp_path / "no/such/folder", check=PARTLY)


# --- verify


@pytest.mark.parametrize(
    "case",
    sorted(
        p.name.removesuffix(".truth.json")
        for p in ORBAX.glob("*.truth.json")
        if (ORBAX / p.name.removesuffix(".truth.json")).is_dir()
    ),
)
def test_verify_good(case):
    got = read_json(ckptfs("verify", "--json", ORBAX / case))
    assert got["faults"] == [] and got["files"] > 0


def test_verify_finds_damage(damaged):
    done = ckptfs("verify", damaged, check=INTEGRITY)
    assert re.search("^4", done.stdout, re.M)
    faults = read_json(ckptfs("verify", "--json", damaged, check=INTEGRITY))["faults"]
    assert faults and all(f["path"].startswith("4") for f in faults)
    ckptfs("verify", damaged, "3")
    ckptfs("verify", damaged, "4", check=INTEGRITY)
    ckptfs("verify", damaged, "5", check=UNREACHABLE)


def test_verify_finds_a_flipped_bit(run):
    """In anything that has a checksum: here the manifest and the tree of OCDBT."""
    for file in [run / "4/default/manifest.ocdbt", *(run / "4/default/d").iterdir()]:
        kept = file.read_bytes()
        for at in (5, len(kept) // 2, len(kept) - 1):
            file.write_bytes(kept[:at] + bytes([kept[at] ^ 16]) + kept[at + 1 :])
            ckptfs("verify", run, check=INTEGRITY)
        file.write_bytes(kept)
    ckptfs("verify", run)


def test_verify_by_number():
    """STEP is a number, whatever the step's name."""
    assert read_json(ckptfs("verify", "--json", ORBAX / "manager_prefix", "10"))["files"] > 0
    assert read_json(ckptfs("verify", "--json", ORBAX / "manager_prefix", "ckpt_00000010"))["files"] > 0


def test_verify_shows_progress_on_a_terminal(tmp_path):
    """A bar on stderr if that is a terminal and the work takes a while, nothing else."""
    for n in range(60):
        util.link_tree(ORBAX / "many_small", tmp_path / "runs" / f"copy{n}")
    assert ckptfs("verify", STEPS).stderr == ""
    leader, follower = pty.openpty()
    shown = []

    def drain():
        try:
            while data := os.read(leader, 4096):
                shown.append(data)
        except OSError:
            pass  # the other side is closed

    thread = threading.Thread(target=drain)
    thread.start()
    done = subprocess.run(
        [CKPTFS, "verify", tmp_path / "runs"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=follower,
        timeout=120,
    )
    os.close(follower)
    thread.join(20)
    os.close(leader)
    assert done.returncode == 0 and b"\r" in b"".join(shown)


# --- diff


def test_diff_equal(tmp_path):
    util.copy_tree(STEPS, tmp_path / "run")
    assert ckptfs("diff", STEPS, tmp_path / "run").stdout == ""
    assert read_json(ckptfs("diff", "--json", STEPS / "3", tmp_path / "run/3"))["equal"] is True


def save(folder, tree):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two trees that differ in each way that there is."""
    folder = tmp_path_factory.mktemp("pair")
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    same = {"same": a, "none": None, "text": "x"}
    save(folder / "a", same | {"value": a, "shape": a, "dtype": a, "gone": a, "kind": a, "number": 1})
    save(
        folder / "b",
        same
        | {
            "value": a + np.eye(3, 4, dtype=np.float32) / 1024,
            "shape": a.T,
            "dtype": a.astype(np.float64),
            "new": a,
            "kind": "a",
            "number": 2,
        },
    )
    return folder


def test_diff(pair):
    done = ckptfs("diff", pair / "a", pair / "b", check=DIFFERS)
    for line in (
        r"only in A: gone",
        r"only in B: new",
        r"shape: shape \(3,4\) \(4,3\)",
        r"dtype: dtype float32 float64",
        r"kind: kind array value",
        r"value: value 3 of 12 elements, max \|d\| 0\.00097656\d*",
        r"value: number\b.*",
    ):
        assert re.search(rf"^{line}$", done.stdout, re.M), line
    assert "same" not in done.stdout and len(done.stdout.splitlines()) == 7
    got = read_json(ckptfs("diff", "--json", pair / "a", pair / "b", check=DIFFERS))
    assert got["equal"] is False and len(got["differences"]) == 7


def test_diff_within_a_tolerance(pair):
    text = ckptfs("diff", "--atol=0.001", pair / "a", pair / "b", check=DIFFERS).stdout
    assert "value: value" not in text and "value: number" in text
    text = ckptfs("diff", "--meta", pair / "a", pair / "b", check=DIFFERS).stdout
    assert "value:" not in text and "shape: shape" in text


def test_diff_of_parts(pair):
    """A and B may be paths that go on inside of a source."""
    ckptfs("diff", STEPS / "3/model/params", STEPS / "3/model/params")
    ckptfs("diff", STEPS / "3", STEPS / "latest", check=None)
    assert "only in A: value" in ckptfs("diff", pair / "a", STEPS / "3", check=DIFFERS).stdout


def test_diff_of_what_is_not_there(damaged):
    ckptfs("diff", STEPS, STEPS / "5", check=UNREACHABLE)
    ckptfs("diff", STEPS / "4", damaged / "4", check=INTEGRITY)


ORDERED = np.arange(9, dtype="<f4").reshape(3, 3)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """One array in the ways in which files store it, and others whose bytes in the file are the same as theirs."""
    folder = tmp_path_factory.mktemp("stored")
    arrays = {
        "c": ORDERED,
        "f": np.asfortranarray(ORDERED),
        "be": ORDERED.astype(">f4"),
        "both": np.asfortranarray(ORDERED.astype(">f4")),
        "t": np.ascontiguousarray(ORDERED.T),
        "sw": ORDERED.astype(">f4").view("<f4"),
    }
    for name, array in arrays.items():
        np.savez(folder / name, w=array)
        (folder / f"{name}.d").mkdir()
        np.save(folder / f"{name}.d/w", array)
    return folder


@pytest.mark.parametrize("kind", [".npz", ".d"])
def test_diff_is_of_numbers(stored, kind):
    """However an array is stored: the same numbers are the same, others are not."""
    same = [stored / f"{name}{kind}" for name in ("c", "f", "be", "both")]
    for a, b in itertools.product([*same, stored / "c.npz"], same):
        assert read_json(ckptfs("diff", "--json", a, b))["equal"] is True
    for a, b in ("f", "t"), ("be", "sw"), ("t", "c"), ("sw", "c"):
        for one, other in (a, b), (b, a):
            got = read_json(ckptfs("diff", "--json", stored / f"{one}{kind}", stored / f"{other}{kind}", check=DIFFERS))
            assert [(x["type"], x["path"]) for x in got["differences"]] == [("value", "w")]


def test_diff_of_a_plain_folder(tmp_path):
    """The .npy files of a folder are arrays; an export is equal to its source, whatever its types."""
    from ml_dtypes import bfloat16, float8_e4m3fn

    save(
        tmp_path / "a",
        {
            "w": ORDERED,
            "h": ORDERED.astype(bfloat16),
            "f8": ORDERED.astype(float8_e4m3fn),
            "n": 1,
            "s": "x",
            "none": None,
        },
    )
    ckptfs("export", tmp_path / "a", tmp_path / "e", "--format=npy")
    assert (
        ckptfs("diff", tmp_path / "a", tmp_path / "e").stdout
        == ckptfs("diff", tmp_path / "e", tmp_path / "a").stdout
        == ""
    )
    np.save(tmp_path / "e/w.npy", ORDERED + np.float32(1e-3))
    got = read_json(ckptfs("diff", "--json", tmp_path / "a", tmp_path / "e", check=DIFFERS))
    assert [(x["type"], x["path"], x["different"]) for x in got["differences"]] == [("value", "w", 9)]
    ckptfs("diff", "--atol=0.002", tmp_path / "a", tmp_path / "e")


def test_diff_of_two_types(tmp_path):
    """With a tolerance, numbers of two types are compared; 1e-8 is near zero where only --rtol is given."""
    from ml_dtypes import bfloat16

    for name, w in ("a", ORDERED / 3), ("b", (ORDERED / 3).astype(bfloat16)), ("c", ORDERED / 3 + np.float32(1e-9)):
        save(tmp_path / name, {"w": w})
    assert "dtype: w float32 bfloat16" in ckptfs("diff", tmp_path / "a", tmp_path / "b", check=DIFFERS).stdout
    ckptfs("diff", "--rtol=0.01", tmp_path / "a", tmp_path / "b")
    assert "value: w" in ckptfs("diff", "--rtol=1e-5", tmp_path / "a", tmp_path / "b", check=DIFFERS).stdout
    ckptfs("diff", "--rtol=1e-5", tmp_path / "a", tmp_path / "c")
    ckptfs("diff", "--rtol=1e-5", "--atol=0", tmp_path / "a", tmp_path / "c", check=DIFFERS)


def test_words_that_are_no_commands(tmp_path):
    """A mistyped command is no source that is missing."""
    for word in "lss", "tree":
        done = ckptfs(word, tmp_path, check=None, cwd=tmp_path)
        assert done.returncode == USAGE and f"no command {word}" in done.stderr
    for command in ("ls", "gs://b/x"), ("info", "s3://b/x/y"), ("diff", "s3://b/x/y", tmp_path):
        assert f"{command[1].split(':')[0]}:// is not supported" in ckptfs(*command, check=None).stderr


# --- paths that go on inside of a source


@pytest.mark.parametrize("command", ["ls", "info", "verify"])
def test_path_into_a_run(command):
    """The latest step and the items of a step, as one path, as a source and a path in it."""
    latest, named = ckptfs(command, STEPS / "latest", "--json").stdout, ckptfs(command, STEPS / "4", "--json").stdout
    assert latest.replace(str(STEPS / "latest"), str(STEPS / "4")) == named
    assert ckptfs(command, STEPS / "latest/model", check=None).returncode == FINE
    assert ckptfs(command, f"{STEPS}/latest/model/", check=None).returncode == FINE
    for missing in "8", "latest/nothing", "latest/model/nothing":
        assert ckptfs(command, STEPS / missing, check=None).returncode == UNREACHABLE


def test_cat_and_cp_of_a_path_into_a_run(tmp_path):
    leaf = next(x["path"] for x in read_json(ckptfs("ls", "-R", "--json", STEPS, "4")) if x["path"].endswith(".npy"))
    leaf = leaf.removeprefix("4/")
    for path in "latest", "4":
        assert (
            ckptfs("cat", STEPS / path, leaf, text=False).stdout == ckptfs("cat", STEPS, f"4/{leaf}", text=False).stdout
        )
        ckptfs("cp", STEPS / path, leaf, tmp_path / "x.npy")
        assert (tmp_path / "x.npy").read_bytes() == ckptfs("cat", STEPS, f"4/{leaf}", text=False).stdout


def test_path_into_a_store(tmp_path):
    """A step of a store is nothing on the disk; it is found all the same."""
    ckptfs("init", tmp_path)
    ckptfs("import", STEPS / "4", tmp_path / "4")
    assert ckptfs("ls", "-R", tmp_path / "4").stdout == ckptfs("ls", "-R", tmp_path, "4").stdout
    assert (
        read_json(ckptfs("info", "--json", tmp_path / "latest"))["leaves"]
        == read_json(ckptfs("info", "--json", STEPS / "4"))["leaves"]
    )


# --- wait


def test_wait_for_a_step_that_is_there():
    assert ckptfs("wait", STEPS, "--after", "3").stdout == "4\n"
    assert ckptfs("wait", STEPS, "--after", "0").stdout == "3\n"  # the next one
    assert read_json(ckptfs("wait", STEPS, "--after=3", "--json"))["step"] == 4


def test_wait_in_vain():
    begin = time.monotonic()
    done = ckptfs("wait", STEPS, "--after", "4", "--timeout", "1", check=UNREACHABLE)
    assert 0.9 < time.monotonic() - begin < 15 and done.stderr.strip()


def test_wait_for_a_new_step(run):
    """An unfinished step is not one, a finished one ends the wait."""
    waiter = subprocess.Popen(
        [CKPTFS, "wait", run, "--after", "4", "--timeout", "50"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        shutil.copytree(run / "4", run / "5.orbax-checkpoint-tmp")
        time.sleep(1.5)
        assert waiter.poll() is None
        os.rename(run / "5.orbax-checkpoint-tmp", run / "5")
        assert waiter.communicate(timeout=30)[0] == "5\n" and waiter.returncode == FINE
    finally:
        util.end_process(waiter)


@pytest.mark.parametrize("where", ["m", "deep/er/m"])
def test_mount_point_in_the_source(tmp_path, where):
    """A folder of runs is mounted below itself; the mount does not look into itself."""
    (tmp_path / where).mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("notes\n")
    shutil.copytree(STEPS, tmp_path / "run")
    ckptfs("mount", tmp_path, tmp_path / where, "-o", "ro")
    try:
        done = subprocess.run(
            ["find", tmp_path / where, "-name", "m", "-o", "-name", "notes.txt", "-o", "-name", "latest"],
            capture_output=True,
            text=True,
            timeout=util.LIMIT,
        )
        assert sorted(done.stdout.split()) == sorted(
            map(str, [tmp_path / where, tmp_path / where / "notes.txt", tmp_path / where / "run/latest"])
        )
    finally:
        util.unmount(tmp_path / where, "-f")
        ckptfs("umount", "--lazy", tmp_path / where, check=None)
