"""Repositories of the Hugging Face Hub, through the client `huggingface_hub`, which is imported only when asked for.

The files stay in the client's own cache, which other libraries share. Their SHA-256 digests, as the Hub reported them,
are kept in `hub/<owner>--<name>/<commit>.sha256` of this package's cache, and every use compares the files with them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from kmaskformer.downloads import DigestError, DownloadError, cache_folder, file_digests, read_digests, write_digests
from kmaskformer.extras import missing_extra

_OURS = "model.weights.h5"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_BESIDE = ("config.json", "preprocessor_config.json", "dataset_info.json", "preprocessing.json", "metadata.json")


@dataclasses.dataclass(frozen=True)
class RepositoryFiles:
    """A repository on this machine: its folder, commit, and licence as its card names it ("" where unknown)."""

    folder: Path
    commit: str
    license: str = ""


def fetch_repository(repository: str, revision: str | None = None) -> RepositoryFiles:
    """Downloads what is needed of a model's repository, or finds it in the cache where there is no connection.

    Args:
        repository: `owner/name`.
        revision: Branch, tag or commit; the main branch by default.

    Returns:
        Where the files are.

    Raises:
        ImportError: If `huggingface_hub` is not installed.
        DownloadError: If the repository, revision or a file of it cannot be had.
        DigestError: If a file is not what the Hub reports, or has changed since it was downloaded.
    """
    client = _client()
    from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        info = client.HfApi(endpoint=endpoint).model_info(
            repository, revision=revision, files_metadata=True, timeout=30
        )
    except GatedRepoError as error:
        raise DownloadError(
            f"hf://{repository}: its owner asks you to accept terms first. Accept them on the repository's page, then "
            "run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"hf://{repository}: there is no revision {revision!r}. Leave `revision` out?") from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"hf://{repository}: no such repository, or a private one. Check the name; for a private one run "
            "`hf auth login`."
        ) from error
    except Exception as error:  # the client's versions differ in what they raise without a connection
        return _from_cache(client, repository, revision, error)
    names = needed_files([file.rfilename for file in info.siblings], f"hf://{repository}")
    folder = _download(client, repository, revision, endpoint, names)
    reported = {file.rfilename: _reported_digest(file) for file in info.siblings}
    if shards := _shards(folder, names, reported):
        _download(client, repository, folder.name, endpoint, shards)
        names = [*names, *shards]
    _check(folder, names, {name: digest for name, digest in reported.items() if digest}, repository)
    return RepositoryFiles(folder, info.sha or folder.name, _license(info))


def needed_files(names: Sequence[str], where: str) -> list[str]:
    """Those files of a repository that describe and fill a model, one kind of weights only.

    Raises:
        DownloadError: If there is no configuration or no weights.
    """
    weights = next((name for name in (_OURS, *_WEIGHTS) if name in names), None)
    if weights is None or "config.json" not in names:
        missing = "config.json" if weights else f"weights ({', '.join((_OURS, *_WEIGHTS))})"
        raise DownloadError(
            f"{where}: has no {missing}. Found: {', '.join(sorted(names)[:20]) or 'no file'}. Some repositories keep "
            'weights on a pull request: try `revision="refs/pr/1"`.'
        )
    return [*(name for name in _BESIDE if name in names), weights]


def _client() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        purpose = "Reading hf:// sources (a folder that was downloaded by other means needs nothing)"
        raise missing_extra("hub", purpose, error) from error
    return huggingface_hub


def _download(client: ModuleType, repository: str, revision: str | None, endpoint: str | None, names: Any) -> Path:
    """The folder of one commit that holds the files; its name is the commit.

    The first file's decides: a branch may move between two files.
    """
    folders = set()
    for name in names:
        try:
            path = client.hf_hub_download(repository, name, revision=revision, endpoint=endpoint)
        except Exception as error:  # network, disk, and the client's own consistency checks
            raise DownloadError(
                f"hf://{repository}: {name} cannot be downloaded ({_first_line(error)}). {_by_hand()}"
            ) from error
        folder = Path(path).parents[len(Path(name).parts) - 1]
        folders.add(folder)
        revision = folder.name
    if len(folders) > 1:
        raise DownloadError(f"hf://{repository}: the repository changed during the download. Try again.")
    return folders.pop()


def _shards(folder: Path, names: Sequence[str], listed: Any) -> list[str]:
    """The files that an index of the weights names."""
    index = next((name for name in names if name.endswith(".index.json")), None)
    if index is None:
        return []
    try:
        shards = sorted(set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(
            f"{folder / index}: must be JSON with the files of the weights under `weight_map`. Received: {error!r}. "
            "Delete it to download it anew."
        ) from error
    absent = [name for name in shards if name not in listed]
    if absent:
        raise DownloadError(f"{folder / index}: names files that the repository has not: {', '.join(absent[:5])}")
    return shards


def _from_cache(client: ModuleType, repository: str, revision: str | None, error: Exception) -> RepositoryFiles:
    config = client.try_to_load_from_cache(repository, "config.json", revision=revision or "main")
    if not isinstance(config, str):
        raise DownloadError(
            f"hf://{repository}: the Hub cannot be reached, and the repository is not in the cache "
            f"({_first_line(error)}). "
            f"{_by_hand()}"
        ) from error
    folder = Path(config).parent
    names = needed_files([path.name for path in folder.iterdir() if path.exists()], str(folder))
    names += _shards(folder, names, [path.name for path in folder.iterdir() if path.exists()])
    _check(folder, names, {}, repository)
    return RepositoryFiles(folder, folder.name)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _by_hand() -> str:
    return (
        "Try again with a connection, or download the repository's files elsewhere into a folder and give "
        "that folder's path instead."
    )


def _check(folder: Path, names: Sequence[str], reported: dict[str, str], repository: str) -> None:
    """Compares files with the digests that the Hub reports, else with those of the first time, and records them."""
    record = cache_folder() / "hub" / repository.replace("/", "--") / f"{folder.name}.sha256"
    recorded = read_digests(record)
    for name in names:
        path = folder / name
        found = file_digests(path, "sha256")[0]
        expected = reported.get(name) or recorded.get(name) or found
        if found != expected:
            raise DigestError(
                f"{path}: not the file that the Hub has. Expected SHA-256: {expected}. Found: {found} "
                f"({path.stat().st_size} bytes). Delete {path.resolve()} to download it anew."
            )
        recorded[name] = found
    write_digests(record, recorded)


def _reported_digest(file: Any) -> str:
    """The SHA-256 of a large file; the Hub knows none of small ones."""
    lfs = getattr(file, "lfs", None)
    return "" if lfs is None else (lfs.get("sha256", "") if isinstance(lfs, dict) else lfs.sha256)


def _license(info: Any) -> str:
    return str(getattr(getattr(info, "card_data", None), "license", None) or "")
