"""Where something is on the Hub, and by which hash the Hub knows a file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from supermask.errors import UsageError

# By which our artifacts are found.
TAG = "supermask"
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
        UsageError: `name` and `revision` both say which revision, or it cannot be one.
    """
    found = NAME.fullmatch(name)
    if found is None:
        return None
    if revision is not None and found["revision"] is not None:
        raise UsageError(f"{name} with revision {revision}: name the revision once")
    named = revision if found["revision"] is None else found["revision"]
    if named is not None:
        require_name(named, "a revision")
    return Address(found["repo"], named)


def require_name(name: str, what: str) -> None:
    """Raise UsageError unless git takes `name` as that of a branch or a tag (git check-ref-format, in short)."""
    if not re.fullmatch(r"\w[\w./+-]*", name) or ".." in name or name.endswith((".", "/", ".lock")):
        raise UsageError(f"{name!r} is no name of {what}; take letters, digits, dots and dashes, or leave it out")


def git_hash(content: bytes) -> str:
    """The hash by which git, and so the Hub, names a file that is not large."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
