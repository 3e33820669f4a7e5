"""Many files looked at in threads, with a progress bar and little memory; and what becomes of those that are bad."""

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from rich.console import Console
from rich.progress import track

from cnn_train.data.cache import cache_folder, keep
from cnn_train.errors import DataError

LISTED = 20  # bad files that are named on the terminal
SHOWN_FROM = 200  # files whose check shows its progress
MOST_SKIPPED = 0.01  # share of the files that may be left out
Item = TypeVar("Item")
Result = TypeVar("Result")
# What `data.on_error` may say. "skip_all" leaves bad files out however many there are: for pictures of the others.
OnError = Literal["fail", "skip", "skip_all"]


def look_over(
    look: Callable[[Item], Result], items: Sequence[Item], workers: int, what: str = "check files"
) -> Iterator[tuple[Item, Result | DataError]]:
    """Each item with what `look` says of it, or its DataError, in order; a progress bar on a terminal.

    A few items are under way at a time, so that memory does not grow with their number.
    """

    def safe(item: Item) -> Result | DataError:
        try:
            return look(item)
        except DataError as error:
            return error

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        waiting: deque[tuple[Item, Future[Result | DataError]]] = deque()
        for item in shown(items, what, len(items)):
            waiting.append((item, pool.submit(safe, item)))
            if len(waiting) > 4 * max(workers, 1):
                first, made = waiting.popleft()
                yield first, made.result()
        for first, made in waiting:
            yield first, made.result()


def shown(items: Sequence[Item], what: str, files: int) -> Iterable[Item]:
    """The items, with a progress bar on a terminal where it is about many files."""
    silent = files < SHOWN_FROM or not sys.stderr.isatty()
    return track(items, what, console=Console(stderr=True), disable=silent, transient=True)


def settle(faults: Mapping[str, str], total: int, on_error: OnError, cache_dir: str | None) -> None:
    """Raise DataError for bad files, one line each, unless they are to be skipped and are at most 1 % of all.

    The first 20 are named in the error, and all of them in a file of the cache whose path it says.
    """
    if on_error not in ("fail", "skip", "skip_all"):
        raise DataError(f"data.on_error must be fail, skip or skip_all, got {on_error!r}")
    if not faults or on_error == "skip_all" or (on_error == "skip" and len(faults) <= MOST_SKIPPED * total):
        return
    told = list(faults.values())
    text = "\n".join(told) + "\n"
    path = cache_folder(cache_dir) / f"faults_{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
    keep(path, text.encode())
    where = f"; all are listed in {path}" if len(told) > LISTED and path.exists() else ""
    more = f" (and {len(told) - 1} more{where})" if len(told) > 1 else ""
    share = ""
    if on_error == "skip":
        share = f"{len(told)} of {total} files are bad, more than the 1 % that data.on_error=skip leaves out: "
    error = DataError(f"{share}{told[0]}{more}")
    for fault in told[1:LISTED]:
        error.add_note(fault)
    raise error


def without(
    splits: Mapping[str, list[tuple[str, Any]]], faults: Mapping[str, str], notes: list[str]
) -> dict[str, list[tuple[str, Any]]]:
    """The samples of which no file is bad; a remark says how many were left out."""

    def bad(sample: tuple[str, Any]) -> bool:
        return sample[0] in faults or (isinstance(sample[1], str) and sample[1] in faults)

    kept = {split: [sample for sample in samples if not bad(sample)] for split, samples in splits.items()}
    left = {sample[0] for samples in splits.values() for sample in samples if bad(sample)}
    if left:
        notes.append(f"{len(left)} bad left out (data.on_error)")
    return kept
