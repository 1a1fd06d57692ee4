"""One side of a comparison: a process that takes commands as JSON lines and answers in JSON lines.

`python side.py ours|jax|reference`. The reference side runs in an environment with PyTorch and transformers
and imports nothing of this package; `jax` is ours on the JAX backend. The last two use a GPU where there is one.
Commands: `prepare` (a workload), `run` (seconds of one step), `memory` (bytes).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

NUM_CLASSES, NUM_MASKS, QUERIES = 150, 8, 100


def main() -> None:
    prepare = {"ours": prepare_ours, "jax": prepare_jax, "reference": prepare_reference}[sys.argv[1]]
    step: Callable[[], object] | None = None
    base = 0
    # Libraries that print would spoil the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict = {}
        if command["command"] == "prepare":
            step, base = prepare(command), 0
            reset_peak()
            base = resident("VmRSS")
        elif command["command"] == "run":
            start = time.perf_counter()
            step()
            answer = {"seconds": time.perf_counter() - start}
        elif command["command"] == "memory":
            answer = {"bytes": resident("VmHWM") - base}
        print(json.dumps(answer), file=answers, flush=True)


def resident(field: str) -> int:
    """Bytes of memory that the process has (`VmRSS`), or had at most (`VmHWM`)."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(row.split()[1]) for row in rows if row.startswith(field))


def reset_peak() -> None:
    """The highest memory use is counted from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def make_data(command: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images `(batch, h, w, 3)` uint8, segment maps of stripes, and labels `(batch, masks)`; the same on both sides."""
    rng = np.random.default_rng(0)
    batch, (height, width) = command["batch"], command["size"]
    images = rng.integers(0, 256, (batch, height, width, 3), dtype="uint8")
    num_masks = command.get("masks", NUM_MASKS)
    stripes = np.arange(height)[:, None] * num_masks // height + np.zeros((1, width), int)
    segment_map = np.broadcast_to(stripes, (batch, height, width)).astype("int32")
    return images, segment_map, rng.integers(0, NUM_CLASSES, (batch, num_masks)).astype("int32")


def make_model(command: dict):
    """Our model with random weights; with `folder` it is written there for the other side."""
    import keras

    import kmaskformer as kmf
    from kmaskformer import config as configs

    keras.utils.set_random_seed(0)
    decoder = configs.TransformerDecoderConfig(dropout=0.0, num_queries=command.get("queries", QUERIES))
    backbone = configs.BackboneConfig(name=command["backbone"], drop_path_rate=0.0)
    options = {"num_classes": NUM_CLASSES, "backbone": backbone, "transformer_decoder": decoder}
    model = kmf.build_model(configs.ModelConfig(**options, precision=command["precision"]))
    if command.get("folder"):
        kmf.export_to_huggingface(model, command["folder"])
    return model


def make_training(command: dict) -> tuple:
    """The reference's optimizer, without a schedule, and criterion."""
    import kmaskformer as kmf
    from kmaskformer import config as configs

    schedule = configs.ScheduleConfig(name="constant")
    optimizer = kmf.build_optimizer(configs.OptimizerConfig(schedule=schedule))
    return optimizer, kmf.build_criterion(configs.LossConfig(deep_supervision=command["deep_supervision"]))


def make_batch(command: dict) -> tuple[dict, dict]:
    images, segment_map, labels = make_data(command)
    return {"images": images}, {"segment_map": segment_map, "labels": labels, "valid": np.ones(labels.shape, bool)}


def prepare_ours(command: dict) -> Callable[[], object]:
    """Our model on TensorFlow."""
    import tensorflow as tf

    model = make_model(command)
    inputs, targets = tf.nest.map_structure(tf.constant, make_batch(command))
    if command["kind"] == "inference":
        forward = tf.function(lambda x: _last(model(x, training=False)), jit_compile=command["xla"])
        return lambda: forward(inputs)["mask_logits"].numpy()
    optimizer, criterion = make_training(command)
    model.compile(optimizer, criterion)
    model.optimizer.build(model.trainable_variables)
    train_step = tf.function(model.train_step, jit_compile=command["xla"])
    return lambda: float(train_step((inputs, targets))["loss"])


def prepare_jax(command: dict) -> Callable[[], object]:
    """Our model on JAX: forward pass, or forward, matching, losses, gradients, and update of all weights."""
    import jax

    model = make_model(command)
    inputs, targets = jax.tree.map(jax.numpy.asarray, make_batch(command))
    weights = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]

    def outputs(weights: list, training: bool) -> dict:
        return model.stateless_call(weights, others, inputs, training=training)[0]

    if command["kind"] == "inference":
        forward = jax.jit(lambda weights: _last(outputs(weights, training=False)))
        return lambda: jax.block_until_ready(forward(weights))
    optimizer, criterion = make_training(command)
    optimizer.build(model.trainable_variables)
    targets = model.pad_targets(targets)

    def loss(weights: list) -> object:
        return sum(criterion(outputs(weights, training=True), targets).values())

    @jax.jit
    def update(weights: list, slots: list) -> tuple:
        value, gradients = jax.value_and_grad(loss)(weights)
        return value, *optimizer.stateless_apply(slots, gradients, weights)

    state = [weights, [variable.value for variable in optimizer.variables]]

    def step() -> float:
        value, *state[:] = update(*state)
        return float(jax.block_until_ready(value))

    return step


def _last(outputs: dict) -> dict:
    return {key: outputs[key] for key in ("class_logits", "mask_logits")}


def prepare_reference(command: dict) -> Callable[[], object]:
    """Hugging Face's model on PyTorch, with the weights of our side."""
    import torch
    from transformers import MaskFormerForInstanceSegmentation

    device = "cuda" if torch.cuda.is_available() else "cpu"
    aux = command["kind"] == "train" and command["deep_supervision"]
    model = MaskFormerForInstanceSegmentation.from_pretrained(command["folder"], use_auxiliary_loss=aux).to(device)
    images, segment_map, labels = make_data(command)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    pixels = torch.tensor(((images - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32, device=device)
    is_mixed = command.get("reference_precision", "float32") != "float32"
    call = torch.compile(model) if command.get("compiled") else model

    def outputs(**targets: object) -> object:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=is_mixed):
            # Without the hidden states it has nothing to take the losses of earlier layers from, and fails.
            return call(pixel_values=pixels, output_hidden_states=aux, **targets)

    if command["kind"] == "inference":
        model.eval()
        return lambda: _without_gradient(torch, outputs).cpu().float().numpy()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    rows = range(labels.shape[1])
    targets = {
        "mask_labels": [
            torch.tensor(np.stack([one == row for row in rows]), dtype=torch.float32, device=device)
            for one in segment_map
        ],
        "class_labels": [torch.tensor(row, dtype=torch.int64, device=device) for row in labels],
    }

    def step() -> float:
        optimizer.zero_grad()
        loss = outputs(**targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        return float(loss)

    return step


def _without_gradient(torch, outputs: Callable[[], object]) -> object:
    with torch.no_grad():
        return outputs().masks_queries_logits


if __name__ == "__main__":
    main()
