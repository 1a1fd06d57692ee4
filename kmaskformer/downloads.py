"""Files from the network: resumed, retried, checked against digests, and never half there under their final name.

They are kept below `$KMASKFORMER_HOME`, by default `~/.cache/kmaskformer`. Beside each file stands `<file>.sha256`, its
digest at the first download in the format of `sha256sum -c`, which every later use is compared with.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHUNK_BYTES = 1 << 20
_WORTH_A_RETRY = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(OSError):
    """A file could not be brought; the message says where to put it by hand."""


class DigestError(ValueError):
    """A file is not the one that was published, or not the one that was downloaded at first."""


def cache_folder() -> Path:
    """Where downloads are kept: `$KMASKFORMER_HOME`, or `~/.cache/kmaskformer`."""
    return Path(os.environ.get("KMASKFORMER_HOME") or "~/.cache/kmaskformer").expanduser()


def fetch(
    url: str,
    path: str | os.PathLike,
    md5_prefix: str = "",
    timeout: float = 30.0,
    attempts: int = 4,
    pause: float = 1.0,
) -> Path:
    """The file of a URL: downloaded at the first call, checked at every call.

    A file that was put at `path` by hand is taken as it is, if it passes the check. Of several processes that want the
    same file one downloads it and the others wait.

    Args:
        url: `http://` or `https://` address.
        path: Where the file is to be; its folder is made.
        md5_prefix: First hexadecimal digits of the published file's MD5; empty for no such check.
        timeout: Seconds without a byte after which a connection is given up.
        attempts: Tries in a row that bring nothing new before the download is given up.
        pause: Seconds before the second try; doubled before each further one.

    Returns:
        `path`.

    Raises:
        DownloadError: If the file cannot be had.
        DigestError: If it is not the published file, or has changed since its first download.
    """
    path = Path(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            if not path.is_file():  # another process may have brought it meanwhile
                _bring(url, path, md5_prefix, (timeout, attempts, pause))
                return path
    check_file(path, md5_prefix, url)
    return path


def check_file(path: Path, md5_prefix: str = "", url: str = "") -> None:
    """Compares a file with the digest of its first download; records that digest where there is none yet.

    Raises:
        DigestError: If they differ or, at the first time, if the MD5 does not begin with `md5_prefix`.
    """
    record = _record_path(path)
    expected = read_digests(record).get(path.name)
    if expected is None:
        write_digests(record, {path.name: check_published(path, md5_prefix, url)})
        return
    found = file_digests(path, "sha256")[0]
    if expected != found:
        raise DigestError(
            f"{path}: the file has changed since its first download. Expected SHA-256 (of {record.name}): {expected}. "
            f"Found: {found}. Delete both files to download it anew."
        )


def check_published(path: Path, md5_prefix: str, url: str = "") -> str:
    """Compares a file with the first digits of its published MD5; gives its SHA-256.

    Raises:
        DigestError: If they differ.
    """
    md5, sha256 = file_digests(path, "md5", "sha256")
    if not md5.startswith(md5_prefix):
        raise DigestError(
            f"{path}: not the published file: its MD5 must begin with {md5_prefix}. Found: {md5} "
            f"({path.stat().st_size} bytes). Delete it, and {f'put {url} there' if url else 'get it anew'}."
        )
    return sha256


def read_digests(record: Path) -> dict[str, str]:
    """SHA-256 digests by file name, from a file as `sha256sum` writes it; none where there is no such file."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}


def write_digests(record: Path, digests: Mapping[str, str]) -> None:
    """Writes what `read_digests` reads; where that is not allowed, as in a cache that people share, warns."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()), encoding="utf-8")
    except OSError as error:
        warnings.warn(f"{record}: the digests of the downloads cannot be recorded ({error})", stacklevel=2)


def file_digests(path: str | os.PathLike, *algorithms: str) -> list[str]:
    """Hexadecimal digests of a file, by one reading of it."""
    digests = [hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms]
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            for digest in digests:
                digest.update(chunk)
    return [digest.hexdigest() for digest in digests]


def _bring(url: str, path: Path, md5_prefix: str, patience: tuple[float, int, float]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    began_earlier = partial.is_file()
    _download(url, partial, path, *patience)
    md5, sha256 = file_digests(partial, "md5", "sha256")
    if not md5.startswith(md5_prefix):
        size = partial.stat().st_size
        partial.unlink()
        if began_earlier:  # what an earlier process left may have been of another file
            return _bring(url, path, md5_prefix, patience)
        raise DigestError(
            f"{url}: the download is not the published file: its MD5 must begin with {md5_prefix}. Found: {md5} "
            f"({size} bytes), which was deleted. A proxy may have answered instead: "
            f"try again, or get the file elsewhere and put it at {path}"
        )
    os.replace(partial, path)
    write_digests(_record_path(path), {path.name: sha256})
    return None


def _download(url: str, partial: Path, path: Path, timeout: float, attempts: int, pause: float) -> None:
    """Fills `partial`, from where it ends, until the server has nothing more to send."""
    most_bytes, failures = _size(partial), 0
    while True:
        try:
            return _receive(url, partial, timeout)
        except urllib.error.HTTPError as error:
            if error.code not in _WORTH_A_RETRY:
                raise _gave_up(url, path, f"the server answered {error.code} {error.reason}") from error
            reason: Exception = error
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            reason = error
        failures = 1 if _size(partial) > most_bytes else failures + 1
        most_bytes = max(most_bytes, _size(partial))
        if failures >= attempts:
            raise _gave_up(url, path, f"{attempts} attempts, the last: {reason}") from reason
        time.sleep(pause * 2 ** (failures - 1))


def _receive(url: str, partial: Path, timeout: float) -> None:
    """One connection's worth."""
    offset = _size(partial)
    headers = {"User-Agent": "kmaskformer", **({"Range": f"bytes={offset}-"} if offset else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not offset:
            raise
        if error.headers.get("Content-Range") == f"bytes */{offset}":
            return  # all of it had come before
        partial.unlink()
        raise ConnectionError("the server has less of the file than was received before") from error
    with response:
        offset = _checked_offset(response, offset)
        length = response.headers.get("Content-Length")
        total = None if length is None else offset + int(length)
        _write(response, partial, offset, total)
    if total is not None and _size(partial) < total:
        raise ConnectionError(f"the connection ended after {_size(partial)} of {total} bytes")


def _checked_offset(response: Any, offset: int) -> int:
    """Where in the file the answer begins: 0 if the server sends all of it, whatever was asked for."""
    if response.status != 206:
        return 0
    sent = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if sent is None or int(sent[1]) != offset:
        raise ConnectionError(f"the server sent another part of the file than asked for (from byte {offset})")
    return offset


def _write(response: Any, partial: Path, offset: int, total: int | None) -> None:
    bar = tqdm(desc=partial.stem, total=total, initial=offset, unit="B", unit_scale=True, unit_divisor=1024)
    with open(partial, "ab" if offset else "wb") as file, bar:
        while chunk := _next_chunk(response):
            file.write(chunk)
            bar.update(len(chunk))


def _next_chunk(response: Any) -> bytes:
    try:
        return response.read1(CHUNK_BYTES)
    except OSError as error:  # of the connection, such as a broken TLS record or a lost route, not of the disk
        raise ConnectionError(f"the connection failed: {error}") from error


def _gave_up(url: str, path: Path, reason: str) -> DownloadError:
    return DownloadError(
        f"{url}: cannot be downloaded ({reason}). Try again later (what has come is kept), or get the file elsewhere "
        f"and put it at {path}"
    )


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time, where the system and the file system have locks."""
    with open(path, "w") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
