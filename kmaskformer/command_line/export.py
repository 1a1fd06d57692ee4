"""`kmaskformer export`, `scripts/export.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kmaskformer.command_line.command import make_parser, one_line_errors
from kmaskformer.command_line.weights import WEIGHTS_HELP, add_result_options, open_segmenter
from kmaskformer.config import Config
from kmaskformer.segmenter import Segmenter, check_edges

DESCRIPTION = """\
Write a trained model with everything around it, with the task, sizes and thresholds that its run was evaluated with.

  saved_model  a folder for TensorFlow, TensorFlow Serving and `kmaskformer serve`: takes images of any size, or their
               files, and gives maps and segment tables at the images' own size
  onnx         one file for onnxruntime, for any batch and image size; resize images before (extra `onnx`)
  litert       one file for LiteRT (TensorFlow Lite), for one image size"""

EXAMPLES = """\
  kmaskformer export --weights runs/fields --output out/saved_model --task panoptic
  kmaskformer export --weights runs/fields --output out/map --task semantic --outputs class_map --dtype bfloat16
  kmaskformer export --weights runs/fields --output out/model.onnx --format onnx --task semantic
  kmaskformer export --weights runs/fields --output out/model.tflite --format litert --task semantic \\
      --image-size 512 512 --quantization dynamic"""

SAVED_MODEL_OPTIONS = ("shortest_edge", "longest_edge", "outputs", "dtype", "license")
LITERT_OPTIONS = ("image_size", "quantization")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and export."""
    options = _parse(arguments)
    with one_line_errors():
        print(f"written: {WRITERS[options.format](options)}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("export", DESCRIPTION, EXAMPLES)
    parser.add_argument("--weights", required=True, help=WEIGHTS_HELP)
    parser.add_argument("--output", required=True, help="folder of the SavedModel, or path of the file")
    parser.add_argument("--format", default="saved_model", choices=tuple(WRITERS))
    add_result_options(parser, "panoptic")
    parser.add_argument("--shortest-edge", type=int, help="shorter side to resize to (SavedModel); 0 for none")
    parser.add_argument("--longest-edge", type=int, help="bound of the longer side (SavedModel); 0 for none")
    parser.add_argument("--outputs", nargs="+", help="names of the outputs to keep (SavedModel); all by default")
    parser.add_argument("--dtype", help="float32, bfloat16 or mixed_bfloat16 (SavedModel); the model's by default")
    parser.add_argument("--license", help="licence of the weights, for the metadata (SavedModel)")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the images (LiteRT)")
    parser.add_argument("--quantization", choices=("none", "dynamic"), help="dynamic: weights in int8 (LiteRT)")
    return parser.parse_args(arguments)


def _write_saved_model(options: argparse.Namespace) -> Path:
    from kmaskformer.export.saved_model import export_segmenter

    _refuse(options, LITERT_OPTIONS, "litert")
    segmenter, config = _open(options)
    for name in ("shortest_edge", "longest_edge"):
        if getattr(options, name) is not None:
            setattr(segmenter, name, getattr(options, name) or None)
    check_edges(segmenter.shortest_edge, segmenter.longest_edge)
    chosen = {name: getattr(options, name) for name in ("outputs", "dtype", "license")}
    return export_segmenter(segmenter, options.output, config=config, **chosen)


def _write_onnx(options: argparse.Namespace) -> Path:
    from kmaskformer.export.onnx import export_onnx

    _refuse(options, SAVED_MODEL_OPTIONS, "saved_model")
    _refuse(options, LITERT_OPTIONS, "litert")
    segmenter, _ = _open(options)
    return export_onnx(segmenter.model, options.output, **_postprocessing(segmenter))


def _write_litert(options: argparse.Namespace) -> Path:
    from kmaskformer.export.litert import export_litert

    _refuse(options, SAVED_MODEL_OPTIONS, "saved_model")
    if options.image_size is None:
        raise ValueError("--format litert needs --image-size HEIGHT WIDTH: the file is for images of one size")
    segmenter, _ = _open(options)
    quantization = options.quantization or "none"
    return export_litert(
        segmenter.model,
        options.output,
        tuple(options.image_size),
        quantization=quantization,
        **_postprocessing(segmenter),
    )


def _open(options: argparse.Namespace) -> tuple[Segmenter, Config | None]:
    segmenter, config = open_segmenter(options.weights, options)
    if segmenter.tiling is not None:
        size = segmenter.tiling.size
        print(
            f"note: the run was evaluated in tiles of {size} x {size} pixels. The export sees whole what it is given: "
            "cut large images up before you send them.",
            file=sys.stderr,
        )
        segmenter.tiling = None
    return segmenter, config


def _refuse(options: argparse.Namespace, names: Sequence[str], only_for: str) -> None:
    """Fails for options that would have no effect."""
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    if given:
        hint = "" if only_for == "litert" else " Other formats take resized images and return everything."
        raise ValueError(f"{', '.join(given)}: for --format {only_for} only.{hint}")


def _postprocessing(segmenter: Segmenter) -> dict[str, Any]:
    """A segmenter's task, label space and rules, as the converters take them."""
    post = segmenter.postprocess
    names = ("inference", "object_mask_threshold", "overlap_threshold", "score_threshold", "before_inference")
    rules = {name: getattr(post, name) for name in names}
    return {"task": segmenter.task, "dataset_info": segmenter.info, **rules}


WRITERS = {"saved_model": _write_saved_model, "onnx": _write_onnx, "litert": _write_litert}
