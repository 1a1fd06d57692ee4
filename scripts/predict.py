"""Segment images: `python scripts/predict.py --weights runs/x --input street.jpg --output out --task panoptic`."""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from kmaskformer import experiment


def main() -> None:
    """Parse the arguments and segment; the exit status is 1 if an image could not be read."""
    parser = argparse.ArgumentParser(description="Segment images; writes overlay, map and segment table for each.")
    parser.add_argument("--weights", required=True, help=".keras or .weights.h5 file, or a run's folder")
    parser.add_argument("--input", required=True, help="image file, or folder of images")
    parser.add_argument("--output", required=True, help="folder for the results; created")
    parser.add_argument("--task", default="semantic", choices=("semantic", "instance", "panoptic"))
    parser.add_argument("--inference", default="default", choices=("default", "general"))
    arguments = parser.parse_args()
    images = _list_images(Path(arguments.input))
    if Path(arguments.output).resolve() == Path(arguments.input).resolve():
        sys.exit("--output must be another folder than --input, or results would be taken for images")
    model = experiment.load_model(arguments.weights)
    config = experiment.run_config(arguments.weights)
    segmenter = experiment.build_segmenter(model, config, arguments.task, arguments.inference)
    stems = collections.Counter(path.stem for path in images)
    failed = []
    for path in tqdm(images, unit="image"):
        name = path.stem if stems[path.stem] == 1 else path.name
        if not _segment(segmenter, path, Path(arguments.output), name):
            failed.append(path)
    print(f"{len(images) - len(failed)} of {len(images)} images segmented; results in {arguments.output}")
    sys.exit(1 if failed else 0)


def _segment(segmenter: object, path: Path, output: Path, name: str) -> bool:
    """Segment one image; one that cannot be read is reported and does not stop the others."""
    try:
        result = segmenter(path)
    except ValueError as error:
        print(error, file=sys.stderr)
        return False
    result.save(output, name)
    return True


def _list_images(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    suffixes = Image.registered_extensions()
    images = sorted(file for file in path.glob("*") if file.suffix.lower() in suffixes) if path.is_dir() else []
    if not images:
        sys.exit(f"{path}: no image file, and no folder that holds any")
    return images


if __name__ == "__main__":
    main()
