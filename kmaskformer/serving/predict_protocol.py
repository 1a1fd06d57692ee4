"""TensorFlow Serving's REST protocol for `predict`: JSON to the input of a signature, and outputs to JSON.

References:
    - RESTful API of TensorFlow Serving, https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import numpy as np

from kmaskformer.serving.errors import RequestError

Arrays = dict[str, np.ndarray]


def read_request(body: bytes, signatures: dict[str, Any]) -> tuple[str, np.ndarray, bool]:
    """A `predict` request.

    Args:
        body: JSON with `instances` (rows) or `inputs` (columns), and optionally `signature_name`. Bytes are
            `{"b64": "..."}`.
        signatures: Inputs and outputs by signature, from an export's metadata.

    Returns:
        Name of the signature, values of its one input, and whether the answer is wanted in rows.

    Raises:
        RequestError: 400 if it is none, or does not fit the signature.
    """
    request = _parse(body)
    name = request.get("signature_name", "serving_default")
    if not isinstance(name, str) or name not in signatures:
        raise RequestError(400, f"`signature_name` must be one of {', '.join(signatures)}. Received: {name!r}")
    by_row = "instances" in request
    if by_row == ("inputs" in request):
        raise RequestError(400, "The request must hold either `instances` or `inputs`, and one of them.")
    ((input_name, spec),) = signatures[name]["inputs"].items()
    values = _unwrap(request["instances"] if by_row else request["inputs"], input_name, by_row)
    return name, _strings(values) if spec["dtype"] == "string" else _pixels(values), by_row


def write_response(outputs: Arrays, by_row: bool) -> bytes:
    """The answer to a `predict` request: `predictions` by row, or `outputs` by column; bare where there is one."""
    plain = {key: value.tolist() for key, value in outputs.items()}
    if not by_row:
        return _dump({"outputs": plain if len(plain) > 1 else next(iter(plain.values()))})
    if len(plain) == 1:
        return _dump({"predictions": next(iter(plain.values()))})
    rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    return _dump({"predictions": rows})


def describe_status(version: str, available: bool) -> dict[str, Any]:
    """Answer to `GET /v1/models/NAME`."""
    state = "AVAILABLE" if available else "UNLOADING"
    status = {"error_code": "OK", "error_message": ""}
    return {"model_version_status": [{"version": version, "state": state, "status": status}]}


def describe_metadata(name: str, version: str, signatures: dict[str, Any]) -> dict[str, Any]:
    """Answer to `GET /v1/models/NAME/metadata`."""
    described = {
        key: {
            "inputs": _describe_tensors(signature["inputs"]),
            "outputs": _describe_tensors(signature["outputs"]),
            "method_name": "tensorflow/serving/predict",
        }
        for key, signature in signatures.items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": version},
        "metadata": {"signature_def": {"signature_def": described}},
    }


def _parse(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The body must be JSON. {error}") from error
    if not isinstance(request, dict):
        raise RequestError(400, f"The body must be a JSON object. Received: {type(request).__name__}")
    return request


def _unwrap(values: Any, name: str, by_row: bool) -> list[Any]:
    """The list of values, whether or not they are given by the input's name."""
    if by_row and isinstance(values, list):
        values = [row[name] if isinstance(row, dict) and set(row) == {name} else row for row in values]
    elif isinstance(values, dict) and set(values) == {name}:
        values = values[name]
    if not isinstance(values, list) or not values:
        raise RequestError(400, f"The request must hold a list with at least one value for the input `{name}`.")
    return values


def _strings(values: list[Any]) -> np.ndarray:
    if not all(isinstance(value, dict) and isinstance(value.get("b64"), str) for value in values):
        raise RequestError(400, 'Files must be given as {"b64": "..."}, in base64.')
    try:
        files = [base64.b64decode(value["b64"], validate=True) for value in values]
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"A file is not in base64: {error}") from error
    return np.array(files, dtype=object)


def _pixels(values: list[Any]) -> np.ndarray:
    try:
        pixels = np.array(values)
    except ValueError as error:
        raise RequestError(400, "All images of a request must have one size.") from error
    if pixels.dtype.kind not in "iu" or pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise RequestError(
            400,
            "Images must be lists [height][width][3] of whole numbers 0..255, all of one size. "
            f"Received: shape {list(pixels.shape)} of {pixels.dtype}",
        )
    if pixels.min() < 0 or pixels.max() > 255:
        raise RequestError(400, f"Pixels must be 0..255. Received: {pixels.min()}..{pixels.max()}")
    return pixels.astype(np.uint8)


def _describe_tensors(tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {
            "dtype": "DT_FLOAT" if spec["dtype"] == "float32" else f"DT_{spec['dtype'].upper()}",
            "tensor_shape": {"dim": [{"size": str(side), "name": ""} for side in spec["shape"]], "unknown_rank": False},
            "name": name,
        }
        for name, spec in tensors.items()
    }


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
