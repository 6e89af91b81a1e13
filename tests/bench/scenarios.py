# SPDX-License-Identifier: Apache-2.0
"""What is measured. A scenario runs once a round, all its sides one after another, and records seconds under names:

    DATASET WHAT SIDE WAY STATE     "float32 full ckptfs threads first"

STATE is `fresh` (first thing in a new mount), `first` (never read in this mount, source in the page cache), `again`
(read before in this mount), `warm` (page cache, no mount involved) or `cold` (nothing in the page cache).
"""

import json
import os
import sys
from contextlib import contextmanager, nullcontext

from datasets import LARGE_LEAF, SMALL_LEAF, leaf_keys
from mount import MountError

FULL_WAYS = ("threads", "serial", "into_threads")
ORBAX_WAYS = ("standard_numpy", "pytree", "pytree_numpy")
LARGE = 1 << 20
LEAVES = {"large": LARGE_LEAF, "small": SMALL_LEAF}


def leaf_file(root, keys):
    return os.path.join(root, *keys) + ".npy"


def sides(bench, *calls):
    """The sides of a comparison, in turns first and last; one that fails to mount does not stop the others."""
    for call in calls if bench.round % 2 == 0 else reversed(calls):
        if bench.without_ckptfs and call.__name__ == "ckptfs":
            continue
        try:
            call()
        except MountError as error:
            bench.fail(call.__qualname__.partition(".")[0], error)


def full_restore(bench, dataset):
    def orbax():
        for way in ORBAX_WAYS:
            bench.record(f"{dataset.name} full orbax {way} warm", bench.orbax, "full", path=dataset.orbax, way=way)

    def files(root, way):
        return dict(root=root, way=way, reference=dataset.npy)

    def ckptfs():
        for way in FULL_WAYS:
            with bench.mount(dataset) as mount:
                for state in ("first", "again"):
                    before = mount.cpu_seconds()
                    name = f"{dataset.name} full ckptfs {way} {state}"
                    bench.record(name, bench.files, "full", **files(mount.point, way))
                    bench.note(f"{name} daemon_cpu", mount.cpu_seconds() - before)

    def ext4():
        for way in FULL_WAYS:
            bench.record(f"{dataset.name} full ext4 {way} warm", bench.files, "full", **files(dataset.npy, way))

    bench.files.ask("prepare", root=dataset.npy)
    sides(bench, orbax, ckptfs, ext4)
    bench.files.ask("forget")


def single_leaf(bench, dataset, size):
    *keys, other = [leaf_keys(layer, LEAVES[size]) for layer in range(bench.shape.layers)]
    name = f"{dataset.name} leaf_{size}"

    def load(side, root, state, keys):
        bench.record(
            f"{name} {side} load {state}",
            bench.files,
            "load",
            paths=[leaf_file(root, key) for key in keys],
            warm=leaf_file(dataset.npy, other),
        )

    def orbax():
        bench.record(f"{name} orbax partial warm", bench.orbax, "leaf", path=dataset.orbax, leaves=keys, warm=other)

    def ckptfs():
        with bench.mount(dataset) as mount:
            load("ckptfs", mount.point, "fresh", keys[:1])
            load("ckptfs", mount.point, "first", keys[1:])
            load("ckptfs", mount.point, "again", keys)
        with bench.mount(dataset) as mount:
            load("ckptfs", mount.point, "fresh", keys[1:2])

    def ext4():
        load("ext4", dataset.npy, "warm", keys)

    sides(bench, orbax, ckptfs, ext4)


def shell(bench, dataset, size):
    name = f"{dataset.name} shell_{size}"
    width = bench.shape.width
    dims = f"{width},{4 * width}" if size == "large" else str(width)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "orbax_leaf.py")

    def orbax():
        argv = [sys.executable, script, dataset.orbax, dataset.dtype, dims, *leaf_keys(0, LEAVES[size])]
        bench.record(f"{name} orbax python warm", bench.files, "command", argv=argv)

    def ckptfs():
        with bench.mount(dataset) as mount:
            for layer in range(min(bench.shape.layers, 5)):
                argv = ["cat", leaf_file(mount.point, leaf_keys(layer, LEAVES[size]))]
                bench.record(f"{name} ckptfs cat {'first' if layer else 'fresh'}", bench.files, "command", argv=argv)

    sides(bench, orbax, ckptfs)


def listing(bench, dataset):
    commands = {"find": ["find"], "ls": ["ls", "-lR"]}

    def orbax():
        bench.record(f"{dataset.name} listing orbax metadata warm", bench.orbax, "metadata", path=dataset.orbax)

    def ckptfs():
        for what, argv in commands.items():
            with bench.mount(dataset) as mount:
                for state in ("first", "again"):
                    bench.record(
                        f"{dataset.name} listing ckptfs {what} {state}",
                        bench.files,
                        "command",
                        argv=[*argv, mount.point],
                    )

    def ext4():
        for what, argv in commands.items():
            bench.record(f"{dataset.name} listing ext4 {what} warm", bench.files, "command", argv=[*argv, dataset.npy])

    sides(bench, orbax, ckptfs, ext4)


def large_leaves(bench, dataset):
    def ckptfs():
        with bench.mount(dataset) as mount:
            for way, state in (("read", "first"), ("read", "again"), ("load", "again")):
                bench.record(
                    f"{dataset.name} large ckptfs {way} {state}",
                    bench.files,
                    f"large_{way}",
                    root=mount.point,
                    above=LARGE,
                )

    def ext4():
        for way in ("read", "load"):
            bench.record(
                f"{dataset.name} large ext4 {way} warm", bench.files, f"large_{way}", root=dataset.npy, above=LARGE
            )

    sides(bench, ckptfs, ext4)


def small_leaves(bench, dataset):
    def orbax():
        bench.record("small full orbax pytree_numpy warm", bench.orbax, "full", path=dataset.orbax, way="pytree_numpy")

    def ckptfs():
        with bench.mount(dataset) as mount:
            for state in ("first", "again"):
                bench.record(
                    f"small files ckptfs read {state}",
                    bench.files,
                    "small_read",
                    root=mount.point,
                    names_from=dataset.npy,
                )
            bench.record("small files ckptfs load again", bench.files, "small_load", root=mount.point)
        with bench.mount(dataset) as mount:
            bench.files.ask("walk", root=mount.point)
            bench.record(
                "small files ckptfs read walked", bench.files, "small_read", root=mount.point, names_from=mount.point
            )

    def ext4():
        bench.record("small files ext4 read warm", bench.files, "small_read", root=dataset.npy, names_from=dataset.npy)
        bench.record("small files ext4 load warm", bench.files, "small_load", root=dataset.npy)

    sides(bench, orbax, ckptfs, ext4)


def cold(bench, dataset):
    """With nothing in the page cache, not even ckptfs itself; all sides wait for the disk."""

    def orbax():
        bench.drop_caches()
        bench.record(
            f"{dataset.name} full orbax pytree_numpy cold", bench.orbax, "full", path=dataset.orbax, way="pytree_numpy"
        )
        for size, tail in LEAVES.items():
            bench.drop_caches()
            bench.record(
                f"{dataset.name} leaf_{size} orbax partial cold",
                bench.orbax,
                "leaf",
                path=dataset.orbax,
                leaves=[leaf_keys(0, tail)],
                warm=None,
            )

    def files(side, root):
        bench.drop_caches()
        with root() as point:
            bench.record(f"{dataset.name} full {side} threads cold", bench.files, "full", root=point, way="threads")
        for size, tail in LEAVES.items():
            bench.drop_caches()
            with root() as point:
                bench.record(
                    f"{dataset.name} leaf_{size} {side} load cold",
                    bench.files,
                    "load",
                    paths=[leaf_file(point, leaf_keys(0, tail))],
                    warm=None,
                )

    @contextmanager
    def mounted():
        with bench.mount(dataset) as mount:
            yield mount.point

    def ckptfs():
        files("ckptfs", mounted)

    def ext4():
        files("ext4", lambda: nullcontext(dataset.npy))

    sides(bench, orbax, ckptfs, ext4)
    bench.warm_caches()


def scenarios(sets):
    """By name, for --only; the order is that of the first round, later ones begin elsewhere."""
    table = {}
    for name in ("float32", "bfloat16"):
        table[f"full-{name}"] = lambda bench, name=name: full_restore(bench, sets[name])
        for size in LEAVES:
            table[f"leaf-{size}-{name}"] = lambda bench, name=name, size=size: single_leaf(bench, sets[name], size)
    for size in LEAVES:
        table[f"shell-{size}"] = lambda bench, size=size: shell(bench, sets["float32"], size)
    for name in ("float32", "small"):
        table[f"listing-{name}"] = lambda bench, name=name: listing(bench, sets[name])
    table["large-leaves"] = lambda bench: large_leaves(bench, sets["float32"])
    table["small-leaves"] = lambda bench: small_leaves(bench, sets["small"])
    table["cold"] = lambda bench: cold(bench, sets["float32"])
    return table


def read_stats(bench, mount):
    return json.loads(bench.files.ask("read_text", path=os.path.join(mount.point, ".ckptfs", "stats.json")))


def laziness(bench, dataset):
    """What a leaf and a listing fetch from the source: two readings of stats.json each, in fresh mounts."""
    found = {}
    with bench.mount(dataset) as mount:
        before = read_stats(bench, mount)
        bench.files.ask("load", paths=[leaf_file(mount.point, leaf_keys(0, SMALL_LEAF))], warm=None)
        found["leaf"] = {"before": before, "after": read_stats(bench, mount)}
    with bench.mount(dataset) as mount:
        before = read_stats(bench, mount)
        bench.files.ask("command", argv=["ls", "-lR", mount.point])
        found["listing"] = {"before": before, "after": read_stats(bench, mount)}
    return found
