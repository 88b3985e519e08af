"""What a Hugging Face Hub keeps, in memory: users, repositories, their commits and their model cards."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import RLock
from typing import Any

import yaml  # type: ignore[import-untyped]

FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
_ticks = itertools.count()  # every commit is a minute after the one before, whatever the repository

# Some of what huggingface.co/docs/hub/repositories-licenses and huggingface.co/tasks list.
LICENSES = [
    *("agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0"),
    *("gpl-2.0", "gpl-3.0", "isc", "lgpl-3.0", "mit", "mpl-2.0", "openrail", "other", "unknown", "unlicense"),
]
TASKS = [
    *("audio-classification", "feature-extraction", "image-classification", "image-feature-extraction"),
    *("image-segmentation", "object-detection", "other", "tabular-classification", "text-classification"),
    *("text-generation", "zero-shot-image-classification"),
]
REPO_ID = re.compile(r"([\w.-]+/)?[\w.-]+", re.ASCII)


class RefusalError(Exception):
    """An answer other than success.

    Args:
        status: of HTTP.
        message: for people.
        code: of the Hub, by which the client picks its exception, such as `RepoNotFound`.
        headers: more of them.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


# Files


def is_large(path: str, sample: bytes, size: int) -> bool:
    """Whether a file is kept with Git LFS: for its name, its size, or a sample that is binary. No empty file is."""
    by_name = path.endswith((".safetensors", ".onnx", ".png"))
    return size > 0 and (by_name or size > 10_000_000 or b"\0" in sample)


def kept_large(path: str, content: bytes) -> bool:
    """`is_large` of a whole file."""
    return is_large(path, content[:512], len(content))


def git_hash(content: bytes) -> str:
    """Name of a blob in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256(content: bytes) -> str:
    """Name of a file in Git LFS."""
    return hashlib.sha256(content).hexdigest()


def pointer(content: bytes) -> bytes:
    """What git holds in place of a file that Git LFS keeps."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n".encode()


def announced_hash(path: str, content: bytes) -> str:
    """Under which hash a file is offered and compared: SHA-256 of a large one, git's of any other."""
    return sha256(content) if kept_large(path, content) else git_hash(content)


def entry(path: str, content: bytes) -> dict[str, Any]:
    """How the Hub lists a file."""
    listed: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if kept_large(path, content):
        in_git = pointer(content)
        listed["oid"] = git_hash(in_git)
        listed["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": len(in_git)}
    return listed


# Repositories


@dataclass(frozen=True)
class Commit:
    """A version of a repository: all its files, by path."""

    sha: str
    parent: str | None
    title: str
    author: str
    date: datetime
    files: Mapping[str, bytes]


@dataclass
class Repo:
    """A repository: its commits in the order made, and what points at them.

    Attributes:
        branches, tags: name to commit.
        pulls: `refs/pr/1` to its newest commit.
        objects: what was uploaded for Git LFS, by SHA-256, in a commit or not yet.
    """

    name: str
    private: bool = False
    downloads: int = 0
    likes: int = 0
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        self.branches["main"] = self._add(None, {".gitattributes": attributes}, "initial commit", "system")

    @property
    def head(self) -> Commit:
        return self.find("main")

    def find(self, revision: str) -> Commit:
        """The commit of a branch, tag, pull request, id, or the first seven or more digits of an id."""
        sha = {**self.tags, **self.pulls, **self.branches}.get(revision, revision)
        for commit in self.commits:
            if commit.sha == sha or (len(sha) >= 7 and commit.sha.startswith(sha)):
                return commit
        raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(
        self, changes: Mapping[str, bytes | None], title: str, author: str, revision: str, parent: str | None = None
    ) -> str:
        """Commit to a branch or pull request and return the commit's id.

        Args:
            changes: content by path; None deletes a file, or a folder whose path ends with a slash.
            title, author: the commit's.
            revision: which branch or pull request.
            parent: refuse unless this is its newest commit.
        """
        refs = self.pulls if revision in self.pulls else self.branches
        if revision not in refs:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if parent is not None and not refs[revision].startswith(parent):
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        refs[revision] = self._add(self.find(revision), changes, title, author)
        return refs[revision]

    def open_pull(self, changes: Mapping[str, bytes | None], title: str, author: str, base: str) -> str:
        """Open a pull request of one commit on `base` and return its name, `refs/pr/N`."""
        name = f"refs/pr/{len(self.pulls) + 1}"
        self.pulls[name] = self._add(self.find(base), changes, title, author)
        return name

    def _add(self, parent: Commit | None, changes: Mapping[str, bytes | None], title: str, author: str) -> str:
        files = dict(parent.files) if parent else {}
        for path, content in changes.items():
            if content is not None:
                files[path] = content
                continue
            gone = [file for file in files if file == path or (path.endswith("/") and file.startswith(path))]
            if not gone:
                raise RefusalError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for file in gone:
                del files[file]
        tick = next(_ticks)
        known = [str(tick), title, *(f"{path} {git_hash(content)}" for path, content in sorted(files.items()))]
        sha = hashlib.sha1("\n".join(known).encode(), usedforsecurity=False).hexdigest()
        date = FIRST_DAY + timedelta(minutes=tick)
        self.commits.append(Commit(sha, parent.sha if parent else None, title, author, date, files))
        return sha


# The Hub


class Hub:
    """Repositories, and who may do what with them.

    Attributes:
        repos: by name, `user/name`.
        users: user by token.
        organisations: the members, who may write, by name.
        before_commit: called once, with the repository's name, before the next commit is looked at.
        part_size: larger files go up in parts of so many bytes.
        url, cdn: where the Hub answers, and where large files lie; no token must be sent to the latter.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users = {"hf_tokenOfAda": "ada", "hf_tokenOfBob": "bob"}
        self.organisations = {"allenai": {"ada"}}
        self.before_commit: Callable[[str], object] | None = None
        self.part_size = 5_000_000_000
        self.url = self.cdn = ""
        self.lock = RLock()

    def add_repo(
        self,
        name: str,
        files: Mapping[str, bytes],
        tags: Sequence[str] = (),
        *,
        private: bool = False,
        downloads: int = 0,
        likes: int = 0,
    ) -> str:
        """Make a repository that holds files, its commit tagged in git, and return the commit's id."""
        self.repos[name] = Repo(name, private, downloads, likes)
        sha = self.commit(name, files)
        self.repos[name].tags = dict.fromkeys(tags, sha)
        return sha

    def commit(self, name: str, changes: Mapping[str, bytes | None], revision: str = "main") -> str:
        """Commit as someone else, carol, and return the commit's id; None deletes a file."""
        with self.lock:
            return self.repos[name].commit(changes, "Upload with git", "carol", revision)

    def may_write(self, name: str, user: str | None) -> bool:
        owner = name.partition("/")[0]
        return user is not None and (user == owner or user in self.organisations.get(owner, ()))

    def readable(self, name: str, user: str | None) -> Repo:
        """The repository, or the Hub's refusal, which does not tell a private one from none."""
        repo = self.repos.get(name)
        if repo is None or (repo.private and not self.may_write(name, user)):
            status, message = (401, "Invalid username or password.") if user is None else (404, "Repository not found")
            raise RefusalError(status, message, "RepoNotFound")
        return repo

    def writable(self, name: str, user: str | None, *, create_pr: bool = False) -> Repo:
        """The repository, for a commit; any user who may read it may open a pull request."""
        repo = self.readable(name, user)
        if user is None:
            raise RefusalError(401, "Invalid username or password.")
        if not create_pr and not self.may_write(name, user):
            raise RefusalError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo


# Model cards


def front_matter(text: str) -> Any:
    """A model card's metadata; an empty dict if it has none.

    Raises:
        YAMLError: it is no YAML.
    """
    block = re.match(r"---\r?\n(.*?)\r?\n---\s*?(\n|$)", text, re.DOTALL)
    return (yaml.safe_load(block[1]) if block else None) or {}


def card_of(commit: Commit) -> dict[str, Any]:
    """The metadata of a commit's README.md, as far as it can be read."""
    try:
        card = front_matter(commit.files.get("README.md", b"").decode())
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return card if isinstance(card, dict) else {}


def tags_of(card: Mapping[str, Any]) -> list[str]:
    """The tags by which a repository is found: its card's own, and those that follow from other fields."""
    found = [*_listed(card.get("library_name")), *_listed(card.get("tags")), *_listed(card.get("language"))]
    found += [f"dataset:{name}" for name in _listed(card.get("datasets"))]
    found += [f"license:{name}" for name in _listed(card.get("license"))]
    return [*dict.fromkeys([*found, *_listed(card.get("pipeline_tag")), "region:us"])]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def card_errors(text: str) -> tuple[list[str], list[str]]:
    """What the Hub refuses in a model card, and what it warns of."""
    try:
        card = front_matter(text)
    except yaml.YAMLError as error:
        return [f"the metadata is not valid YAML: {error}"], []
    if not isinstance(card, dict):
        return ["the metadata must be a mapping"], []
    if not card:
        return [], ["empty or missing yaml metadata in repo card"]
    return [
        *_words(card, "license", LICENSES.__contains__, f"must be one of {LICENSES}"),
        *_words(card, "tags", bool, "must not be empty", alone=False),
        *_words(card, "datasets", REPO_ID.fullmatch, "is not valid. If possible, use a dataset id from hf.co/datasets"),
        *_words(card, "language", re.compile("[a-z]{2,3}|code|multilingual").fullmatch, "must be an ISO 639 code"),
        *_words(card, "base_model", REPO_ID.fullmatch, "is not valid. Use a model id from hf.co/models"),
        *_words(card, "metrics", bool, "must not be empty"),
        *_words(card, "pipeline_tag", TASKS.__contains__, f"must be one of {TASKS}", several=False),
        *_words(card, "library_name", bool, "must not be empty", several=False),
        *_model_index_errors(card.get("model-index", [])),
    ], []


def _words(
    card: Mapping[str, Any],
    key: str,
    good: Callable[[str], object],
    rule: str,
    *,
    alone: bool = True,
    several: bool = True,
) -> Iterator[str]:
    """Errors of a field that holds a string (`alone`), or a list of them (`several`)."""
    value = card.get(key, [] if several else "other")
    if not (alone and isinstance(value, str)) and not (several and isinstance(value, list)):
        kinds = ["a string"] * alone + ["an array"] * several
        yield f'"{key}" must be {" or ".join(kinds)}'
        return
    for index, word in enumerate(_listed(value)):
        name = f"{key}[{index}]" if isinstance(value, list) else key
        if not isinstance(word, str):
            yield f'"{name}" must be a string'
        elif not good(word):
            yield f'"{name}" {rule}'


def _model_index_errors(index: Any) -> Iterator[str]:
    yield from _array_errors(index, "model-index")
    for model, content in _each(index, "model-index"):
        if not isinstance(_at(content, "name"), str):
            yield f'"{model}.name" is required'
        results = _at(content, "results")
        yield from _array_errors(results, f"{model}.results")
        for result, found in _each(results, f"{model}.results"):
            yield from _result_errors(found, result)


def _result_errors(found: Any, name: str) -> Iterator[str]:
    for part in ("task.type", "dataset.name", "dataset.type"):
        if not isinstance(_at(found, part), str):
            yield f'"{name}.{part}" is required'
    if not REPO_ID.fullmatch(str(_at(found, "dataset.type"))):
        yield f'"{name}.dataset.type" fails to match the required pattern: {REPO_ID.pattern}'
    metrics = _at(found, "metrics")
    yield from _array_errors(metrics, f"{name}.metrics")
    for metric, measure in _each(metrics, f"{name}.metrics"):
        if not isinstance(_at(measure, "type"), str):
            yield f'"{metric}.type" is required'
        value = _at(measure, "value")
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            yield f'"{metric}.value" is required'


def _array_errors(value: Any, name: str) -> list[str]:
    return [] if isinstance(value, list) else [f'"{name}" must be an array']


def _each(values: Any, name: str) -> list[tuple[str, Any]]:
    return [(f"{name}[{index}]", value) for index, value in enumerate(values)] if isinstance(values, list) else []


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
