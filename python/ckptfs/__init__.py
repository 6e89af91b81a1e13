# SPDX-License-Identifier: Apache-2.0
"""Trees of arrays in and out of a mount of ckptfs, by paths and attributes alone. docs/python.md is the guide.

    import ckptfs
    ckptfs.save("mnt/7", {"params": params, "step": 7}, metrics={"loss": 0.3})
    raw = ckptfs.restore("mnt/latest")
    state = ckptfs.restore("mnt/7", target)                # the structure, types and shardings of target

    with ckptfs.CheckpointManager("mnt", max_to_keep=3) as manager:
        manager.save(8, state)

NumPy is all that it needs. With ml_dtypes, arrays of bfloat16, float8 and int4 have their types; without they are the
bytes (V2, V1) or the int8 of their files. What JAX has registered as a node of trees is one, if the program has
imported JAX.
"""

from .background import AsyncCheckpointer
from .manager import CheckpointManager
from .reading import Spec, describe, metadata, metrics, restore
from .writing import save

__all__ = ["AsyncCheckpointer", "CheckpointManager", "Spec", "describe", "metadata", "metrics", "restore", "save"]
__version__ = "0.1.0"
