"""Writes `official_scores.json`: what panopticapi and cityscapesScripts say of the cases in `official_cases.py`.

In an environment of its own (`pip install panopticapi-lite==0.2.0 cityscapesScripts==2.3.0`), in this folder:
`python official_tools.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import official_cases as cases
from PIL import Image

SCORES = Path(__file__).with_name("official_scores.json")


def panoptic_scores(folder: Path) -> dict:
    """Each class of an image as one segment: the PQ of semantic maps."""
    from panopticapi.evaluation import pq_compute_single_core

    annotations = []
    for number, pair in enumerate(cases.semantic_pairs()):
        entry = []
        for kind, class_map in zip(("predicted", "true"), pair, strict=True):
            (folder / kind).mkdir(exist_ok=True)
            colors = np.zeros((*class_map.shape, 3), np.uint8)
            colors[..., 0] = class_map + 1
            Image.fromarray(colors).save(folder / kind / f"{number}.png")
            present, areas = np.unique(class_map[class_map >= 0], return_counts=True)
            segments = [
                {"id": c + 1, "category_id": c, "area": area, "iscrowd": 0}
                for c, area in zip(present.tolist(), areas.tolist(), strict=True)
            ]
            entry.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
        annotations.append((entry[1], entry[0]))
    categories = {i: {"id": i, "isthing": int(i in cases.STUFF_THINGS)} for i in range(cases.STUFF_CLASSES)}
    stat = pq_compute_single_core(0, annotations, str(folder / "true"), str(folder / "predicted"), categories)
    scores = {
        name: stat.pq_average(categories, isthing=flag)[0]
        for name, flag in (("all", None), ("things", True), ("stuff", False))
    }
    counts = {i: {key: getattr(stat[i], key) for key in ("tp", "fp", "fn", "iou")} for i in categories}
    return {"averages": scores, "classes": counts}


def cityscapes_scores(folder: Path) -> dict:
    """IoU and iIoU of classes and categories."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as tool

    ids = np.array([*cases.CITYSCAPES.values(), 0])
    files: tuple[list[str], list[str]] = ([], [])
    for number, street in enumerate(cases.streets()):
        true_ids = ids[np.append(street.labels, -1)[street.segment_map]]
        # Things are 1000 times the id plus a number; groups, stuff and unlabelled pixels have the id alone.
        single = (street.labels >= cases.FIRST_THING) & ~street.is_crowd
        instances = np.where(single, ids[street.labels] * 1000 + np.arange(street.labels.size), ids[street.labels])
        stem = f"city_{number:06d}_000000"
        true_path = folder / f"{stem}_gtFine_labelIds.png"
        predicted_path = folder / f"{stem}_predicted.png"
        Image.fromarray(ids[street.predicted].astype(np.uint8)).save(predicted_path)
        Image.fromarray(true_ids.astype(np.uint8)).save(true_path)
        instance_ids = np.append(instances, 0)[street.segment_map].astype(np.uint16)
        Image.fromarray(instance_ids).save(folder / f"{stem}_gtFine_instanceIds.png")
        files[0].append(str(predicted_path))
        files[1].append(str(true_path))
    tool.args.quiet, tool.args.JSONOutput = True, False
    result = tool.evaluateImgLists(*files, tool.args)
    keys = ("classScores", "classInstScores", "categoryScores", "categoryInstScores")
    keys += ("averageScoreClasses", "averageScoreInstClasses", "averageScoreCategories", "averageScoreInstCategories")
    return {key: result[key] for key in keys}


def main() -> None:
    scores = {}
    for name, function in (("panoptic_stuff", panoptic_scores), ("cityscapes", cityscapes_scores)):
        with tempfile.TemporaryDirectory() as folder:
            scores[name] = function(Path(folder))
    text = json.dumps(scores, indent=1, default=float).replace("NaN", "null")
    SCORES.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
