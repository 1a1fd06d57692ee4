"""Convert a published dataset's download where the recipes need it, and check the result.

    python scripts/prepare_dataset.py ade20k_full --source ADE20K_2021_17_01 --output datasets/ade20k_full
    python scripts/prepare_dataset.py ade20k_panoptic --source ADEChallengeData2016 --output ADEChallengeData2016
    python scripts/prepare_dataset.py coco_stuff --source cocostuff-10k-v1.1 --output datasets/coco_stuff_10k
    python scripts/prepare_dataset.py cityscapes --source datasets/cityscapes

The other datasets are read as their downloads unpack, and are only checked: every image and label is read. An
interrupted conversion goes on where it was. The exit status is 1 if a file cannot be used, and each such file is named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kmaskformer.command_line.command import one_line_errors
from kmaskformer.data.preparation.datasets import DATASETS, check_splits, convert


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=DATASETS, metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--source", type=Path, required=True, help="folder that the download unpacked to")
    parser.add_argument("--output", type=Path, help="folder of the result; not for datasets that are only checked")
    parser.add_argument("--workers", type=int, default=0, help="images at a time; by default one per processor")
    parser.add_argument("--no-check", action="store_true", help="do not read the result after the conversion")
    options = parser.parse_args(arguments)
    if not options.source.is_dir():
        parser.error(f"--source must be an existing folder. Received: {options.source}")
    converts = DATASETS[options.name].tasks is not None
    if converts and options.output is None:
        parser.error(f"{options.name} is converted: give the folder of the result as --output")
    if not converts and options.output not in (None, options.source):
        parser.error(f"{options.name} is read as it was downloaded: leave --output out, and use --source as data.root")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    dataset, folder = DATASETS[options.name], options.output or options.source
    with one_line_errors():
        failures = convert(dataset, options.source, folder, options.workers)
        for failure in failures:
            print(f"not converted: {failure.name}: {failure.reason}")
        reports = [] if options.no_check else check_splits(dataset, folder, options.workers)
    for report in reports:
        print(report)
    print(f"Train with --set data.root={folder}")
    return int(bool(failures) or not all(report.is_usable for report in reports))


if __name__ == "__main__":
    sys.exit(main())
