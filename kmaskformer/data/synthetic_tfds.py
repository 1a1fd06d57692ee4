"""`shapes` as a TensorFlow Datasets builder, for programs that are built around that library.

Needs the extra `data` (`pip install kmaskformer[data]`). The scenes are those of `data.synthetic.Shapes`:

    builder = ShapesBuilder(data_dir="tensorflow_datasets", num_train=1000, num_validation=100)
    builder.download_and_prepare()
    dataset = builder.as_dataset(split="train")
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from kmaskformer.data.synthetic import SHAPES_INFO, Shapes

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise ImportError(
        "`kmaskformer.data.synthetic_tfds` needs TensorFlow Datasets. Install it with `pip install kmaskformer[data]`, "
        "or use `kmaskformer.data.synthetic.Shapes`, which needs nothing."
    ) from error


class ShapesBuilder(tfds.core.GeneratorBasedBuilder):
    """Scenes of textured backgrounds and overlapping shapes, with panoptic truth.

    Args:
        image_size: `(height, width)` of the scenes.
        num_train: Number of training scenes.
        num_validation: Number of validation scenes.
        seed: The training scenes are of this seed, the validation scenes of the next.
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
        **options: Any,
    ) -> None:
        self._readers = {
            "train": Shapes(num_train, image_size, seed),
            "validation": Shapes(num_validation, image_size, seed + 1),
        }
        # Files written for other arguments must not be taken for these.
        config = f"{image_size[0]}x{image_size[1]}_{num_train}_{num_validation}_seed{seed}"
        super().__init__(config=tfds.core.BuilderConfig(name=config), **options)

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
