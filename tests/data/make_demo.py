#!/usr/bin/env python3
"""Make tests/data/demo, the checkpoint of mount-scripts/quickstart: a small model trained with Flax, Optax and Orbax.

    make_demo.py [FOLDER]

Three steps of a managed run: a TrainState (parameters, Adam's state, step), a config and metrics.
"""

import pathlib
import shutil
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax.training import train_state

STEPS = (100, 200, 300)


class Model(nn.Module):
    """Two layers, the second one in bfloat16."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(32, name="encoder")(x))
        return nn.Dense(4, name="head", param_dtype=jnp.bfloat16)(x)


def train(state, key, steps):
    """Fit the signs of random vectors."""

    @jax.jit
    def update(state, x):
        def loss_of(params):
            return jnp.mean((state.apply_fn({"params": params}, x) - jnp.sign(x[:, :4])) ** 2)

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        return state.apply_gradients(grads=grads), loss

    for k in jax.random.split(key, steps):
        state, loss = update(state, jax.random.normal(k, (64, 16)))
    return state, float(loss)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "demo").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    model, key = Model(), jax.random.PRNGKey(0)
    state = train_state.TrainState.create(
        apply_fn=model.apply, params=model.init(key, jnp.ones((1, 16)))["params"], tx=optax.adam(1e-2)
    )
    config = {"name": "demo", "dimensions": [16, 32, 4], "learning_rate": 1e-2, "schedule": None}
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=3)) as manager:
        for step in STEPS:
            state, loss = train(state, jax.random.fold_in(key, step), 100)
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave({"model": state, "config": config}),
                    metrics=ocp.args.JsonSave({"loss": round(loss, 6)}),
                ),
            )
    for mark in folder.rglob("commit_success.txt"):  # holds the path on the machine that saved
        mark.write_text(mark.read_text().replace(str(folder), "demo"))


if __name__ == "__main__":
    main()
