"""What a root keeps: its rules, pins, `best`, prune and gc."""

import json
import os
import time
import zlib

import numpy as np
import pytest

import trees
import util
from trees import EXPLICIT, attribute, commit, run
from util import ckptfs, wait_for


AFTER = 0.5  # seconds within which a commit is followed by what retention takes away


def save(m, name, metrics=None, content=None):
    """A committed step: a leaf of its own, one that all share, and metrics."""
    step = m / name
    step.mkdir()
    np.save(step / "own.npy", trees.noise_array(50_000, zlib.crc32(name.encode())) if content is None else content)
    np.save(step / "shared.npy", trees.noise_array(50_000, 12345))
    if metrics is not None:
        (step / "metrics.json").write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))
    commit(step)


def config(root, *settings):
    return ckptfs("config", root, *settings).stdout


def kept(m):
    """The numbers of the steps that are there, once nothing is taken away any more; the mount and the store agree."""
    seen, since = None, 0
    end = time.monotonic() + 30
    while time.monotonic() < end:
        now = sorted(int(name) for name in trees.committed(m.source)), sorted(int(name) for name in trees.steps(m))
        if now != seen:
            seen, since = now, time.monotonic()
        elif now[0] == now[1] and time.monotonic() - since > AFTER:
            return now[0]
        time.sleep(0.05)
    raise AssertionError(f"the store has {now[0]}, the mount shows {now[1]}")


def test_config(root):
    """Set, shown, unset; what is wrong is refused and changes nothing."""
    assert "keep_last" not in config(root)
    config(
        root,
        "keep_last=3",
        "keep_period=100",
        "keep_newer=7d",
        "best_metric=loss",
        "best_mode=min",
        "keep_best=2",
        "codec=lz4",
    )
    lines = config(root).split("\n")
    for want in ("keep_last=3", "keep_period=100", "best_metric=loss", "best_mode=min", "keep_best=2", "codec=lz4"):
        assert want in [line.replace(" ", "") for line in lines], lines
    assert any(line.startswith("keep_newer") for line in lines)
    shown = config(root)
    for wrong in (
        "keep_last=x",
        "keep_last=-1",
        "nonsense=1",
        "best_mode=middle",
        "keep_newer=7x",
        "codec=quantum",
        "keep_last",
    ):
        assert ckptfs("config", root, wrong, check=None).returncode == 1, wrong
        assert config(root) == shown
    config(root, "keep_last=", "keep_best=")
    assert "keep_last" not in config(root) and "keep_best" not in config(root) and "keep_period" in config(root)
    assert json.loads(ckptfs("config", root, "--json").stdout)
    assert ckptfs("config", root / "nothing", check=None).returncode == 3


def test_without_rules_all_stay(writable):
    for n in range(12):
        save(writable, str(n))
    assert kept(writable) == list(range(12))
    ckptfs("prune", writable.source)
    assert kept(writable) == list(range(12))


def test_keep_last(writable, root):
    for n in (1, 2, 3, 4):
        save(writable, str(n))
    assert kept(writable) == [1, 2, 3, 4]
    config(root, "keep_last=2")
    assert kept(writable) == [1, 2, 3, 4]  # a rule is applied after a commit
    save(writable, "5")
    assert kept(writable) == [4, 5]
    save(writable, "3")  # by number, not by time
    assert kept(writable) == [4, 5]
    save(writable, "10")
    assert kept(writable) == [5, 10]
    wait_for(lambda: os.readlink(writable / "latest") == "10", 15)


def test_keep_period(writable, root):
    config(root, "keep_period=100")
    for n in (0, 50, 100, 150, 199, 200, 250):
        save(writable, str(n))
    assert kept(writable) == [0, 100, 200, 250]
    config(root, "keep_last=2")  # rules add up
    save(writable, "260")
    assert kept(writable) == [0, 100, 200, 250, 260]
    save(writable, "270")
    assert kept(writable) == [0, 100, 200, 260, 270]


def test_keep_newer(writable, root):
    config(root, "keep_newer=3s")
    save(writable, "1")
    save(writable, "2")
    assert kept(writable) == [1, 2]
    time.sleep(2.5)
    assert kept(writable) == [1, 2]
    save(writable, "3")
    assert kept(writable) == [3]
    time.sleep(2.5)
    ckptfs("prune", root)
    wait_for(lambda: kept(writable) == [3], 10)  # the latest stays, however old


@pytest.mark.parametrize("mode,order", [("min", [4, 2]), ("max", [3, 1])])
def test_keep_best(writable, root, mode, order):
    config(root, "best_metric=loss", f"best_mode={mode}", "keep_best=2")
    losses = {1: 0.75, 2: 0.25, 3: 0.875, 4: 0.125, 5: float("nan"), 6: 0.5}
    for n, loss in losses.items():
        save(writable, str(n), {"accuracy": -loss, "loss": loss})
    save(writable, "7")  # without metrics
    save(writable, "8", {"other": 9})
    save(writable, "9", "{not json")
    save(writable, "10", {"loss": "low"})
    assert kept(writable) == sorted([*order, 10])
    wait_for(lambda: os.readlink(writable / "best") == str(order[0]), 15)
    assert json.loads((writable / "best/metrics.json").read_text())["loss"] == losses[order[0]]
    save(writable, "11", {"loss": -1 if mode == "min" else 1})
    assert kept(writable) == sorted([order[0], 11])
    wait_for(lambda: os.readlink(writable / "best") == os.readlink(writable / "latest") == "11", 15)


def test_best_is_seen_by_readers(writable, root, mount):
    config(root, "best_metric=loss", "best_mode=min", "keep_best=1", "keep_last=3")
    for n, loss in (1, 0.5), (2, 0.25), (3, 0.75):
        save(writable, str(n), {"loss": loss})
    other = mount(root, "ro", "refresh=1")
    assert os.readlink(other / "best") == "2" and "best" in os.listdir(other.top)
    save(writable, "4", {"loss": 0.125})
    wait_for(lambda: os.readlink(other / "best") == "4", 15)
    run("rm", "-r", writable / "4")
    wait_for(lambda: os.readlink(writable / "best") == "2", 15)
    wait_for(lambda: os.readlink(other / "best") == "2", 15)


def test_no_best_without_a_metric(writable):
    save(writable, "1", {"loss": 1})
    assert "best" not in os.listdir(writable.top) and not os.path.lexists(writable / "best")


def test_pins(writable, root, mount):
    config(root, "keep_last=1")
    for name, value in ("1", b"1"), ("2", None), ("3", b"1"):
        save(writable, name)
        if value:
            os.setxattr(writable / name, "user.ckpt.pinned", value)
            assert attribute(writable / name, "pinned") == "1" and attribute(writable / name, "state") == "committed"
    save(writable, "4")
    assert kept(writable) == [1, 3, 4]
    os.setxattr(writable / "3", "user.ckpt.pinned", b"0")
    assert attribute(writable / "3", "pinned") == "0" and attribute(writable / "4", "pinned") == "0"
    writable.stop()
    m = mount(root, EXPLICIT)
    assert attribute(m / "1", "pinned") == "1"
    save(m, "5")
    assert kept(m) == [1, 5]
    run("setfattr", "-n", "user.ckpt.pinned", "-v", "0", m / "1")
    ckptfs("prune", root)
    wait_for(lambda: trees.steps(m) == ["5"], 15)


def test_pin_of_a_changed_step(writable, root):
    """A change and its commit leave the pin where it is."""
    config(root, "keep_last=1")
    save(writable, "1")
    os.setxattr(writable / "1", "user.ckpt.pinned", b"1")
    (writable / "1/x").write_text("x")
    commit(writable / "1")
    save(writable, "2")
    save(writable, "3")
    assert kept(writable) == [1, 3] and attribute(writable / "1", "pinned") == "1"


def test_pinned_while_it_is_changed(writable, root):
    """A pin is the committed step's, whatever is staged of it."""
    save(writable, "1")
    (writable / "1/x").write_text("x")
    run("setfattr", "-n", "user.ckpt.pinned", "-v", "1", writable / "1")
    assert attribute(writable / "1", "pinned") == "1"
    config(root, "keep_last=1")
    save(writable, "2")
    ckptfs("prune", root)
    assert trees.committed(root) == ["1", "2"]
    commit(writable / "1")
    assert attribute(writable / "1", "pinned") == "1"


def test_deleted_pin_is_gone(writable):
    save(writable, "1")
    os.setxattr(writable / "1", "user.ckpt.pinned", b"1")
    run("rm", "-r", writable / "1")
    save(writable, "1")
    assert attribute(writable / "1", "pinned") == "0"


def test_prune(writable, root):
    for n in range(1, 7):
        save(writable, str(n))
    os.setxattr(writable / "2", "user.ckpt.pinned", b"1")
    assert kept(writable) == list(range(1, 7))
    config(root, "keep_last=2")
    before = trees.snapshot(root)
    said = ckptfs("prune", "--dry-run", root).stdout
    assert trees.snapshot(root) == before and kept(writable) == list(range(1, 7))
    assert {word for word in said.replace(":", " ").replace(",", " ").split() if word.isdigit()} >= {"1", "3", "4"}
    assert not {"2", "5", "6"} & set(said.replace(":", " ").replace(",", " ").split())
    told = json.loads(ckptfs("prune", "--dry-run", "--json", root).stdout)
    assert told
    ckptfs("prune", root)
    assert trees.committed(root) == ["2", "5", "6"]
    wait_for(lambda: trees.steps(writable) == ["2", "5", "6"], 15)
    assert "1" not in ckptfs("prune", root).stdout.split()


def test_staged_steps_are_no_steps_to_keep(writable, root):
    """A staged step counts for nothing, and is not pruned."""
    config(root, "keep_last=1")
    save(writable, "1")
    (writable / "0").mkdir()
    (writable / "0/x").write_text("x")
    (writable / "9").mkdir()
    save(writable, "2")
    ckptfs("prune", root)
    wait_for(lambda: trees.steps(writable) == ["0", "2", "9"] and trees.committed(root) == ["2"], 10)
    assert (writable / "0/x").read_text() == "x"


def test_a_changed_step_that_is_pruned(writable, root):
    """What was staged of it stays, and can be committed."""
    save(writable, "1")
    want = (writable / "1/own.npy").read_bytes()
    (writable / "1/x").write_text("x")
    config(root, "keep_last=1")
    save(writable, "2")
    wait_for(lambda: trees.committed(root) == ["2"], 10)
    ckptfs("gc", "--trash-keep=0", root)
    assert (writable / "1/own.npy").read_bytes() == want and (writable / "1/x").read_text() == "x"
    os.rename(writable / "1", writable / "3")
    assert (writable / "3/own.npy").read_bytes() == want and sorted(os.listdir(writable / "3")) == [
        "own.npy",
        "shared.npy",
        "x",
    ]


def test_foreign_steps_are_never_pruned(mount, tmp_path):
    root = util.copy_tree(util.DATA / "demo", tmp_path / "root")
    ckptfs("init", root)
    config(root, "keep_last=1")
    m = mount(root, EXPLICIT)
    save(m, "1")
    save(m, "400")
    ckptfs("prune", root)
    ckptfs("gc", root)
    assert [name for name in trees.steps(m) if name != "1"] == ["100", "200", "300", "400"]
    assert sorted(name for name in os.listdir(root) if name[0] != ".") == ["100", "200", "300"]


def test_gc(writable, root):
    """Takes what no step names, and nothing else."""
    for n in range(1, 6):
        save(writable, str(n))
        (writable / f"{n}/small").write_text(f"small {n}")
        commit(writable / str(n))
    all_of_it = trees.objects(root)
    assert trees.needed(root) <= set(all_of_it)
    time.sleep(1)  # the mount's own has nothing to do any more
    for n in "24":  # not by rm in the mount, which would tidy up by itself
        os.rename(root / f".ckptstore/steps/{n}.json", root / f".ckptstore/trash/steps/{n}.json.0")
    before = trees.objects(root)
    ckptfs("gc", "--dry-run", root)
    assert trees.objects(root) == before
    ckptfs("gc", root)
    now = trees.objects(root)
    assert set(now) == trees.needed(root) and len(now) < len(all_of_it)
    assert json.loads(ckptfs("gc", "--json", root).stdout) is not None
    assert trees.objects(root) == now
    trees.verify(root)
    for n in (1, 3, 5):
        assert (
            len(np.load(writable / f"{n}/own.npy")) == 50_000 and (writable / f"{n}/small").read_text() == f"small {n}"
        )
    run("rm", "-r", writable / "1", writable / "3", writable / "5")
    ckptfs("gc", root)
    assert trees.objects(root) == {}


def test_gc_leaves_staged_steps_alone(writable, root):
    """Also what a staged step shares with one that is gone."""
    save(writable, "1")
    want = {name: (writable / "1" / name).read_bytes() for name in os.listdir(writable / "1")}
    run("cp", "-r", writable / "1", writable / "2")
    (writable / ".new").mkdir()
    (writable / ".new/x.bin").write_bytes(trees.noise(500_000))
    run("rm", "-r", writable / "1")
    for _ in range(2):
        ckptfs("gc", "--trash-keep=0", root)
    assert {name: (writable / "2" / name).read_bytes() for name in os.listdir(writable / "2")} == want
    commit(writable / "2")
    os.rename(writable / ".new", writable / "3")
    assert {name: (writable / "2" / name).read_bytes() for name in os.listdir(writable / "2")} == want
    assert (writable / "3/x.bin").read_bytes() == trees.noise(500_000)
    trees.verify(root)


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "flipped": lambda data: data.replace(b'"sha256":"', b'"sha256":"0', 1),
    "newer": lambda data: data.replace(b'"version":1', b'"version":1,"required":["sharing"]', 1),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_manifest_that_cannot_be_read(writable, root, mount, kind):
    """It is named, it keeps all that it may name, and it hinders nobody: later steps come, go and are collected.
    Repaired it has lost nothing.
    """
    for n in (1, 2):
        save(writable, str(n))
    want = {name: (writable / "2" / name).read_bytes() for name in ("own.npy", "shared.npy")}
    before = trees.objects(root)
    path = trees.store(root) / "steps/2.json"
    data = path.read_bytes()
    os.chmod(path, 0o644)
    path.write_bytes(DAMAGE[kind](data))
    ckptfs("gc", root, check=5)
    for n in (3, 4):
        save(writable, str(n))
    run("rm", "-r", writable / "1", writable / "3")
    done = ckptfs("gc", root, "--trash-keep=0", check=5).stdout
    assert "steps/2.json cannot be read: " in done and "repair it, or remove its step" in done
    told = json.loads(ckptfs("gc", "--json", root, check=5).stdout)
    assert (
        [m["manifest"] for m in told["aside"]] == ["steps/2.json"]
        and told["aside"][0]["reason"]
        and told["kept"] == len(trees.objects(root))
    )
    assert trees.objects(root).keys() - before.keys() == {
        n["sha256"] for n in trees.manifest(root, "4")["nodes"] if n["name"] == "own.npy"
    }
    assert before.keys() <= trees.objects(root).keys()
    assert "2" in ckptfs("info", root, check=None).stdout and ckptfs("verify", root, check=4).stdout.count("2:") == 1
    assert attribute(mount(root, "ro") / "2", "error")
    wait_for(lambda: "steps/2.json is set aside" in writable.said())
    path.write_bytes(data)
    ckptfs("gc", root, "--trash-keep=0")
    assert trees.objects(root).keys() == trees.needed(root) and not (trees.store(root) / "aside").exists()
    m = mount(root, "ro")
    assert attribute(m / "2", "error") is None and {name: (m / "2" / name).read_bytes() for name in want} == want
    trees.verify(root)


def test_a_damaged_step_can_be_removed(mount, root):
    m = mount(root, EXPLICIT)
    for n in (1, 2):
        save(m, str(n))
    m.stop()
    path = trees.store(root) / "steps/2.json"
    os.chmod(path, 0o644)
    os.truncate(path, 100)
    ckptfs("gc", root, check=5)
    assert (trees.store(root) / "aside").exists()
    m = mount(root, EXPLICIT)
    os.rmdir(m / "2")
    wait_for(lambda: trees.objects(root).keys() == trees.needed(root))
    assert trees.steps(m) == ["1"] and not (trees.store(root) / "aside").exists()


def test_a_damaged_step_is_not_the_latest(writable, root):
    """It counts for no rule: the latest of those that can be read stays."""
    for n in (1, 2, 3, 4):
        save(writable, str(n))
    for n in (3, 4):
        path = trees.store(root) / f"steps/{n}.json"
        os.chmod(path, 0o644)
        os.truncate(path, os.stat(path).st_size - (1 if n == 3 else 300))
    config(root, "keep_last=1")
    assert ckptfs("prune", root).stdout == "1\n" and sorted(trees.committed(root)) == ["2", "3", "4"]


def test_space_comes_back(writable, root):
    """What was deleted takes no room once the trash is emptied, and who has it open reads on."""
    (writable / "1").mkdir()
    (writable / "1/large.bin").write_bytes(trees.noise(20_000_000))
    commit(writable / "1")
    with open(writable / "1/large.bin", "rb") as f:
        assert f.read(1_000_000) == trees.noise(20_000_000)[:1_000_000]
        run("rm", "-r", writable / "1")
        save(writable, "2")
        for _ in range(2):
            ckptfs("gc", "--trash-keep=0", root)
        assert f.read() == trees.noise(20_000_000)[1_000_000:]
    wait_for(lambda: trees.disk_usage(root) < 5_000_000, 30)
    trees.verify(root)


@pytest.mark.slow
def test_space_comes_back_by_itself(writable, root):
    """A living mount empties the trash, a minute later."""
    (writable / "1").mkdir()
    (writable / "1/large.bin").write_bytes(trees.noise(20_000_000))
    commit(writable / "1")
    run("rm", "-r", writable / "1")
    wait_for(lambda: trees.disk_usage(root) < 5_000_000, 100)


@pytest.mark.slow
def test_gc_holds_nobody_up(mount, root):
    """Steps that have settled are committed while a slow gc goes on."""
    util.need_hooks("CKPTFS_DISK_SLOW")
    ckptfs("init", root)
    left = root / ".ckptstore/trash/staging-0123456789abcdef0123456789abcdef"
    left.mkdir()
    for n in range(60):  # what a killed mount had no time to take apart
        (left / str(n)).write_bytes(b"x")
    time.sleep(61)  # while the trash is kept
    m = mount(root, "settle=0.5", prefix=("env", "CKPTFS_DISK_SLOW=unlink:200"))
    run("sh", "-c", f"mkdir '{m / '2'}' && echo x >'{m / '2/x'}'")
    trees.wait_committed(m / "2", 6)
    assert left.exists()
