"""`kmaskformer predict`, `scripts/predict.py`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kmaskformer.command_line.command import make_parser, one_line_errors
from kmaskformer.command_line.inputs import is_video, list_inputs, result_names
from kmaskformer.command_line.video import VideoFrames, VideoWriter, import_av
from kmaskformer.command_line.weights import WEIGHTS_HELP, add_result_options, open_segmenter
from kmaskformer.evaluation.prediction_files import PredictionFiles
from kmaskformer.segmenter import Segmenter

DESCRIPTION = """\
Segment images and videos. Of each image NAME the output folder gets

  NAME_overlay.png        the image with its segments drawn over it
  NAME_segmentation.png   the number of each pixel's segment
  NAME.json               the table of segments: class, score, area and box of each number

and for all images together what the official tools and scripts/evaluate_files.py read, with the dataset's own class
ids: by task panoptic.json with panoptic/*.png (COCO panoptic), instances.json (COCO results), or labels/*.png.
Of a video it gets NAME_overlay.mp4 and NAME.jsonl, one table of segments a line (extra `video`).
A file that cannot be read is reported and left out; the exit status is then 1."""

EXAMPLES = """\
  kmaskformer predict --weights runs/fields --input field.jpg --output out --task semantic
  kmaskformer predict --weights runs/fields --input photos/ 'more/**/*.png' --output out --task panoptic
  kmaskformer predict --weights maskformer_swin_tiny_ade20k150 --input drive.mp4 --output out --frame-step 5"""

RESERVED = ("panoptic", "instances")
"""Stems of the files that cover all images."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and segment; the exit status is 1 if a file could not be read."""
    parser = make_parser("predict", DESCRIPTION, EXAMPLES)
    parser.add_argument("--weights", required=True, help=WEIGHTS_HELP)
    parser.add_argument(
        "--input", required=True, nargs="+", help="image or video files, folders of them, or patterns in quotes"
    )
    parser.add_argument("--output", required=True, help="folder for the results; created")
    add_result_options(parser, "semantic")
    parser.add_argument(
        "--format",
        default="all",
        choices=("pictures", "dataset", "all"),
        help="pictures: the three files of each image; dataset: those of the official tools; all, the default: both",
    )
    parser.add_argument("--frame-step", type=int, default=1, metavar="N", help="segment every N-th frame of videos")
    options = parser.parse_args(arguments)
    if options.frame_step < 1:
        parser.error(f"--frame-step must be 1 or more. Received: {options.frame_step}")
    with one_line_errors():
        return _predict(options)


def _predict(options: argparse.Namespace) -> int:
    output = Path(options.output)
    _check_output(output, options.input)
    paths = list_inputs(options.input, output)
    if any(map(is_video, paths)):
        import_av()
    segmenter, _ = open_segmenter(options.weights, options)
    results = Results(segmenter, output, options.format)
    failed = 0
    for path, name in tqdm(list(zip(paths, result_names(paths, RESERVED), strict=True)), unit="file"):
        try:
            if is_video(path):
                results.add_video(name, VideoFrames(path, options.frame_step))
            else:
                results.add_image(name, path)
        except (ValueError, OSError) as error:  # one that cannot be read does not stop the others
            tqdm.write(f"left out: {error}", file=sys.stderr)
            failed += 1
    print(f"{len(paths) - failed} of {len(paths)} files segmented; results in {output}")
    results.save()
    return 1 if failed else 0


class Results:
    """Segments files and writes what is known of each.

    Args:
        segmenter: What segments them.
        output: Folder to write into; made.
        format: `"pictures"`, `"dataset"` or `"all"`.
    """

    def __init__(self, segmenter: Segmenter, output: Path, format: str) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self._segmenter = segmenter
        self._output = output
        self._pictures = format != "dataset"
        self._files = None if format == "pictures" else PredictionFiles(output, segmenter.task, segmenter.info)

    def add_image(self, name: str, path: Path) -> None:
        result = self._segmenter(path)
        if self._files is not None:
            self._files.add(name, result)
        if self._pictures:
            result.save(self._output, name)

    def add_video(self, name: str, frames: VideoFrames) -> None:
        """Overlays as a video, tables of segments as lines of JSON, and of each frame the files of the dataset."""
        with contextlib.ExitStack() as stack:
            video = tables = None
            if self._pictures:
                video = stack.enter_context(VideoWriter(self._output / f"{name}_overlay.mp4", frames.rate))
                tables = stack.enter_context((self._output / f"{name}.jsonl").open("w", encoding="utf-8"))
            for number, (seconds, image) in enumerate(tqdm(frames, name, frames.count, leave=False, unit="frame")):
                result, frame = self._segmenter(image), number * frames.step
                if self._files is not None:
                    self._files.add(f"{name}_{frame:06d}", result)
                if self._pictures:
                    video.add(np.asarray(result.overlay().convert("RGB")))
                    table = {"frame": frame, "seconds": round(seconds, 6), "segments": result.segments}
                    tables.write(json.dumps(table) + "\n")

    def save(self) -> None:
        if self._files is not None:
            print(f"For evaluate_files.py: {self._files.save()}")


def _check_output(output: Path, sources: Sequence[str]) -> None:
    if any(output.resolve() == Path(source).resolve() for source in sources):
        raise ValueError("--output must be another folder than --input, or results would be taken for images")
