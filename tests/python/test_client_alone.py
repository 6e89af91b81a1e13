"""Without JAX, and without ml_dtypes: a program that cannot import them."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import ckptfs
import util

PROGRAM = """
import sys
for name in BLOCKED:
    sys.modules[name] = None
import collections, dataclasses
import numpy as np
import ckptfs

mnt = sys.argv[1]
Pair = collections.namedtuple("Pair", "left right")

@dataclasses.dataclass(frozen=True)
class State:
    params: dict
    step: int
    pair: Pair
    name: str = dataclasses.field(default="", metadata={"pytree_node": False})

state = State({"w": np.arange(6.0).reshape(2, 3), "b": [None, b"x"]}, 7, Pair(1, (2.5,)), "mine")
ckptfs.save(f"{mnt}/2", state, metrics={"loss": 1})
raw = ckptfs.restore(f"{mnt}/2")
assert set(raw) == {"params", "step", "pair"} and raw["params"]["b"] == [None, b"x"], raw
zero = State({"w": np.zeros((2, 3)), "b": [None, b""]}, 0, Pair(0, (0.0,)), "other")
got = ckptfs.restore(f"{mnt}/2", zero)
assert type(got) is State and got.step == 7 and got.pair == state.pair and got.name == "other"
assert (got.params["w"] == state.params["w"]).all()

types = ckptfs.restore(f"{mnt}/1")
print({name: (a.dtype.name, a.dtype.str) for name, a in types.items()})
ckptfs.save(f"{mnt}/3", types)

with ckptfs.CheckpointManager(mnt, asynchronous=True) as manager:
    manager.save(5, {"a": np.ones(3)})
    assert manager.restore()["a"].tolist() == [1, 1, 1]
assert not any(sys.modules.get(name) for name in ("jax", *BLOCKED))
"""


@pytest.mark.parametrize("blocked", [("jax", "flax"), ("jax", "flax", "ml_dtypes")], ids=str)
def test_alone(mnt, blocked):
    tree = {
        "bf": np.ones(3, ml_dtypes.bfloat16),
        "f8": np.ones(3, ml_dtypes.float8_e5m2),
        "i4": np.ones(3, ml_dtypes.int4),
        "f": np.ones(3, "f4"),
    }
    ckptfs.save(mnt / "1", tree)
    done = subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {blocked!r}\n{PROGRAM}", str(mnt)],
        env={"PYTHONPATH": str(util.TESTS.parent / "python")},
        capture_output=True,
        text=True,
        timeout=util.LIMIT,
    )
    assert done.returncode == 0, done.stderr
    if "ml_dtypes" in blocked:
        assert eval(done.stdout) == {
            "bf": ("void16", "|V2"),
            "f": ("float32", "<f4"),
            "f8": ("void8", "|V1"),
            "i4": ("int8", "|i1"),
        }
    else:
        assert {name: found[0] for name, found in eval(done.stdout).items()} == {
            name: a.dtype.name for name, a in tree.items()
        }
        assert ckptfs.restore(mnt / "3", tree)["bf"].dtype == ml_dtypes.bfloat16
    assert ckptfs.restore(mnt / "3")["bf"].dtype == ml_dtypes.bfloat16
