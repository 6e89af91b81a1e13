"""What files are by what is in them, whatever they are called, and what the commands say to a first try."""

import io
import json
import os
import subprocess

import numpy as np
import pytest
import safetensors.numpy

import torch_files
import util

W = np.arange(12, dtype=np.float32).reshape(3, 4)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"
OF_A_MAC = bytes.fromhex("0005160700020000") + b"Mac OS X        " + b"\0" * 200


def npz():
    file = io.BytesIO()
    np.savez(file, w=W)
    return file.getvalue()


def gguf():
    """No key, one tensor `w`: of rank 2, F32, at offset 0."""
    info = b"".join(
        n.to_bytes(size, "little") for n, size in ((1, 8), (ord("w"), 1), (2, 4), (4, 8), (3, 8), (0, 4), (0, 8))
    )
    head = b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") + bytes(8) + info
    return head + bytes(-len(head) % 32) + W.tobytes() + bytes(-W.nbytes % 32)


def msgpack():
    """A state dict {"w": W} of Flax."""
    array = b"\x93\x92\x03\x04\xa7float32\xc4" + bytes([W.nbytes]) + W.tobytes()
    return b"\x81\xa1w\xc7" + bytes([len(array)]) + b"\x01" + array


FORMATS = {"safetensors": safetensors.numpy.save({"w": W}), "npz": npz(), "gguf": gguf(), "flax-msgpack": msgpack()}
NAMES = ["a.SFT", "MODEL.SAFETENSORS", "a.gguf", "a.npz", "a.msgpack", "a.pt", "a.pth.tar", "a.th", "a.pyth", "a.pkl"]
NAMES += ["a.pickle", "a.ckpt", "a.bin", "sha256-0a1b", "0123abcd", "model_state"]


@pytest.mark.parametrize("kind", FORMATS)
def test_content_decides(mount, tmp_path, kind):
    """In a folder under each name that checkpoints have, and as the source under any."""
    source = tmp_path / "source"
    source.mkdir()
    for name in NAMES:
        (source / name).write_bytes(FORMATS[kind])
    (source / "a.dat").write_bytes(FORMATS[kind])
    m = mount(source)
    for name in NAMES:
        assert np.array_equal(np.load(m / name / "w.npy"), W), name
        assert os.getxattr(m / name, "user.ckpt.format").decode() == kind
    assert (m / "a.dat").read_bytes() == FORMATS[kind]
    assert np.array_equal(np.load(mount(source / "a.dat") / "w.npy"), W)


@pytest.mark.parametrize("name", ["array.npy", "array", "array.dat"])
def test_npy_as_the_source(mount, tmp_path, name):
    np.save(tmp_path / "x.npy", W)
    os.rename(tmp_path / "x.npy", tmp_path / name)
    m = mount(tmp_path / name)
    assert os.listdir(m.top) == ["array.npy" if name == "array.npy" else f"{name}.npy"]
    assert np.array_equal(np.load(m / os.listdir(m.top)[0]), W)


NOT_KNOWN = {
    "p.safetensors": POINTER,
    "p.gguf": POINTER,
    "p.msgpack": POINTER,
    "p.pt": POINTER,
    "p.bin": POINTER,
    "p.npz": POINTER,
    "._m.safetensors": OF_A_MAC,
    "._m.gguf": OF_A_MAC,
    "._m.msgpack": OF_A_MAC,
    "._m.npz": OF_A_MAC,
    "._m.pt": OF_A_MAC,
    ".DS_Store": b"\0\0\0\1Bud1",
    "page.safetensors": b"<!DOCTYPE html>\n<html>Access denied</html>\n",
    "page.gguf": b"<!DOCTYPE html>\n<html>Access denied</html>\n",
    "page.msgpack": b"<!DOCTYPE html>\n<html>Access denied</html>\n",
    "page.npz": b"<!DOCTYPE html>\n<html>Access denied</html>\n",
    "page.pth": b"<!DOCTYPE html>\n<html>Access denied</html>\n",
    "picture.msgpack": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "raw.bin": np.linspace(-1, 1, 99, dtype=np.float16).tobytes(),
    "noise": bytes(range(256)),
    "empty.bin": b"",
    "empty": b"",
    "LICENSE": b"Apache License\n",
    "checkpoint": b'model_checkpoint_path: "ckpt-3"\n',
}


def test_what_no_format_knows(mount, tmp_path):
    """It is a plain file, and stops nobody."""
    source = tmp_path / "source"
    source.mkdir()
    for name, data in NOT_KNOWN.items():
        (source / name).write_bytes(data)
    (source / "model.safetensors").write_bytes(FORMATS["safetensors"])
    m = mount(source)
    for name, data in NOT_KNOWN.items():
        assert (m / name).read_bytes() == data, name
    for command in (["find", m.top], ["cp", "-r", m.top, tmp_path / "copy"], ["du", m.top]):
        util.run(*command)
    subprocess.run(["tar", "-C", m.top, "-cf", os.devnull, "."], check=True, timeout=util.LIMIT)
    util.ckptfs("cp", source, ".", tmp_path / "own")
    assert not json.loads(util.ckptfs("verify", source, "--json").stdout)["faults"]
    told = json.loads(util.ckptfs("info", source, "--json").stdout)
    assert [s["name"] for s in told["steps"]] == ["model.safetensors"]


DAMAGED = {
    "cut.safetensors": FORMATS["safetensors"][:40],
    "empty.safetensors": b"",
    "cut.gguf": FORMATS["gguf"][:40],
    "cut.npz": FORMATS["npz"][:60],
    "cut.msgpack": FORMATS["flax-msgpack"][:20],
    "sha256-cut": FORMATS["gguf"][:40],
}


def test_damaged(mount, tmp_path):
    """What a format knows does not open, says why, and is there as it is; the rest of the folder is read."""
    source = tmp_path / "source"
    source.mkdir()
    for name, data in (DAMAGED | {"z.safetensors": FORMATS["safetensors"]}).items():
        (source / name).write_bytes(data)
    m = mount(source)
    told = json.loads(util.ckptfs("verify", source, "--json", check=4).stdout)
    assert {f["path"] for f in told["faults"]} == DAMAGED.keys() and told["files"] == 1
    steps = {s["name"]: s for s in json.loads(util.ckptfs("info", source, "--json", check=5).stdout)["steps"]}
    for name, data in DAMAGED.items():
        with pytest.raises(OSError):
            os.listdir(m / name)
        assert os.getxattr(m / name, "user.ckpt.error") and steps[name]["error"]["message"]
        assert (m / ".files" / name).read_bytes() == data
    assert np.array_equal(np.load(m / "z.safetensors/w.npy"), W)


def test_who_may_not_read(mount, tmp_path):
    """A file that cannot be read at all is of the format of its suffix, and says why it does not open."""
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.safetensors").write_bytes(FORMATS["safetensors"])
    (source / "a.safetensors").chmod(0)
    m = mount(source)
    assert b"denied" in os.getxattr(m / "a.safetensors", "user.ckpt.error")


# --- Git LFS


def test_info_names_pointers(tmp_path):
    source = tmp_path / "source"
    (source / "deeper").mkdir(parents=True)
    names = ["model.safetensors", "deeper/model.gguf", "deeper/tokenizer.model"]
    for name in names:
        (source / name).write_bytes(POINTER)
    (source / "note.txt").write_bytes(b"version https://example.org/spec/" + POINTER)
    said = util.ckptfs("info", source).stdout
    assert "git lfs pull" in said and all(f"{name}: Git LFS pointer\n" in said for name in names)
    assert "note" not in said
    assert sorted(json.loads(util.ckptfs("info", source, "--json").stdout)["lfs_pointers"]) == sorted(names)
    said = util.ckptfs("info", source / names[0], check=4).stderr
    assert "Git LFS pointer" in said and "git lfs pull" in said


def test_pointers_of_a_sharded_model(mount, tmp_path):
    """A shard that is one spoils its own tensors; a file beside the shards is named."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "m-1.safetensors").write_bytes(POINTER)
    (source / "m-2.safetensors").write_bytes(safetensors.numpy.save({"b": W}))
    (source / "tokenizer.model").write_bytes(POINTER)
    weight_map = {"a": "m-1.safetensors", "b": "m-2.safetensors"}
    (source / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    told = json.loads(util.ckptfs("info", source, "--json", check=5).stdout)
    assert "Git LFS pointer" in told["error"]["message"] and told["lfs_pointers"] == ["tokenizer.model"]
    m = mount(source)
    assert np.array_equal(np.load(m / "b.npy"), W) and util.read_error(m / "a.npy")


@pytest.mark.parametrize(
    "base, suffix", [("pytorch_model", "bin"), ("flax_model", "msgpack"), ("model", "safetensors")]
)
def test_shards_that_are_all_pointers(tmp_path, base, suffix):
    names = [f"{base}-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    for name in names:
        (tmp_path / name).write_bytes(POINTER)
    index = tmp_path / f"{base}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict(zip("ab", names, strict=True))}))
    told = json.loads(util.ckptfs("info", tmp_path, "--json", check=5).stdout)
    assert told["damaged"] == 2 and "Git LFS pointer" in told["error"]["message"]
    index.write_bytes(POINTER)  # then nothing says that they belong together
    told = json.loads(util.ckptfs("info", tmp_path, "--json").stdout)
    assert not told["steps"] and sorted(told["lfs_pointers"]) == sorted([*names, index.name])


def test_parts_that_are_pointers(mount, tmp_path):
    """A split model of which no part was fetched is a folder of files; with one part it is a tree."""
    source = tmp_path / "source"
    source.mkdir()
    names = [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for name in names:
        (source / name).write_bytes(POINTER)
    assert sorted(json.loads(util.ckptfs("info", source, "--json").stdout)["lfs_pointers"]) == names
    m = mount(tmp_path, "refresh=0")
    assert (m / "source" / names[0]).read_bytes() == POINTER
    (source / names[1]).write_bytes(FORMATS["gguf"])
    told = json.loads(util.ckptfs("info", source, "--json", check=5).stdout)
    assert told["damaged"] == 2 and "Git LFS pointer" in told["error"]["message"]
    assert np.array_equal(np.load(mount(source) / "w.npy"), W)


# --- first tries


def test_keys_with_dots(tmp_path):
    layers = {"model.layer.0.weight": W}
    (tmp_path / "m.safetensors").write_bytes(safetensors.numpy.save(layers))
    torch_files.save(tmp_path / "m.pt", {"epoch.last": 3})
    for source, key, path in (
        ("m.safetensors", "model.layer.0.weight", "model/layer/0/weight.npy"),
        ("m.safetensors", "model.layer.0.weight.npy", "model/layer/0/weight.npy"),
        ("m.safetensors", "model/layer.0.weight", "model/layer/0/weight.npy"),
        ("m.safetensors", "model.layer", "model/layer"),
        (".", "m.safetensors/model.layer.0.weight", "m.safetensors/model/layer/0/weight.npy"),
    ):
        said = util.ckptfs("cat", source, key, cwd=tmp_path, check=3).stderr
        assert said.rstrip().endswith(f": {path}"), said
    said = util.ckptfs("cat", "m.safetensors", "model.other", cwd=tmp_path, check=3).stderr
    assert said.rstrip().endswith("No such file or directory")


def test_bytes_for_people(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(safetensors.numpy.save({"w": np.zeros(300, np.float32)}))
    for options in (["-lh"], ["-l", "-h"], ["-l", "--human-readable"]):
        assert "1.2 KiB" in util.ckptfs("ls", *options, tmp_path / "m.safetensors").stdout
    assert " 1200 " in util.ckptfs("ls", "-l", tmp_path / "m.safetensors").stdout
    assert util.ckptfs("ls", "-h").stdout.startswith("Usage: ckptfs ls")


def test_export_by_suffix(tmp_path):
    (tmp_path / "m.npz").write_bytes(FORMATS["npz"])
    for name in ("out.safetensors", "OUT.SafeTensors"):
        util.ckptfs("export", tmp_path / "m.npz", tmp_path / name)
        assert np.array_equal(safetensors.numpy.load_file(tmp_path / name)["w"], W)
    said = util.ckptfs("export", tmp_path / "m.npz", tmp_path / "out", check=1).stderr
    assert "--format" in said and ".safetensors" in said


@pytest.mark.parametrize(
    "word, near", [("lss", "ls"), ("mout", "mount"), ("verfy", "verify"), ("exprot", "export"), ("infos", "info")]
)
def test_nearest_command(word, near):
    said = util.ckptfs(word, "x", check=1).stderr
    assert f"no command {word}; is it {near} that" in said


def test_words_for_commands(tmp_path):
    assert util.ckptfs("help", "ls").stdout == util.ckptfs("ls", "--help").stdout
    assert "no command nothing-near" in util.ckptfs("help", "nothing-near", check=1).stderr
    (tmp_path / "source").mkdir(), (tmp_path / "mnt").mkdir()
    util.ckptfs("mount", tmp_path / "source", tmp_path / "mnt")
    util.ckptfs("unmount", tmp_path / "mnt")
    assert not util.mounted(tmp_path / "mnt")
    said = util.ckptfs("unmount", tmp_path / "source", check=2).stderr
    assert "unmount" in said and "command" in said


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run", "https://example.org/m.safetensors"])
def test_addresses(tmp_path, address):
    scheme = address.split(":")[0]
    for command in (["ls", address], ["info", address], ["mount", address, tmp_path], ["export", address, "out.sft"]):
        said = util.ckptfs(*command, check=4, cwd=tmp_path).stderr
        assert f"{scheme}:// is not supported" in said and "a file or a folder" in said
