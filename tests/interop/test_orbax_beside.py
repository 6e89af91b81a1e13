"""Orbax's saves with files of others beside and in them, its kinds of items and containers, and items that are gone."""

import collections
import json
import os
import shutil
import subprocess
import time

import numpy as np
import pytest

import util
from util import ckptfs

K = np.arange(12, dtype="f4").reshape(4, 3) / 8
Moments = collections.namedtuple("Moments", "mu nu")
OLD = util.DATA / "orbax-paths"


def tree(source):
    """Listed files, and the directories that have nothing in them."""
    listed = [e["path"] for e in json.loads(ckptfs("ls", "-R", "--json", source).stdout)]
    return {p for p in listed if not any(q.startswith(p + "/") for q in listed)}


def array(source, name):
    import io

    return np.load(io.BytesIO(ckptfs("cat", source, name, text=False).stdout))


def age(top):
    """Whatever is missing has been missing for a while: it is not being deleted just now."""
    for folder, _, _ in os.walk(top):
        os.utime(folder, (1e9, 1e9))
    time.sleep(2.5)  # the time of a change of status cannot be set


@pytest.fixture(scope="module")
def saves(tmp_path_factory):
    """A single save, and steps of several items, each as Orbax has made it."""
    import orbax.checkpoint as ocp

    top = tmp_path_factory.mktemp("saves")
    weights = {"w": K, "layers": [{"b": K[0]}], "tokenizer": {"size": 7}}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(top / "single", weights)
    plain = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with ocp.Checkpointer(plain) as checkpointer:
        checkpointer.save(top / "plain", {"w": K, "a/b": {"c": K[0]}})
    options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"], enable_async_checkpointing=False)
    with ocp.CheckpointManager(top / "lone") as manager:
        manager.save(7, args=ocp.args.StandardSave(weights))
    with ocp.CheckpointManager(top / "run", item_names=("params", "meta"), options=options) as manager:
        items = ocp.args.Composite(params=ocp.args.StandardSave({"w": K}), meta=ocp.args.JsonSave({"a": [1, None]}))
        manager.save(5, args=items, metrics={"loss": 0.5})
    return top


def with_files(source, target):
    """A copy with a few files of the user, by their names."""
    util.copy_tree(source, target)
    files = {
        "README.md": b"# model\n",
        "config.json": b'{"layers": 1}\n',
        "number.json": b"5\n",
        "tokenizer/vocab.txt": b"a\nb\n",
        "assets/droid/norm_stats.json": b"[0.5]\n",
        "one/metadata": b'{"mine": true}',
        "metrics.d/metrics.d": b"1",
        "a/few/levels/further/down/than/eight/folders/are/x.bin": bytes(range(256)),
    }
    for name, data in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (target / "empty").mkdir()
    return files


SINGLE = {"w.npy", "layers/0/b.npy", "tokenizer/size.json"}


@pytest.mark.parametrize(
    "name, leaves",
    [
        ("single", SINGLE),
        ("lone/7", SINGLE),
        ("plain", {"w.npy", "a%2Fb/c.npy"}),
        ("run/5", {"params/w.npy", "meta.json", "metrics.json"}),
    ],
)
def test_files_of_others(saves, tmp_path, name, leaves):
    """They are blobs under their own names, in listings, copies, exports, imports, and `verify` reads them."""
    source = tmp_path / "step"
    files = with_files(saves / name, source)
    assert tree(source) == leaves | files.keys() | {"empty"}
    for file, data in files.items():
        assert ckptfs("cat", source, file, text=False).stdout == data
    ckptfs("verify", source)
    ckptfs("export", source, tmp_path / "out", "--format=npy")
    with util.Mount(source, folder=tmp_path / "m") as m:
        shutil.copytree(m.top, tmp_path / "copy")
    for copy in (tmp_path / "out", tmp_path / "copy"):
        assert {f: (copy / f).read_bytes() for f in files} == files
    ckptfs("init", tmp_path / "store")
    ckptfs("import", source, tmp_path / "store/1")
    for file, data in files.items():
        assert ckptfs("cat", tmp_path / "store", f"1/{file}", text=False).stdout == data


def test_files_in_an_item(saves, tmp_path):
    source = util.copy_tree(saves / "run/5", tmp_path / "5")
    (source / "params/notes.txt").write_text("mine")
    (source / "params/more/d").mkdir(parents=True)
    (source / "params/more/d/x").write_text("mine, too")
    (source / "meta/notes.txt").write_text("beside Orbax's own")
    own = {"params/w.npy", "meta.json", "metrics.json"}
    assert tree(source) == own | {"params/notes.txt", "params/more/d/x", "meta/notes.txt"}
    assert ckptfs("cat", source, "meta.json").stdout == '{"a": [1, null]}'


def test_a_save_within_a_save(saves, tmp_path):
    """It is a tree of its own, also where the outer tree has the same key."""
    source = util.copy_tree(saves / "single", tmp_path / "outer")
    util.copy_tree(saves / "single", source / "ema")
    util.copy_tree(saves / "single", source / "layers")
    listed = tree(source)
    assert {"ema/w.npy", "ema/layers/0/b.npy", "layers/0/b.npy", "%6Cayers/w.npy"} <= listed
    assert not any("manifest" in name or "_METADATA" in name for name in listed)
    assert np.array_equal(array(source, "%6Cayers/w.npy"), K)
    ckptfs("verify", source)


def test_links(saves, tmp_path):
    """Links to files of the checkpoint are followed; what leads out is not there."""
    source = util.copy_tree(saves / "single", tmp_path / "s")
    (tmp_path / "secret").write_text("not yours")
    (source / "config.json").write_text("{}")
    (source / "link.json").symlink_to("config.json")
    (source / "out").symlink_to("../secret")
    (source / "gone").symlink_to("nowhere")
    assert tree(source) == SINGLE | {"config.json", "link.json"}


def test_rights(saves, tmp_path):
    """A file has its own rights, and a folder within an item too."""
    source = util.copy_tree(saves / "run/5", tmp_path / "5")
    (source / "params/secret").write_text("x")
    (source / "params/secret").chmod(0o600)
    (source / "params/private").mkdir()
    (source / "params/private/x").write_text("x")
    (source / "params/private").chmod(0o700)
    with util.Mount(source, folder=tmp_path / "m") as m:
        assert (m / "params/secret").stat().st_mode & 0o777 == 0o400
        assert (m / "params/private").stat().st_mode & 0o777 == 0o500


# --- rich types


def test_rich_types(tmp_path):
    import orbax.checkpoint as ocp

    from orbax.checkpoint._src.metadata.pytree_metadata_options import PyTreeMetadataOptions

    handler = ocp.PyTreeCheckpointHandler(pytree_metadata_options=PyTreeMetadataOptions(support_rich_types=True))
    tree = {
        "opt": Moments(K, (K, [2 * K, (K[0],)])),
        "t": (1, {"category": K, "x y/z": (2.5,)}),
        "l": [K, {"m": Moments(1, 2)}],
        "e": {},
        "et": (),
        "n": None,
    }
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "s", tree)
    told = json.loads(ckptfs("cat", tmp_path / "s", ".tree.json").stdout)
    kinds = {tuple(c["path"]): c["kind"] for c in told["containers"]}
    assert kinds == {
        (): "dict",
        ("opt",): "namedtuple",
        ("opt", "nu"): "tuple",
        ("opt", "nu", 1): "list",
        ("opt", "nu", 1, 1): "tuple",
        ("t",): "tuple",
        ("t", 1): "dict",
        ("t", 1, "x y/z"): "tuple",
        ("l",): "list",
        ("l", 1): "dict",
        ("l", 1, "m"): "namedtuple",
        ("e",): "dict",
        ("et",): "tuple",
    }
    with util.Mount(tmp_path / "s", folder=tmp_path / "m") as m:
        assert os.getxattr(m / "opt", "user.ckpt.kind") == b"namedtuple"
        assert os.getxattr(m / "t", "user.ckpt.kind") == b"tuple"


@pytest.mark.parametrize(
    "text", ["", "[", '{"w": ', "7", '{"category": "namedtuple", "entries": 7}', "[" * 100000, '{"a":' * 5000 + "1"]
)
def test_malformed_types(saves, tmp_path, text):
    """The arrays are as good without them."""
    source = util.copy_tree(saves / "single", tmp_path / "s")
    metadata = json.loads((source / "_METADATA").read_text())
    (source / "_METADATA").write_text(json.dumps({**metadata, "value_metadata_tree": text}))
    assert tree(source) == SINGLE
    ckptfs("verify", source)


# --- items that are gone


@pytest.mark.parametrize("how", ["away", "files gone", "empty"])
@pytest.mark.parametrize("item", ["params", "meta"])
def test_item_is_gone(saves, tmp_path, item, how):
    if item == "meta" and how == "files gone":
        pytest.skip("its one file")
    step = util.copy_tree(saves / "run/5", tmp_path / "run/5")
    if how == "files gone":
        (step / item / "_METADATA").unlink()
        (step / item / "manifest.ocdbt").unlink()
    else:
        shutil.rmtree(step / item)
    if how == "empty":
        (step / item).mkdir()
    age(tmp_path / "run")
    said = f"_CHECKPOINT_METADATA names items that are not there: {item}"
    assert said in ckptfs("verify", step, check=4).stdout
    assert said in ckptfs("info", step, check=4).stdout
    assert said in ckptfs("info", tmp_path / "run", check=4).stdout
    faults = json.loads(ckptfs("verify", tmp_path / "run", "--json", check=4).stdout)
    assert [f["error"]["message"] for f in faults["faults"]] == [said]
    assert faults["files"] == 2
    with util.Mount(step, folder=tmp_path / "m") as m:
        assert os.getxattr(m.top, "user.ckpt.error").decode() == said
        subprocess.run(["cp", "-r", m.top, tmp_path / "copy"], check=True)


def test_items_that_were_not_saved(saves):
    """What a manager could have saved, and has not, is not missing."""
    ckptfs("verify", saves / "run/5")
    assert "error" not in ckptfs("info", saves / "run/5", "--json").stdout


# --- 0.3.5 to 0.4.1: keys with a slash


@pytest.mark.parametrize(
    "name, leaves",
    [
        ("mixed", {"linear%2F~%2Fw/w": K, "linear%2F~%2Fw/b": K[0], "mlp%2Fw": 2 * K, "plain/x": 3 * K, "plain/s": 3}),
        ("all", {"net%2Fa/w": K, "net%2Fa/n": 7, "net%2Fb/w": 2 * K, "net%2Fb/f": 0.5}),
        ("strings", {"a%2Ft/w": K, "a%2Ft/s": "one", "b%2Ft/s": "two"}),
    ],
)
def test_slashes_in_keys(name, leaves):
    source = OLD / name
    assert tree(source) == {n + (".json" if isinstance(v, str) else ".npy") for n, v in leaves.items()}
    for leaf, want in leaves.items():
        if isinstance(want, str):
            assert json.loads(ckptfs("cat", source, leaf + ".json").stdout) == want
        else:
            assert np.array_equal(array(source, leaf + ".npy"), want)
    ckptfs("verify", source)


def test_damage_below(tmp_path):
    source = util.copy_tree(OLD / "mixed", tmp_path / "s")
    (data,) = (source / "mlp/d").iterdir()
    data.unlink()
    age(source)
    assert "mlp/d/" in ckptfs("verify", source, check=4).stdout
    assert np.array_equal(array(source, "plain/x.npy"), 3 * K)
