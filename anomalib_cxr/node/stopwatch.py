"""How long something takes: a histogram of seconds."""

import time
from threading import Lock, local
from types import TracebackType


class Stopwatch:
    """Measures the blocks that it surrounds, in any number of threads.

    Attributes:
        bounds: Upper ends of the classes in seconds.

    Examples:
        >>> watch = Stopwatch()
        >>> with watch:
        ...     pass
        >>> watch.read()[1]
        1
    """

    bounds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

    def __init__(self) -> None:
        self._lock, self._started = Lock(), local()
        self._counts = [0] * len(self.bounds)
        self._count, self._sum = 0, 0.0

    def __enter__(self) -> None:
        self._started.at = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._started.at
        with self._lock:
            self._count += 1
            self._sum += seconds
            for place, bound in enumerate(self.bounds):
                self._counts[place] += seconds <= bound

    def read(self) -> tuple[list[int], int, float]:
        """Blocks that took at most each bound, all blocks, and their seconds together."""
        with self._lock:
            return list(self._counts), self._count, self._sum
