"""The Hugging Face Hub: pull, push and find artifacts, through huggingface_hub.

What comes from there is not believed. The client compares sizes alone, so every file is held against the hash under
which the Hub announced it, the configuration is checked before the tensors are asked for, and the artifact by every
rule of docs/format.md before anyone is told where it lies.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as NetworkError  # type: ignore[attr-defined]  # httpx's, or httpx2's
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from supermask import artifact as artifacts
from supermask.artifact import Artifact
from supermask.errors import (
    ConflictError,
    HubError,
    IntegrityError,
    NotFoundError,
    StorageError,
    UsageError,
    did_you_mean,
)
from supermask.manifest import CONFIG, MAX_CONFIG_BYTES, TENSORS, max_tensor_bytes, parse_config, require

log = logging.getLogger(__name__)

TAG = "supermask"
CARD = "README.md"
NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>\S+))?", re.ASCII)


@dataclass(frozen=True)
class Address:
    """A repository on the Hub, `user/name`, and a branch, tag or commit of it; None is its main branch."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def address(name: str, revision: str | None = None) -> Address | None:
    """The place on the Hub that `user/name` or `user/name@revision` names; None if it is no such name.

    Raises:
        UsageError: `name` and `revision` both say which revision.
    """
    found = NAME.fullmatch(name)
    if found is None:
        return None
    if revision is not None and found["revision"] is not None:
        raise UsageError(f"{name} with revision {revision}: name the revision once")
    return Address(found["repo"], revision if found["revision"] is None else found["revision"])


# Pull


def pull(place: Address, *, offline: bool = False) -> tuple[Path, Artifact]:
    """Fetch an artifact's two files into the Hub's cache, or find them there, and check them.

    A full commit id whose files are in the cache needs no request; a download that was cut short goes on where it
    stopped. The weights' hash is left to whoever materialises them (`network.materialised`).

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
        with _reported(place, "free space, or set HF_HOME to a folder elsewhere"):
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
    """The file in the cache; its announced size is held against `limit` bytes before any of it is fetched."""
    if place.revision is not None and re.fullmatch("[0-9a-f]{40}", place.revision):
        # Before the client is asked to download: it would tell the Hub about itself first.
        cached = try_to_load_from_cache(place.repo, name, revision=place.revision)
        if isinstance(cached, str):
            return Path(cached)
    where: dict[str, Any] = {"revision": place.revision, "local_files_only": offline}
    announced = hf_hub_download(place.repo, name, dry_run=True, **where)
    require(announced.file_size <= limit, name, "size", f"{announced.file_size} bytes; at most {limit} are read")
    return Path(hf_hub_download(place.repo, name, **where))


def _check_announced_hash(file: Path, place: Address) -> None:
    # The cache names a file's content by the ETag: SHA-256 of large files, git's SHA-1 of others. Where it cannot
    # link (Windows), it keeps no such name, and the artifact's own hashes must do.
    announced, content = file.resolve().name, file.read_bytes()
    if re.fullmatch("[0-9a-f]{64}", announced):
        digest = hashlib.sha256(content).hexdigest()
    elif re.fullmatch("[0-9a-f]{40}", announced):
        digest = _git_hash(content)
    else:
        return
    if digest != announced:
        raise IntegrityError(
            f"{place}: {file.name} was altered on its way: it hashes to {digest[:16]}..., the Hub announced "
            f"{announced[:16]}...; it is removed from the cache: pull again"
        )


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


# Push


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        url: of the commit, or of the pull request.
        commit: its id; of the head that was there, where nothing changed.
        files: names of the files that it added or replaced.
    """

    url: str
    commit: str
    files: list[str]


def push(
    files: Mapping[str, bytes],
    place: Address,
    *,
    private: bool = False,
    create_pr: bool = False,
    tag: str | None = None,
    message: str,
) -> Pushed:
    """Put an artifact into a repository on the Hub, in one commit or not at all.

    The repository, and a branch named as the revision, are made where absent. Where the artifact is there already,
    only files that are missing are added: a card that people have edited since stays as they left it.

    Args:
        files: by name; `config.json`, `model.safetensors` and the card, `README.md`, among them.
        place: the repository; its revision is a branch.
        private: make a new repository private.
        create_pr: open a pull request instead.
        tag: a name for the commit.
        message: the commit's.

    Raises:
        UsageError: `private`, and there is a public repository; a tag of that name, on another commit; a card that
            the Hub refuses.
        ConflictError: someone else committed meanwhile; nothing was changed.
        NotFoundError: no such user or organisation.
        HubError: the Hub does not answer, or refuses.
    """
    api = HfApi()
    with _reported(place, "free space"):
        head = _head(api, place, private, files)
        theirs = {file.rfilename: _announced(file) for file in head.siblings or []}
        changed = {name for name, content in files.items() if theirs.get(name) not in _hashes(content)}
        if not changed & {CONFIG, TENSORS}:
            changed -= set(theirs)
        if tag is not None:
            _require_free(api, place, tag, None if changed else head.sha)
        if not changed:
            _tag(api, place, tag, str(head.sha))
            return Pushed(f"{api.endpoint}/{place.repo}/tree/{place.revision or 'main'}", str(head.sha), [])
        try:
            with _card_accepted():
                made = api.create_commit(
                    place.repo,
                    [CommitOperationAdd(name, files[name]) for name in files if name in changed],
                    commit_message=message,
                    revision=place.revision,
                    create_pr=create_pr,
                    parent_commit=head.sha,
                )
        except HfHubHTTPError as error:
            if error.response.status_code != 412:
                raise
            raise ConflictError(
                f"{place} changed while this was pushed, and nothing was written; look at {api.endpoint}/{place.repo}"
                "/commits/main, then push again"
            ) from error
        _tag(api, place, tag, made.oid)
    return Pushed(made.pr_url or made.commit_url, made.oid, [name for name in files if name in changed])


def _head(api: HfApi, place: Address, private: bool, files: Mapping[str, bytes]) -> ModelInfo:
    """The newest commit of the branch, repository and branch made where absent."""
    try:
        info = api.model_info(place.repo, files_metadata=True)
        if private and not info.private:
            raise UsageError(
                f"{place.repo} is there already, and public: --private is for new repositories; change its "
                "visibility on its page, or name another"
            )
    except RepositoryNotFoundError:
        # Now, rather than when there is an empty repository.
        with _card_accepted():
            ModelCard(files[CARD].decode()).validate()
        api.create_repo(place.repo, private=private, exist_ok=True)
        info = api.model_info(place.repo, files_metadata=True)
    if place.revision is None:
        return info
    try:
        return api.model_info(place.repo, revision=place.revision, files_metadata=True)
    except RevisionNotFoundError:
        api.create_branch(place.repo, branch=place.revision, exist_ok=True)
        return api.model_info(place.repo, revision=place.revision, files_metadata=True)


@contextmanager
def _card_accepted() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UsageError(f"the Hub refuses the card: {' '.join(str(error).split())}") from error


def _announced(file: RepoSibling) -> str | None:
    return file.lfs.sha256 if file.lfs else file.blob_id


def _hashes(content: bytes) -> tuple[str, str]:
    return hashlib.sha256(content).hexdigest(), _git_hash(content)


def _require_free(api: HfApi, place: Address, tag: str, commit: str | None) -> None:
    for other in api.list_repo_refs(place.repo).tags:
        if other.name == tag and other.target_commit != commit:
            raise UsageError(f"{place.repo} has a tag {tag!r} already, on {other.target_commit[:12]}; name another")


def _tag(api: HfApi, place: Address, tag: str | None, commit: str) -> None:
    if tag is not None:
        api.create_tag(place.repo, tag=tag, revision=commit, exist_ok=True)


# Find


def found(limit: int = 100) -> list[ModelInfo]:
    """Repositories on the Hub that carry our tag, the most downloaded first, with their cards' metadata.

    Raises:
        HubError: the Hub does not answer, or refuses.
    """
    with _reported(None, "free space"):
        return list(HfApi().list_models(filter=TAG, sort="downloads", limit=limit, full=True, cardData=True))


# Failure


@contextmanager
def _reported(place: Address | None, where_to_write: str) -> Iterator[None]:
    """Every failure of the client as one line that names the place and the next step."""
    subject = "the Hub" if place is None else str(place)
    try:
        yield
    except RevisionNotFoundError as error:
        assert place is not None
        raise NotFoundError(f"{place.repo} has no revision {place.revision!r}; {_known_revisions(place)}") from error
    except RepositoryNotFoundError as error:
        assert place is not None
        raise NotFoundError(f"no repository {place.repo!r} that you may see on the Hub; {_near(place)}") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise _out_of_reach(subject, error) from error
    except EntryNotFoundError as error:
        missing = str(getattr(error, "response", None) and error.response.url).rpartition("/")[2]  # type: ignore[attr-defined]
        raise NotFoundError(f"{subject} is no artifact: it has no {missing}") from error
    except HfHubHTTPError as error:
        raise _refused(subject, error) from error
    except NetworkError as error:
        raise HubError(
            f"{subject}: the Hub does not answer ({_one_line(error)}); try again, what arrived is kept"
        ) from error
    except OSError as error:
        if error.errno is None:
            raise HubError(f"{subject}: {_one_line(error)}; try again, what arrived is kept") from error
        raise StorageError(f"{subject}: cannot write {error.filename}: {error.strerror}; {where_to_write}") from error


def _out_of_reach(subject: str, error: Exception) -> HubError | NotFoundError:
    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError):
        return _refused(subject, cause)
    if isinstance(cause, NetworkError):
        return HubError(f"{subject}: the Hub does not answer ({_one_line(cause)}), and the cache does not have it")
    return NotFoundError(f"{subject} is not in the cache; pull it once without --offline and HF_HUB_OFFLINE")


def _refused(subject: str, error: HfHubHTTPError) -> HubError:
    status = error.response.status_code
    if status in {401, 403}:
        return HubError(
            f"{subject}: no permission ({_one_line(error.server_message or error)}); log in with `hf auth login`, or "
            "set HF_TOKEN to a token that may write there"
        )
    if status == 429:
        return HubError(f"{subject}: the Hub asks to wait, and still did after several tries; try again later")
    return HubError(
        f"{subject}: the Hub answers {status} ({_one_line(error.server_message or error)}); try again later"
    )


def _known_revisions(place: Address) -> str:
    try:
        refs = HfApi().list_repo_refs(place.repo)
    except (NetworkError, OSError):
        return "look at its page for those it has"
    return did_you_mean(str(place.revision), [ref.name for ref in [*refs.branches, *refs.tags]])


def _near(place: Address) -> str:
    owner, _, name = place.repo.partition("/")
    advice = "a private one needs a token: `hf auth login`, or HF_TOKEN"
    try:
        api = HfApi()
        theirs = [model.id for model in api.list_models(author=owner, limit=1000)]
        theirs = theirs or [model.id for model in api.list_models(filter=TAG, limit=1000)]
    except (NetworkError, OSError):
        return advice
    near = get_close_matches(place.repo, theirs, n=1) or [one for one in theirs if one.partition("/")[2] == name]
    return f"did you mean {near[0]!r}? {advice[0].upper()}{advice[1:]}" if near else advice


def _one_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
