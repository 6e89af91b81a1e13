"""Trees without arrays, for which Orbax makes no database, though `_METADATA` says that there is one."""

import json

import pytest
from util import ckptfs

TREES = {
    "strings": (
        {"layers": ["a", "b"], "name": "demo"},
        {"layers/0.json": "a", "layers/1.json": "b", "name.json": "demo"},
    ),
    "none": ({"a": None}, {"a.json": None}),
    "empty": ({"a": {}, "b": []}, {}),
}


@pytest.mark.parametrize("name", TREES)
def test_tree(tmp_path, name):
    import orbax.checkpoint as ocp

    tree, leaves = TREES[name]
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", tree)
        restored = checkpointer.restore(tmp_path / "c")
    assert restored == tree and not (tmp_path / "c/manifest.ocdbt").exists()
    ckptfs("verify", tmp_path / "c")
    listed = json.loads(ckptfs("ls", "-R", "--json", tmp_path / "c").stdout)
    values = {
        e["path"]: json.loads(ckptfs("cat", tmp_path / "c", e["path"]).stdout) for e in listed if "." in e["path"]
    }
    assert values == leaves
    assert {e["path"] for e in listed if "." not in e["path"]} == {
        k for k, v in tree.items() if isinstance(v, (dict, list))
    }
