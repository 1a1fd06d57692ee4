"""Checkpoints from which an interrupted run continues: weights, optimizer state, random states, step and epoch.

A checkpoint is a folder `step_<number>` with `model.weights.h5`, `state.npz` and `checkpoint.json`. It is written
under another name and renamed when all of it is on disk, so that a process killed at any moment leaves whole ones.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kmaskformer.training.callbacks import IntervalCallback
from kmaskformer.training.nonfinite import nonfinite_terms
from kmaskformer.training.saving import current_step
from kmaskformer.weights_file import save_weights
from kmaskformer.whole_files import sync

_WEIGHTS = "model.weights.h5"
_STATE = "state.npz"
_MANIFEST = "checkpoint.json"
_PARTIAL = "partial."


@dataclasses.dataclass(frozen=True)
class RunState:
    """Where a run stands.

    `step`: optimizer updates done. `epoch`: number of the current one, from 0. `batch`: batches of data used, which
    are more than the updates where loss scaling left some out.
    """

    step: int
    epoch: int
    batch: int


class RunCheckpoint(IntervalCallback):
    """Saves a checkpoint every so many updates and at the end of the run, and keeps the newest.

    After an update whose losses are not finite nothing is saved; what other callbacks add to the logs of an epoch, such
    as a score that is undefined, does not count. A checkpoint that cannot be written, on a full disk, is
    warned of and the run goes on; the one before stays.

    Args:
        folder: Folder of the checkpoints, `RUN/checkpoints`; created when missing.
        every_steps: Updates between two checkpoints; `None` for none by updates.
        every_epochs: Epochs between two checkpoints; `None` for none by epochs.
        keep: How many of the newest checkpoints stay.
        first_batch: Batches used before, where a run is resumed.

    Raises:
        ValueError: If `keep` or an interval is less than 1.
        FileExistsError: From `fit`, if the folder holds a checkpoint of a later update than the model's.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        every_steps: int | None = None,
        every_epochs: int | None = None,
        keep: int = 2,
        first_batch: int = 0,
    ) -> None:
        super().__init__(every_steps, every_epochs)
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1. Received: keep={keep}")
        self.folder = Path(folder)
        self.keep = keep
        self._batches_before = first_batch
        self._batches = first_batch
        self._losses: dict[str, Any] = {}

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._losses = {}
        for leftover in self.folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover)
        for later in list_checkpoints(self.folder):
            self._clear_later(later)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._batches_before = self._batches

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._batches = self._batches_before + batch + 1
        self._losses = dict(logs or {})
        super().on_train_batch_end(batch, logs)

    def act(self, step: int, logs: Mapping[str, Any]) -> None:
        # Not the logs of the epoch: Keras hands one dict to all callbacks, and scores that join it may be NaN.
        self.save(self._losses)

    def save(self, logs: Mapping[str, Any] | None = None) -> bool:
        """Saves now, unless the `logs` are not finite or the disk is full; returns whether it did."""
        if nonfinite_terms(logs):
            return False
        try:
            save_checkpoint(self.model, self.folder, self.epoch, self._batches)
        except OSError as error:
            left = list_checkpoints(self.folder)
            message = f"{self.folder}: the checkpoint of update {current_step(self.model)} cannot be written: {error}. "
            warnings.warn(f"{message}The newest is {left[-1].name if left else 'none'}.", RuntimeWarning, stacklevel=2)
            return False
        for old in list_checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old)
        return True

    def _clear_later(self, path: Path) -> None:
        # A later checkpoint would count as the newest for ever: a damaged one goes, a whole one is someone's work.
        if int(path.name.removeprefix("step_")) <= current_step(self.model):
            return
        if _damage(path) is None:
            raise FileExistsError(
                f"{path}: this checkpoint is of a later update than the run that starts here "
                f"({current_step(self.model)}). Resume from it, choose another folder, or delete it."
            )
        shutil.rmtree(path)


def save_checkpoint(model: keras.Model, folder: str | os.PathLike, epoch: int = 0, batch: int | None = None) -> Path:
    """Saves where the training of `model` stands.

    Args:
        model: Built and compiled model.
        folder: Folder of the checkpoints; created when missing.
        epoch: Number of the current epoch, from 0.
        batch: Batches of data used; as many as updates if not given.

    Returns:
        The folder of the new checkpoint.

    Raises:
        OSError: If it cannot be written; nothing of it is left then.
    """
    step = current_step(model)
    final = Path(folder) / f"step_{step:08d}"
    partial = final.with_name(_PARTIAL + final.name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(model, partial, RunState(step, epoch, step if batch is None else batch))
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(final.parent)
    return final


def list_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in Path(folder).glob("step_*") if path.name.removeprefix("step_").isdigit())


def latest_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The newest whole checkpoint of a folder, or `None`; a damaged one is passed over with a warning."""
    for path in reversed(list_checkpoints(folder)):
        problem = _damage(path)
        if problem is None:
            return path
        warnings.warn(f"{path}: damaged checkpoint, {problem}; the one before is used", stacklevel=2)
    return None


def restore_checkpoint(model: keras.Model, path: str | os.PathLike) -> RunState:
    """Sets weights, optimizer and random states of `model` to those of a checkpoint.

    Args:
        model: Built and compiled model, of the config that the checkpoint was made with.
        path: A checkpoint, as `latest_checkpoint` gives it.

    Returns:
        Where the run stood.

    Raises:
        ValueError: If the checkpoint is damaged or was made with another model or optimizer.
    """
    path = Path(path)
    problem = _damage(path)
    if problem is not None:
        raise ValueError(f"{path}: damaged checkpoint, {problem}. Take another one, or start the run anew.")
    if not model.built or getattr(model, "optimizer", None) is None:
        raise ValueError(f"{path}: `model` must be built and compiled before its state is restored. Received: {model}")
    optimizer, model.optimizer = model.optimizer, None  # Keras would look for its state in the weights' file
    try:
        model.load_weights(path / _WEIGHTS)
    finally:
        model.optimizer = optimizer
    with np.load(path / _STATE) as arrays:
        for kind, variables in _state_variables(model).items():
            _assign_all(path, kind, variables, [arrays[name] for name in arrays if name.startswith(f"{kind}/")])
    manifest = json.loads((path / _MANIFEST).read_text())
    return RunState(manifest["step"], manifest["epoch"], manifest.get("batch", manifest["step"]))


def _write(model: keras.Model, folder: Path, state: RunState) -> None:
    save_weights(model, folder / _WEIGHTS)
    arrays = {
        f"{kind}/{index:05d}": keras.ops.convert_to_numpy(variable)
        for kind, variables in _state_variables(model).items()
        for index, variable in enumerate(variables)
    }
    np.savez(folder / _STATE, **arrays)
    sizes = {name: (folder / name).stat().st_size for name in (_WEIGHTS, _STATE)}
    checksums = {name: _checksum(folder / name) for name in sizes}
    manifest = {**dataclasses.asdict(state), "file_sizes": sizes, "checksums": checksums}
    (folder / _MANIFEST).write_text(json.dumps(manifest))
    for name in (*sizes, _MANIFEST):
        sync(folder / name)
    sync(folder)


def _state_variables(model: keras.Model) -> dict[str, list[Any]]:
    """What the weights file leaves out: the optimizer's variables and the states of what draws random numbers."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    seeds = [variable for variable in model.variables if variable.name == "seed_generator_state"]
    points = getattr(getattr(model, "criterion", None), "seed_generator", None)
    seeds += [] if points is None else [points.state]
    return {"optimizer": list(model.optimizer.variables), "seed": seeds}


def _assign_all(path: Path, kind: str, variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    expected = [tuple(variable.shape) for variable in variables]
    received = [value.shape for value in values]
    if expected != received:
        differing = [pair for pair in zip(expected, received, strict=False) if pair[0] != pair[1]][:1]
        raise ValueError(
            f"{path / _STATE}: the {kind} state must fit the model's: expected {len(expected)} arrays, received "
            f"{len(received)}{f'; first difference {differing[0]}' if differing else ''}. "
            "Resume with the config that the run was started with."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _checksum(path: Path) -> int:
    """CRC-32 of a file's content."""
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(2**22):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or `None`."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        sizes = manifest["file_sizes"]
        cut_off = [name for name, size in sizes.items() if (path / name).stat().st_size != size]
        if cut_off:
            return f"{', '.join(cut_off)} cut off"
        # Of the right size and full of zeros: so a power cut leaves files. Older checkpoints have no checksums.
        checksums = manifest.get("checksums", {})
        changed = [name for name, checksum in checksums.items() if _checksum(path / name) != checksum]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} or a file it lists cannot be read ({error})"
    return f"the content of {', '.join(changed)} is not what was written" if changed else None
