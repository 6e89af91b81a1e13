"""Which directories and files of a folder are steps, by their names and what they are (docs/orbax.md)."""

import json

import numpy as np
import pytest

from util import ckptfs

K = np.arange(12, dtype="f4").reshape(4, 3) / 8


def save(path):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, {"w": K})


def steps(folder):
    done = json.loads(ckptfs("info", "--json", folder).stdout)
    return {s["name"]: s["step"] for s in done["steps"]}


@pytest.mark.parametrize(
    "name, number",
    [
        ("500", 500),
        ("0500", 500),
        ("step_500", 500),
        ("checkpoint-500", 500),
        ("step=500", 500),
        ("global_step500", 500),
        ("epoch3", 3),
        ("epoch=3-step=1000", 1000),
        ("a_b-7", 7),
        ("step_500a", None),
        ("step-1.5", None),
        ("lr=0.001", None),
        ("v1.2-500", None),
        ("lr=1e-5", None),
    ],
)
def test_name(tmp_path, name, number):
    save(tmp_path / name)
    assert steps(tmp_path) == {name: number}


def test_latest_and_wait(mount, tmp_path):
    """By number, in the mount and for commands."""
    for name in "step-500", "step-1000":
        save(tmp_path / "run" / name)
    m = mount(tmp_path / "run")
    assert (m / "latest").readlink().name == "step-1000"
    assert ckptfs("wait", tmp_path / "run", "--after=500").stdout == "step-1000\n"


def test_folders_beside_steps_are_none(tmp_path):
    """A name alone makes no step of a folder that is no checkpoint, but for digits and what stands behind a '_'."""
    save(tmp_path / "step-500")
    for name in "logs-2024", "v=2", "cache7":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("x")
    assert steps(tmp_path) == {"step-500": 500}


def test_numbered_parts_are_no_steps(tmp_path):
    """A model and its optimizer, saved side by side with one number."""
    for name in "pytorch_model_fsdp_0", "optimizer_0":
        save(tmp_path / name)
    assert steps(tmp_path) == {"pytorch_model_fsdp_0": None, "optimizer_0": None}
    assert ckptfs("wait", tmp_path, "--after=-1", "--timeout=0", check=None).returncode == 3
    save(tmp_path / "step_1")
    save(tmp_path / "step_0001")  # one prefix: two names of a step
    assert steps(tmp_path)["step_1"] == steps(tmp_path)["step_0001"] == 1
