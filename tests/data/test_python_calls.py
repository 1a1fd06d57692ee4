"""Scripts that end while a pipeline is still at work."""

import subprocess
import sys
import time

import pytest

SCRIPT = """
import kmaskformer as kmf
from kmaskformer.data.synthetic import Shapes

reader = Shapes(100, image_size=(64, 64))
{}
next(batches)
print("read")
"""
SLOW = """
import time
class Slow(Shapes):
    def __getitem__(self, index):
        time.sleep(0.6)
        return super().__getitem__(index)
reader = Slow(1000, image_size=(64, 64))
batches = iter(kmf.data.training_dataset(reader, batch_size=8, image_size=(64, 64)))
"""
PIPELINES = {
    "training": "batches = iter(kmf.data.training_dataset(reader, batch_size=4, image_size=(64, 64)))",
    "finite": "batches = iter(kmf.data.training_dataset(reader, batch_size=4, image_size=(64, 64), repeat=False))",
    "skipping": "batches = iter(kmf.data.evaluation_dataset(reader, shortest_edge=96, on_error='skip'))",
}


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_script_that_holds_an_iterator_ends(pipeline):
    code = SCRIPT.format(pipeline)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout == "read\n"
    assert "Traceback" not in result.stderr


def test_a_pipeline_too_slow_to_wait_for_is_ended():
    code = SCRIPT.format(SLOW).replace('"read"', "time.time()")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0
    assert time.time() - float(result.stdout) > 3, "the exit first lets buffers fill"
