"""Trains a small model for some steps in one way of spreading a batch; run as a process of its own by the tests.

`python replica_runs.py OUTPUT WAY PRECISION...` writes losses, clipped gradients and weights to OUTPUT (npz). WAY is
`local` (one replica, accumulation, two mirrored replicas) or `worker` (one of two workers; TF_CONFIG is set).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

BATCH, SIZE, STEPS = 8, (32, 48), 10


def main(output: str, way: str, precisions: list[str]) -> None:
    if way == "local":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    from kmaskformer.training.distribution import distribution_strategy, is_chief

    strategy = distribution_strategy("multi_worker" if way == "worker" else "mirrored")
    one = distribution_strategy("none")
    ways = {"worker": (strategy, 1)} if way == "worker" else {"one": (one, 1), "parts": (one, 2), "two": (strategy, 1)}
    arrays = {}
    for name, (used, parts) in ways.items():
        for precision in precisions:
            optimizers = {"float32": ("sgd", "adamw"), "mixed_float16": ("sgd", "overflow")}.get(precision, ("sgd",))
            for optimizer in optimizers:
                for key, value in train(used, parts, precision, optimizer).items():
                    arrays[f"{name}/{precision}/{optimizer}/{key}"] = value
    arrays["replicas"] = strategy.num_replicas_in_sync
    if is_chief(strategy):
        np.savez(output, **arrays)


def train(strategy: tf.distribute.Strategy, parts: int, precision: str, optimizer: str) -> dict[str, np.ndarray]:
    import keras

    from kmaskformer.losses.set_criterion import SetCriterion
    from kmaskformer.training.optimizer import SGD, AdamW

    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = small_model(precision)
        # Without momentum and decay, SGD's buffer is the clipped gradient.
        made = AdamW(1e-4, clip_norm=0.1) if optimizer == "adamw" else SGD(0.5, 0.0, momentum=0.0, clip_norm=0.1)
        if precision == "mixed_float16":
            # Half a batch overflows later than a whole one: with 8 neither does, with 1024 both do at first.
            scale = 1024.0 if optimizer == "overflow" else 8.0
            made = keras.optimizers.LossScaleOptimizer(made, initial_scale=scale)
        model.compile(made, SetCriterion(), accumulation_steps=parts)
        made.build(model.trainable_variables)
    recorder = Recorder()
    model.fit(dataset(), verbose=0, callbacks=[recorder])
    return {
        "losses": np.array(recorder.losses),
        "gradients": np.array(recorder.gradients),
        "weights": flat(model.trainable_variables),
        "start": recorder.start,
    }


def small_model(precision: str):
    import keras

    spec = importlib.util.spec_from_file_location("small_models", Path(__file__).parents[1] / "models" / "conftest.py")
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    model = models.MaskFormer(
        models.TinyBackbone(dtype=precision),
        models.FPNPixelDecoder(32, 24, dtype=precision),
        models.QueryDecoder(7, 16, 2, 24, 0.0, decoder_layers=2, dtype=precision),
        num_classes=5,
        dtype=keras.DTypePolicy(precision),
        name="maskformer",
    )
    model.build()
    return model


def dataset() -> tf.data.Dataset:
    """Scenes of rectangles; the number of segments of an image grows along the batch, from 0 to 4."""
    rng = np.random.default_rng(0)
    count = BATCH * STEPS
    segment_map = np.full((count, *SIZE), -1, "int32")
    num_segments = np.arange(count) % BATCH // 2 + rng.integers(0, 2, count)
    for image, number in enumerate(num_segments):
        for segment in range(number):
            top, left = rng.integers(0, [24, 36])
            segment_map[image, top : top + 12, left : left + 14] = segment
    colours = rng.integers(0, 255, (count, 5, 3))
    images = np.take_along_axis(colours[:, None], segment_map[..., None] + 1, axis=2)
    images = np.clip(images + rng.integers(-9, 9, images.shape), 0, 255).astype("uint8")
    targets = {
        "segment_map": segment_map,
        "labels": rng.integers(0, 5, (count, 4)).astype("int32"),
        "valid": np.arange(4)[None] < num_segments[:, None],
    }
    # As the real pipeline: the same batches on every worker, which each take their part.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = tf.data.Dataset.from_tensor_slices(({"images": images}, targets)).batch(BATCH, drop_remainder=True)
    return batches.with_options(options)


def flat(variables) -> np.ndarray:
    return np.concatenate([np.asarray(variable.numpy()).ravel() for variable in variables])


class Recorder:
    """Built late, so that nothing of Keras is imported before the devices are set."""

    def __new__(cls):
        import keras

        class Callback(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                self.losses, self.gradients = [], []
                self.start = flat(self.model.trainable_variables)

            def on_train_batch_end(self, batch, logs=None):
                self.losses.append([float(logs[name]) for name in sorted(logs) if name != "gradient_norm"])
                optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
                self.gradients.append(flat(optimizer._momentums))

        return Callback()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
