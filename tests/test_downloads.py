"""Downloads from a server that truncates, stalls and lies."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kmaskformer import downloads
from kmaskformer.downloads import DigestError, DownloadError, fetch

spec = importlib.util.spec_from_file_location("local_server", Path(__file__).with_name("local_server.py"))
local_server = sys.modules["local_server"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local_server)

CONTENT = bytes(range(256)) * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = {"timeout": 0.3, "attempts": 3, "pause": 0.001}


@pytest.fixture()
def server():
    with local_server.running() as server:
        server.content["/model.pkl"] = CONTENT
        yield server


@pytest.fixture()
def path(tmp_path):
    return tmp_path / "cache" / "model.pkl"


def get(server, path, md5_prefix=MD5[:6], **options):
    return fetch(f"{server.url}/model.pkl", path, md5_prefix, **{**QUICK, **options})


def kept(path):
    return sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("."))


def ranges(server):
    return [asked for _, _, asked in server.requests]


def test_first_download_records_a_digest_and_later_uses_ask_for_nothing(server, path):
    assert get(server, path) == path
    assert path.read_bytes() == CONTENT
    assert path.with_name("model.pkl.sha256").read_text() == f"{SHA256}  model.pkl\n"
    assert kept(path) == ["model.pkl", "model.pkl.sha256"]
    get(server, path)
    assert len(server.requests) == 1


def test_truncated_answer_is_resumed_from_where_it_ended(server, path):
    server.behaviours["/model.pkl"] = [local_server.truncated(100_000), local_server.truncated(0)]
    assert get(server, path).read_bytes() == CONTENT
    # The second answer ignored the range and brought nothing, so that the third began anew.
    assert ranges(server) == [None, "bytes=100000-", None]


def test_resume_takes_only_the_rest(server, path):
    server.behaviours["/model.pkl"] = [local_server.truncated(100_000)]
    assert get(server, path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-"]


def test_stalled_connection_is_given_up_and_resumed(server, path):
    server.behaviours["/model.pkl"] = [local_server.stalling(50_000)]
    assert get(server, path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=50000-"]


def test_server_without_ranges_sends_all_again(server, path):
    server.behaviours["/model.pkl"] = [local_server.truncated(70_000), local_server.without_ranges]
    assert get(server, path).read_bytes() == CONTENT


def test_wrong_part_is_not_appended(server, path):
    server.behaviours["/model.pkl"] = [local_server.truncated(70_000), local_server.wrong_part]
    assert get(server, path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=70000-", "bytes=70000-"]


def test_end_within_a_chunk_is_noticed(server, path):
    server.behaviours["/model.pkl"] = [local_server.chunked(70_000)]
    assert get(server, path).read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_passing_error_is_retried(server, path, code):
    server.behaviours["/model.pkl"] = [local_server.status(code)] * 2
    assert get(server, path).read_bytes() == CONTENT


def test_attempts_count_only_what_brings_nothing(server, path):
    """Four connections that each bring something are no reason to give up after three."""
    server.behaviours["/model.pkl"] = [local_server.truncated(size) for size in (10, 20, 30, 40)]
    assert get(server, path).read_bytes() == CONTENT


def test_giving_up_keeps_what_has_come_and_the_next_call_goes_on(server, path):
    server.behaviours["/model.pkl"] = [local_server.truncated(80_000)] + [local_server.status(503)] * 3
    with pytest.raises(DownloadError, match=r"3 attempts, the last: .*503.*what has come is kept.*put it at .*pkl$"):
        get(server, path)
    assert kept(path) == ["model.pkl.partial"]
    assert get(server, path).read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=80000-"


def test_nothing_is_there_while_all_connections_stall(server, path):
    server.behaviours["/model.pkl"] = [local_server.stalling(0)] * 3
    with pytest.raises(DownloadError, match="timed out"):
        get(server, path, timeout=0.05)
    assert not path.exists()


def test_missing_file_is_not_retried(server, path):
    with pytest.raises(DownloadError, match=r"other.pkl: cannot be downloaded \(the server answered 404 Not Found\)"):
        fetch(f"{server.url}/other.pkl", path, **QUICK)
    assert len(server.requests) == 1


def test_offline_says_where_to_put_the_file(path):
    with local_server.running() as gone:
        pass
    with pytest.raises(DownloadError, match="refused") as raised:
        get(gone, path)
    assert str(raised.value).endswith(f"get the file elsewhere and put it at {path}")


def test_file_put_there_by_hand_is_checked_and_taken(server, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    get(server, path)
    assert not server.requests
    assert path.with_name("model.pkl.sha256").read_text().startswith(SHA256)


def test_wrong_file_put_there_by_hand(server, path):
    path.parent.mkdir()
    path.write_bytes(b"<html>please log in</html>")
    with pytest.raises(DigestError, match=rf"its MD5 must begin with {MD5[:6]}. Found: \w+ \(26 bytes\). Delete it"):
        get(server, path)


def test_lying_server_leaves_nothing(server, path):
    server.behaviours["/model.pkl"] = [local_server.lying(b"<html>blocked</html>")]
    with pytest.raises(DigestError, match=rf"must begin with {MD5[:6]}. Found: \w+ \(20 bytes\), which was deleted"):
        get(server, path)
    assert kept(path) == []
    assert get(server, path).read_bytes() == CONTENT


def test_partial_file_of_another_file_is_thrown_away(server, path):
    path.parent.mkdir()
    path.with_name("model.pkl.partial").write_bytes(b"x" * 1000)
    assert get(server, path).read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000-", None]


def test_complete_partial_file_is_not_downloaded_again(server, path):
    path.parent.mkdir()
    path.with_name("model.pkl.partial").write_bytes(CONTENT)
    assert get(server, path).read_bytes() == CONTENT
    assert ranges(server) == [f"bytes={len(CONTENT)}-"]


def test_partial_file_that_is_too_long(server, path):
    path.parent.mkdir()
    path.with_name("model.pkl.partial").write_bytes(CONTENT + b"more")
    assert get(server, path).read_bytes() == CONTENT


def test_changed_file_is_refused(server, path):
    get(server, path)
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(DigestError, match=rf"has changed since its first download. Expected SHA-256 .*{SHA256}. Found"):
        get(server, path)


def test_read_only_cache_is_used_with_a_warning(server, path, monkeypatch):
    get(server, path)
    path.with_name("model.pkl.sha256").unlink()
    monkeypatch.setattr(Path, "write_text", lambda *arguments, **options: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.warns(UserWarning, match="digests of the downloads cannot be recorded"):
        get(server, path)


def test_two_at_once_download_once(server, path):
    server.behaviours["/model.pkl"] = [local_server.slow(0.2)]
    threads = [threading.Thread(target=get, args=(server, path), kwargs={"timeout": 5}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("KMASKFORMER_HOME", "/data/models")
    assert downloads.cache_folder() == Path("/data/models")
    monkeypatch.delenv("KMASKFORMER_HOME")
    assert downloads.cache_folder() == Path.home() / ".cache" / "kmaskformer"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs the command sha256sum")
def test_recorded_digest_is_what_sha256sum_reads(server, path):
    get(server, path)
    result = subprocess.run(["sha256sum", "-c", "model.pkl.sha256"], cwd=path.parent, capture_output=True, text=True)
    assert result.stdout == "model.pkl: OK\n"
