"""Converting many files: in parallel, with a progress bar, and so that it can be interrupted and run again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from kmaskformer.whole_files import written_whole


class Task(NamedTuple):
    """One conversion: `run()` writes all of `outputs`."""

    name: str
    outputs: tuple[Path, ...]
    run: Callable[[], None]


class Failure(NamedTuple):
    """A file that could not be used, and why."""

    name: str
    reason: str


def run_tasks(tasks: Sequence[Task], workers: int = 0) -> list[Failure]:
    """Runs the tasks whose outputs are not all there.

    A task that fails does not stop the others.

    Args:
        tasks: What is to be done.
        workers: Tasks at a time; 0 for one per processor.

    Returns:
        The failures, in the order of the tasks.
    """
    for folder in {output.parent for task in tasks for output in task.outputs}:
        folder.mkdir(parents=True, exist_ok=True)
    open_tasks = [task for task in tasks if not all(output.is_file() for output in task.outputs)]
    results = in_parallel(_try, open_tasks, workers, "convert", done=len(tasks) - len(open_tasks))
    return [failure for failure in results if failure]


def in_parallel(work: Callable, items: Sequence, workers: int, description: str, done: int = 0) -> list:
    """`[work(item) for item in items]` in threads, with a progress bar; NumPy and Pillow work outside Python's lock."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        results = pool.map(work, items)
        bar = tqdm(results, desc=description, total=done + len(items), initial=done, unit="image", disable=None)
        return list(bar)


def provide(source: Path, destination: Path) -> None:
    """Makes a file known under another path: a hard link where the file system has them, else a copy."""
    with written_whole(destination) as partial:
        try:
            os.link(os.path.realpath(source), partial)  # of a link, the file it leads to
        except OSError:
            shutil.copyfile(source, partial)


def _try(task: Task) -> Failure | None:
    try:
        task.run()
    # Whatever is wrong with one file, the others are converted, and all that failed is named at the end.
    except Exception as error:
        return Failure(task.name, f"{type(error).__name__}: {error}")
    return None
