"""The model card of a preset: a README with the front matter by which the Hugging Face Hub files it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import yaml

LICENSES = {"cc-by-nc-4.0": "CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/): not for commercial use"}
"""Licences in words; others are shown as they are called."""

_CARD = """---
{front_matter}---

# {name}

{title} with {num_classes} classes, for the Python package kmaskformer (Keras {keras}).

```python
import kmaskformer as kmf

model = kmf.from_preset("{name}")  # this folder, or hf://owner/name
result = kmf.Segmenter(model, task="{task}", **model.preset_info.segmenter_options)("picture.jpg")
result.overlay().save("overlay.png")
```

| | |
|---|---|
{rows}

The method: Cheng, Schwing and Kirillov, Per-Pixel Classification is Not All You Need for Semantic Segmentation,
[arXiv 2107.06278](https://arxiv.org/abs/2107.06278).
"""


def model_card(model: Any, name: str, facts: Mapping[str, Any]) -> str:
    """The card's text.

    Args:
        model: A built model of this package.
        name: What to call it.
        facts: `source`, `license`, `score`, `shortest_edge` and `longest_edge`, empty or None where unknown.
    """
    task = "panoptic" if "panoptic" in model.TASKS and _things(model) else "semantic"
    rows = {
        "parameters": f"{model.count_params():,}",
        "backbone": type(model.backbone).__name__,
        "evaluated on": _sizes(facts),
        "published score": facts.get("score"),
        "weights from": facts.get("source"),
        "licence of the weights": license_words(facts.get("license") or "unknown"),
        "classes": _classes(model),
    }
    return _CARD.format(
        front_matter=yaml.safe_dump(_front_matter(task, facts.get("license")), sort_keys=False),
        name=name,
        title=type(model).__name__,
        num_classes=model.num_classes,
        keras=keras.__version__.partition(".")[0],
        task=task,
        rows="\n".join(f"| {key} | {value} |" for key, value in rows.items() if value),
    )


def license_words(name: str) -> str:
    """A licence for people."""
    return LICENSES.get(name, name)


def _front_matter(task: str, license_name: str | None) -> dict[str, Any]:
    return {
        "library_name": "keras",
        "pipeline_tag": "image-segmentation",
        "license": license_name or "unknown",
        "tags": ["kmaskformer", "maskformer", f"{task}-segmentation"],
    }


def _sizes(facts: Mapping[str, Any]) -> str:
    shortest, longest = facts.get("shortest_edge"), facts.get("longest_edge")
    if shortest is None:
        return f"images whose longer side is at most {longest} pixels" if longest else ""
    bound = f", the longer at most {longest}" if longest else ""
    return f"images whose shorter side is {shortest} pixels{bound}"


def _things(model: Any) -> tuple[int, ...]:
    return model.dataset_info.thing_ids if model.dataset_info else ()


def _classes(model: Any) -> str:
    if model.dataset_info is None:
        return f"{model.num_classes}, without names"
    names = [name.replace("|", "/") for name in model.dataset_info.class_names]
    return ", ".join(names[:30]) + (f" and {len(names) - 30} more (dataset_info.json)" if len(names) > 30 else "")
