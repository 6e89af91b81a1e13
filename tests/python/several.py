"""One of several JAX processes that save a tree together and restore it: several.py PORT COUNT RANK STEP. STEP is in a
mount of its own, which has writers=COUNT.
"""

import os
import sys

port, count, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={8 // count}"

import jax

jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(f"localhost:{port}", count, rank)

import numpy as np  # noqa: E402 - after initialize, as jax wants it
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

import ckptfs  # noqa: E402

WHOLE = np.arange(64 * 48, dtype=np.float32).reshape(64, 48)
REPLICATED = np.arange(5000, dtype=np.int32)


def sharding(rows, columns, *spec):
    return NamedSharding(Mesh(np.array(jax.devices()).reshape(rows, columns), ("x", "y")), PartitionSpec(*spec))


def put(a, s):
    return jax.make_array_from_callback(a.shape, s, lambda index: a[index])


def check(a, want):
    for shard in a.addressable_shards:
        assert np.array_equal(np.asarray(shard.data), want[shard.index]), shard.index


assert len(jax.devices()) == 8
ckptfs.save(
    step,
    {
        "both": put(WHOLE, sharding(4, 2, "x", "y")),
        "rows": put(WHOLE, sharding(4, 2, "x")),
        "same": put(REPLICATED, sharding(4, 2)),
        "n": 3,
    },
)
for rows, columns in (4, 2), (2, 4), (1, 8):
    to = {
        "both": sharding(rows, columns, "x", "y"),
        "rows": sharding(rows, columns, "y"),
        "same": sharding(rows, columns),
        "n": None,
    }
    target = {
        "both": jax.ShapeDtypeStruct(WHOLE.shape, WHOLE.dtype, sharding=to["both"]),
        "rows": jax.ShapeDtypeStruct(WHOLE.shape, WHOLE.dtype, sharding=to["rows"]),
        "same": jax.ShapeDtypeStruct(REPLICATED.shape, REPLICATED.dtype, sharding=to["same"]),
        "n": 0,
    }
    tree = ckptfs.restore(step, target)
    check(tree["both"], WHOLE)
    check(tree["rows"], WHOLE)
    check(tree["same"], REPLICATED)
    assert tree["n"] == 3
raw = ckptfs.restore(step)
assert np.array_equal(raw["both"], WHOLE) and np.array_equal(raw["same"], REPLICATED) and raw["n"] == 3
print("good")
