"""ONNX Runtime Web, from its npm package: fetched once, then kept in the user's cache."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from supermask.datasets import cache_folder
from supermask.errors import IntegrityError, NotFoundError, StorageError
from supermask.files import write_atomically

log = logging.getLogger(__name__)

VERSION = "1.30.0"
# What npm calls the package's integrity, in hexadecimal.
SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
PACKAGE = f"onnxruntime-web-{VERSION}.tgz"
# By their names in the page. The build for WebAssembly alone, without WebGPU, is the smallest; "threaded", as every one
# is called, runs on one thread too. Not .mjs, which some servers do not know to be a script.
FILES = {
    "onnxruntime.js": "package/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime.wasm": "package/dist/ort-wasm-simd-threaded.wasm",
}


def runtime() -> dict[str, bytes]:
    """The files of ONNX Runtime Web that a page needs, by the names of `FILES`.

    Raises:
        NotFoundError: npm is not installed, or does not get the package.
        IntegrityError: what npm got is not the package that was pinned.
        StorageError: the cache cannot be written.
    """
    with tarfile.open(fileobj=io.BytesIO(_package())) as package:
        return {name: _contents(package, member) for name, member in FILES.items()}


def _contents(package: tarfile.TarFile, member: str) -> bytes:
    file = package.extractfile(member)
    assert file is not None  # the package is the pinned one
    return file.read()


def _package() -> bytes:
    """The package as npm packs it, 33 MB."""
    path = cache_folder() / PACKAGE
    if path.exists():
        content = path.read_bytes()
        if hashlib.sha512(content).hexdigest() == SHA512:
            return content
        log.warning("%s is damaged; fetching it again", path)
    content = _fetched()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}; free space, or name another folder in SUPERMASK_CACHE"
        ) from error
    return content


def _fetched() -> bytes:
    wanted = f"onnxruntime-web@{VERSION}"
    npm = shutil.which("npm")
    if npm is None:
        raise NotFoundError(f"npm is not installed, and the page needs its package {wanted}; install Node.js with npm")
    log.info("fetching %s with npm, 33 MB; the next page takes it from the cache", wanted)
    with tempfile.TemporaryDirectory() as folder:
        # A second try after a second, not npm's two after 10 and 60.
        patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=1000"]
        command = [npm, "pack", wanted, "--pack-destination", folder, "--ignore-scripts", "--loglevel=error", *patience]
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        path = Path(folder) / PACKAGE
        if done.returncode or not path.exists():
            raise NotFoundError(
                f"npm could not fetch {wanted} ({_reason(done.stderr)}); try again with a network, or see that "
                f"npm pack {wanted} works"
            )
        content = path.read_bytes()
    found = hashlib.sha512(content).hexdigest()
    if found != SHA512:
        raise IntegrityError(
            f"what npm fetched as {wanted} has SHA-512 {found[:16]}..., not {SHA512[:16]}...; see which registry "
            "npm config get registry names"
        )
    return content


def _reason(errors: str) -> str:
    """npm's own word for what went wrong: `npm error code ECONNREFUSED`, then lines of advice."""
    lines = [line.removeprefix("npm error ") for line in errors.splitlines() if line.startswith("npm error ")]
    return next((line.removeprefix("code ") for line in lines), "it says nothing")
