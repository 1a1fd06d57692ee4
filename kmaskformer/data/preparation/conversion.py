"""Converting many files: in parallel, with a progress bar, and so that it can be interrupted and run again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from kmaskformer.whole_files import written_whole


class Task(NamedTuple):
    """One conversion: `run()` writes all of `outputs` from `sources`."""

    name: str
    outputs: tuple[Path, ...]
    run: Callable[[], None]
    sources: tuple[Path, ...] = ()


class Failure(NamedTuple):
    """A file that could not be used, and why."""

    name: str
    reason: str


def run_tasks(tasks: Sequence[Task], workers: int = 0) -> list[Failure]:
    """Runs the tasks whose outputs are not all there, as new as their sources, and readable if they are PNGs.

    A task that fails does not stop the others, and leaves no outputs, not even older ones.

    Args:
        tasks: What is to be done.
        workers: Tasks at a time; 0 for one per processor.

    Returns:
        The failures, in the order of the tasks.
    """
    for folder in {output.parent for task in tasks for output in task.outputs}:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        open_tasks = [task for task, done in zip(tasks, pool.map(_is_done, tasks), strict=True) if not done]
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


def _is_done(task: Task) -> bool:
    if not all(output.is_file() for output in task.outputs):
        return False
    newest = max((source.stat().st_mtime_ns for source in task.sources), default=0)
    written = [output for output in task.outputs if not any(output.samefile(source) for source in task.sources)]
    return all(output.stat().st_mtime_ns >= newest and _is_whole(output) for output in written)


def _is_whole(path: Path) -> bool:
    """Whether a PNG's check sums are right; True for other files."""
    if path.suffix != ".png":
        return True
    try:
        with Image.open(path) as image:
            image.verify()
    # Pillow raises many kinds of errors on broken files, SyntaxError among them.
    except Exception:
        return False
    return True


def _try(task: Task) -> Failure | None:
    try:
        task.run()
    # Whatever is wrong with one file, the others are converted, and all that failed is named at the end.
    except Exception as error:
        sources = {source.resolve() for source in task.sources}
        for output in task.outputs:
            if output.resolve() not in sources:
                output.unlink(missing_ok=True)
        return Failure(task.name, f"{type(error).__name__}: {error}")
    return None
