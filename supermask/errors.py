"""Everything a user can cause.

SupermaskError                 1    one line, and what to do next
├── UsageError                 2    a wrong word or value
├── NotFoundError              3    a file, folder, data set or repository that is not there
├── HubError                   3    the Hugging Face Hub does not answer, or refuses
├── ConflictError              1    someone else changed a repository meanwhile
├── IntegrityError             4    something is there and is not what it says it is
│   ├── ArtifactError               an artifact that a reader must refuse
│   └── CorruptPictureError         a picture that does not decode
├── ExportError                5    an exported file that does not compute what the network does
├── StorageError               1    a disk that is full or a folder that cannot be written
├── NonFiniteLossError         1    the loss became NaN or infinite
├── DeviceMemoryError          1    a batch that does not fit
└── Interrupted              130    Ctrl-C, with a checkpoint saved

Anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SupermaskError(Exception):
    """Something the user can mend; the message is one line that names the thing, the value and the next step."""

    exit_code = 1


class UsageError(SupermaskError):
    """A wrong word or value."""

    exit_code = 2


class NotFoundError(SupermaskError):
    """A file, folder, data set or repository that is not there."""

    exit_code = 3


class HubError(SupermaskError):
    """The Hugging Face Hub does not answer, or refuses: no network, no permission, too many requests."""

    exit_code = 3


class ConflictError(SupermaskError):
    """Someone else changed a repository while it was pushed to; nothing of ours was written."""


class IntegrityError(SupermaskError):
    """Content that contradicts itself."""

    exit_code = 4


class ArtifactError(IntegrityError):
    """An artifact that a reader must refuse; names the file, the place in it and what was expected."""


class CorruptPictureError(IntegrityError):
    """A picture that does not decode."""


class ExportError(SupermaskError):
    """An exported file that does not compute what the network does; it was not written."""

    exit_code = 5


class StorageError(SupermaskError):
    """A disk that is full or a folder that cannot be written; what was written before is intact."""


class NonFiniteLossError(SupermaskError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class DeviceMemoryError(SupermaskError):
    """The device has no memory left for a batch of this size."""


class Interrupted(SupermaskError):  # noqa: N818 - the user's wish, not an error
    """Ctrl-C: the step was finished and a checkpoint saved."""

    exit_code = 130


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest of `known` as a question, or all of them: the next step for a mistyped word."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
