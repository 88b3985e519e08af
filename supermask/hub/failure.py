"""Every failure of the client, as one line that names the place and the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as NetworkError  # type: ignore[attr-defined]  # httpx's, or httpx2's

from supermask.errors import HubError, NotFoundError, StorageError, UsageError, did_you_mean
from supermask.hub.place import TAG, Address


@contextmanager
def reported(place: Address | None, where_to_write: str) -> Iterator[None]:  # noqa: PLR0912 - one for each way to fail
    """Every failure of the client as one line that names the place and the next step."""
    subject = "" if place is None else f"{place}: "
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
    except RemoteEntryNotFoundError as error:
        missing = str(error.response.url).rpartition("/")[2]
        raise NotFoundError(f"{place} is no artifact: it has no {missing}") from error
    except HfHubHTTPError as error:
        raise _refused(subject, error) from error
    except HFValidationError as error:
        raise UsageError(f"{place} cannot be the name of a repository: {_one_line(error)}") from error
    except NetworkError as error:
        raise HubError(f"{subject}the Hub does not answer ({_one_line(error)}); try again") from error
    except UnicodeEncodeError as error:
        raise HubError(
            f"{subject}HF_TOKEN holds {error.object[error.start]!r}, which no token does; set it anew"
        ) from error
    except RuntimeError as error:
        # So the client wraps what goes wrong while it uploads.
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _refused(subject, error.__cause__) from error
        if isinstance(error.__cause__, NetworkError):
            raise HubError(f"{subject}{_one_line(error)} ({_one_line(error.__cause__)}); try again") from error
        raise
    except OSError as error:
        if error.errno is None:
            raise HubError(f"{subject}{_one_line(error)}; try again") from error
        raise StorageError(
            f"{subject}cannot write {error.filename or 'the cache'}: {error.strerror}; {where_to_write}"
        ) from error


def _out_of_reach(subject: str, error: Exception) -> HubError | NotFoundError:
    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError):
        return _refused(subject, cause)
    if isinstance(cause, NetworkError):
        return HubError(f"{subject}the Hub does not answer ({_one_line(cause)}), and the cache does not have it")
    return NotFoundError(f"{subject}not in the cache, and offline; try without --offline and HF_HUB_OFFLINE")


def _refused(subject: str, error: HfHubHTTPError) -> HubError:
    status = error.response.status_code
    if status in {401, 403}:
        return HubError(
            f"{subject}no permission ({_one_line(error.server_message or error)}); log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may do this"
        )
    if status == 429:
        return HubError(f"{subject}the Hub asks to wait, and still did after several tries; try again later")
    return HubError(f"{subject}the Hub answers {status} ({_one_line(error.server_message or error)}); try again later")


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
