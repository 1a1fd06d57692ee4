"""Segment images: `python scripts/predict.py --weights runs/x --input street.jpg --output out --task panoptic`."""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from kmaskformer import experiment
from kmaskformer.evaluation.prediction_files import PredictionFiles


def main() -> None:
    """Parse the arguments and segment; the exit status is 1 if an image could not be read."""
    parser = argparse.ArgumentParser(description="Segment images; writes overlay, map and segment table for each.")
    parser.add_argument("--weights", required=True, help=".keras or .weights.h5 file, or a run's folder")
    parser.add_argument("--input", required=True, help="image file, or folder of images")
    parser.add_argument("--output", required=True, help="folder for the results; created")
    parser.add_argument("--task", default="semantic", choices=("semantic", "instance", "panoptic"))
    parser.add_argument("--inference", default="default", choices=("default", "general"))
    parser.add_argument(
        "--format",
        default="pictures",
        choices=("pictures", "dataset", "all"),
        help="pictures: overlay, map and table of each image; dataset: the files of the official tools and of "
        "evaluate_files.py (COCO JSON, label PNGs)",
    )
    arguments = parser.parse_args()
    try:
        sys.exit(_predict(arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _predict(arguments: argparse.Namespace) -> int:
    images = _list_images(Path(arguments.input))
    output = Path(arguments.output)
    if output.resolve() == Path(arguments.input).resolve():
        raise ValueError("--output must be another folder than --input, or results would be taken for images")
    model = experiment.load_model(arguments.weights)
    config = experiment.run_config(arguments.weights)
    segmenter = experiment.build_segmenter(model, config, arguments.task, arguments.inference)
    files = PredictionFiles(output, arguments.task, segmenter.info) if arguments.format != "pictures" else None
    failed = 0
    for path, name in tqdm(_named(images), unit="image"):
        try:
            result = segmenter(path)
        except ValueError as error:  # one that cannot be read does not stop the others
            print(error, file=sys.stderr)
            failed += 1
            continue
        if files is not None:
            files.add(name, result)
        if arguments.format != "dataset":
            result.save(output, name)
    print(f"{len(images) - failed} of {len(images)} images segmented; results in {output}")
    if files is not None:
        print(f"For evaluate_files.py: {files.save()}")
    return 1 if failed else 0


def _named(images: list[Path]) -> list[tuple[Path, str]]:
    """Each image with the name of its results: its stem, or its whole name where two have the same stem."""
    stems = collections.Counter(path.stem for path in images)
    return [(path, path.stem if stems[path.stem] == 1 else path.name) for path in images]


def _list_images(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    suffixes = Image.registered_extensions()
    images = sorted(file for file in path.glob("*") if file.suffix.lower() in suffixes) if path.is_dir() else []
    if not images:
        raise FileNotFoundError(f"{path}: no image file, and no folder that holds any")
    return images


if __name__ == "__main__":
    main()
