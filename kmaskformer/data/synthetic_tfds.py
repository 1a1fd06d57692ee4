"""`shapes` as a TensorFlow Datasets builder, for programs that are built around that library.

Needs the extra `data` (`pip install -e '.[data]'`). The scenes are those of `data.synthetic.Shapes`:

    builder = ShapesBuilder(data_dir="tensorflow_datasets", num_train=1000, num_validation=100)
    builder.download_and_prepare()
    dataset = builder.as_dataset(split="train")

From the command line, with the default arguments: `tfds build path/to/synthetic_tfds.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from kmaskformer.data.synthetic import SHAPES_INFO, Shapes
from kmaskformer.extras import missing_extra

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    purpose = "`data.synthetic_tfds` (`data.synthetic.Shapes` needs nothing)"
    raise missing_extra("data", purpose, error) from error


@dataclasses.dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """Which scenes: `(height, width)`, how many of each split, and the seed."""

    name: str = dataclasses.field(init=False)
    image_size: tuple[int, int] = (128, 128)
    num_train: int = 1000
    num_validation: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        # Files written for other arguments must not be taken for these.
        height, width = self.image_size
        self.name = f"{height}x{width}_{self.num_train}_{self.num_validation}_seed{self.seed}"


class ShapesBuilder(tfds.core.GeneratorBasedBuilder):
    """Scenes of textured backgrounds and overlapping shapes, with panoptic truth.

    Args:
        image_size: `(height, width)` of the scenes.
        num_train: Number of training scenes.
        num_validation: Number of validation scenes.
        seed: The training scenes are of this seed, the validation scenes of the next.
        config: All of these as one `ShapesConfig`, instead of them.
        **options: Options of TensorFlow Datasets' builders, such as `data_dir`.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = "kmaskformer_shapes"

    def __init__(
        self,
        *,
        image_size: tuple[int, int] = (128, 128),
        num_train: int = 1000,
        num_validation: int = 100,
        seed: int = 0,
        config: ShapesConfig | None = None,
        **options: Any,
    ) -> None:
        if config is None:
            config = ShapesConfig(image_size=image_size, num_train=num_train, num_validation=num_validation, seed=seed)
        elif not isinstance(config, ShapesConfig):
            raise TypeError(f"`config` must be a ShapesConfig. Received: {config!r}")
        self._readers = {
            "train": Shapes(config.num_train, config.image_size, config.seed),
            "validation": Shapes(config.num_validation, config.image_size, config.seed + 1),
        }
        super().__init__(config=config, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        names = list(SHAPES_INFO.class_names)
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "segment_map": tfds.features.Image(shape=(None, None, 1), dtype=tf.uint16, encoding_format="png"),
            "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
            "image_id": tfds.features.Text(),
        }
        description = "Generated scenes. `segment_map` is 1 + the row of `labels`."
        return tfds.core.DatasetInfo(
            builder=self, description=description, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager
        return {split: self._generate_examples(reader) for split, reader in self._readers.items()}

    def _generate_examples(self, reader: Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
        for index in range(len(reader)):
            sample = reader[index]
            yield (
                sample["image_id"],
                {
                    "image": sample["image"],
                    "segment_map": (sample["segment_map"] + 1).astype("uint16")[..., None],
                    "labels": sample["labels"].tolist(),
                    "image_id": sample["image_id"],
                },
            )
