# SPDX-License-Identifier: Apache-2.0
"""The files' side: reads a directory of .npy files, be it a mount or a plain one, the ways a user would."""
import gc
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import worker

arrays = {}


def npy_files(root):
    return [os.path.join(directory, name)
            for directory, _, names in os.walk(root) for name in names if name.endswith(".npy")]


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
        list(pool.map(lambda path: fill(path, known[os.path.relpath(path, root)]), npy_files(root)))


def prepare(root):
    arrays[root] = {os.path.relpath(path, root): np.load(path).view(np.uint8) for path in npy_files(root)}


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
        subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       check=True, close_fds=False)
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


def walk(root):
    return len(npy_files(root))


if __name__ == "__main__":
    worker.serve({"full": full, "prepare": prepare, "forget": forget, "large_read": large_read, "large_load": large_load,
                  "load": load, "small_read": small_read, "small_load": small_load, "command": command,
                  "compare": compare, "settle": settle, "read_text": read_text, "walk": walk})
