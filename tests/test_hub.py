"""Repositories of a Hub that runs on this machine, through the real client."""

from __future__ import annotations

import builtins
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from kmaskformer import hub
from kmaskformer.downloads import DigestError, DownloadError

pytest.importorskip("huggingface_hub")
from huggingface_hub import constants

spec = importlib.util.spec_from_file_location("local_server", Path(__file__).with_name("local_server.py"))
local_server = sys.modules["local_server"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local_server)

COMMIT = "0123456789" * 4
WEIGHTS = b"weights" * 1000
FILES = {"config.json": b'{"model_type": "maskformer"}', "model.safetensors": WEIGHTS, "tf_model.h5": b"unwanted"}


class Hub:
    """One repository, `me/mine`, on a local server."""

    def __init__(self, server, revision="main"):
        self.server, self.revision = server, revision
        self.files, self.license = dict(FILES), "mit"

    def publish(self, reported=()):
        """Serves the files; `reported` overrides the digests that the Hub knows."""
        siblings = []
        for name, content in self.files.items():
            digest = dict(reported).get(name, hashlib.sha256(content).hexdigest())
            large = not name.endswith(".json")
            lfs = {"sha256": digest, "size": len(content), "pointerSize": 134} if large else None
            siblings.append({"rfilename": name, "size": len(content), "blobId": "0" * 40, "lfs": lfs})
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            for revision in (self.revision, COMMIT):
                path = f"/me/mine/resolve/{revision.replace('/', '%2F')}/{name}"
                self.server.content[path], self.server.headers[path] = content, headers
        info = {
            "id": "me/mine",
            "modelId": "me/mine",
            "sha": COMMIT,
            "siblings": siblings,
            "tags": [],
            "private": False,
        }
        info |= {"cardData": {"license": self.license}, "downloads": 0, "likes": 0, "gated": False}
        path = "/api/models/me/mine"
        path += "" if self.revision == "main" else f"/revision/{self.revision.replace('/', '%2F')}"
        self.server.content[path] = json.dumps(info).encode()
        self.server.headers[path] = {"Content-Type": "application/json"}

    def path(self, name):
        """Where the client asks for all files but the first, whose answer tells the commit."""
        return f"/me/mine/resolve/{COMMIT}/{name}"

    def downloaded(self):
        return [
            path.rpartition("/")[2] for method, path, _ in self.server.requests if method == "GET" and "api" not in path
        ]


@pytest.fixture()
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("KMASKFORMER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    with local_server.running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        found = Hub(server)
        found.publish()
        yield found


def test_only_what_is_needed_comes(repository, tmp_path):
    files = hub.fetch_repository("me/mine")
    assert (files.commit, files.license) == (COMMIT, "mit")
    assert sorted(path.name for path in files.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (files.folder / "model.safetensors").read_bytes() == WEIGHTS
    record = (tmp_path / "home" / "hub" / "me--mine" / f"{COMMIT}.sha256").read_text()
    assert f"{hashlib.sha256(WEIGHTS).hexdigest()}  model.safetensors\n" in record
    assert sorted(repository.downloaded()) == ["config.json", "model.safetensors"]
    hub.fetch_repository("me/mine")
    assert len(repository.downloaded()) == 2


def test_revision(repository):
    repository.revision = "refs/pr/1"
    repository.files["model.safetensors"] = b"of the pull request"
    repository.publish()
    folder = hub.fetch_repository("me/mine", "refs/pr/1").folder
    assert (folder / "model.safetensors").read_bytes() == b"of the pull request"


def test_all_files_are_of_the_commit_of_the_first(repository):
    """The branch moves after it: to another commit, which the second file is not to come from."""
    repository.server.content["/me/mine/resolve/main/model.safetensors"] = b"of the next commit"
    assert (hub.fetch_repository("me/mine").folder / "model.safetensors").read_bytes() == WEIGHTS


def test_shards(repository):
    del repository.files["model.safetensors"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}
    repository.files |= {shards[0]: b"a", shards[1]: b"b", "model.safetensors.index.json": json.dumps(index).encode()}
    repository.publish()
    folder = hub.fetch_repository("me/mine").folder
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors.index.json", *shards}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b'{"weight_map": {"a": "../../secret"}}', "names files that the repository has not: ../../secret"),
        (b'{"weights": ', "must be JSON with the files of the weights"),
    ],
)
def test_an_index_that_cannot_be_used(repository, index, message):
    del repository.files["model.safetensors"]
    repository.files["model.safetensors.index.json"] = index
    repository.publish()
    with pytest.raises(DownloadError, match=rf"index.json: {message}"):
        hub.fetch_repository("me/mine")


def test_offline_uses_the_cache_and_checks_it(repository, monkeypatch):
    folder = hub.fetch_repository("me/mine").folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository.server.content.clear()
    assert hub.fetch_repository("me/mine").folder == folder
    (folder / "model.safetensors").resolve().write_bytes(b"changed")
    with pytest.raises(
        DigestError, match=r"not the file that the Hub has. Expected SHA-256: \w+. Found: \w+ \(7 bytes"
    ):
        hub.fetch_repository("me/mine")


def test_offline_without_cache_says_what_to_do(repository, monkeypatch):
    repository.server.behaviours["/api/models/me/mine"] = [local_server.status(503)]
    message = (
        r"hf://me/mine: the Hub cannot be reached, .* not in the cache \(.*503.*\). .*give that folder's path instead"
    )
    with pytest.raises(DownloadError, match=message):
        hub.fetch_repository("me/mine")
    with local_server.running() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    with pytest.raises(DownloadError, match="refused"):
        hub.fetch_repository("me/mine")


def test_lying_server(repository):
    """Bytes other than those whose digest the Hub reports."""
    repository.publish({"model.safetensors": hashlib.sha256(b"other").hexdigest()})
    with pytest.raises(
        DigestError, match=rf"Expected SHA-256: {hashlib.sha256(b'other').hexdigest()}. Found: .* Delete"
    ):
        hub.fetch_repository("me/mine")


def test_truncated_weights_are_asked_for_again(repository):
    path = repository.path("model.safetensors")
    head = local_server.honest
    repository.server.behaviours[path] = [head, local_server.truncated(1000)]
    folder = hub.fetch_repository("me/mine").folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_file_that_cannot_be_had(repository):
    del repository.server.content[repository.path("model.safetensors")]
    with pytest.raises(
        DownloadError, match=r"hf://me/mine: model.safetensors cannot be downloaded \(.*give that folder"
    ):
        hub.fetch_repository("me/mine")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("RepoNotFound", "hf://me/mine: no such repository, or a private one"),
        ("GatedRepo", "hf://me/mine: its owner asks you to accept terms first"),
        ("RevisionNotFound", "hf://me/mine: there is no revision 'v9'"),
    ],
)
def test_refusals(repository, code, message):
    def refuse(handler, content):
        handler.send_response(403 if code == "GatedRepo" else 404)
        handler.send_header("X-Error-Code", code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    repository.server.behaviours["/api/models/me/mine/revision/v9"] = [refuse]
    with pytest.raises(DownloadError, match=message):
        hub.fetch_repository("me/mine", "v9")


def test_repository_without_weights():
    with pytest.raises(
        DownloadError, match=r'mine: has no weights \(.*Found: a.txt, config.json.*revision="refs/pr/1"'
    ):
        hub.needed_files(["config.json", "a.txt"], "hf://me/mine")
    with pytest.raises(DownloadError, match=r"has no config.json. Found: pytorch_model.bin"):
        hub.needed_files(["pytorch_model.bin"], "hf://me/mine")


def test_one_kind_of_weights():
    names = ["config.json", "pytorch_model.bin", "model.safetensors", "preprocessor_config.json", "README.md"]
    assert hub.needed_files(names, "x") == ["config.json", "preprocessor_config.json", "model.safetensors"]
    names = ["config.json", "model.weights.h5", "metadata.json", "pytorch_model.bin"]
    assert hub.needed_files(names, "x") == ["config.json", "metadata.json", "model.weights.h5"]


def test_without_the_client(monkeypatch):
    original = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"install\.sh hub"):
        hub.fetch_repository("me/mine")
