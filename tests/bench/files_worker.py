# SPDX-License-Identifier: Apache-2.0
"""The files' side: reads a directory of .npy files, be it a mount or a plain one, the ways a user would."""

import gc
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import worker

arrays = {}


def npy_files(root):
    return [
        os.path.join(directory, name)
        for directory, _, names in os.walk(root)
        for name in names
        if name.endswith(".npy")
    ]


def load_threads(root):
    """The headline: one line of NumPy and a thread pool, arrays freshly made, as Orbax makes its own."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = npy_files(root)
        return dict(zip(paths, pool.map(np.load, paths)))


def load_serial(root):
    return {path: np.load(path) for path in npy_files(root)}


def fill(path, array):
    """Reads the data of a .npy file into an array that exists; the data are the file's last bytes."""
    view = memoryview(array.reshape(-1)).cast("B")
    fd = os.open(path, os.O_RDONLY)
    try:
        at = os.fstat(fd).st_size - len(view)
        while view:
            done = os.preadv(fd, [view], at)
            if done == 0:
                raise EOFError(path)
            view, at = view[done:], at + done
    finally:
        os.close(fd)


def into_threads(root, reference):
    """As a program that restores into parameters that it holds already: no fresh memory."""
    known = arrays[reference]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda path: fill(path, known[os.path.relpath(path, root)].view(np.uint8)), npy_files(root)))


def prepare(root):
    arrays[root] = {os.path.relpath(path, root): np.load(path) for path in npy_files(root)}


def forget():
    arrays.clear()


def settle(most):
    """Touches free memory and gives it back, untimed, before anything that needs much of it.

    A virtual machine may hand free pages back to its host within seconds (free page reporting); the next process to
    get them then waits for the host, up to a second for 700 MB, and which side of a comparison it hits is chance.
    """
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    memory = np.empty(min(most, free // 3), np.uint8)
    memory[::4096] = 1


def timed(call, *arguments, collect=True):
    if collect:
        gc.collect()
    start, cpu = time.perf_counter(), time.process_time()
    result = call(*arguments)
    seconds = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    del result
    return seconds


def full(root, way, reference=None):
    if way == "into_threads":
        return timed(into_threads, root, reference)
    return timed({"threads": load_threads, "serial": load_serial}[way], root)


def large_read(root, above):
    """The leaves above a size, one after another: read(2) of 1 MiB into one buffer, as cat would."""
    paths = [path for path in npy_files(root) if os.path.getsize(path) > above]
    buffer = bytearray(1 << 20)

    def read_all():
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            while os.readv(fd, [buffer]):
                pass
            os.close(fd)

    return timed(read_all)


def large_load(root, above):
    paths = [path for path in npy_files(root) if os.path.getsize(path) > above]

    def load_each():
        for path in paths:
            np.load(path)

    return timed(load_each)


def load(paths, warm):
    """Each of the leaves by itself; before them, untimed, a plain file, so that NumPy's own code is in the caches."""
    if warm:
        np.load(warm)
    return [timed(np.load, path, collect=False) for path in paths]


def small_read(root, names_from):
    """Each file opened, read and closed; `names_from` another directory: `root` itself is not listed."""
    paths = [os.path.join(root, os.path.relpath(path, names_from)) for path in npy_files(names_from)]

    buffer = bytearray(1 << 14)

    def read_each():
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            os.readv(fd, [buffer])
            os.close(fd)

    return timed(read_each)


def small_load(root):
    paths = npy_files(root)

    def load_each():
        for path in paths:
            np.load(path)

    return timed(load_each)


def command(argv):
    """A program from start to end, its output thrown away."""

    def run():
        subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
            close_fds=False,
        )

    return timed(run)


def compare(root, reference):
    """The names that differ, missing, extra or unequal in shape or bytes: none in a sound mount."""
    have = {os.path.relpath(path, root) for path in npy_files(root)}
    want = {os.path.relpath(path, reference) for path in npy_files(reference)}
    bad = sorted(have ^ want)
    for name in sorted(have & want):
        left, right = np.load(os.path.join(root, name)), np.load(os.path.join(reference, name))
        if left.shape != right.shape or left.tobytes() != right.tobytes():
            bad.append(name)
    return {"files": len(want), "differ": bad}


def read_text(path):
    with open(path) as file:
        return file.read()


def syncfs(path):
    subprocess.run(["sync", "-f", path], check=True, stdin=subprocess.DEVNULL)


def finish(target, commit):
    """Durable: by the rename that commits a step, or by syncfs."""
    if commit:
        os.rename(target, commit)
    else:
        syncfs(target)


def save_copy(source, target, commit=None):
    def run():
        subprocess.run(["cp", "-r", source, target], check=True, stdin=subprocess.DEVNULL, close_fds=False)
        finish(target, commit)

    return timed(run)


def save_arrays(target, reference, commit=None):
    known = arrays[reference]

    def run():
        for name, array in known.items():
            path = os.path.join(target, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            np.save(path, array)
        finish(target, commit)

    return timed(run)


def save_safetensors(path, reference):
    import ml_dtypes
    from safetensors.numpy import save_file

    tensors = {
        name.removesuffix(".npy").replace("/", "."): array.view(ml_dtypes.bfloat16)
        if array.dtype.kind == "V"
        else array
        for name, array in arrays[reference].items()
    }

    def run():
        save_file(tensors, path)
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    return timed(run)


def wait_beside(source, root, copies, way):
    """Writes `copies` copies as one step and commits it, while this thread lists the root and reads 4 KB of another
    step.
    """
    step = {"rename": "20", "sync": "21"}[way]
    if not os.path.exists(os.path.join(root, "1")):
        os.mkdir(os.path.join(root, ".small"))
        for n in range(100):
            np.save(os.path.join(root, ".small", f"{n}.npy"), np.full(1024, n, np.float32))
        os.rename(os.path.join(root, ".small"), os.path.join(root, "1"))
    target = os.path.join(root, ".big" if way == "rename" else step)

    def write():
        os.mkdir(target)
        for n in range(copies):  # each with bytes of its own, or they would be stored once
            for path in npy_files(source):
                name = os.path.join(target, str(n), os.path.relpath(path, source))
                os.makedirs(os.path.dirname(name), exist_ok=True)
                array = np.load(path)
                array.reshape(-1)[:1] = n
                np.save(name, array)
        written.set()
        if way == "rename":
            os.rename(target, os.path.join(root, step))
        else:
            fd = os.open(target, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    written = threading.Event()
    slowest = {"ls": 0.0, "read": 0.0, "ls of the commit": 0.0, "read of the commit": 0.0}
    n = 0
    with ThreadPoolExecutor(1) as pool:
        work, begin = pool.submit(write), time.perf_counter()
        while not work.done():
            for what in ("ls", "read"):
                start = time.perf_counter()
                if what == "ls":
                    subprocess.run(
                        ["ls", root], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, close_fds=False
                    )
                else:
                    fd = os.open(os.path.join(root, "1", f"{n % 100}.npy"), os.O_RDONLY)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.pread(fd, 4096, 0)
                    os.close(fd)
                    n += 1
                took = time.perf_counter() - start
                slowest[what] = max(slowest[what], took)
                if written.is_set():
                    slowest[f"{what} of the commit"] = max(slowest[f"{what} of the commit"], took)
            time.sleep(0.002)
        work.result()
    return {**slowest, "whole": time.perf_counter() - begin}


def walk(root):
    return len(npy_files(root))


if __name__ == "__main__":
    worker.serve(
        {
            "full": full,
            "prepare": prepare,
            "forget": forget,
            "large_read": large_read,
            "large_load": large_load,
            "load": load,
            "small_read": small_read,
            "small_load": small_load,
            "command": command,
            "save_copy": save_copy,
            "save_arrays": save_arrays,
            "save_safetensors": save_safetensors,
            "wait_beside": wait_beside,
            "compare": compare,
            "settle": settle,
            "read_text": read_text,
            "walk": walk,
        }
    )
