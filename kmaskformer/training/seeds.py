"""One seed for everything random in a run."""

from __future__ import annotations

import secrets

import keras

_LARGEST_SEED = 2**32 - 1


def set_seed(seed: int | None, deterministic: bool = False) -> int:
    """Seeds Python, NumPy and the Keras backend, and so initial weights, dropout and the default data order.

    Args:
        seed: 0 to 4294967295, or `None` to draw one.
        deterministic: Whether TensorFlow must use deterministic kernels only. On a GPU this is slower, and it turns
            XLA off; on a CPU most kernels are deterministic anyway. Other backends are left as they are.

    Returns:
        The seed in use, to be written into the run folder.

    Raises:
        ValueError: If `seed` is outside its range.
    """
    if seed is None:
        seed = secrets.randbelow(_LARGEST_SEED + 1)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"`seed` must be an integer in 0..{_LARGEST_SEED}, or None to draw one. Received: seed={seed}")
    keras.utils.set_random_seed(seed)
    if deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    return seed
