"""Read every image once, to find those that fail before a run does."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from anomalib_cxr.data.base import default_num_workers
from anomalib_cxr.imaging.progress import progress


def find_failing(check: Callable[[int], tuple[str, str | None]], number: int, name: str) -> dict[str, str]:
    """Run a check over all rows in threads, with a progress bar.

    Args:
        check: Reads one image, given its row, and returns its path, and the reason why it cannot be read or None.
        number: Number of rows.
        name: Data set, for the bar.

    Returns:
        Reason for each path that cannot be read, in the order of the rows.
    """
    with ThreadPoolExecutor(default_num_workers()) as pool:
        results = progress(pool.map(check, range(number)), f"{name}: reading all images", number)
        return {path: reason for path, reason in results if reason is not None}
