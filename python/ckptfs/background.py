# SPDX-License-Identifier: Apache-2.0
"""Saving while the program goes on."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from typing import Any, Callable

from . import parallel, reading, writing

# Threads that write while the program computes: with more of them its own steps wait for a CPU, and the save ends
# little sooner.
WRITERS = max(1, min(parallel.WORKERS, len(os.sched_getaffinity(0)) // 2))


class AsyncCheckpointer:
    """Saves steps on another thread, one after the other in the order of the calls.

    save() returns as soon as the tree may change: what is on devices has been fetched, and NumPy's arrays have been
    copied. A save first waits for the one before, so at most one copy exists. An error of a save is raised by the next
    call of any method. The interpreter does not end before a save has; an error that nobody asked for is then printed.
    Use it as a context, or call close(). For one thread at a time.
    """

    def __init__(self, *, workers: int | None = None):
        """workers: threads that copy, and threads that write. None: 4 copy, and save() waits for them; half as many
        write as there are CPUs, at most 4.
        """
        self._workers = workers
        self._thread: threading.Thread | None = None
        self._error: list[BaseException] = []
        atexit.register(_report, self._error)

    def save(
        self,
        path: str | os.PathLike,
        target: Any,
        *,
        metrics: dict | None = None,
        metadata: dict | None = None,
        overwrite: bool = False,
        together: bool | None = None,
        copy: bool = True,
        then: Callable[[], None] | None = None,
    ) -> None:
        """As ckptfs.save(), in the background.

        copy  False hands NumPy's arrays over: the caller does not change them until the save has ended.
        then  a function that is called, on the other thread, after the commit.
        """
        snapshot = writing.Snapshot(target, metrics, metadata)
        self.wait_until_finished()
        snapshot.hold(copy, self._workers)

        def run() -> None:
            try:
                writing.commit(path, snapshot, overwrite, together, self._workers or WRITERS)
                if then:
                    then()
            except BaseException as e:
                self._error.append(e)

        self._thread = threading.Thread(target=run, name=f"saving {os.fspath(path)}")
        self._thread.start()

    def restore(self, path: str | os.PathLike, target: Any = None, **options: Any) -> Any:
        """Wait for the save, then ckptfs.restore()."""
        self.wait_until_finished()
        return reading.restore(path, target, **options)

    def wait_until_finished(self) -> None:
        """Return when the last save is on stable storage; raise its error, once."""
        if self._thread:
            self._thread.join()
            self._thread = None
        self.check_for_errors()

    def check_for_errors(self) -> None:
        """Raise the error of a save that has ended, if it had one. Does not wait."""
        if self._error:
            raise self._error.pop()

    def is_saving_in_progress(self) -> bool:
        """Is a save under way? False also when it has ended with an error."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """wait_until_finished()."""
        self.wait_until_finished()

    def __enter__(self) -> "AsyncCheckpointer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _report(errors: list[BaseException]) -> None:
    """At the interpreter's end, when all threads have ended."""
    for error in errors:
        print("ckptfs: a checkpoint was not saved:", *traceback.format_exception(error), sep="\n", file=sys.stderr)
