"""Saves with PyTorch what tests/interop/test_pytorch.py compares a mount with. For a Python that has torch; needs
nothing else.

torch_save.py save FOLDER         checkpoints, and FOLDER/truth.json with the leaves of each; the elements of arrays are
                                  in FOLDER/raw
torch_save.py ranks FOLDER N      a distributed checkpoint that N processes save together
torch_save.py load FOLDER FILE    compares what safetensors.torch reads from FILE with what a state dict had
"""

import argparse
import collections
import datetime
import enum
import functools
import io
import json
import os
import pathlib
import pickle
import sys

import torch
import torch.nn as nn

DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
    "complex32",
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]


# --- what was saved


def elements(t):
    """The bytes of a tensor's elements in C order."""
    t = t.detach().resolve_conj().resolve_neg().contiguous()
    if t.is_complex():
        t = torch.view_as_real(t)
    return bytes(t.reshape(-1).view(torch.uint8).tolist()) if t.numel() else b""


class Truth:
    def __init__(self, folder):
        self.folder, self.files, self.count = folder, {}, 0
        os.makedirs(os.path.join(folder, "raw"))

    def array(self, t):
        name = f"raw/{self.count}"
        self.count += 1
        with open(os.path.join(self.folder, name), "wb") as f:
            f.write(elements(t))
        return {"kind": "array", "dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "raw": name}

    def leaves(self, tree, path=()):
        if isinstance(tree, torch.Tensor):
            yield (
                list(path),
                {"kind": "unsupported"} if tree.layout != torch.strided or tree.is_quantized else self.array(tree),
            )
        elif isinstance(tree, dict):
            for key, value in tree.items():
                yield from self.leaves(value, (*path, str(key)))
            if not tree:
                yield list(path), {"kind": "empty"}
        elif isinstance(tree, (list, tuple)) and not isinstance(tree, torch.Size):
            for index, value in enumerate(tree):
                yield from self.leaves(value, (*path, str(index)))
            if not tree:
                yield list(path), {"kind": "empty"}
        elif isinstance(tree, (bytes, bytearray)):
            yield list(path), {"kind": "bytes", "hex": tree.hex()}
        elif isinstance(tree, complex):
            yield list(path), self.array(torch.tensor(tree, dtype=torch.complex128))
        elif isinstance(tree, (torch.dtype, torch.device)):
            yield list(path), {"kind": "value", "value": str(tree)}
        else:
            yield list(path), {"kind": "value", "value": sorted(tree) if isinstance(tree, set) else tree}

    def note(self, name, tree):
        self.files[name] = [{"path": path, **leaf} for path, leaf in self.leaves(tree)]

    def write(self):
        with open(os.path.join(self.folder, "truth.json"), "w") as f:
            json.dump({"torch": torch.__version__, "files": self.files}, f)


# --- trees


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        collections.OrderedDict(
            embed=nn.Embedding(11, 8),
            block=nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.BatchNorm1d(5)),
            conv=nn.Conv2d(3, 4, 3),
        )
    )


def training():
    """A model, its optimizer after two steps, a schedule: what a training loop saves."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        schedule.step()
    plain = {k: v for k, v in schedule.state_dict().items() if not callable(v)}
    return {
        "epoch": 2,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": plain,
        "rng": torch.get_rng_state(),
        "args": {
            "lr": 1e-3,
            "name": "größer\n",
            "flag": True,
            "nothing": None,
            "big": 2**70,
            "negative": -5,
            "inf": float("inf"),
        },
    }


def can_save(t):
    try:
        torch.save(t, io.BytesIO())
    except KeyError:  # a type that this torch computes with, but does not save
        return False
    return True


def dtypes():
    values = torch.arange(-6, 6, dtype=torch.float32).reshape(3, 4)
    tree = {}
    for name in DTYPES:
        dtype = getattr(torch, name, None)
        if dtype is None:
            continue
        if dtype.is_complex:
            t = torch.complex(values, values.flip(0)).to(dtype)
        elif name.startswith("uint"):
            t = values.abs().to(dtype)
        else:
            t = values.to(dtype)
        if can_save(t):
            tree[name] = {"two": t, "none": t[:0], "one": t[1, 2].clone(), "turned": t.t()}
    return tree


def views():
    """Views of one storage, tied weights, and whatever else is no plain array."""
    base = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    cx = torch.complex(base[:2, :3], base[2:4, :3])
    image = torch.arange(2 * 3 * 4 * 5, dtype=torch.float16).reshape(2, 3, 4, 5)
    tree = {
        "base": base,
        "tied": base,
        "t": base.t(),
        "row": base[3],
        "column": base[:, 7],
        "stepped": base[1::2, ::5],
        "tail": base[4:],
        "expanded": base[2].expand(4, 12),
        "scalar": torch.tensor(7),
        "broadcast": torch.tensor(1.5).expand(3, 2, 2),
        "window": base.reshape(-1).unfold(0, 6, 4),
        "permuted": base.reshape(5, 3, 4).permute(2, 0, 1),
        "empty": base[:, :0],
        "channels_last": image.contiguous(memory_format=torch.channels_last),
        "conj": cx.conj(),
        "conj_t": cx.conj().t(),
        "imag": cx.clone().conj().imag,
        "cx": cx,
        "parameter": nn.Parameter(torch.ones(2, 3)),
        "frozen": nn.Parameter(torch.zeros(4), requires_grad=False),
    }
    assert tree["conj"].is_conj() and tree["imag"].is_neg()
    return tree


def odd_names():
    one = torch.ones(1)
    return {
        "a.b": one,
        "a": {"c": one * 2, "b.d": 3},
        ".x": 1,
        "x.": 2,
        "x..y": 3,
        "sp ace/slash": one,
        "": 4,
        "..": 5,
        "%41": 6,
        "ünï": {"": one},
        "tab\t": 7,
        3: one,
        -1: 8,
        True: 9,
        None: 10,
        (1, "a"): 11,
        2.5: 12,
        "deep.er.and": {"deeper.still": one},
    }


def values():
    return {
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "cuda": torch.device("cuda", 1),
        "set": {3, 1, 2},
        "complex": 1 - 2j,
        "bytes": b"\0\xff\x80abc",
        "no bytes": b"",
        "array": bytearray(b"xyz\xfe"),
        "list": [1, [2, [], ()], {}],
        "tuple": (1.5, "x"),
        "floats": [0.1, -0.0, 1e300, 5e-324, float("-inf")],
        "ints": [0, 255, 65535, 2**31, -(2**31), 2**63 - 1, 2**64, -(2**64), 10**100],
    }


def sparse():
    weights = torch.ones(3, 4)
    tree = {"coo": weights.to_sparse(), "w": weights}
    try:
        tree["q"] = torch.quantize_per_tensor(weights, 0.1, 3, torch.qint8)
    except RuntimeError:
        pass
    return tree


TREES = {
    "training.pt": training,
    "dtypes.pt": dtypes,
    "views.pth": views,
    "names.pt": odd_names,
    "values.pt": values,
    "sparse.pt": sparse,
    "state.bin": lambda: net().state_dict(),
    "list.ckpt": lambda: [torch.arange(5), "a", None],
    "tensor.pt": lambda: torch.arange(6).reshape(2, 3),
}


class Color(enum.Enum):
    RED = 1


class Labelled(torch.Tensor):
    pass


def objects():
    """What programs save beside a state dict, and that."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    parameter = nn.Parameter(torch.ones(2))
    parameter.tied = True
    labelled = torch.arange(3.0).as_subclass(Labelled)
    labelled.label = "x"
    beside = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/out"), device=torch.device("cpu")),
        "path": pathlib.PosixPath("/a/b"),
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, {"x": [1]}),
        "when": datetime.datetime(2024, 1, 2, 3, 4, 5),
        "color": Color.RED,
        "range": range(3),
        "module": model,
        "optimizer": optimizer,
        "schedule": torch.optim.lr_scheduler.StepLR(optimizer, 10),
        "parameter": parameter,
        "labelled": labelled,
        "meta": torch.empty(2, 3, device="meta"),
        "function": torch.nn.functional.relu,
        "partial": functools.partial(int, base=2),
        "lambda": collections.OrderedDict,
    }
    return beside, model.state_dict()


def distributed(truth):
    """A distributed checkpoint of one process, where this torch has them."""
    try:
        import torch.distributed.checkpoint as dcp

        save = dcp.save
    except (ImportError, AttributeError):
        return
    tree = {
        "model": net().state_dict(),
        "views": {
            "t": torch.arange(12.0).reshape(3, 4).t(),
            "image": views()["channels_last"],
            "part": torch.arange(9)[2:5],
        },
        "bf": torch.ones(3).bfloat16(),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "step": 3,
        "name": "x",
        "nothing": None,
        "blob": b"\0\1",
        "steps": [1, 2],
        "groups": [{"lr": 0.5, "w": torch.ones(2)}, {"lr": 0.25, "w": torch.zeros(2)}],
    }
    save(tree, checkpoint_id=os.path.join(truth.folder, "dcp"))
    truth.note("dcp", tree)


class Scripted(nn.Module):
    """With attributes of the types that TorchScript marks, one that is called as its folder, and a constant tensor."""

    def __init__(self):
        super().__init__()
        self.linear, self.code = nn.Linear(2, 3), nn.Linear(1, 1)
        self.register_buffer("halves", torch.arange(4).half()[1:])
        self.names, self.rates, self.sizes, self.pair = ["a", "b"], {"x": 1.5}, [1, 2, 3], (1, "z")
        self.parts = [torch.ones(2), torch.zeros(1)]

    def forward(self, x: torch.Tensor):
        return self.linear(x) + self.code.weight.sum() + len(self.names) + self.sizes[0]


def scripts(truth):
    """TorchScript: a module that was compiled, and one that was traced, whose constants are tensors."""
    module = Scripted()
    state = dict(module.state_dict())
    torch.jit.save(torch.jit.script(module), os.path.join(truth.folder, "script.pt"), {"note.txt": b"hello"})
    truth.note("script.pt", state | {f"parts.{i}": t for i, t in enumerate(module.parts)})
    constant = torch.tensor([[1.0, 2.0, 3.0]]).t()
    torch.jit.trace(lambda x: x + constant, torch.ones(3, 1)).save(os.path.join(truth.folder, "traced.jit"))
    truth.note("traced.jit", {"constants": [constant]})


def pickled(truth):
    """Trees of tensors in pickles by themselves, of each protocol that has bytes."""
    for name, make, protocol in (
        ("views", views, 3),
        ("state", lambda: net().state_dict(), 4),
        ("training", training, 5),
    ):
        file = os.path.join(truth.folder, f"{name}.pkl")
        with open(file, "wb") as f:
            pickle.dump(make(), f, protocol)
        with open(file, "rb") as f:
            truth.note(f"{name}.pkl", pickle.load(f))


def save_before_zip(make, file):
    """In the format before PyTorch 1.6. False: it cannot hold such (a storage of two types)."""
    try:
        torch.save(make(), file, _use_new_zipfile_serialization=False)
    except RuntimeError:
        os.remove(file)
        return False
    return True


def save(folder):
    truth = Truth(folder)
    for name, make in TREES.items():
        file = os.path.join(folder, name)
        torch.save(make(), file)
        truth.note(name, torch.load(file, weights_only=False))  # old versions forget that a view is conjugated
        if save_before_zip(make, os.path.join(folder, "old-" + name)):
            truth.note("old-" + name, torch.load(os.path.join(folder, "old-" + name), weights_only=False))
    scripts(truth)
    pickled(truth)
    module = nn.Linear(2, 2)
    torch.save(module, os.path.join(folder, "module.pt"))
    truth.note("module.pt", dict(module.state_dict()))
    beside, weights = objects()
    torch.save(beside | {"weights": weights}, os.path.join(folder, "objects.pt"))
    truth.note("objects.pt", dict(weights))
    distributed(truth)
    truth.write()


# --- several processes


def sharded(mesh, place, grid):
    """(name, whole tensor, placements)"""
    from torch.distributed._tensor import Replicate, Shard

    g = torch.Generator().manual_seed(5)
    yield "rows", torch.rand(10, 3, generator=g), [Shard(0)], mesh
    yield "few rows", torch.rand(2, 3, generator=g), [Shard(0)], mesh
    yield "columns", torch.rand(4, 9, generator=g).bfloat16(), [Shard(1)], mesh
    yield "copied", torch.rand(3, 3, generator=g), [Replicate()], mesh
    yield "both", torch.rand(7, 11, generator=g), [Shard(0), Shard(1)], grid
    yield "twice", torch.rand(13, generator=g), [Shard(0), Shard(0)], grid
    yield "middle", torch.rand(3, 5, 4, generator=g), [Shard(1)], mesh


def rank_main(rank, ranks, folder):
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed._tensor import distribute_tensor
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    grid = init_device_mesh("cpu", (2, ranks // 2))
    tree, whole = {"step": 7}, {"step": 7}
    for name, t, placements, on in sharded(mesh, None, grid):
        tree[name] = distribute_tensor(t, on, placements)
        whole[name] = t
    dcp.save(tree, checkpoint_id=os.path.join(folder, "dcp"))
    if rank == 0:
        truth = Truth(folder)
        truth.note("dcp", whole)
        truth.write()
    dist.barrier()
    dist.destroy_process_group()


def save_in_ranks(folder, ranks):
    try:
        import torch.distributed.device_mesh  # noqa: F401
        import torch.distributed._tensor  # noqa: F401
    except ImportError:
        return
    os.makedirs(folder, exist_ok=True)
    torch.multiprocessing.spawn(rank_main, (ranks, folder), nprocs=ranks)


# --- safetensors


def load(folder, file):
    from safetensors import safe_open
    from safetensors.torch import load_file

    want = net().state_dict()
    got = load_file(file)
    assert sorted(got) == sorted(want), sorted(got)
    for name, t in want.items():
        assert got[name].dtype == t.dtype and torch.equal(got[name], t), name
    with safe_open(file, "pt") as f:
        assert sorted(f.keys()) == sorted(want) and f.metadata()["format"] == "pt"
        for name, t in want.items():
            assert torch.equal(f.get_tensor(name), t), name
        assert torch.equal(f.get_slice("conv.weight")[1:3], want["conv.weight"][1:3])


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    if command == "save":
        save(folder)
    elif command == "ranks":
        save_in_ranks(folder, int(*rest))
    else:
        load(folder, *rest)
