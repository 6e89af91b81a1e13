"""One of two processes that go through the guide's part for several, in two folders: guide_processes.py PORT FOLDER
FOLDER RANK. Says good if both give the same."""

import os
import sys

port, *folders, rank = sys.argv[1:]
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax

jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(f"localhost:{port}", 2, int(rank))

import guide  # noqa: E402 - after initialize, as jax wants it

CALLS = {one.name: one for one in guide.CALLS}
NAMES = (
    "sharded_save",
    "sharded_restore",
    "sharded_restore_otherwise",
    "legacy_save_multiprocess",
    "legacy_restore_multiprocess",
)

guides = [guide.Guide(folder) for folder in folders]
for g in guides:
    g.async_checkpointer = guide.orbax.checkpoint.AsyncCheckpointer(
        guide.orbax.checkpoint.PyTreeCheckpointHandler(), timeout_secs=50
    )
    CALLS["async_manager"].run(g)
for name in NAMES:
    plain, mounted = (guide.outcome(CALLS[name], g) for g in guides)
    guide.assert_same(plain, mounted)
    assert isinstance(plain, Exception) == (name in guide.REFUSED), f"{name}: {plain!r}"
for g in guides:
    g.close()
print("good")
