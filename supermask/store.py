"""Where artifacts are kept: folders, runs, and repositories on the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from supermask import artifact as artifacts
from supermask.api import Result
from supermask.artifact import Artifact
from supermask.errors import ArtifactError, NotFoundError, UsageError
from supermask.manifest import CONFIG, TENSORS
from supermask.network import check, load_into, own_copy
from supermask.run import RUNS, Run

if TYPE_CHECKING:
    from supermask.hub import Address, Pushed

LICENSE = "apache-2.0"
MESSAGE = "Add a subnetwork found by supermask"


def load(path: Path | str, model: nn.Module | None = None, *, revision: str | None = None) -> nn.Module:
    """The subnetwork in an artifact, ready to use.

    Args:
        path: a folder that holds config.json and model.safetensors, a run folder, or `user/name[@revision]` on the Hub.
        model: a module of the searched architecture to copy and fill, where that is not an installed one.
        revision: on the Hub, a branch, tag or commit.

    Returns:
        A plain module in evaluation mode on the CPU that maps normalised float32 pictures [N, C, H, W] (see
        `input` in config.json) to logits [N, classes]. Its weights are float32, zero where not kept (docs/format.md).

    Raises:
        NotFoundError: no artifact there.
        HubError: the Hub does not answer, or refuses.
        ArtifactError: it breaks a rule of docs/format.md; names the file and the place.
    """
    return load_into(read(path, revision=revision), None if model is None else own_copy(model))


def read(path: Path | str, *, revision: str | None = None) -> Artifact:
    """An artifact: what it says, without building the network. Arguments and errors as for `load`."""
    return find(path, revision=revision)[1]


def find(path: Path | str, *, revision: str | None = None, offline: bool = False) -> tuple[Path, Artifact]:
    """An artifact's folder (in the Hub's cache, for one from there), and what it says. Arguments and errors as `load`.

    A folder here comes before a repository of the same name.
    """
    if not Path(path).exists():
        from supermask import hub

        place = hub.address(str(path), revision)
        # Runs are named like repositories, and are ours alone.
        if place is not None and Path(path).parts[0] != RUNS.name:
            try:
                return hub.pull(place, offline=offline)
            except NotFoundError as error:
                raise NotFoundError(f"no folder {path} here, and {error}") from error
    if revision is not None:
        raise NotFoundError(f"{path} has no revision {revision!r}: it is no user/name on the Hub")
    folder = _folder(Path(path))
    return folder, artifacts.read(folder)


def _folder(path: Path) -> Path:
    of_run = path / "artifact"
    return of_run if not (path / CONFIG).exists() and of_run.is_dir() else path


def save(result: Result, path: Path | str) -> None:
    """Write a search's artifact into the folder `path`, made if need be.

    Raises:
        StorageError: the folder cannot be written.
    """
    artifacts.write(result.artifact, Path(path))


def compress(path: Path | str, folder: Path | str) -> tuple[int, int]:
    """Write an artifact with its tensors compressed (docs/format.md), which pays the more the fewer weights are kept.

    Args:
        path: as for `load`.
        folder: one that is new, empty or an artifact's, even the very one.

    Returns:
        Bytes of the artifact's two files, plain and compressed.

    Raises:
        UsageError: that saves less than 3%, or `folder` holds something else.
        NotFoundError, HubError, ArtifactError: as `load`.
        StorageError: the folder cannot be written.
    """
    _require_place(Path(folder))
    source, artifact = find(path)
    check(artifact)
    config = (source / CONFIG).read_bytes()
    after = artifacts.write_compressed(artifact.serialized, config, Path(folder))
    return len(artifact.serialized) + len(config), after


def pull(name: str, *, revision: str | None = None, local_dir: Path | str | None = None, offline: bool = False) -> Path:
    """Fetch an artifact from the Hub, and check everything: every hash, every rule, the network it makes.

    Args:
        name: `user/name[@revision]`; without a revision, the main branch.
        revision: a branch, tag or commit.
        local_dir: copy the artifact there, once it is found sound: a folder that is new, empty or an artifact's.
        offline: look in the cache alone.

    Returns:
        The artifact's folder: `local_dir`, or the one in the Hub's cache.

    Raises:
        UsageError: `name` is none, or `local_dir` holds something else.
        NotFoundError, HubError, IntegrityError, StorageError: as `supermask.hub.pull`.
    """
    from supermask import hub

    if local_dir is not None:
        _require_place(Path(local_dir))
    folder, artifact = hub.pull(_place(name, revision), offline=offline)
    try:
        check(artifact)
    except ArtifactError:
        hub.forget(folder / CONFIG, folder / TENSORS)
        raise
    if local_dir is None:
        return folder
    # The very bytes: what this version does not know of config.json stays in it.
    artifacts.write_files(artifact.serialized, (folder / CONFIG).read_bytes(), Path(local_dir))
    return Path(local_dir)


def _require_place(folder: Path) -> None:
    """Check that an artifact may be put there: nothing is there yet, or another artifact."""
    if folder == Path():
        raise UsageError("no folder to copy to: name one that is new, empty or an artifact's")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        artifacts.read(folder)
    except (ArtifactError, NotFoundError) as error:
        raise UsageError(f"{folder} holds files that are no artifact; name another folder") from error


def _place(name: str, revision: str | None = None) -> Address:
    from supermask import hub

    place = hub.address(name, revision)
    if place is None:
        raise UsageError(f"{name!r} is no repository on the Hub; write user/name or user/name@revision")
    return place


def package(path: Path | str, name: str, *, license: str = LICENSE, with_onnx: bool = False) -> dict[str, bytes]:
    """The files that `push` puts on the Hub, by name: the artifact's two, its card, and the card's pictures.

    Args:
        path: an artifact's folder, or a run's, whose training curve the card then shows.
        name: `user/name[@branch]`, which the card tells its readers to load.
        license: an identifier that the Hub knows.
        with_onnx: add `model.onnx`, in the smallest form that the artifact allows, checked on random pictures.

    Raises:
        UsageError: `name` is none, or ONNX has no counterpart for an operator.
        NotFoundError: no artifact there.
        ArtifactError: it breaks a rule of docs/format.md: what is broken is not shared.
        ExportError: the ONNX file does not compute what torch computes.
    """
    # Draws with matplotlib, which takes its time to be imported.
    from supermask.card import ONNX, describe

    repo = _place(name).repo
    folder = _folder(Path(path))
    artifact = artifacts.read(folder)
    check(artifact)
    records = Run(folder.parent).records() if folder.name == "artifact" else []
    # Plain, if it is compressed here: that is the form which every reader knows.
    files = {CONFIG: (folder / CONFIG).read_bytes(), TENSORS: artifact.serialized}
    if with_onnx:
        files[ONNX] = _as_onnx(artifact)
    return files | describe(artifact, repo, records, license, with_onnx=with_onnx)


def _as_onnx(artifact: Artifact) -> bytes:
    from supermask.onnx.export import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        return export_onnx(artifact, Path(folder) / "file").path.read_bytes()


def push(  # noqa: PLR0913 - all but two are keywords, one for each flag
    path: Path | str,
    name: str,
    *,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    tag: str | None = None,
    message: str | None = None,
    license: str = LICENSE,
    with_onnx: bool = False,
) -> Pushed:
    """Put an artifact on the Hub, with its card: one commit or nothing, and no commit where it is there already.

    Args:
        path: an artifact's folder, or a run's.
        name: `user/name` or `user/name@branch`, made where absent.
        revision: the branch.
        private, create_pr, tag: as `supermask.hub.push`.
        message: the commit's; by default it names the search.
        license, with_onnx: as `package`.

    Raises:
        UsageError: `name` is none; also as `supermask.hub.push`.
        NotFoundError, ArtifactError, ExportError: as `package`.
        ConflictError, HubError: as `supermask.hub.push`.
    """
    from supermask import hub

    place = _place(name, revision)
    files = package(path, name, license=license, with_onnx=with_onnx)
    return hub.push(files, place, private=private, create_pr=create_pr, tag=tag, message=message or MESSAGE)
