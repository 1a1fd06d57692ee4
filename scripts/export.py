"""Export a model: `python scripts/export.py --weights runs/x --output out/saved_model --task panoptic`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kmaskformer import experiment
from kmaskformer.segmenter import Segmenter


def main() -> None:
    """Parse the arguments and export."""
    parser = argparse.ArgumentParser(
        description="Write a trained model as a TensorFlow SavedModel or an ONNX file, with the sizes and thresholds "
        "that its run was evaluated with."
    )
    parser.add_argument("--weights", required=True, help=".keras or .weights.h5 file, or a run's folder")
    parser.add_argument("--output", required=True, help="folder of the SavedModel, or path of the .onnx file")
    parser.add_argument("--format", default="saved_model", choices=("saved_model", "onnx"))
    parser.add_argument("--task", default="panoptic", choices=("semantic", "instance", "panoptic"))
    parser.add_argument("--inference", default="default", choices=("default", "general"))
    parser.add_argument("--shortest-edge", type=int, help="resize to this; 0 for images as they are")
    parser.add_argument("--longest-edge", type=int, help="bound of the longer side; 0 for none")
    parser.add_argument("--outputs", nargs="+", help="names of the outputs to keep (SavedModel); all by default")
    parser.add_argument("--dtype", help="float32, bfloat16 or mixed_bfloat16 (SavedModel); the model's by default")
    parser.add_argument("--license", help="licence of the weights, for the metadata")
    arguments = parser.parse_args()
    try:
        print(f"written: {_export(arguments)}")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def _export(arguments: argparse.Namespace) -> Path:
    model = experiment.load_model(arguments.weights)
    config = experiment.run_config(arguments.weights)
    segmenter = experiment.build_segmenter(model, config, arguments.task, arguments.inference)
    if arguments.format == "onnx":
        return _export_onnx(segmenter, arguments)
    from kmaskformer.export.saved_model import export_segmenter

    for name in ("shortest_edge", "longest_edge"):
        if getattr(arguments, name) is not None:
            setattr(segmenter, name, getattr(arguments, name) or None)
    options = {name: getattr(arguments, name) for name in ("outputs", "dtype", "license")}
    return export_segmenter(segmenter, arguments.output, config=config, **options)


def _export_onnx(segmenter: Segmenter, arguments: argparse.Namespace) -> Path:
    names = ("shortest_edge", "longest_edge", "outputs", "dtype", "license")
    unsupported = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]
    if unsupported:
        raise ValueError(
            f"{', '.join(unsupported)}: for --format saved_model only. An ONNX model takes resized images."
        )
    from kmaskformer.export.onnx import export_onnx

    post = segmenter.postprocess
    thresholds = (post.object_mask_threshold, post.overlap_threshold, post.score_threshold)
    options = dict(zip(("object_mask_threshold", "overlap_threshold", "score_threshold"), thresholds, strict=True))
    options |= {"inference": post.inference, "before_inference": post.before_inference}
    return export_onnx(segmenter.model, arguments.output, task=arguments.task, dataset_info=segmenter.info, **options)


if __name__ == "__main__":
    main()
