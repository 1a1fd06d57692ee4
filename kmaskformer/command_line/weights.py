"""What `--weights` may name: files and folders of a training run, and presets."""

from __future__ import annotations

from pathlib import Path

from kmaskformer import experiment
from kmaskformer.checkpoints.preset_config import is_preset
from kmaskformer.config import Config
from kmaskformer.models.segmentation_model import SegmentationModel
from kmaskformer.presets import from_preset
from kmaskformer.segmenter import Segmenter

WEIGHTS_HELP = (
    ".keras or .weights.h5 file, a run's folder, a preset's folder, hf://OWNER/NAME, the name of a published model, or "
    "its file (.pkl, .pth, .bin, .safetensors)"
)

_FOREIGN_SUFFIXES = (".pkl", ".pth", ".bin", ".safetensors")


def model_or_run(weights: str) -> SegmentationModel | str:
    """The model of a preset or of others' file; the argument itself where a training run left it.

    Args:
        weights: What `WEIGHTS_HELP` says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such preset, or a file is not what it should be.
    """
    return from_preset(weights) if _names_preset(weights) else weights


def open_segmenter(weights: str, task: str, inference: str = "default") -> tuple[Segmenter, Config | None]:
    """A segmenter that works as the model was evaluated, and the run's configuration where there is one.

    Args:
        weights: A `.keras` or `.weights.h5` file or a run's folder, whose `config.yaml` says sizes and thresholds; or
            any other source of `from_preset`.
        task: `"semantic"`, `"instance"` or `"panoptic"`.
        inference: `"default"` or `"general"`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such preset, or the model cannot do the task.
    """
    model = model_or_run(weights)
    if isinstance(model, str):
        config = experiment.run_config(weights)
        return experiment.build_segmenter(experiment.load_model(weights), config, task, inference), config
    options = model.preset_info.segmenter_options
    if inference == "general":
        options.pop("object_mask_threshold", None)  # that of the default rule
    return Segmenter(model, task=task, inference=inference, **options), None


def _names_preset(weights: str) -> bool:
    path = Path(weights)
    if path.is_dir():
        return is_preset(path) or (path / "config.json").is_file()
    if weights.startswith("hf://"):
        return True
    if path.suffix.lower() in _FOREIGN_SUFFIXES:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such weights file")
        return True
    return not (path.exists() or path.suffix or len(path.parts) > 1)
