"""A model of other precision with the same weights."""

from __future__ import annotations

from typing import Any

import keras

DTYPES = ("float32", "bfloat16", "mixed_bfloat16", "float16", "mixed_float16")


def with_dtype(model: keras.Model, dtype: str) -> keras.Model:
    """A copy of a model whose layers all have another dtype policy.

    Args:
        model: A model that `get_config` describes whole.
        dtype: `"bfloat16"` also stores the weights in 16 bits, which halves the file; `"mixed_bfloat16"` keeps them in
            32 and computes in 16. `"float32"`, `"float16"` and `"mixed_float16"` likewise.

    Raises:
        ValueError: If `dtype` is none of these.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, or None. Received: dtype={dtype!r}")
    serialized = _replace_policies(keras.saving.serialize_keras_object(model), dtype)
    serialized.pop("compile_config", None)
    copy = keras.saving.deserialize_keras_object(serialized)
    if not copy.built:
        copy.build((None, None, None, 3))
    for new, old in zip(copy.variables, model.variables, strict=True):
        new.assign(keras.ops.cast(old.value, new.dtype))
    return copy


def _replace_policies(value: Any, dtype: str) -> Any:
    """Serialised objects with `dtype` in place of every dtype policy."""
    if isinstance(value, dict):
        if value.get("class_name") == "DTypePolicy":
            return keras.saving.serialize_keras_object(keras.DTypePolicy(dtype))
        return {
            key: dtype if key == "dtype" and isinstance(item, str) else _replace_policies(item, dtype)
            for key, item in value.items()
        }
    return [_replace_policies(item, dtype) for item in value] if isinstance(value, (list, tuple)) else value
