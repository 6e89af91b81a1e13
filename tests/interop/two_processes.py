"""One of several processes that save a sharded tree together: two_processes.py FOLDER PORT COUNT RANK."""

import sys

import jax

folder, port, count, rank = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(f"localhost:{port}", count, rank)

import numpy as np  # noqa: E402 - after initialize, as jax wants it
import orbax.checkpoint as ocp  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

mesh = Mesh(np.array(jax.devices()).reshape(-1, 2), ("x", "y"))


def shard(a, *spec):
    return jax.make_array_from_callback(a.shape, NamedSharding(mesh, PartitionSpec(*spec)), lambda index: a[index])


rng = np.random.default_rng(11)
tree = {
    "both": shard(rng.random((64, 32), np.float32), "x", "y"),
    "rows": shard(rng.integers(0, 1000, (48, 7), np.int32), "x"),
    "columns": shard(rng.random((5, 16), np.float32), None, "y"),
    "everywhere": shard(rng.random((6,), np.float32)),
    "step": 3,
}
with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False)) as manager:
    manager.save(3, args=ocp.args.PyTreeSave(tree))
