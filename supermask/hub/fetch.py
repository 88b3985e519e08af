"""Pull: an artifact's files from the Hub into its cache, each checked."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from supermask import artifact as artifacts
from supermask.artifact import Artifact
from supermask.errors import IntegrityError
from supermask.hub.failure import reported
from supermask.hub.place import Address, git_hash
from supermask.manifest import CONFIG, MAX_CONFIG_BYTES, TENSORS, max_tensor_bytes, parse_config, require


def pull(place: Address, *, offline: bool = False) -> tuple[Path, Artifact]:
    """Fetch an artifact's two files into the Hub's cache, or find them there, and check them.

    A full commit id whose files are in the cache needs no request. The weights' hash is left to `network.check`.

    Args:
        place: whose repository, and which revision.
        offline: look in the cache alone. So does HF_HUB_OFFLINE=1.

    Returns:
        The folder in the cache, and what it holds.

    Raises:
        NotFoundError: no such repository, revision or file, or, offline, none in the cache.
        HubError: the Hub does not answer, or refuses.
        IntegrityError: a file is not what the Hub announced, or breaks a rule of docs/format.md; it is removed from
            the cache.
        StorageError: the cache cannot be written.
    """
    fetched: list[Path] = []
    try:
        with reported(place, "free space, or set HF_HOME to a folder elsewhere"):
            config_file = _fetch(place, CONFIG, MAX_CONFIG_BYTES, offline)
            fetched.append(config_file)
            _check_announced_hash(config_file, place)
            config = parse_config(config_file.read_bytes())
            # The commit that the branch led to a moment ago: both files are of one version, whoever pushes meanwhile.
            version = Address(place.repo, config_file.parent.name)
            tensors_file = _fetch(version, TENSORS, max_tensor_bytes(config), offline)
            fetched.append(tensors_file)
            _check_announced_hash(tensors_file, place)
        return config_file.parent, artifacts.read(config_file.parent)
    except IntegrityError:
        forget(*fetched)
        raise


def forget(*files: Path) -> None:
    """Remove files from the Hub's cache, so that a later pull fetches them anew."""
    for file in files:
        blob = file.resolve()
        file.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)


def _fetch(place: Address, name: str, limit: int, offline: bool) -> Path:
    """The file in the cache, of at most `limit` bytes; no more than that is fetched."""
    file = _cached(place, name)
    if file is None:
        where: dict[str, Any] = {"revision": place.revision, "local_files_only": offline}
        announced = hf_hub_download(place.repo, name, dry_run=True, **where).file_size
        require(announced is not None, name, "size", "the Hub does not tell it")
        require(announced <= limit, name, "size", f"{announced} bytes; at most {limit} are read")
        file = Path(hf_hub_download(place.repo, name, **where))
    size = file.stat().st_size
    require(size <= limit, name, "size", f"{size} bytes; at most {limit} are read")
    return file


def _cached(place: Address, name: str) -> Path | None:
    """The file of a full commit id, if it is there, without a request: asked to download, the client makes one."""
    if place.revision is None or not re.fullmatch("[0-9a-f]{40}", place.revision):
        return None
    found = try_to_load_from_cache(place.repo, name, revision=place.revision)
    return Path(found) if isinstance(found, str) else None


def _check_announced_hash(file: Path, place: Address) -> None:
    # The cache names a file's content by the ETag: SHA-256 of large files, git's SHA-1 of others. Where it cannot
    # link (Windows), it keeps no such name, and the artifact's own hashes must do.
    announced, content = file.resolve().name, file.read_bytes()
    if re.fullmatch("[0-9a-f]{64}", announced):
        digest = hashlib.sha256(content).hexdigest()
    elif re.fullmatch("[0-9a-f]{40}", announced):
        digest = git_hash(content)
    else:
        return
    if digest != announced:
        raise IntegrityError(
            f"{place}: {file.name} was altered on its way: it hashes to {digest[:16]}..., the Hub announced "
            f"{announced[:16]}...; it is removed from the cache: pull again"
        )
