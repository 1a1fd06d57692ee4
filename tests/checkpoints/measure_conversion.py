"""Time and memory of converting a Swin-L checkpoint: `python measure_conversion.py FOLDER [weights.h5|keras]`.

Prints one line of JSON. The time of the conversion, without importing, stands beside that of reading all arrays and
writing them with Keras; memory is the peak of the process beyond what it had after the imports.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CODE = "import sys; sys.path.insert(0, {folder!r}); import measure_conversion as m; m.{call}"


def make_source(path: Path) -> None:
    """A pickle as the reference's model zoo has it, with random weights."""
    from kmaskformer.build import build_model
    from kmaskformer.checkpoints.loading import named_weights, zero_initializers
    from kmaskformer.checkpoints.reference_names import reference_parameter
    from kmaskformer.config import BackboneConfig, ModelConfig

    with zero_initializers():
        model = build_model(ModelConfig(num_classes=150, backbone=BackboneConfig("swin_large")))
    rng, state = np.random.default_rng(0), {}
    for name, weight in named_weights(model).items():
        key, third = reference_parameter(name)
        shape = list(weight.shape)
        if name.endswith("/kernel"):
            shape = [shape[3], shape[2], *shape[:2]] if len(shape) == 4 else shape[::-1]
        shape[0] *= 1 if third is None else 3
        state.setdefault(key, rng.standard_normal(shape, dtype="float32"))
    with path.open("wb") as file:
        pickle.dump({"model": state, "__author__": "test"}, file, protocol=4)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def convert(source: str, destination: str) -> None:
    """Print the seconds of a conversion, and its peak of memory beyond the imports'."""
    import importlib.util

    path = Path(__file__).resolve().parents[2] / "scripts" / "convert_weights.py"
    spec = importlib.util.spec_from_file_location("convert_weights", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    before, start = peak(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        status = script.main([source, destination])
    print(json.dumps({"status": status, "seconds": time.perf_counter() - start, "peak_bytes": peak() - before}))


def read_and_write(source: str, destination: str) -> None:
    """Print the seconds of reading all arrays and of writing as much with h5py."""
    import h5py

    from kmaskformer.checkpoints.reader import read_checkpoint

    start = time.perf_counter()
    arrays = {name: np.array(array) for name, array in read_checkpoint(source).items()}
    read = time.perf_counter() - start
    with h5py.File(destination, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.flush()
    print(json.dumps({"read_seconds": read, "read_and_write_seconds": time.perf_counter() - start}))


def run(call: str) -> dict:
    """Result of a call in a fresh process."""
    code = CODE.format(folder=str(Path(__file__).parent), call=call)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(result.stderr[-2000:])
    return json.loads(result.stdout.splitlines()[-1]) if result.stdout else {}


def main() -> None:
    """Measure in the folder that is the first argument."""
    folder = Path(sys.argv[1])
    source, destination = folder / "model_final.pkl", folder / f"out.{(sys.argv[2:] or ['weights.h5'])[0]}"
    if not source.is_file():
        run(f"make_source(__import__('pathlib').Path({str(source)!r}))")
    figures = {"file_bytes": source.stat().st_size}
    for call, path in (("read_and_write", folder / "plain.h5"), ("convert", destination)):
        path.unlink(missing_ok=True)
        os.sync()  # what was written before is not to slow the next down
        figures |= run(f"{call}({str(source)!r}, {str(path)!r})")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
