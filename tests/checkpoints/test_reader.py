"""Which kind of file is read how."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from kmaskformer.checkpoints.errors import CheckpointError, clip
from kmaskformer.checkpoints.reader import read_checkpoint


def safetensors(**arrays):
    header, content = {}, b""
    for name, array in arrays.items():
        offsets = [len(content), len(content) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        content += array.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def ones(size):
    return np.ones(size, "float32")


def torch_file(path, written, size=2):
    return written.torch_archive(path, {"t": written.tensor("0", "Float", size, (size,), (1,))}, {"0": bytes(4 * size)})


@pytest.mark.parametrize("name", ["w.pkl", "w.safetensors", "w.h5", "w.json", "w.txt", "w"])
def test_content_decides_and_not_the_name(name, tmp_path, written):
    path = tmp_path / name
    path.write_bytes(safetensors(s=ones(3)))
    assert list(read_checkpoint(path)) == ["s"]
    path.write_bytes(pickle.dumps({"model": {"p": ones(3)}}))
    assert list(read_checkpoint(str(path))) == ["p"]
    path.write_bytes(written.legacy_torch({"l": written.tensor("0", "Float", 2, (2,), (1,))}, {"0": (2, bytes(8))}))
    assert list(read_checkpoint(path)) == ["l"]
    assert list(read_checkpoint(torch_file(path, written))) == ["t"]


def test_order_of_preference_in_a_folder(tmp_path, written):
    with pytest.raises(CheckpointError, match=r"a folder with one of model\.safetensors, .*Found: an empty folder"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"Found: config\.json\. Name the checkpoint's file itself"):
        read_checkpoint(tmp_path)
    (tmp_path / "shard.bin").write_bytes(pickle.dumps({"indexed": ones(1)}))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"indexed": "shard.bin"}}))
    assert list(read_checkpoint(tmp_path)) == ["indexed"]
    torch_file(tmp_path / "pytorch_model.bin", written)
    assert list(read_checkpoint(tmp_path)) == ["t"]
    (tmp_path / "s.safetensors").write_bytes(safetensors(a=ones(1)))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "s.safetensors"}}))
    assert list(read_checkpoint(tmp_path)) == ["a"]
    (tmp_path / "model.safetensors").write_bytes(safetensors(b=ones(1)))
    assert list(read_checkpoint(tmp_path)) == ["b"]


@pytest.fixture()
def sharded(tmp_path):
    """Writes shards and an index."""

    def call(weight_map, **shards):
        for name, content in shards.items():
            (tmp_path / f"{name}.safetensors").write_bytes(content)
        path = tmp_path / "model.safetensors.index.json"
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        path.write_text(weight_map if isinstance(weight_map, str) else json.dumps(index, indent=2))
        return path

    return call


def test_shards(sharded, written):
    path = sharded(
        {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"},
        **{"1": safetensors(a=ones(1), c=ones(3)), "2": safetensors(b=ones(2))},
    )
    for where in (path, path.parent):
        result = read_checkpoint(where)
        assert {name: array.size for name, array in result.items()} == {"a": 1, "b": 2, "c": 3}
        assert all(written.is_view_of_file(array) for array in result.values())


def test_missing_shards(sharded):
    path = sharded({"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors"}, **{"1": safetensors(a=ones(1))})
    with pytest.raises(
        CheckpointError,
        match=r"index\.json: expected its 3 shards.*2 missing: '2\.safetensors', '3\.safetensors'\. Down",
    ):
        read_checkpoint(path)


def test_a_tensor_in_two_shards(sharded):
    shards = {"1": safetensors(a=ones(1), b=ones(1)), "2": safetensors(b=ones(1))}
    path = sharded({"a": "1.safetensors", "b": "2.safetensors"}, **shards)
    with pytest.raises(
        CheckpointError, match=r"every tensor in one shard\. Found: 'b' in '2\.safetensors' and in another"
    ):
        read_checkpoint(path)


def test_a_tensor_missing_in_its_shard(sharded):
    path = sharded({"a": "1.safetensors", "b": "1.safetensors"}, **{"1": safetensors(a=ones(1))})
    with pytest.raises(
        CheckpointError, match=r"1\.safetensors: expected the 2 tensors .*Found: 1 of them missing: 'b'"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize("file", ["../w.safetensors", "/etc/passwd", "a/b", "..", ".", "", 3, None, {}])
def test_shards_lie_beside_the_index(file, sharded):
    with pytest.raises(CheckpointError, match="expected names of files in the same folder"):
        read_checkpoint(sharded({"a": file}))


def test_an_index_in_place_of_a_shard(sharded):
    path = sharded({"a": "model.safetensors.index.json"})
    with pytest.raises(CheckpointError, match=r"expected a shard\. Found: text in JSON"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"architectures": ["X"], "id2label": {}}', "Found: JSON with 'architectures', 'id2label'"),
        ('{"weight_map": {}}', "Found: JSON with 'weight_map'"),
        ('{"weight_map": 3}', "Found: JSON with 'weight_map'"),
        ('{"weight_map": ', "expected an index in JSON"),
        ('{"weight_map": ' + "[" * 100_000, "RecursionError"),
        ("{}", "with a `weight_map`"),
    ],
)
def test_other_json(text, found, sharded):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(sharded(text))
    assert found in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<!DOCTYPE html>\n<html><head>", "a web page or error message: b'<!DOCTYPE html>"),
        (b"\n  <html>", "a web page"),
        (b"\xef\xbb\xbf<HTML>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "AccessDenied"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (b"\x1f\x8b\x08" + bytes(20), "a compressed or tar archive.*Unpack it"),
        (b"model".ljust(257, b"\0") + b"ustar\x0000", "a compressed or tar archive"),
        (b"Entry not found", "a file that begins with b'Entry not found'"),
        (b"\0" * 1000, "a file that begins with"),
        (b"", "an empty file"),
        (b"PK\x03\x04" + bytes(100), "a complete zip archive"),
        (b"PK\x05\x06" + bytes(18), "Found: a zip archive of nothing"),
        (b"\x80", "truncated or corrupt"),
        (b"cos\nsystem\n(S'true'\ntR.", "asks for `os.system`"),
        (b"(S'true'\nios\nsystem\n.", "asks for `os.system`"),
    ],
)
def test_files_of_other_kinds(content, found, tmp_path):
    path = tmp_path / "model_final_123456.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model_final_123456\.pkl.*: expected .*{found}"):
        read_checkpoint(path)


def test_other_archives(tmp_path):
    np.savez(tmp_path / "w.npz", a=ones(1), b=ones(2))
    with pytest.raises(CheckpointError, match=r"PyTorch's data\.pkl or Keras' .*a zip archive of 'a\.npy', 'b\.npy'"):
        read_checkpoint(tmp_path / "w.npz")


def test_missing_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pkl: expected a checkpoint: safetensors.*Found: no such file"):
        read_checkpoint(tmp_path / "nowhere.pkl")
    assert issubclass(CheckpointError, ValueError)


def test_random_changes_are_errors_or_arrays(tmp_path, rng, written):
    torch_file(tmp_path / "a", written, 64)
    files = [
        (tmp_path / "a").read_bytes(),
        written.legacy_torch({"l": written.tensor("0", "Float", 2, (2,), (1,))}, {"0": (2, bytes(8))}),
        safetensors(a=ones((3, 4)), b=ones(7)),
        pickle.dumps({"model": {"a": ones((3, 4))}}),
    ]
    for index in range(600):
        content = bytearray(files[index % len(files)])
        for position in rng.integers(0, len(content), 2):
            content[position] = rng.integers(0, 256)
        path = tmp_path / str(index % 8)
        path.write_bytes(content)
        try:
            arrays = read_checkpoint(path)
        except CheckpointError:
            continue
        assert all(isinstance(array, np.ndarray) for array in arrays.values())


def test_clip_never_shows_containers():
    nested = []
    for _ in range(100):
        nested = [nested] * 10
    assert clip(nested) == "list"
    assert clip("a\n" * 1000) == "'" + "a\\n" * 39 + "a\\..."
    assert clip(b"\xff") == r"b'\xff'"


def test_without_pytorch_and_tensorflow(repository):
    code = "import kmaskformer.checkpoints.torch_files; print({'torch', 'tensorflow', 'keras'} & set(sys.modules))"
    blocked = "import sys; sys.modules['kmaskformer'] = type(sys)('kmaskformer');"
    blocked += f"sys.modules['kmaskformer'].__path__ = [{str(repository / 'kmaskformer')!r}];"
    result = subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


MEASURE = """
import sys, numpy as np
sys.path.insert(0, {root!r})
from kmaskformer.checkpoints.reader import read_checkpoint
def peak():  # not getrusage: its figure begins with that of the process before exec
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
before = peak()
arrays = read_checkpoint({path!r})
read = peak() - before
total = sum(float(array.sum(dtype="float64")) for array in arrays.values())
print(read, peak() - before, total)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pickle"])
def test_memory(kind, tmp_path, repository, written):
    names, size = [f"w{index}" for index in range(20)], 2_000_000
    data = {name: np.full(size, index, "float32") for index, name in enumerate(names)}
    path = tmp_path / kind
    content = {name: written.tensor(name, "Float", size, (size,), (1,)) for name in names}
    if kind == "zip":
        written.torch_archive(path, content, {name: array.tobytes() for name, array in data.items()})
    elif kind == "legacy":
        storages = {name: (size, array.tobytes()) for name, array in data.items()}
        path.write_bytes(written.legacy_torch(content, storages))
    else:
        path.write_bytes(safetensors(**data) if kind == "safetensors" else pickle.dumps(data))
    del data
    code = MEASURE.format(root=str(repository), path=str(path))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    read, used, total = map(float, result.stdout.split())
    megabytes = path.stat().st_size / 2**20
    assert total == sum(range(20)) * size
    # Mapped pages count once they are touched, and up to 2 MB around them. Checksums of a zip archive touch all.
    assert read / 1024 < (1.2 if kind == "zip" else 0.5) * megabytes
    assert used / 1024 < 1.2 * megabytes
