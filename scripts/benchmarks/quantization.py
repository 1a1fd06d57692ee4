"""`benchmark.py quantization --weights RUN`: what int8 weights cost in mIoU, on the run's validation images.

A LiteRT file takes images of one size: they are resized to it, and the class maps back to the images' own size, for the
float and the int8 file alike. Times are those of two threads, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from kmaskformer import build_data, trained_run
from kmaskformer.command_line.command import add_overrides
from kmaskformer.config import load_config
from kmaskformer.evaluation.evaluator import SemanticEvaluator, Truth
from kmaskformer.export.litert import QUANTIZATIONS, export_litert


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `quantization` to the command line."""
    parser = commands.add_parser("quantization", help="mIoU, size and time of LiteRT files in float and in int8")
    parser.add_argument("--weights", required=True, help="a run's folder, or weights with its config.yaml beside")
    add_overrides(parser, "override a field of its configuration")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: the first's")
    parser.add_argument("--images", type=int, help="number of validation images; all by default")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints a line for each file, and what they have in common."""
    weights = Path(options.weights)
    config = load_config((weights if weights.is_dir() else weights.parent) / trained_run.CONFIG_FILE, options.set)
    reader = build_data.build_reader(config.data, "val")
    size = tuple(options.image_size or reader[0]["image"].shape[:2])
    model = trained_run.load_model(weights, config, reader.info)
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"{kind}.tflite" for kind in QUANTIZATIONS}
        files = {kind: _Segmenter(export_litert(model, path, size, quantization=kind)) for kind, path in paths.items()}
        megabytes = {kind: path.stat().st_size / 2**20 for kind, path in paths.items()}
    evaluators = {kind: SemanticEvaluator() for kind in files}
    for evaluator in evaluators.values():
        evaluator.bind(reader.info)
    equal = []
    for index in tqdm(range(min(options.images or len(reader), len(reader))), unit="image"):
        sample = reader[index]
        maps = {kind: segment(sample["image"], size) for kind, segment in files.items()}
        equal.append(np.mean(maps["none"] == maps["dynamic"]))
        for kind, evaluator in evaluators.items():
            evaluator.update({"class_map": maps[kind]}, Truth.of_sample(sample))
    for kind, segment in files.items():
        score = evaluators[kind].result()["semantic/mIoU"]
        print(f"{kind:8} mIoU {score:.4f}   {megabytes[kind]:6.1f} MiB   {segment.milliseconds():8.1f} ms an image")
    print(f"{len(equal)} images of {size[0]} x {size[1]}: {np.mean(equal):.2%} of their pixels have the same class")


class _Segmenter:
    """A LiteRT file that segments images of any size, and remembers how long it took."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._run: Callable = Interpreter(model_content=path.read_bytes(), num_threads=2).get_signature_runner()
        self._seconds: list[float] = []

    def __call__(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        start = time.perf_counter()
        class_map = self._run(images=np.asarray(resized)[None])["class_map"][0]
        self._seconds.append(time.perf_counter() - start)
        back = Image.fromarray(class_map).resize(image.shape[1::-1], Image.Resampling.NEAREST)
        return np.asarray(back)

    def milliseconds(self) -> float:
        return 1000 * statistics.median(self._seconds)
