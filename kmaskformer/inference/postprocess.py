"""One callable from a model's outputs to the result of a task, for the segmenter, the evaluation and exports."""

from __future__ import annotations

import dataclasses
from typing import Any

from kmaskformer.inference.general import general_instances, general_semantic
from kmaskformer.inference.instance import instance_inference
from kmaskformer.inference.pairs import best_classes, select_queries
from kmaskformer.inference.panoptic import panoptic_inference
from kmaskformer.inference.restore import Size, restore_mask_logits, restore_pixel_logits
from kmaskformer.inference.semantic import pixel_map, semantic_inference, semantic_map
from kmaskformer.inference.strips import mean_semantic_map, pixel_view, semantic_map_in_strips
from kmaskformer.structures import TASKS

INFERENCES = ("default", "general")


@dataclasses.dataclass(frozen=True)
class Postprocess:
    """Turns model outputs into semantic, instance or panoptic results at the output size, in graph and batched.

    Args:
        task: `"semantic"`, `"instance"` or `"panoptic"`.
        inference: `"default"`, each task's own rule, or `"general"`, the paper's one rule for all.
        thing_ids: Contiguous ids of the thing classes; stuff classes give no instances.
        object_mask_threshold: A pair's score must be greater to take part in panoptic or general inference. None:
            0.8 for default inference, no filter for general inference.
        overlap_threshold: A segment must keep at least this part of its own mask. None: as above.
        score_threshold: Least score of an instance.
        before_inference: Whether default semantic inference restores the mask logits rather than the class scores.
        strip_bytes: Memory for the class scores of default semantic inference, which then is for one image at a time;
            see `semantic_map_in_strips`. None: as much as all scores need.
        drop_queries: Enlarge only the masks that can show in the result. For one image at a time, not under XLA.

    Raises:
        ValueError: If the task, the kind of inference or a threshold is none that exists.
    """

    task: str = "semantic"
    inference: str = "default"
    thing_ids: tuple[int, ...] = ()
    object_mask_threshold: float | None = None
    overlap_threshold: float | None = None
    score_threshold: float = 0.5
    before_inference: bool = False
    strip_bytes: int | None = None
    drop_queries: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("task", TASKS), ("inference", INFERENCES)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}. Received: {name}={value!r}")
        for name in ("object_mask_threshold", "overlap_threshold", "score_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"`{name}` must lie in 0..1. Received: {name}={value}")

    def __call__(
        self, outputs: dict[str, Any], padded_size: Size, image_size: Size, output_size: Size
    ) -> dict[str, Any]:
        """The result of every image of a batch whose images have one size.

        Args:
            outputs: What the model returned: `ModelOutputs`, or `{"logits": ...}` of a per-pixel model.
            padded_size: Size of the input after padding; `model.padded_size(height, width)`.
            image_size: Size of the images that went into the model.
            output_size: Size wanted.

        Returns:
            Semantic: `class_map` `(batch, height, width)` int32 and `confidence` of the same shape, 0..1. Instance and
            panoptic: see `instance_inference` and `panoptic_inference`.

        Raises:
            ValueError: If a per-pixel model is asked for instance or panoptic results.
        """
        if "logits" in outputs:
            return self._pixel_results(outputs["logits"], image_size, output_size)
        class_logits, mask_logits = outputs["class_logits"], outputs["mask_logits"]
        if self.task == "semantic" and self.inference == "default":
            sizes = (padded_size, image_size, output_size)
            if self.strip_bytes is not None:
                strips = (self.before_inference, self.strip_bytes)
                return _maps(semantic_map_in_strips(class_logits, mask_logits, *sizes, *strips))
            scores = semantic_inference(class_logits, mask_logits, *sizes, before_inference=self.before_inference)
            return _maps(semantic_map(scores))
        if self.drop_queries and (self.task != "instance" or self.inference == "general"):
            kept = best_classes(class_logits, self._score_limit)[2]
            class_logits, mask_logits = select_queries(class_logits, mask_logits, kept)
        mask_logits = restore_mask_logits(mask_logits, padded_size, image_size, output_size)
        return self._results(class_logits, mask_logits)

    @property
    def thresholds(self) -> dict[str, float | None]:
        """The thresholds as they act, with the defaults filled in; None for a filter that is off."""
        return {
            "object_mask_threshold": self._score_limit,
            "overlap_threshold": self._overlap_limit,
            "score_threshold": self.score_threshold,
        }

    @property
    def _score_limit(self) -> float | None:
        general = self.inference == "general"
        return 0.8 if self.object_mask_threshold is None and not general else self.object_mask_threshold

    @property
    def _overlap_limit(self) -> float | None:
        general = self.inference == "general"
        return 0.8 if self.overlap_threshold is None and not general else self.overlap_threshold

    def _results(self, class_logits: Any, mask_logits: Any) -> dict[str, Any]:
        limits = (self._score_limit, self._overlap_limit)
        if self.task == "semantic":
            return _maps(general_semantic(class_logits, mask_logits, self._score_limit))
        if self.task == "panoptic":
            return panoptic_inference(class_logits, mask_logits, self.thing_ids, *limits)
        if self.inference == "general":
            return general_instances(class_logits, mask_logits, self.thing_ids, *limits, self.score_threshold)
        return instance_inference(class_logits, mask_logits, self.thing_ids, score_threshold=self.score_threshold)

    def _pixel_results(self, logits: Any, image_size: Size, output_size: Size) -> dict[str, Any]:
        if self.task != "semantic":
            raise ValueError(
                'A per-pixel model knows no segments: its only task is "semantic". '
                f"Received: task={self.task!r}. Use a MaskFormer for instance and panoptic results."
            )
        if self.strip_bytes is not None:
            return _maps(mean_semantic_map([pixel_view(logits, image_size)], output_size, strip_bytes=self.strip_bytes))
        return _maps(pixel_map(restore_pixel_logits(logits, image_size, output_size)))


def _maps(maps: tuple[Any, Any]) -> dict[str, Any]:
    return {"class_map": maps[0], "confidence": maps[1]}
