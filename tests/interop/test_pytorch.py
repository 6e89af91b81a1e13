"""What the mount shows of files that PyTorch has just saved is, bit for bit, what was saved.

PyTorch is large, so it need not be in the tests' own environment: $TORCH_PYTHON, this Python or the system's one saves
(Debian has the package python3-torch), and what comes out is compared here. What that version does not have (float8,
distributed checkpoints) is left out.
"""

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import check_fixtures
import util
from arrays import SLICES, random_slice

SAVER = Path(__file__).parent / "torch_save.py"


def run(python, *args, limit=240, **environment):
    return subprocess.run(
        [python, "-W", "ignore", SAVER, *map(str, args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def torch_python():
    """A Python that has torch."""
    for python in (os.environ.get("TORCH_PYTHON"), sys.executable, "/usr/bin/python3"):
        if python and subprocess.run([python, "-c", "import torch"], capture_output=True, timeout=120).returncode == 0:
            return python
    pytest.skip("no Python with torch: install the package python3-torch, or set TORCH_PYTHON")


@pytest.fixture(scope="module")
def saved(torch_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch") / "saved"
    done = run(torch_python, "save", folder)
    assert done.returncode == 0, done.stderr
    return folder


def truth_of(folder):
    return json.loads((folder / "truth.json").read_text())["files"]


# --- comparing


def file_of(top, path):
    """Where a leaf is, without its suffix."""
    keys = []
    for key in path:
        keys += key.split(".") if all(key.split(".")) else [key]
    return top.joinpath(*map(check_fixtures.escape, keys or [""]))


def compare_array(folder, file, leaf):
    """Returns the array."""
    data = (folder / leaf["raw"]).read_bytes()
    check_fixtures.array_check(leaf | {"sha256": hashlib.sha256(data).hexdigest()})(f"{file}.npy")
    return np.frombuffer(data, check_fixtures.describe(leaf["dtype"])).reshape(leaf["shape"])


def compare_leaf(folder, file, leaf):
    """Returns the array of one that is an array."""
    if leaf["kind"] == "array":
        return compare_array(folder, file, leaf)
    if leaf["kind"] == "value":
        got = json.loads(Path(f"{file}.json").read_text())
        assert repr(sorted(got) if "set" in file.name else got) == repr(leaf["value"]), (
            f"{file}: {got}, not {leaf['value']}"
        )
    elif leaf["kind"] == "bytes":
        assert file.read_bytes().hex() == leaf["hex"], file
    elif leaf["kind"] == "unsupported":
        with pytest.raises(OSError) as e:
            Path(f"{file}.npy").read_bytes()
        assert e.value.errno == errno.EOPNOTSUPP, file
    else:
        assert os.listdir(file) == [], file
    return None


def compare(folder, top, leaves, seed):
    """All leaves and nothing else, and random slices of the arrays."""
    arrays = {}
    for leaf in leaves:
        file = file_of(top, leaf["path"])
        array = compare_leaf(folder, file, leaf)
        if array is not None and array.ndim:
            arrays[file] = array
    assert sum(len(files) for _, _, files in os.walk(top)) == sum(leaf["kind"] != "empty" for leaf in leaves)
    rng = random.Random(seed)
    for _ in range(SLICES if arrays else 0):
        file = rng.choice(sorted(arrays))
        text, index = random_slice(rng, arrays[file].shape)
        got, want = np.load(f"{file}@{text}.npy"), arrays[file][index]
        assert got.shape == want.shape and got.tobytes() == want.tobytes(), f"{file}@{text}"


# --- torch.save


@pytest.mark.parametrize(
    "name", ["training.pt", "dtypes.pt", "views.pth", "values.pt", "sparse.pt", "state.bin", "list.ckpt", "tensor.pt"]
)
def test_saved(saved, module_mount, name):
    compare(saved, module_mount(saved) / name, truth_of(saved)[name], name)


@pytest.mark.parametrize(
    "name", ["training.pt", "dtypes.pt", "views.pth", "values.pt", "sparse.pt", "state.bin", "list.ckpt", "tensor.pt"]
)
def test_saved_before_zip(saved, module_mount, name):
    """The format that PyTorch had before 1.6, which later versions still write."""
    old = f"old-{name}"
    if old not in truth_of(saved):
        pytest.skip("this torch does not save that in the old format")
    compare(saved, module_mount(saved) / old, truth_of(saved)[old], old)


@pytest.mark.parametrize("name", ["views.pkl", "state.pkl", "training.pkl"])
def test_pickled(saved, module_mount, name):
    """Tensors in pickles by themselves, whose storages PyTorch saves into bytes."""
    compare(saved, module_mount(saved) / name, truth_of(saved)[name], name)


def test_file_as_source(saved, mount):
    compare(saved, mount(saved / "training.pt").top, truth_of(saved)["training.pt"], "source")


def test_names(saved, module_mount, mount):
    """Keys that are no names, that collide, and that are no strings."""
    top = module_mount(saved) / "names.pt"
    listed = {os.path.relpath(os.path.join(folder, name), top) for folder, _, files in os.walk(top) for name in files}
    assert listed == {
        "a/b.npy",
        "a/c.npy",
        "a/b/d.json",
        ".x.json",
        "x..json",
        "x..y.json",
        "sp ace%2Fslash.npy",
        "%.json",
        "%2E%2E.json",
        "%2541.json",
        "ünï/%.npy",
        "tab%09.json",
        "3.npy",
        "-1.json",
        "True.json",
        "None.json",
        "(1, 'a').json",
        "2.5.json",
        "deep/er/and/deeper/still.npy",
    }
    assert np.load(top / "a/c.npy") == [2]
    flat = mount(saved / "names.pt", "flat")
    assert {"a.b.npy", "a", "deep.er.and"} <= set(os.listdir(flat.top)) and os.listdir(flat / "deep.er.and") == [
        "deeper.still.npy"
    ]


@pytest.mark.parametrize("name", ["script.pt", "traced.jit"])
def test_script(saved, module_mount, name):
    """TorchScript: tensors are leaves, constants of the program too; the program and the user's files are blobs."""
    top = module_mount(saved) / name
    for leaf in truth_of(saved)[name]:
        compare_leaf(saved, file_of(top, leaf["path"]), leaf)
    archive = zipfile.ZipFile(saved / name)
    prefix = archive.namelist()[0].split("/")[0] + "/"
    own = ("data", "constants", ".data/", "version", "byteorder", ".format_version", ".storage_alignment")
    files = {n[len(prefix) :]: archive.read(n) for n in archive.namelist() if not n[len(prefix) :].startswith(own)}
    assert any(n.startswith("code/") for n in files)
    code = "%63ode" if (top / "%63ode").exists() else "code"  # a module may have an attribute of that name
    for file, data in files.items():
        assert (top / file.replace("code/", f"{code}/", 1)).read_bytes() == data, file
    if name == "script.pt":
        assert (top / "extra/note.txt").read_bytes() == b"hello" and code == "%63ode"
        assert (top / "rates/x.json").read_text() == "1.5\n" and (top / "names/1.json").read_text() == '"b"\n'
        assert [json.loads((top / f"sizes/{i}.json").read_text()) for i in range(3)] == [1, 2, 3]
    assert util.ckptfs("verify", saved / name).returncode == 0


def class_of(path):
    return os.getxattr(path, "user.ckpt.class").decode()


def test_module(saved, module_mount):
    """A whole module is an object; its parameters are where PyTorch keeps them."""
    top = module_mount(saved) / "module.pt"
    assert class_of(top) == "torch.nn.modules.linear.Linear" and {"_parameters", "_buffers"} <= set(os.listdir(top))
    compare(saved, top / "_parameters", truth_of(saved)["module.pt"], "module")


def test_objects(saved, module_mount):
    """Objects of any class beside a state dict leave it alone, and show their attributes."""
    top = module_mount(saved) / "objects.pt"
    compare(saved, top / "weights", truth_of(saved)["objects.pt"], "objects")
    weight = np.load(top / "weights/0/weight.npy")
    assert np.array_equal(np.load(top / "module/_modules/0/_parameters/weight.npy"), weight)
    for path, name in {
        "args": "argparse.Namespace",
        "module": "torch.nn.modules.container.Sequential",
        "module/_modules/1": "torch.nn.modules.batchnorm.BatchNorm1d",
        "optimizer": "torch.optim.sgd.SGD",
        "schedule": "torch.optim.lr_scheduler.StepLR",
        "meta": "torch._utils._rebuild_meta_tensor_no_storage",
        "partial": "functools.partial",
    }.items():
        assert class_of(top / path) == name and os.getxattr(top / path, "user.ckpt.kind") == b"object", path
    for path, want in {
        "args/lr": 0.1,
        "args/out": "/out",
        "args/device": "cpu",
        "path": "/a/b",
        "counter/a": 2,
        "default/x/0": 1,
        "when": "2024-01-02T03:04:05",
        "range": "range(0, 3)",
        "schedule/step_size": 10,
        "optimizer/param_groups/0/lr": 0.5,
        "function": "torch.nn.functional.relu",
        "lambda": "collections.OrderedDict",
    }.items():
        assert json.loads((top / f"{path}.json").read_text()) == want, path
    if "color.json" in os.listdir(top):  # Python 3.11 pickles the members of an enum by name
        assert json.loads((top / "color.json").read_text()) == "__main__.Color.RED"
    else:
        assert class_of(top / "color") == "__main__.Color"
    assert np.array_equal(np.load(top / "parameter.npy"), np.ones(2, "f4"))
    assert np.array_equal(np.load(top / "labelled.npy"), np.arange(3, dtype="f4"))
    momentum = [np.load(p) for p in sorted(Path(top / "optimizer/state").rglob("momentum_buffer.npy"))]
    assert len(momentum) == 4 and {m.shape for m in momentum} == {(4, 3), (4,)}
    for folder, _, files in os.walk(top):
        for name in files:
            Path(folder, name).read_bytes()


def test_safetensors(saved, module_mount, torch_python, tmp_path):
    """The view DIR.safetensors of a state dict, as safetensors.torch reads it: whole, by mmap, and in slices."""
    modules = tmp_path / "modules"  # its compiled part is for any Python
    modules.mkdir()
    for name in ("safetensors", "packaging"):
        spec = __import__("importlib.util").util.find_spec(name)
        (modules / name).symlink_to(Path(spec.origin).parent)
    file = module_mount(saved) / "state.bin.safetensors"
    done = run(torch_python, "load", saved, file, PYTHONPATH=str(modules))
    assert done.returncode == 0, done.stderr


# --- distributed checkpoints


def test_distributed(saved, module_mount):
    if "dcp" not in truth_of(saved):
        pytest.skip("this torch has no torch.distributed.checkpoint")
    compare(saved, module_mount(saved) / "dcp", truth_of(saved)["dcp"], "dcp")


def test_ranks(torch_python, mount, tmp_path):
    """Sharded by rows, by columns, by both, unevenly, by four processes."""
    folder = tmp_path / "ranks"
    done = run(torch_python, "ranks", folder, 4)
    assert done.returncode == 0, done.stderr
    if not (folder / "truth.json").exists():
        pytest.skip("this torch has no sharded tensors")
    compare(folder, mount(folder).top / "dcp", truth_of(folder)["dcp"], "ranks")
