# SPDX-License-Identifier: Apache-2.0
"""What `cat LEAF` is compared with: a Python that starts, imports Orbax, restores one leaf and writes its bytes."""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import orbax.checkpoint as ocp

path, dtype, dims, *keys = sys.argv[1:]
item = jax.ShapeDtypeStruct(tuple(map(int, dims.split(","))), np.dtype(dtype))
for key in reversed(keys):
    item = {key: item}
restore_args = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), item)
args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path, args=args)
sys.stdout.buffer.write(jax.tree.leaves(tree)[0].tobytes())
