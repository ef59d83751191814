"""Work on what comes next while the last result is in use: a few threads, results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

MOST_THREADS = 8


def ahead(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """`work` of each item, in order; never more than a few results wait, however many items.

    What `work` raises is raised where its result would have come.
    """
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    waiting: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
