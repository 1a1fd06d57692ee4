"""Does a long run leak or slow down? `python scripts/soak.py --steps 2000 --output soak.png`.

Trains a tiny model on generated scenes with the real pipeline, callbacks and checkpoints, and records the process's
memory and the time of every step. Exits with status 1 where memory grew by more than 5 % between the first fifth and
the end, or the last fifth's median step was more than 20 % slower than the second fifth's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
from benchmarks.side import resident

from kmaskformer import build, build_data
from kmaskformer.command_line.command import one_line_errors
from kmaskformer.config import Config, load_config
from kmaskformer.extras import require_extra
from kmaskformer.training.callbacks import TrainingLog
from kmaskformer.training.checkpoint import RunCheckpoint
from kmaskformer.training.nonfinite import WatchForNonFinite
from kmaskformer.training.run_log import RunLog

CONFIG = Path(__file__).resolve().parents[1] / "configs/shapes/panoptic/maskformer_resnet18.yaml"
TINY = [
    "model.transformer_decoder={num_queries: 6, hidden_dim: 32, num_heads: 2, feedforward_dim: 32, decoder_layers: 2}",
    "model.pixel_decoder={conv_dim: 32, mask_dim: 32}",
    "data.image_size=[64, 64]",
    "data.augmentation={crop: [64, 64]}",
    "data.train={count: 64, seed: 0}",
    "data.batch_size=2",
    "optimizer.schedule={total_steps: 100000}",
]


class Recorder(keras.callbacks.Callback):
    """Memory in MiB and seconds of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[float] = []
        self.seconds: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.seconds.append(time.perf_counter() - self._start)
        self.memory.append(resident("VmRSS") / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="5 or more, as fifths are compared")
    parser.add_argument("--output", help="PNG of both curves")
    options = parser.parse_args()
    if options.steps < 5:
        parser.error(f"--steps must be 5 or more, as fifths are compared. Received: {options.steps}")
    if options.output:
        with one_line_errors():
            require_extra("plots", "matplotlib", "--output")
            Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    recorder = run(load_config(CONFIG, TINY), options.steps)
    if options.output:
        draw(recorder, options.output)
    sys.exit(verdict(recorder))


def run(config: Config, steps: int) -> Recorder:
    keras.utils.set_random_seed(0)
    model = build.build_model(config.model)
    model.compile(build.build_optimizer(config.optimizer), build.build_criterion(config.loss))
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = RunCheckpoint(Path(folder) / "checkpoints", every_steps=max(1, steps // 20))
        callbacks = [recorder, WatchForNonFinite(folder=folder), TrainingLog(RunLog(folder)), checkpoints]
        dataset = build_data.build_dataset(config.data, "train")
        model.fit(dataset, steps_per_epoch=steps, verbose=2, shuffle=False, callbacks=callbacks)
    return recorder


def verdict(recorder: Recorder) -> int:
    """Prints both comparisons; 1 if one of them is not good."""
    fifth = len(recorder.memory) // 5
    first, last = max(recorder.memory[:fifth]), recorder.memory[-1]
    early, late = (statistics.median(part) for part in (recorder.seconds[fifth : 2 * fifth], recorder.seconds[-fifth:]))
    growth, delay = last / first - 1, late / early - 1
    print(f"memory: {first:.0f} MiB at most in the first {fifth} steps, {last:.0f} MiB at the end ({growth:+.1%})")
    print(f"median step: {1000 * early:.0f} ms in the second fifth, {1000 * late:.0f} ms in the last ({delay:+.0%})")
    return int(growth > 0.05 or delay > 0.2)


def draw(recorder: Recorder, path: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
    axes[0].plot(recorder.memory)
    axes[0].set(xlabel="step", ylabel="resident memory, MiB", ylim=(0, 1.2 * max(recorder.memory)))
    axes[1].plot([1000 * seconds for seconds in recorder.seconds], ".", markersize=2)
    axes[1].set(xlabel="step", ylabel="ms a step", ylim=(0, 3000 * statistics.median(recorder.seconds)))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
