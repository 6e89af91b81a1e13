"""Caches that the Hugging Face hub's own library lays out, from a server on this machine."""

import hashlib
import http.server
import json
import os
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy

import util

REVISION = "0123456789abcdef0123456789abcdef01234567"
W = np.arange(12, dtype=np.float32).reshape(3, 4)


class Hub(http.server.BaseHTTPRequestHandler):
    """Of one repository, acme/model: what the library asks of the hub."""

    files: dict[str, bytes] = {}

    def answer(self, body, **headers):
        self.send_response(200)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": REVISION, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        prefix, info = f"/acme/model/resolve/{REVISION}/", "/api/models/acme/model/revision/main"
        name = self.path.removeprefix(prefix)
        if self.path == info:
            siblings = [{"rfilename": n} for n in self.files]
            told = {"id": "acme/model", "sha": REVISION, "siblings": siblings, "private": False, "tags": []}
            self.answer(json.dumps(told).encode(), Content_Type="application/json")
        elif name in self.files:
            body = self.files[name]
            self.answer(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"')
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


DOWNLOAD = """
import huggingface_hub
print(huggingface_hub.snapshot_download("acme/model", cache_dir="hub"))
"""


@pytest.fixture
def snapshot(tmp_path):
    """Downloads files into the cache tmp_path/hub; the snapshot's folder."""
    pytest.importorskip("huggingface_hub")

    def download(files):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"files": files}))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        env |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(tmp_path / "home")}
        try:
            said = util.run(sys.executable, "-c", DOWNLOAD, cwd=tmp_path, env=env).stdout
        finally:
            server.shutdown()
            server.server_close()
        return tmp_path / said.splitlines()[-1]

    return download


def sharded():
    """A model of two shards, and a part of a pipeline in a folder of its own."""
    parts = {"a.weight": W, "b.weight": 2 * W}
    files = {
        f"model-0000{n}-of-00002.safetensors": safetensors.numpy.save({k: v})
        for n, (k, v) in enumerate(parts.items(), 1)
    }
    index = {"metadata": {}, "weight_map": dict(zip(parts, files, strict=True))}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    files["config.json"] = b"{}\n"
    return files


def test_sharded(mount, snapshot):
    at = snapshot(sharded())
    assert os.readlink(at / "config.json").startswith("../../blobs/")
    m = mount(at)
    assert sorted(os.listdir(m.top)) == ["a", "b", "config.json"]
    assert np.array_equal(np.load(m / "b/weight.npy"), 2 * W)
    assert (m / "config.json").read_text() == "{}\n" and not (m / "config.json").is_symlink()


def test_parts_in_folders(mount, snapshot):
    """The links of a subfolder have one level more; the subfolder is a source, too."""
    files = {
        "model_index.json": b"{}",
        "unet/config.json": b"{}",
        "unet/w.safetensors": safetensors.numpy.save({"w": W}),
    }
    at = snapshot(files)
    for m, inside in ((mount(at), "unet/"), (mount(at / "unet"), "")):
        assert np.array_equal(np.load(m / f"{inside}w.safetensors/w.npy"), W)
        assert (m / f"{inside}config.json").read_text() == "{}"
        assert (m / f".files/{inside}w.safetensors").read_bytes() == files["unet/w.safetensors"]


def test_whole_cache(mount, snapshot):
    at = snapshot(sharded())
    cache = at.parents[2]
    m = mount(cache)
    assert np.array_equal(np.load(m / at.relative_to(cache) / "a/weight.npy"), W)


def test_commands(snapshot, tmp_path):
    """In the folder itself, as people type it, and with a link as the source."""
    at = snapshot(sharded() | {"one.safetensors": safetensors.numpy.save({"w": W})})
    told = json.loads(util.ckptfs("info", ".", "--json", cwd=at).stdout)
    assert told["leaves"] == 4
    assert not json.loads(util.ckptfs("verify", at, "--json").stdout)["faults"]
    util.ckptfs("export", at / "one.safetensors", tmp_path / "out", "--format=npy")
    assert np.array_equal(np.load(tmp_path / "out/w.npy"), W)
