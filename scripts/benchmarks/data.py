"""`benchmark.py data`: images a second of the published training recipes, beside Pillow decoding the same files.

Both take turns, image by image, so that a busy machine slows both; CPU time is what counts. Files are generated, of the
sizes of the datasets; `--images DIR` takes JPEG files of your own in place of the generated pictures.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from kmaskformer import config as configs
from kmaskformer.build_data import build_dataset
from kmaskformer.data.files import images_in
from kmaskformer.data.label_spaces import label_space
from kmaskformer.data.pipeline import Reader
from kmaskformer.data.sources import from_coco_panoptic, from_folders
from kmaskformer.data.synthetic import Shapes
from kmaskformer.data.wrapped_reader import WrappedReader
from kmaskformer.structures import Sample

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WARM_UP = 64
"""Images before measuring: each colour change is compiled for each range of sizes when it first happens."""
RECIPES = {
    # configuration, (height, width) of generated pictures, suffix
    "ade20k": ("ade20k/semantic/maskformer_resnet50.yaml", (512, 683), ".jpg"),
    "cityscapes": ("cityscapes/semantic/maskformer_resnet101.yaml", (1024, 2048), ".png"),
    "coco": ("coco/panoptic/maskformer_swin_tiny.yaml", (480, 640), ".jpg"),
}


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("data", help="training recipes against decoding alone, images a second per core")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--images", metavar="DIR", help="folder of JPEG files to use instead of generated pictures")
    parser.add_argument("--files", type=int, default=8, help="generated files per recipe")
    parser.add_argument("--rounds", type=int, default=60, help="measured images per recipe")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="run N images and watch the memory instead")
    parser.set_defaults(run=benchmark_data)


def benchmark_data(options: argparse.Namespace) -> None:
    """Measures each recipe."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    paths = images_in(Path(options.images))[: options.files] if options.images else []
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    for name in options.recipes:
        with tempfile.TemporaryDirectory() as folder:
            files, reader = write_dataset(name, Path(folder), pictures or make_pictures(name, options.files))
            overrides = ["data.batch_size=1", "data.workers=1"]
            data = configs.load_config(CONFIGS / RECIPES[name][0], overrides).data
            reader = Counted(reader)
            samples = iter(build_dataset(data, "train", reader=reader))
            if options.memory:
                watch_memory(name, samples, options.memory)
            else:
                report(name, files, samples, reader, options.rounds)
            del samples  # or it would go on reading files that are gone


class Counted(WrappedReader):
    """A reader that counts the samples read: the pipeline reads ahead of what is asked for."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self.reads = 0

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        return self._reader[index]


def report(name: str, files: list[Path], samples: Iterator, reader: Counted, rounds: int) -> None:
    """One line: CPU time per image of each, and their ratio.

    The pipeline works in threads of its own, also while this one decodes: decoding is this thread's time, and the
    recipe's is that of the whole process without it, for as many images as were read meanwhile.
    """
    for _ in range(WARM_UP):
        next(samples)
    decode(files[0])
    reads, start, decoding = reader.reads, time.process_time(), 0.0
    for number in range(rounds):
        decoding += thread_seconds(decode, files[number % len(files)])
        next(samples)
    recipe = 1000 * (time.process_time() - start - decoding) / (reader.reads - reads)
    decoding *= 1000 / rounds
    print(
        f"{name}: Pillow decodes alone {decoding:.2f} ms = {1000 / decoding:.0f} images/s; recipe {recipe:.2f} ms = "
        f"{1000 / recipe:.0f} images/s per core; ratio {decoding / recipe:.3f}",
        flush=True,
    )


def watch_memory(name: str, samples: Iterator, count: int) -> None:
    """Resident memory after each tenth of `count` images."""
    for number in range(1, count + 1):
        next(samples)
        if number % max(count // 10, 1) == 0:
            print(f"{name}: {number} images, {resident_mib():.0f} MiB", flush=True)


def resident_mib() -> float:
    """Resident memory of this process; its peak where the system does not tell the present one."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def decode(path: Path) -> None:
    Image.open(path).load()


def thread_seconds(run: Callable, *arguments: object) -> float:
    """CPU time of this thread, which other processes and threads do not lengthen much."""
    start = time.thread_time()
    run(*arguments)
    return time.thread_time() - start


def make_pictures(name: str, count: int) -> list[np.ndarray]:
    reader = Shapes(count, image_size=RECIPES[name][1], seed=7, max_objects=20)
    return [reader[index]["image"] for index in range(count)]


def write_dataset(name: str, folder: Path, pictures: list[np.ndarray]) -> tuple[list[Path], Reader]:
    """Files of pictures with labels, and their reader."""
    files = [folder / "images" / f"{number}{RECIPES[name][2]}" for number in range(len(pictures))]
    for inner in ("images", "labels"):
        (folder / inner).mkdir()
    for path, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(path, quality=90)
    if name == "coco":
        write_panoptic_labels(folder, files, pictures)
        return files, from_coco_panoptic(folder / "panoptic.json", folder / "images", folder / "labels")
    write_class_labels(folder, files, pictures)
    # Cityscapes' maps hold other ids than classes; its names alone have the ids 0 to 18.
    classes = {"ade20k": "ade20k_150", "cityscapes": label_space("cityscapes_19").class_names}[name]
    return files, from_folders(folder / "images", folder / "labels", classes=classes)


def write_class_labels(folder: Path, files: list[Path], pictures: list[np.ndarray]) -> None:
    """8-bit PNGs whose smooth regions are classes; 1 to 18 are classes of ADE20K and of Cityscapes."""
    for path, picture in zip(files, pictures, strict=True):
        label_path = folder / "labels" / f"{path.stem}.png"
        Image.fromarray(regions(picture).astype(np.uint8)).save(label_path)


def write_panoptic_labels(folder: Path, files: list[Path], pictures: list[np.ndarray]) -> None:
    """COCO's PNGs and JSON; the regions are segments."""
    annotations = []
    for number, (path, picture) in enumerate(zip(files, pictures, strict=True)):
        ids = 1000 * regions(picture).astype(np.uint32)
        name = f"{path.stem}.png"
        channels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        Image.fromarray(channels).save(folder / "labels" / name)
        segments = [{"id": int(i), "category_id": int(i) // 1000, "iscrowd": 0} for i in np.unique(ids)]
        annotations.append({"image_id": number, "file_name": name, "segments_info": segments})
    categories = [{"id": i, "name": f"class {i}", "isthing": i % 2} for i in range(1, 134)]
    images = [
        {"id": number, "file_name": path.name, "height": picture.shape[0], "width": picture.shape[1]}
        for number, (path, picture) in enumerate(zip(files, pictures, strict=True))
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))


def regions(picture: np.ndarray) -> np.ndarray:
    """`(height, width)` numbers 1..18 in regions with uneven borders, as annotators draw them."""
    small = Image.fromarray(picture).convert("L").resize((24, 18), Image.Resampling.BOX)
    smooth = np.asarray(small.resize(picture.shape[1::-1], Image.Resampling.BICUBIC))
    return 1 + smooth.astype(int) * 18 // 256
