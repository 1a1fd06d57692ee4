"""What a model costs and has learned: `python scripts/analyze_model.py --config C --tasks parameter flop`.

Tasks, the first four named as in detectron2's tool of this name:

    parameter   trainable parameters, by part
    flop        multiply-adds of one image, by part
    activation  numbers put out by convolutions and products, by part
    structure   the layers as a tree
    time        median milliseconds of a forward pass, by part, on this machine
    memory      bytes of the weights, and the peak of a forward pass, on this machine
    queries     which classes and places each query predicts, over the validation images (two pictures)
    attention   where the surest queries look in one validation image (a picture)

`parameter`, `flop`, `activation` and `structure` need no weights. Tables go to the screen, and with `--output` to
`analysis.json`; pictures go to `--output`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

from kmaskformer import build, build_data, trained_run
from kmaskformer.analysis import cost, parts
from kmaskformer.command_line.command import add_overrides, one_line_errors
from kmaskformer.config import Config, load_config
from kmaskformer.extras import require_extra

TASKS = ("parameter", "flop", "activation", "structure", "time", "memory", "queries", "attention")
PICTURES = ("queries", "attention")


def main() -> None:
    """Parse the arguments, analyze, print."""
    options = _parse()
    with one_line_errors(TypeError):
        if set(options.tasks) & set(PICTURES):
            require_extra("plots", "matplotlib", "Drawing pictures")
        _analyze(options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    add_overrides(parser)
    parser.add_argument("--weights", help=".keras or .weights.h5 file, or a run's folder; random weights if left out")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["parameter", "flop"], metavar="TASK")
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="crop of the recipe by default")
    parser.add_argument("--batch", type=int, default=1, help="images of a forward pass")
    parser.add_argument("--depth", type=int, default=1, help="how many levels of layers the tables show")
    parser.add_argument(
        "--all-layers", action="store_true", help="count the masks of every decoder layer, as in training"
    )
    parser.add_argument("--images", type=int, default=100, help="validation images for the task queries")
    parser.add_argument("--image", type=int, default=0, help="number of the validation image for the task attention")
    parser.add_argument("--output", type=Path, help="folder for analysis.json and pictures; created")
    options = parser.parse_args()
    for name in ("size", "batch", "images"):
        values = getattr(options, name)
        if values is not None and min(values if name == "size" else [values]) < 1:
            parser.error(f"--{name} must be positive. Received: {values}")
    if set(options.tasks) & set(PICTURES) and options.output is None:
        parser.error("the tasks queries and attention draw pictures: give --output")
    return options


def _analyze(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.set)
    size = tuple(options.size or config.data.augmentation.crop or (512, 512))
    model = _load(options, config)
    found: dict[str, Any] = {"config": options.config, "size": list(size), "batch": options.batch}
    # Memory first: of a process' peak, only what exceeds the earlier one is seen.
    for task in sorted(options.tasks, key=lambda name: name != "memory"):
        found[task] = _RUNNERS[task](model, config, size, options)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "analysis.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _load(options: argparse.Namespace, config: Config) -> keras.Model:
    pictures = [task for task in PICTURES if task in options.tasks]
    if pictures and not (options.weights or config.model.weights):
        raise ValueError(f"The task {pictures[0]} shows what a model has learned: give --weights.")
    if options.weights:
        model = trained_run.load_model(options.weights, config)
    elif pictures or {"time", "memory"} & set(options.tasks):
        model = build.build_model(config.model)
    else:
        with keras.StatelessScope(initialize_variables=False):  # counting needs no values of weights
            model = build.build_model(config.model)
    if not options.all_layers and hasattr(model, "deep_supervision"):
        model.deep_supervision = False
    return model


def _parameters(model: Any, config: Config, size: tuple[int, int], options: argparse.Namespace) -> dict[str, int]:
    counts = parts.at_depth(parts.count_parameters(model), options.depth)
    _print_table("trainable parameters", counts, "{:,}")
    return counts


def _flops(model: Any, config: Config, size: tuple[int, int], options: argparse.Namespace) -> dict[str, int]:
    counts = parts.at_depth(cost.count_cost(model, size, options.batch).multiply_adds, options.depth)
    _print_table(f"multiply-adds at {size[0]}x{size[1]}, 10^9", counts, "{:.2f}", 1e9)
    return counts


def _activations(model: Any, config: Config, size: tuple[int, int], options: argparse.Namespace) -> dict[str, int]:
    counts = parts.at_depth(cost.count_cost(model, size, options.batch).activations, options.depth)
    _print_table(f"activations at {size[0]}x{size[1]}, 10^6", counts, "{:.2f}", 1e6)
    return counts


def _structure(model: Any, config: Config, size: tuple[int, int], options: argparse.Namespace) -> str:
    text = parts.structure(model)
    print(text)
    return text


def _time(model: Any, config: Config, size: tuple[int, int], options: argparse.Namespace) -> dict[str, float]:
    from kmaskformer.analysis.resources import time_parts

    seconds = time_parts(model, size, options.batch)
    _print_table(f"milliseconds at {size[0]}x{size[1]}", seconds, "{:.1f}", 1e-3)
    return seconds


def _memory(model: Any, config: Config, size: tuple[int, int], options: argparse.Namespace) -> dict[str, int]:
    from kmaskformer.analysis.resources import measure_memory

    found = measure_memory(model, size, options.batch)
    _print_table(f"MiB at {size[0]}x{size[1]}", found, "{:.1f}", 2**20)
    return found


def _queries(model: Any, config: Config, size: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    from kmaskformer.analysis import pictures
    from kmaskformer.analysis.queries import query_statistics

    reader = build_data.build_reader(config.data, "val")
    count = min(options.images, len(reader))
    statistics = query_statistics(model, (reader[index]["image"] for index in range(count)))
    _save(pictures.draw_classes(statistics, reader.info), options.output / "queries_classes.png")
    _save(pictures.draw_positions(statistics, reader.info), options.output / "queries_positions.png")
    used = int((statistics.num_predictions > 0).sum())
    print(f"{used} of {len(statistics.num_predictions)} queries predict something in {count} images")
    return {"images": count, "used": used, "class_counts": statistics.class_counts.tolist()}


def _attention(model: Any, config: Config, size: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    from kmaskformer.analysis import pictures

    reader = build_data.build_reader(config.data, "val")
    if not 0 <= options.image < len(reader):
        raise ValueError(
            f"--image must be a number 0..{len(reader) - 1} of a validation image. Received: {options.image}"
        )
    sample = reader[options.image]
    _save(pictures.draw_attention(model, sample["image"], reader.info), options.output / "attention.png")
    return {"image": str(sample["image_id"])}


_RUNNERS: dict[str, Callable[..., Any]] = {
    "parameter": _parameters,
    "flop": _flops,
    "activation": _activations,
    "structure": _structure,
    "time": _time,
    "memory": _memory,
    "queries": _queries,
    "attention": _attention,
}


def _print_table(title: str, rows: dict[str, Any], style: str, unit: float | None = None) -> None:
    texts = {name: style.format(value / unit if unit else value) for name, value in rows.items()}
    width = max(len(name) for name in texts)
    print(f"\n{title}")
    for name, text in texts.items():
        print(f"  {name:<{width}}  {text:>14}")


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(path)


if __name__ == "__main__":
    main()
