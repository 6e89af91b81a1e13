# SPDX-License-Identifier: Apache-2.0
"""What is measured of the store: durable saves, saves in the background of a loop, restores, bytes on disk, and what
others notice while a large step commits.

Names are as in scenarios.py. A save is durable when it returns: through the mount by the rename that commits, elsewhere
by fsync or syncfs.
"""

import os
import shutil

from mount import Mount
from scenarios import sides
from worker import WorkerError

SAVES, STEPS = (
    3,
    16,
    # of a training loop: STEPS steps before each save and after the last; a save should have ended before the next
    # begins
)


class Root:
    """A new native root on the disk of the data, mounted to be written; gone afterwards."""

    def __init__(self, bench, options=""):
        self.bench = bench
        self.path = os.path.join(bench.data_dir, "root")
        self.options = ",".join(filter(None, ["rw,commit=explicit", options]))

    def __enter__(self):
        shutil.rmtree(self.path, ignore_errors=True)
        os.makedirs(self.path)
        self.mount = self.remount()
        return self

    def remount(self, options=None):
        mount = Mount(self.bench.binary, self.path, self.bench.directory, self.bench.log, options or self.options)
        mount.__enter__()
        self.mount = mount
        return mount

    def __exit__(self, *exception):
        self.mount.__exit__(*exception)
        shutil.rmtree(self.path, ignore_errors=True)

    def objects(self):
        """Bytes of payloads."""
        top = os.path.join(self.path, ".ckptstore/objects")
        return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(top) for name in names)


def tree_size(path):
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


def save(bench, dataset):
    name = f"{dataset.name} save"
    other = os.path.join(bench.data_dir, "saved")

    def gone():
        shutil.rmtree(other, ignore_errors=True)
        os.sync()

    def orbax():
        gone()
        bench.record(f"{name} orbax", bench.orbax, "save", path=other, reference=dataset.npy, dtype=dataset.dtype)
        bench.note(f"{dataset.name} bytes orbax", tree_size(other))
        gone()

    def safetensors():
        gone()
        os.makedirs(other)
        bench.record(
            f"{name} safetensors",
            bench.files,
            "save_safetensors",
            path=os.path.join(other, "model.safetensors"),
            reference=dataset.npy,
        )
        bench.note(f"{dataset.name} bytes safetensors", tree_size(other))
        gone()

    def ext4():
        gone()
        bench.record(f"{name} ext4 cp", bench.files, "save_copy", source=dataset.npy, target=other)
        gone()
        bench.record(f"{name} ext4 np.save", bench.files, "save_arrays", target=other, reference=dataset.npy)
        gone()

    def ckptfs():
        for codec in ("auto", "none"):
            gone()
            with Root(bench, f"codec={codec}") as root:
                for way, op in (
                    (("cp", "save_copy"), ("np.save", "save_arrays")) if codec == "auto" else (("cp", "save_copy"),)
                ):
                    step = 1 if way == "cp" else 2
                    if step == 2:
                        root.__exit__(None, None, None)
                        root.__enter__()
                    extra = {"source": dataset.npy} if op == "save_copy" else {"reference": dataset.npy}
                    bench.record(
                        f"{name} ckptfs {codec} {way}",
                        bench.files,
                        op,
                        target=os.path.join(root.mount.point, ".new"),
                        commit=os.path.join(root.mount.point, str(step)),
                        **extra,
                    )
                bench.note(f"{dataset.name} bytes ckptfs {codec}", root.objects())
                bench.note(f"{name} ckptfs {codec} memory", root.mount.status_bytes("VmHWM"))

    bench.files.ask("prepare", root=dataset.npy)
    sides(bench, orbax, safetensors, ext4, ckptfs)
    bench.files.ask("forget")


def restore(bench, dataset):
    """The store against Orbax and plain files; uncompressed with passthrough too."""
    name = f"{dataset.name} store"

    def orbax():
        for way in ("pytree", "pytree_numpy"):
            bench.record(f"{name} orbax {way}", bench.orbax, "full", path=dataset.orbax, way=way)

    def ext4():
        bench.record(f"{name} ext4", bench.files, "full", root=dataset.npy, way="threads")
        bench.record(f"{name} read ext4", bench.files, "large_read", root=dataset.npy, above=1 << 20)

    def ckptfs():
        for codec, options in (("auto", "ro"), ("none", "rw,passthrough")):
            with Root(bench, f"codec={codec}") as root:
                step = os.path.join(root.mount.point, "1")
                bench.files.ask(
                    "save_copy", source=dataset.npy, target=os.path.join(root.mount.point, ".new"), commit=step
                )
                for way in ("full", "large_read"):
                    root.mount.__exit__(None, None, None)
                    root.remount(options)
                    step = os.path.join(root.mount.point, "1")
                    arguments = {"way": "threads"} if way == "full" else {"above": 1 << 20}
                    label = name if way == "full" else f"{name} read"
                    for state in ("first", "again"):
                        bench.record(f"{label} ckptfs {codec} {state}", bench.files, way, root=step, **arguments)
                if codec == "auto":
                    bench.drop_caches()
                    root.mount.__exit__(None, None, None)
                    root.remount(options)
                    bench.record(
                        f"{name} ckptfs {codec} cold",
                        bench.files,
                        "full",
                        root=os.path.join(root.mount.point, "1"),
                        way="threads",
                    )

    def cold_orbax():
        bench.drop_caches()
        bench.record(f"{name} orbax cold", bench.orbax, "full", path=dataset.orbax, way="pytree_numpy")
        bench.drop_caches()
        bench.record(f"{name} ext4 cold", bench.files, "full", root=dataset.npy, way="threads")

    sides(bench, orbax, ext4, ckptfs, cold_orbax)


def waiting(bench, dataset):
    """While 2 GB are written and committed: the slowest listing of the root, and the slowest 4 KB read of another
    step.
    """

    def ckptfs():
        with Root(bench) as root:
            for way in ("rename", "sync"):
                found = bench.files.ask("wait_beside", source=dataset.npy, root=root.mount.point, copies=3, way=way)
                for what, seconds in found.items():
                    bench.note(f"waiting {what} {way}", seconds)
            bench.note("waiting memory", root.mount.status_bytes("VmHWM"))

    sides(bench, ckptfs)


def sharing(bench, dataset):
    """A copy of a step in the mount, and ten steps of which a tenth changes."""

    def ckptfs():
        with Root(bench) as root:
            point = root.mount.point
            bench.files.ask("save_copy", source=dataset.npy, target=f"{point}/.new", commit=f"{point}/1")
            one = root.objects()
            bench.record(
                f"{dataset.name} copy ckptfs",
                bench.files,
                "save_copy",
                source=f"{point}/1",
                target=f"{point}/.new",
                commit=f"{point}/2",
            )
            bench.note(f"{dataset.name} copy ckptfs payload", root.objects() - one)

    sides(bench, ckptfs)


def asynchronous(bench, dataset):
    """A training loop that saves in the background: what it waits for in each call, and how much slower its steps are
    meanwhile.
    """
    name = f"{dataset.name} async"
    other = os.path.join(bench.data_dir, "saved")

    def run(side, library, top):
        paths = [os.path.join(top, str(number + 1)) for number in range(SAVES)]
        try:
            bench.settle()
            found = bench.trainers[library].ask(
                "train", library=library, paths=paths, reference=dataset.npy, steps=STEPS
            )
        except WorkerError as error:
            bench.fail(f"{name} {side}", error)
            return
        for what, seconds in found.items():
            for value in seconds if isinstance(seconds, list) else [seconds]:
                bench.note(f"{name} {side} {what}", value)

    def orbax():
        shutil.rmtree(other, ignore_errors=True)
        os.sync()
        run("orbax", "orbax", other)
        shutil.rmtree(other, ignore_errors=True)

    def ckptfs():
        for side, library, folder in (("ckptfs", "ckptfs", ""), ("files", "orbax", ".files")):
            os.sync()
            with Root(bench) as root:
                run(side, library, os.path.join(root.mount.point, folder))

    sides(bench, orbax, ckptfs)


def store_scenarios(sets):
    return {
        "save-float32": lambda bench: save(bench, sets["float32"]),
        "save-bfloat16": lambda bench: save(bench, sets["bfloat16"]),
        "async-float32": lambda bench: asynchronous(bench, sets["float32"]),
        "store-restore": lambda bench: restore(bench, sets["float32"]),
        "store-sharing": lambda bench: sharing(bench, sets["float32"]),
        "store-waiting": lambda bench: waiting(bench, sets["float32"]),
    }
