"""A training run in small: live_writer.py FOLDER SECONDS LAYOUT. Saves a step again and again, keeping the last two;
each element of a step's arrays is the step's number, so that a mixture of two steps would show."""

import contextlib
import sys
import time

import jax

jax.config.update("jax_platforms", "cpu")
import flax  # noqa: E402 - after the choice of the platform
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
from flax.training import checkpoints  # noqa: E402

folder, seconds, layout = sys.argv[1], float(sys.argv[2]), sys.argv[3]


@contextlib.contextmanager
def saver():
    if layout == "flax":
        flax.config.update("flax_use_orbax_checkpointing", False)
        yield lambda step, tree: checkpoints.save_checkpoint(folder, tree, step, keep=2)
        return
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=layout == "ocdbt")
    with ocp.CheckpointManager(
        folder, options=ocp.CheckpointManagerOptions(max_to_keep=2), item_handlers=handler
    ) as manager:

        def save(step, tree):
            manager.save(step, args=ocp.args.PyTreeSave(tree))
            manager.wait_until_finished()

        yield save


with saver() as save:
    end, step = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        save(
            step,
            {
                "params": {f"w{n}": jnp.full((40 + n, 50), step, jnp.float32) for n in range(8)},
                "big": np.full(300_000, step, np.int32),
                "step": step,
            },
        )
        step += 1
        time.sleep(0.2)
print(step)
