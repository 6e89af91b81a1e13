"""init, config, import, export, prune and gc: JSON, exit statuses, and what is left when they fail."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest

import util
from util import CKPTFS, ORBAX, ckptfs

FINE, USAGE, MOUNT_FAILED, UNREACHABLE, INTEGRITY, PARTLY, DIFFERS = range(7)
DEMO = util.DATA / "demo"


@pytest.fixture
def root(tmp_path):
    ckptfs("init", tmp_path / "root")
    return tmp_path / "root"


def committed(root):
    return sorted(p.name.removesuffix(".json") for p in (root / ".ckptstore/steps").glob("*.json"))


def left_over(root):
    """What a failure may not leave: staging directories, and what is not in its place in the trash."""
    store = root / ".ckptstore"
    return [
        *(store / "staging").iterdir(),
        *(p for p in (store / "trash").iterdir() if p.name not in ("steps", "objects")),
    ]


def read_json(done):
    return json.loads(done.stdout)


def error(done):
    return json.loads(done.stdout)["error"]["code"]


# --- init, config


def test_init(tmp_path):
    root = tmp_path / "root"
    first = read_json(ckptfs("init", root, "--json"))
    again = read_json(ckptfs("init", root, "--json"))
    assert first["created"] is True and again == {**first, "created": False} and len(first["id"]) == 32
    assert ckptfs("init", root).stdout == ""
    assert ckptfs("init", tmp_path / "a/b", check=UNREACHABLE).stderr.startswith("ckptfs init: ")
    (tmp_path / "file").write_text("")
    ckptfs("init", tmp_path / "file", check=UNREACHABLE)
    for arguments in (), (root, root), (root, "--dry-run"):
        ckptfs("init", *arguments, check=USAGE)


def test_init_beside_foreign_steps(tmp_path):
    root = util.copy_tree(DEMO, tmp_path / "root")
    ckptfs("init", root)
    assert ckptfs("cat", root, "300/metrics.json").stdout == ckptfs("cat", DEMO, "300/metrics.json").stdout
    assert ckptfs("import", DEMO / "200", root / "300", check=USAGE).stderr  # the name is taken, by Orbax
    ckptfs("import", DEMO / "200", root / "400")
    assert ckptfs("ls", root).stdout.split() == ["100", "200", "300", "400", "latest"]
    ckptfs("diff", root / "400", DEMO / "200")


def test_config(root):
    assert ckptfs("config", root).stdout == "codec=auto\n"
    assert ckptfs("config", root, "keep_last=3", "best_metric=7", "keep_newer=36h").stdout == ""
    assert ckptfs("config", root).stdout == "codec=auto\nkeep_last=3\nkeep_newer=36h\nbest_metric=7\nbest_mode=min\n"
    shown = read_json(ckptfs("config", root, "keep_last=", "--json"))
    assert {**shown, "id": ""} == {
        "id": "",
        "codec": "auto",
        "keep_newer": "36h",
        "best_metric": "7",
        "best_mode": "min",
    }
    assert error(ckptfs("config", root, "codec=lz4", "keep_last=many", "--json", check=USAGE)) == "EINVAL"
    assert "codec=auto" in ckptfs("config", root).stdout  # none is set if one is wrong
    assert error(ckptfs("config", root.parent, "--json", check=UNREACHABLE)) == "ENOENT"
    store = root / ".ckptstore/store.json"
    text = store.read_text()
    store.write_text(text.replace('"version":1', '"version":2'))
    assert error(ckptfs("config", root, "--json", check=INTEGRITY)) == "EOPNOTSUPP"
    store.write_text(text[:-5])
    assert error(ckptfs("gc", root, "--json", check=INTEGRITY)) == "EUCLEAN"


# --- import, export


@pytest.mark.parametrize(
    "source",
    [DEMO / "300", ORBAX / "dtypes", ORBAX / "namedtuple", ORBAX / "awkward_keys", DEMO / "300/state/model"],
    ids=lambda p: p.name,
)
def test_import_is_the_same(root, source):
    """Also the kinds of containers, and the dtypes."""
    done = read_json(ckptfs("import", source, root / "step_7", "--json"))
    assert done["step"] == "step_7" and done["files"] > 0
    ckptfs("diff", source, root / "step_7")
    assert left_over(root) == []
    ckptfs("verify", root)


def test_import_kinds(root):
    ckptfs("import", ORBAX / "empties_strings_scalars", root / "1")
    want = {
        e["path"]: (e["kind"], e.get("dtype"))
        for e in read_json(ckptfs("ls", ORBAX / "empties_strings_scalars", "-R", "--json"))
    }
    got = {
        e["path"].removeprefix("1/"): (e["kind"], e.get("dtype"))
        for e in read_json(ckptfs("ls", root, "1", "-R", "--json"))
    }
    assert {path: kind for path, (kind, _) in got.items()} == {path: kind for path, (kind, _) in want.items()}
    ckptfs("import", ORBAX / "dtypes", root / "2")
    want = {e["name"]: e["dtype"] for e in read_json(ckptfs("ls", ORBAX / "dtypes", "--json")) if e["kind"] == "array"}
    assert {e["name"]: e["dtype"] for e in read_json(ckptfs("ls", root, "2", "--json")) if e["kind"] == "array"} == want


def test_import_from_a_store(root, tmp_path):
    """A step of a store is a checkpoint like any other, also one of the same root."""
    ckptfs("import", DEMO / "300", root / "1")
    objects = sorted((root / ".ckptstore/objects").rglob("*"))
    ckptfs("import", root / "1", root / "2")
    ckptfs("import", root / "latest/state/model", root / "3")
    assert sorted((root / ".ckptstore/objects").rglob("*")) == objects
    ckptfs("diff", root / "1", root / "2")
    ckptfs("diff", root / "1/state/model", root / "3")
    ckptfs("init", tmp_path / "other")
    ckptfs("import", root / "2", tmp_path / "other/2")
    ckptfs("diff", DEMO / "300", tmp_path / "other/2")


def test_import_of_a_folder(root, tmp_path):
    (tmp_path / "folder/empty").mkdir(parents=True)
    np.save(tmp_path / "folder/w.npy", np.arange(100_000))
    (tmp_path / "folder/zeros").write_bytes(bytes(5_000_000))
    ckptfs("import", tmp_path / "folder/", f"{root}/1/")
    assert ckptfs("cat", root, "1/w.npy", "1/zeros", text=False).stdout == (
        tmp_path / "folder/w.npy"
    ).read_bytes() + bytes(5_000_000)
    assert ckptfs("ls", root, "1").stdout.split() == ["empty", "w.npy", "zeros"]
    (tmp_path / "folder/link").symlink_to("w.npy")
    assert "link" in ckptfs("import", tmp_path / "folder", root / "2", check=None).stderr
    (tmp_path / "folder/link").unlink()
    (tmp_path / "folder/short.npy").write_bytes((tmp_path / "folder/w.npy").read_bytes()[:-1])
    assert error(ckptfs("import", tmp_path / "folder", root / "2", "--json", check=INTEGRITY)) == "EBADMSG"
    assert committed(root) == ["1"] and left_over(root) == []


def test_import_metadata(root):
    ckptfs("import", ORBAX / "save_args", root / "1")
    want = read_json(ckptfs("info", ORBAX / "save_args", "--json"))["metadata"]
    assert want and json.loads((root / ".ckptstore/steps/1.json").read_text())["metadata"] == want
    assert json.loads(ckptfs("cat", root, "1/.tree.json").stdout)["metadata"] == want


def test_import_refused(root, tmp_path):
    ckptfs("import", DEMO / "300", root / "1")
    assert error(ckptfs("import", DEMO / "200", root / "1", "--json", check=USAGE)) == "EEXIST"
    ckptfs("import", DEMO, root / "2", check=USAGE)  # a root
    ckptfs("import", DEMO / "300/metrics.json", root / "2", check=USAGE)  # a file
    ckptfs("import", DEMO / "300", root / "2.tmp", check=USAGE)  # no step's name
    ckptfs("import", DEMO / "300", check=USAGE)
    ckptfs("import", DEMO / "400", root / "2", check=UNREACHABLE)
    ckptfs("import", DEMO / "300", tmp_path / "2", check=UNREACHABLE)  # not a native root
    damaged = util.copy_tree(DEMO / "300", tmp_path / "damaged")
    for p in damaged.rglob("d/*"):
        p.chmod(0o644)
        p.write_bytes(p.read_bytes()[:-20])
    ckptfs("import", damaged, root / "2", check=INTEGRITY)
    assert committed(root) == ["1"] and left_over(root) == []


def test_import_is_killed(root, tmp_path):
    """By SIGTERM nothing is left; what SIGKILL leaves goes with gc, and is no step."""
    util.need_hooks("CKPTFS_DISK_SLOW")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/large").write_bytes(os.urandom(64 << 20))
    for how in signal.SIGTERM, signal.SIGKILL:
        process = subprocess.Popen(
            [CKPTFS, "import", tmp_path / "folder", root / "1"],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "CKPTFS_DISK_SLOW": "write:300"},
        )
        try:
            util.wait_for(lambda: list((root / ".ckptstore/staging").glob("*/tree/large")))
            process.send_signal(how)
            process.wait(util.LIMIT)
        finally:
            util.end_process(process)
        assert committed(root) == []
        if how == signal.SIGTERM:
            assert process.returncode == -how and left_over(root) == []
    assert left_over(root)
    time.sleep(1.5)
    ckptfs("gc", root, "--trash-keep=0")
    assert left_over(root) == []


def test_retention_after_import(root):
    ckptfs("config", root, "keep_last=1")
    for n in 1, 2:
        ckptfs("import", DEMO / "300", root / str(n))
    assert committed(root) == ["2"]


@pytest.mark.parametrize("source", [DEMO / "300", ORBAX / "dtypes", ORBAX / "awkward_keys"], ids=lambda p: p.name)
def test_export(tmp_path, source):
    done = read_json(ckptfs("export", source, tmp_path / "out", "--format=npy", "--json"))
    names = read_json(ckptfs("ls", source, "-R", "--json"))
    files = {e["path"] for e in names if e["type"] == "file"}
    assert {
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()
    } == files and done["files"] == len(files)
    assert {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_dir()} == {
        e["path"] for e in names if e["type"] == "dir"
    }
    for path in files:
        assert (tmp_path / "out" / path).stat().st_mtime > 0
    sample = sorted(files)[:: max(1, len(files) // 20)]
    assert (
        b"".join((tmp_path / "out" / p).read_bytes() for p in sample)
        == ckptfs("cat", source, "--", *sample, text=False).stdout
    )
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_export_of_a_step(root, tmp_path):
    ckptfs("import", DEMO / "300", root / "300")
    (tmp_path / "out").mkdir()  # an empty directory is taken
    ckptfs("export", root / "latest/state/model", tmp_path / "out", "--format", "npy")
    ckptfs("export", DEMO / "300/state/model", tmp_path / "same", "--format=npy")
    assert subprocess.run(["diff", "-r", tmp_path / "out", tmp_path / "same"], timeout=util.LIMIT).returncode == 0


def test_export_refused(root, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    (tmp_path / "file").write_text("x")
    assert error(ckptfs("export", DEMO / "300", tmp_path / "full", "--format=npy", "--json", check=USAGE)) == "EEXIST"
    ckptfs("export", DEMO / "300", tmp_path / "file", "--format=npy", check=USAGE)
    ckptfs("export", DEMO / "300", tmp_path / "no/out", "--format=npy", check=PARTLY)
    ckptfs("export", DEMO / "300", tmp_path / "out", check=USAGE)
    ckptfs("export", DEMO / "300", tmp_path / "full", "--format=orbax", check=USAGE)
    ckptfs("export", DEMO / "300", tmp_path / "out", "--format=zip", check=USAGE)
    ckptfs("export", DEMO, tmp_path / "out", "--format=npy", check=USAGE)  # a root
    ckptfs("export", DEMO / "300/metrics.json", tmp_path / "out", "--format=npy", check=USAGE)
    ckptfs("export", DEMO / "400", tmp_path / "out", "--format=npy", check=UNREACHABLE)
    damaged = util.copy_tree(DEMO / "300", tmp_path / "damaged")
    for p in damaged.rglob("d/*"):
        p.chmod(0o644)
        p.write_bytes(p.read_bytes()[:-20])
    ckptfs("export", damaged, tmp_path / "out", "--format=npy", check=INTEGRITY)
    assert sorted(os.listdir(tmp_path)) == ["damaged", "file", "full", "root"]


# --- prune, gc


def test_prune_and_gc(root):
    ckptfs("config", root, "codec=none")
    for n in 1, 2, 3:
        (root.parent / f"folder{n}").mkdir()
        np.save(root.parent / f"folder{n}/w.npy", np.random.default_rng(n).random(50_000))
        ckptfs("import", root.parent / f"folder{n}", root / str(n))
    assert ckptfs("prune", root).stdout == "" and read_json(ckptfs("prune", root, "--json")) == {
        "steps": [],
        "dry_run": False,
    }
    ckptfs("config", root, "keep_last=1")
    assert ckptfs("prune", root, "--dry-run").stdout == "1\n2\n" and committed(root) == ["1", "2", "3"]
    assert read_json(ckptfs("prune", root, "--json")) == {"steps": ["1", "2"], "dry_run": False} and committed(
        root
    ) == ["3"]
    assert read_json(ckptfs("gc", root, "--json", "-n")) == {
        "objects": 2,
        "bytes": 2 * (400_128 + 56 + 8 + 8),
        "purged": 0,
        "purged_bytes": 0,
        "kept": 1,
        "aside": [],
        "dry_run": True,
    }
    assert ckptfs("gc", root).stdout == "2 objects (781.6 KiB) moved to the trash, 0 (0 B) deleted for good, 1 kept\n"
    done = read_json(ckptfs("gc", root, "--trash-keep=0", "--json"))
    assert done["purged"] == 2 and done["purged_bytes"] > 800_000 and done["kept"] == 1
    assert [p for p in (root / ".ckptstore/trash").rglob("*") if p.is_file()] == []
    ckptfs("verify", root)
    assert error(ckptfs("gc", root.parent, "--json", check=UNREACHABLE)) == "ENOENT"
    for arguments in (root, "--trash-keep=x"), (root, "--trash-keep=-1"), (root, root), ():
        ckptfs("gc", *arguments, check=USAGE)
    ckptfs("prune", root, "--trash-keep=1", check=USAGE)


def test_undelete(root):
    """A step that was deleted comes back with its manifest."""
    ckptfs("import", DEMO / "300", root / "1")
    ckptfs("import", DEMO / "200", root / "2")
    ckptfs("config", root, "keep_last=1")
    ckptfs("prune", root)
    ckptfs("gc", root)
    (manifest,) = (root / ".ckptstore/trash/steps").iterdir()
    manifest.rename(root / ".ckptstore/steps/1.json")
    ckptfs("gc", root, "--trash-keep=0")
    ckptfs("diff", root / "1", DEMO / "300")
    assert ckptfs("verify", root).returncode == FINE
