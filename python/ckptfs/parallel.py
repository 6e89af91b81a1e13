# SPDX-License-Identifier: Apache-2.0
"""Work on several threads. Plain threads, since executors take no more work once the interpreter begins to end."""

from __future__ import annotations

import threading
from typing import Callable, Iterable, TypeVar

T = TypeVar("T")
WORKERS = 4


def each(work: Callable[[T], None], items: Iterable[T], workers: int | None = None) -> None:
    """work(item) for all items, in any order. The first error stops the rest, and is raised."""
    items = list(items)
    count = min(workers or WORKERS, len(items))
    left, lock = iter(items), threading.Lock()
    errors: list[BaseException] = []

    def run() -> None:
        while not errors:
            with lock:
                try:
                    item = next(left)
                except StopIteration:
                    return
            try:
                work(item)
            except BaseException as e:
                errors.append(e)

    threads = [threading.Thread(target=run) for _ in range(count - 1)]
    for thread in threads:
        thread.start()
    run()
    try:
        for thread in threads:
            thread.join()
    except BaseException as e:  # interrupted: no thread works on behind the caller's back
        errors.append(e)
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
