"""Setting a model's weights from arrays that have other names and PyTorch's layout.

Every name map is a `NameMap`; what reading with it did is a `LoadReport`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import mmap
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import keras
import numpy as np

from kmaskformer.checkpoints.aligned import adopted, aligned_empty, aligned_zeros

_STRIP = 64
"""Columns that are transposed at a time."""
_NOT_WEIGHTS = "OSUMmcbiu"
"""Kinds of types that weights do not have: whole numbers are quantised ones, whose scales nobody would apply."""
_THREADS = 2
"""As many weights are in memory twice at a time."""
NOTHING = re.compile(r"(?!)")
CLASS_HEAD = re.compile(r"^(class_head|classifier)/")
CLASS_QUERIES = re.compile(r"^transformer_decoder/query_embedding$")
"""In the per-pixel baseline with queries, which has no class head, each query is a class."""


class Source(NamedTuple):
    """Where a file keeps a weight.

    Args:
        keys: Names of the arrays that make it up, one after the other along their first axis; mostly one.
        third: Which third of the array's first axis it is, where queries, keys and values are packed.
    """

    keys: tuple[str, ...]
    third: int | None = None

    def __str__(self) -> str:
        part = "" if self.third is None else f" [{('query', 'key', 'value')[self.third]}]"
        return " + ".join(self.keys) + part


@dataclasses.dataclass(frozen=True)
class NameMap:
    """How one family of files names its arrays.

    Args:
        title: What the files are, for messages.
        source: From the path of a weight within the model, such as `class_head/kernel`, to where the files keep it.
        canonical: From a name in a file to the one spelling of it that `source` knows.
        ignored: Names of arrays that carry nothing learned, or nothing that the model has.
        fresh: Paths of weights that the files do not hold; they keep their initial values.
    """

    title: str
    source: Callable[[str], Source]
    canonical: Callable[[str], str] = str
    ignored: re.Pattern[str] = NOTHING
    fresh: re.Pattern[str] = NOTHING


class LoadedWeight(NamedTuple):
    """One weight that was set: its path and shape within the model, and where it came from."""

    path: str
    shape: tuple[int, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What went where; `str(report)` is a table of it.

    Args:
        title: What the arrays were taken for.
        loaded: The weights that were set.
        ignored: Names of the arrays that were not used.
        fresh: Paths of the weights that kept their initial values.
    """

    title: str
    loaded: tuple[LoadedWeight, ...]
    ignored: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line of counts."""
        counts = f"{len(self.loaded)} weights set, {len(self.fresh)} left fresh, {len(self.ignored)} arrays ignored"
        return f"{self.title}: {counts}"

    def __str__(self) -> str:
        rows = [("weight", "shape", "from")]
        rows += [(row.path, str(row.shape), row.source) for row in self.loaded]
        rows += [(path, "", "(fresh: kept its initial value)") for path in self.fresh]
        rows += [("(ignored)", "", name) for name in self.ignored]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in rows]
        return "\n".join([*lines, self.summary()])


def load_weights_by_name(
    layer: Any, arrays: Mapping[str, np.ndarray], name_map: NameMap, allow_other_classes: bool = False
) -> LoadReport:
    """Set every weight of a model or backbone from named arrays, one at a time.

    Shapes are compared before anything is set, without reading the arrays, which may be memory maps; then each weight
    is read, laid out for Keras, cast to float32 and assigned, so that there is never a second copy of the whole.

    Args:
        layer: A built model or backbone of this package.
        arrays: `{name: array}` in PyTorch's layout (convolutions O I H W, linear kernels O I).
        name_map: Where the arrays are found.
        allow_other_classes: Whether the weights of the class head stay fresh where the arrays are for another number
            of classes.

    Returns:
        What went where. Every array is used exactly once or listed as ignored; every weight is set or listed as fresh.

    Raises:
        TypeError: If `arrays` is not a mapping.
        ValueError: If a weight has no array, an array no weight, a shape differs or two names mean the same; nothing
            is set then. If an array holds NaN or infinity; the others are set then.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"`arrays` must map names to arrays. Received: {type(arrays).__name__}")
    weights = named_weights(layer)
    has_class_head = any(CLASS_HEAD.search(path) for path in weights)
    of_classes = (CLASS_HEAD if has_class_head else CLASS_QUERIES) if allow_other_classes else NOTHING
    plan = _Plan(_canonical_names(arrays, name_map), name_map, of_classes)
    for path, variable in weights.items():
        plan.add(path, variable)
    report = plan.finish()
    # Copying into new memory is what takes the time, and NumPy lets other threads copy meanwhile.
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda assignment: _assign(plan.arrays, *assignment), plan.assignments))
    return report


def _assign(arrays: Mapping[str, np.ndarray], variable: Any, source: Source) -> None:
    pieces = _pieces(arrays, source, variable.path)
    value = _joined(pieces, tuple(variable.shape))
    check_finite(value, str(source))
    variable.assign(adopted(value))
    _forget_pages(pieces)


def named_weights(layer: Any) -> dict[str, Any]:
    """Weights of a model or backbone by path.

    A model's own name is left out (`backbone/res2/0/conv1/kernel`); the path of a backbone's weight always begins with
    `backbone`, whether it stands alone or in a model. The state of random generators is left out.
    """
    is_model = hasattr(layer, "pixel_decoder")
    weights = {}
    for variable in layer.weights:
        if "seed_generator" in variable.path:
            continue
        inner = variable.path.partition("/")[2] if is_model else variable.path.rpartition(f"{layer.name}/")[2]
        weights[inner if is_model else f"backbone/{inner}"] = variable
    return weights


_zeros_wanted = contextvars.ContextVar("zeros_wanted", default=False)
_installing = threading.Lock()


@contextlib.contextmanager
def zero_initializers() -> Iterator[None]:
    """Within it, new weights are zeros: drawing 200 million random numbers takes longer than reading them.

    Other threads are not concerned.
    """
    _install_zeros()
    token = _zeros_wanted.set(True)
    try:
        yield
    finally:
        _zeros_wanted.reset(token)


def _install_zeros() -> None:
    """Lets Keras ask `_zeros_wanted`, once and for good: taking it out again would race with other threads."""
    with _installing:
        add_weight = keras.layers.Layer.add_weight
        if getattr(add_weight, "may_give_zeros", False):
            return

        @functools.wraps(add_weight)
        def add_weight_or_zeros(
            layer: Any, shape: Any = None, initializer: Any = None, *rest: Any, **named: Any
        ) -> Any:
            return add_weight(layer, shape, _zeros if _zeros_wanted.get() else initializer, *rest, **named)

        add_weight_or_zeros.may_give_zeros = True
        keras.layers.Layer.add_weight = add_weight_or_zeros


def _zeros(shape: tuple[int, ...], dtype: str) -> Any:
    return adopted(aligned_zeros(tuple(shape))) if dtype == "float32" else keras.ops.zeros(shape, dtype)


class _Plan:
    """Collects assignments and problems, weight by weight."""

    def __init__(self, arrays: dict[str, np.ndarray], name_map: NameMap, of_classes: re.Pattern[str]) -> None:
        self.arrays, self.name_map, self.of_classes = arrays, name_map, of_classes
        self.assignments: list[tuple[Any, Source]] = []
        self.loaded: list[LoadedWeight] = []
        self.fresh: list[str] = []
        self.used: set[str] = set()
        self.left_out: set[str] = set()
        self.problems: dict[str, list[str]] = {}

    def add(self, path: str, variable: Any) -> None:
        if self.name_map.fresh.search(path):
            self.fresh.append(path)
            return
        source = self.name_map.source(path)
        absent = [key for key in source.keys if key not in self.arrays]
        if absent:
            self._problem("weights have no array", f"{path} ({', '.join(absent)})")
            return
        shape, expected = _shape(_pieces(self.arrays, source, path)), tuple(variable.shape)
        if self.of_classes.search(path) and _differ_in_one_axis(shape, expected):
            self.fresh.append(path)
            self.left_out.update(source.keys)
            return
        self.used.update(source.keys)
        if shape != expected:
            self._problem("shapes differ", f"{path} {expected} and {source} {shape}")
        self.assignments.append((variable, source))
        self.loaded.append(LoadedWeight(path, expected, str(source)))

    def finish(self) -> LoadReport:
        rest = sorted(name for name in self.arrays if name not in self.used)
        ignored = [name for name in rest if name in self.left_out or self.name_map.ignored.search(name)]
        for name in rest:
            if name not in ignored:
                self._problem("arrays have no weight", f"{name} {self.arrays[name].shape}")
        for name in sorted(self.used):
            if self.arrays[name].dtype.kind in _NOT_WEIGHTS:
                self._problem("arrays are not of floating point", f"{name} ({self.arrays[name].dtype})")
        self._check()
        return LoadReport(self.name_map.title, tuple(self.loaded), tuple(ignored), tuple(self.fresh))

    def _problem(self, kind: str, text: str) -> None:
        self.problems.setdefault(kind, []).append(text)

    def _check(self) -> None:
        kinds = ("weights have no array", "arrays have no weight", "shapes differ", "arrays are not of floating point")
        texts = [
            f"{len(self.problems[kind])} {kind}: {', '.join(self.problems[kind][:5])}"
            for kind in kinds
            if kind in self.problems
        ]
        if texts:
            raise ValueError(f"The arrays do not fit the model. {'; '.join(texts)} (read as: {self.name_map.title})")


def _canonical_names(arrays: Mapping[str, Any], name_map: NameMap) -> dict[str, np.ndarray]:
    renamed: dict[str, np.ndarray] = {}
    originals: dict[str, str] = {}
    for name, array in arrays.items():
        canonical = name_map.canonical(name)
        if canonical in renamed:
            raise ValueError(
                f"Two arrays are the same parameter: {originals[canonical]} and {name}. Remove one of the two."
            )
        renamed[canonical], originals[canonical] = np.asanyarray(array), name
    return renamed


def _pieces(arrays: Mapping[str, np.ndarray], source: Source, path: str) -> list[np.ndarray]:
    """Views of a weight's arrays in Keras' layout, to be joined along the last axis."""
    pieces: Iterable[np.ndarray] = (arrays[key] for key in source.keys)
    if source.third is not None:
        pieces = (np.array_split(np.atleast_1d(piece), 3, axis=0)[source.third] for piece in pieces)
    return [_keras_layout(piece) if path.endswith("/kernel") else piece for piece in pieces]


def _keras_layout(kernel: np.ndarray) -> np.ndarray:
    """A kernel with its input and output channels last; a view."""
    return kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T


def _joined(pieces: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The pieces one after the other along the last axis, in memory of their own, float32."""
    value = aligned_empty(shape)
    targets = [value]
    if len(pieces) > 1:
        targets = np.split(value, np.cumsum([piece.shape[-1] for piece in pieces[:-1]]), axis=-1)
    for piece, target in zip(pieces, targets, strict=True):
        _copy(piece, target)
    return value


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    if source.ndim != 2:
        target[...] = source
        return
    # A transposed matrix is copied strip by strip: reading whole columns would load a cache line for each number.
    for start in range(0, source.shape[1], _STRIP):
        target[:, start : start + _STRIP] = source[:, start : start + _STRIP]


def _shape(pieces: list[np.ndarray]) -> tuple[int, ...]:
    if len(pieces) == 1 or any(piece.shape[:-1] != pieces[0].shape[:-1] for piece in pieces):
        return pieces[0].shape
    return (*pieces[0].shape[:-1], sum(piece.shape[-1] for piece in pieces))


def _differ_in_one_axis(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(shape) == len(other) and sum(a != b for a, b in zip(shape, other, strict=True)) == 1


def check_finite(value: np.ndarray, name: str) -> None:
    """Refuses weights that are NaN or infinite.

    Raises:
        ValueError: If there is one in `value`; `name` is where it came from.
    """
    # A sum is not finite if a value is not, and is taken faster than each is looked at; of large ones it can overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        total = value.sum()
    if not np.isfinite(total) and not np.isfinite(value).all():
        raise ValueError(f"{name} holds NaN or infinity: the training that wrote it went wrong. Take another file.")


def _forget_pages(pieces: list[np.ndarray]) -> None:
    """Hands back the pages of a mapped file that have been read, which count as this process's memory."""
    for piece in pieces:
        owner: Any = piece
        while owner is not None and not isinstance(owner, mmap.mmap):
            owner = getattr(owner, "base", None) if not isinstance(owner, memoryview) else owner.obj
        if owner is not None and not piece.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
            start, end = (address - _address(owner) for address in np.lib.array_utils.byte_bounds(piece))
            start -= start % mmap.PAGESIZE
            owner.madvise(mmap.MADV_DONTNEED, start, end - start)


def _address(owner: mmap.mmap) -> int:
    return np.frombuffer(owner, np.uint8).ctypes.data
