"""Push: an artifact and its card onto the Hub, in one commit."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # public, says its page

from supermask.errors import ConflictError, HubError, UsageError
from supermask.hub.failure import reported
from supermask.hub.place import Address, git_hash, require_name
from supermask.manifest import CONFIG, TENSORS

log = logging.getLogger(__name__)

CARD = "README.md"
# How often to wait as the Hub asks, and how long where it does not say.
WAITS, WAIT_SECONDS = 5, 10

P = ParamSpec("P")
T = TypeVar("T")


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
        UsageError: `private`, and there is a public repository; a tag of that name, on another commit, or one on a
            pull request; a card that the Hub refuses.
        ConflictError: someone else committed meanwhile; nothing was changed.
        NotFoundError: no such user or organisation.
        HubError: the Hub does not answer, or refuses.
    """
    if tag is not None:
        require_name(tag, "a tag")
    if tag is not None and create_pr:
        raise UsageError(f"tag {tag} on a pull request: a tag names what is merged; leave one of them out")
    api = HfApi()
    with reported(place, "free space"):
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
                made = _patiently(
                    api.create_commit,
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
                f"/commits/{place.revision or 'main'}, then push again"
            ) from error
        try:
            _tag(api, place, tag, made.oid)
        except HfHubHTTPError as error:
            told = error.server_message or f"status {error.response.status_code}"
            raise HubError(
                f"{place}: committed as {made.oid[:12]}, but not tagged {tag!r} ({told}); the same push again tags it"
            ) from error
    return Pushed(made.pr_url or made.commit_url, made.oid, [name for name in files if name in changed])


def _head(api: HfApi, place: Address, private: bool, files: Mapping[str, bytes]) -> ModelInfo:
    """The newest commit of the branch, repository and branch made where absent."""
    try:
        info = _patiently(api.model_info, place.repo, files_metadata=True)
        if private and not info.private:
            raise UsageError(
                f"{place.repo} is there already, and public: --private is for new repositories; change its "
                "visibility on its page, or name another"
            )
    except RepositoryNotFoundError:
        # Now, rather than when there is an empty repository.
        with _card_accepted():
            ModelCard(files[CARD].decode()).validate()
        _patiently(api.create_repo, place.repo, private=private, exist_ok=True)
        info = _patiently(api.model_info, place.repo, files_metadata=True)
    if place.revision is None:
        return info
    try:
        return _patiently(api.model_info, place.repo, revision=place.revision, files_metadata=True)
    except RevisionNotFoundError:
        _patiently(api.create_branch, place.repo, branch=place.revision, exist_ok=True)
        return _patiently(api.model_info, place.repo, revision=place.revision, files_metadata=True)


@contextmanager
def _card_accepted() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UsageError(f"the Hub refuses the card: {' '.join(str(error).split())}") from error


def _announced(file: RepoSibling) -> str | None:
    return file.lfs.sha256 if file.lfs else file.blob_id


def _hashes(content: bytes) -> tuple[str, str]:
    return hashlib.sha256(content).hexdigest(), git_hash(content)


def _require_free(api: HfApi, place: Address, tag: str, commit: str | None) -> None:
    for other in _patiently(api.list_repo_refs, place.repo).tags:
        if other.name == tag and other.target_commit != commit:
            raise UsageError(f"{place.repo} has a tag {tag!r} already, on {other.target_commit[:12]}; name another")


def _tag(api: HfApi, place: Address, tag: str | None, commit: str) -> None:
    if tag is not None:
        _patiently(api.create_tag, place.repo, tag=tag, revision=commit, exist_ok=True)


def _patiently(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call's result; waits as long as the Hub asks for, which the client itself does for downloads alone."""
    for _ in range(WAITS):
        try:
            return call(*args, **kwargs)
        except HfHubHTTPError as error:
            if error.response.status_code != 429:
                raise
            limit = parse_ratelimit_headers(error.response.headers)
            asked = limit.reset_in_seconds if limit else error.response.headers.get("Retry-After", "")
            seconds = int(asked) if str(asked).isdecimal() else WAIT_SECONDS
            log.warning("the Hub asks to wait %d seconds", seconds)
            time.sleep(seconds)
    return call(*args, **kwargs)
