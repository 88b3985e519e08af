"""Pulling from the Hub: the real client against a Hub on this machine, and all that can go wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import supermask
from supermask import HubError, IntegrityError, NotFoundError, UsageError, registry, store
from supermask import artifact as artifacts
from supermask.artifact import Artifact
from supermask.config import WeightsConfig
from supermask.manifest import CONFIG, TENSORS, ArchEntry, InputEntry, LayerEntry, config_text
from supermask.masking import plan
from supermask.network import load_into
from tests import commands
from tests.commands import run_here
from tests.hub_server import HubServer
from tests.test_artifact import alter, make_artifact


def files_of(artifact: Artifact) -> dict[str, bytes]:
    return {CONFIG: config_text(artifact.config), TENSORS: artifact.serialized}


FILES = files_of(make_artifact(("seed", "stored")))


def altered(folder: Path, change: Callable[[dict[str, Any]], object], *, rehash: bool = True) -> dict[str, bytes]:
    """The files of an artifact whose configuration someone changed who can compute hashes."""
    artifacts.write(make_artifact(("seed", "stored")), folder)
    alter(folder, change, rehash)
    return {name: (folder / name).read_bytes() for name in (CONFIG, TENSORS)}


class Announced(bytes):
    """Content that the Hub announces as a million times a million bytes."""

    def __len__(self) -> int:
        return 2**40


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cached() -> list[Path]:
    """What the cache holds of files, whole or in part."""
    return [path for path in Path(constants.HF_HUB_CACHE).rglob("blobs/*") if path.is_file()]


def test_what_one_process_pushes_another_with_an_empty_cache_measures_to_the_last_digit(
    hub: HubServer, found: Path, tmp_path: Path
) -> None:
    pushed = commands.supermask("push", str(found), "ada/conv2")
    assert pushed.returncode == 0, pushed.stderr
    stranger = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": ""}
    done = commands.supermask("eval", "ada/conv2", "--json", env=stranger)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((found / "artifact" / CONFIG).read_text())["metrics"]
    assert json.loads(done.stdout)["accuracy"] == metrics["test_accuracy"]
    assert json.loads(done.stdout)["pictures"] == metrics["test_pictures"]


def wide_resnet50() -> Artifact:
    """Wide ResNet-50 with a random mask of three weights in ten: an artifact as large as the paper's."""
    args = {"in_channels": 3, "image_size": 224, "num_classes": 1000}
    with torch.device("meta"):
        model = registry.build("wide-resnet50", args)
    generator = torch.Generator().manual_seed(0)
    layers, masks = [], {}
    for drawn in plan(model, WeightsConfig()):
        mask = torch.rand(drawn.shape, generator=generator) < 0.3
        layer = {"name": drawn.name, "shape": list(drawn.shape), "distribution": drawn.distribution, "std": drawn.std}
        layers.append(LayerEntry.model_validate({**layer, "masked": True, "kept": int(mask.sum()), "values": "seed"}))
        masks[drawn.name] = mask
    state = {key: torch.zeros_like(value, device="cpu") for key, value in model.state_dict().items()}
    size = InputEntry(shape=[3, 224, 224], mean=[0.5] * 3, std=[0.5] * 3)
    about = {"arch": ArchEntry(name="wide-resnet50", args=args), "layers": layers, "input": size}
    config = make_artifact().config.model_copy(update={**about, "labels": [str(label) for label in range(1000)]})
    return artifacts.encode(config, masks, {}, {key: value for key, value in state.items() if key not in masks})


def test_a_wide_resnet50_of_somebody_else_is_taken_checked_and_materialised(hub: HubServer) -> None:
    artifact = wide_resnet50()
    hub.add_repo("allenai/wrn50-popup", files_of(artifact))
    done = commands.supermask("pull", "allenai/wrn50-popup")
    assert done.returncode == 0, done.stderr
    config, weights = artifact.config, load_into(artifacts.read(Path(done.stdout.strip()))).state_dict()
    assert sum(weights[layer.name].numel() for layer in config.layers) == 68_814_016
    assert all(int(weights[layer.name].count_nonzero()) == layer.kept for layer in config.layers)


def test_a_name_a_branch_a_tag_and_a_commit_lead_to_their_versions(hub: HubServer) -> None:
    old = hub.add_repo("ada/net", FILES, tags=["v1"])
    new = hub.commit("ada/net", files_of(make_artifact(seed=8)))
    hub.repos["ada/net"].branches["try/two"] = old
    for revision, commit, seed in ((None, new, 8), ("v1", old, 7), ("try/two", old, 7), (old, old, 7)):
        name = "ada/net" if revision is None else f"ada/net@{revision}"
        assert store.pull(name) == store.pull("ada/net", revision=revision)
        assert store.pull(name).name == commit
        assert store.read(name).config.seed == seed


def test_a_revision_named_twice_is_a_usage_error(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="name the revision once"):
        supermask.load("ada/net@v1", revision="v2")
    status, out, err = run_here(capsys, "pull", "ada/net@v1", "--revision", "v1")
    assert (status, out) == (2, "")
    assert "name the revision once" in err


@pytest.mark.parametrize("name", ["net", "ada/net/more", "../net", "/ada/net", "ada/", "https://hf.co/ada/net"])
def test_what_is_no_name_is_a_usage_error(hub: HubServer, capsys: pytest.CaptureFixture[str], name: str) -> None:
    status, out, err = run_here(capsys, "pull", name)
    assert (status, out, hub.requests) == (2, "", [])
    assert "user/name" in err


def test_only_the_two_files_are_asked_for(hub: HubServer) -> None:
    code = dict.fromkeys(["evil.pkl", "modeling.py", "pytorch_model.bin", "README.md", "model.onnx"], b"import os")
    hub.add_repo("ada/net", {**FILES, **code})
    folder = store.pull("ada/net")
    assert {path.rpartition("/")[2] for _, path in hub.requests} == {CONFIG, TENSORS}
    assert contents(folder) == FILES


def test_a_local_folder_gets_the_very_bytes_also_of_what_this_version_does_not_know(
    hub: HubServer, tmp_path: Path
) -> None:
    files = altered(tmp_path / "theirs", lambda config: config.update(made_by={"version 9": [1.0, 2e5]}))
    hub.add_repo("ada/net", files)
    folder = store.pull("ada/net", local_dir=tmp_path / "mine")
    assert folder == tmp_path / "mine"
    assert contents(folder) == files


def test_the_path_alone_goes_to_stdout_and_it_works_without_the_network(hub: HubServer) -> None:
    commit = hub.add_repo("ada/net", FILES)
    pulled = store.pull("ada/net")
    hub.requests.clear()
    done = commands.supermask("pull", "ada/net", env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{pulled}\n", "")
    assert store.pull("ada/net", offline=True) == store.pull(f"ada/net@{commit}", offline=True) == pulled
    assert hub.requests == []


def test_offline_what_was_never_pulled_is_not_found(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add_repo("ada/net", FILES)
    status, out, err = run_here(capsys, "pull", "ada/net", "--offline")
    assert (status, out, hub.requests) == (3, "", [])
    assert "ada/net: not in the cache, and offline; try without --offline" in err


def test_what_lies_in_the_folder_named_is_not_overwritten(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add_repo("ada/net", FILES)
    Path("foreign").mkdir()
    Path("foreign/config.json").write_text('{"my": "bert"}')
    for folder, words in (("foreign", "foreign holds files that are no artifact"), ("", "no folder to copy to")):
        status, out, err = run_here(capsys, "pull", "ada/net", "--local-dir", folder)
        assert (status, out, hub.requests) == (2, "", [])
        assert words in err
    assert Path("foreign/config.json").read_text() == '{"my": "bert"}'
    for _ in range(2):  # into a new folder, then over the artifact there
        assert run_here(capsys, "pull", "ada/net", "--local-dir", "mine")[:2] == (0, "mine\n")


def test_a_run_that_is_not_here_is_no_repository(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run_here(capsys, "info", "runs/latest")
    assert (status, hub.requests) == (3, [])
    assert "no artifact in runs/latest" in err
    status, _, err = run_here(capsys, "info", "my/folder")
    assert status == 3
    assert err.startswith("error: no folder my/folder here, and no repository 'my/folder'")


def test_an_artifact_of_an_architecture_that_is_not_installed_stays_in_the_cache(
    hub: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    artifacts.write(make_artifact(), tmp_path)
    alter(tmp_path, lambda config: config["arch"].update(name="alien-net"))
    hub.add_repo("eve/alien", {name: (tmp_path / name).read_bytes() for name in (CONFIG, TENSORS)})
    status, _, err = run_here(capsys, "pull", "eve/alien")
    assert status == 3
    assert "if a package brings it, install that" in err
    assert store.find("eve/alien", offline=True)[1].config.arch.name == "alien-net"


def test_a_commit_in_the_cache_needs_no_request(hub: HubServer) -> None:
    commit = hub.add_repo("ada/net", FILES)
    pulled = store.pull("ada/net")
    hub.requests.clear()
    assert supermask.load("ada/net", revision=commit)
    # A new process too, whose client would like to tell the Hub about itself.
    talkative = {key: value for key, value in os.environ.items() if key != "HF_HUB_DISABLE_TELEMETRY"}
    done = commands.supermask("pull", f"ada/net@{commit}", env=talkative)
    assert done.stdout == f"{pulled}\n"
    assert hub.requests == []


def test_load_gives_the_network_of_the_folder(hub: HubServer, tmp_path: Path) -> None:
    artifacts.write(make_artifact(("seed", "stored")), tmp_path / "net")
    hub.add_repo("ada/net", FILES, tags=["v1"])
    hub.commit("ada/net", files_of(make_artifact(seed=8)))
    ours, theirs = supermask.load(tmp_path / "net"), supermask.load("ada/net", revision="v1")
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("command", ["info", "eval", "verify"])
def test_commands_on_an_artifact_take_a_name_on_the_hub(
    hub: HubServer, capsys: pytest.CaptureFixture[str], found: Path, command: str
) -> None:
    hub.add_repo("ada/net", contents(found / "artifact"), tags=["v1"])
    there, here = (run_here(capsys, command, name, "--json") for name in ("ada/net@v1", str(found)))
    assert there[0] == here[0] == 0
    assert {**json.loads(there[1]), "path": ""} == {**json.loads(here[1]), "path": ""}


def test_a_folder_here_comes_before_a_repository_of_its_name(hub: HubServer) -> None:
    hub.add_repo("ada/net", FILES)
    artifacts.write(make_artifact(seed=8), Path("ada/net"))
    assert supermask.read("ada/net").config.seed == 8
    assert hub.requests == []


class TestTrust:
    def test_a_million_million_weights_are_refused_before_tensors_are_asked_for(
        self, hub: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        def huge(config: dict[str, Any]) -> None:
            config["arch"]["args"].update(widths=[10**12])
            config["layers"][0].update(shape=[10**12, 8], masked=False, kept=8 * 10**12)

        hub.add_repo("eve/net", altered(tmp_path / "net", huge))
        status, out, err = run_here(capsys, "pull", "eve/net")
        assert (status, out) == (4, "")
        assert "at most 2^32 are read" in err
        assert not [path for _, path in hub.requests if TENSORS in path]
        assert cached() == []

    @pytest.mark.parametrize("name", [CONFIG, TENSORS])
    def test_a_file_larger_than_it_can_be_is_not_fetched(self, hub: HubServer, name: str) -> None:
        hub.add_repo("eve/net", {**FILES, name: Announced(FILES[name])})
        with pytest.raises(IntegrityError, match=f"{name}: size: {2**40} bytes; at most"):
            store.pull("eve/net")
        assert [path for method, path in hub.requests if method == "GET" and name in path] == []

    @pytest.mark.parametrize("name", [CONFIG, TENSORS])
    def test_a_file_altered_on_its_way_is_refused_and_fetched_anew(
        self, hub: HubServer, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        hub.add_repo("ada/net", FILES)
        hub.fail(f"GET .*{name}", "tamper")
        status, out, err = run_here(capsys, "pull", "ada/net")
        assert (status, out) == (4, "")
        assert f"{name} was altered on its way" in err
        assert run_here(capsys, "verify", "ada/net")[0] == 0
        assert contents(store.pull("ada/net")) == FILES

    @pytest.mark.parametrize("name", [CONFIG, TENSORS])
    def test_a_file_altered_in_the_cache_is_refused_and_fetched_anew(self, hub: HubServer, name: str) -> None:
        commit = hub.add_repo("ada/net", FILES)
        file = store.pull("ada/net") / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(IntegrityError, match=f"{name} was altered"):
            store.pull(f"ada/net@{commit}")
        assert contents(store.pull(f"ada/net@{commit}")) == FILES

    def test_weights_of_another_hash_are_refused_and_not_kept(
        self, hub: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        hub.add_repo("eve/net", altered(tmp_path / "net", lambda config: config.update(seed=8)))
        status, out, err = run_here(capsys, "pull", "eve/net", "--local-dir", "mine")
        assert (status, out) == (4, "")
        assert "sha256.weights" in err
        assert cached() == []
        assert not Path("mine").exists()

    @pytest.mark.parametrize(
        ("changed", "place"),
        [({TENSORS: FILES[TENSORS][:-1]}, TENSORS), ({CONFIG: b'{"model_type": "bert"}'}, r"config\.json: format")],
        ids=["a file cut short", "another library's"],
    )
    def test_what_was_uploaded_so_is_refused(self, hub: HubServer, changed: dict[str, bytes], place: str) -> None:
        hub.add_repo("eve/net", {**FILES, **changed})
        with pytest.raises(IntegrityError, match=place):
            store.pull("eve/net")
        assert cached() == []


class TestFailure:
    def test_a_repository_that_is_not_there_suggests_a_near_one(
        self, hub: HubServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hub.add_repo("ada/conv2", FILES)
        status, out, err = run_here(capsys, "pull", "ada/conv3")
        assert (status, out) == (3, "")
        assert "no repository 'ada/conv3'" in err
        assert "did you mean 'ada/conv2'?" in err

    def test_a_private_repository_of_somebody_else_needs_a_token(self, hub: HubServer) -> None:
        hub.add_repo("bob/secret", FILES, private=True)
        with pytest.raises(NotFoundError, match=r"no repository 'bob/secret' that you may see .* `hf auth login`"):
            store.pull("bob/secret")
        hub.add_repo("ada/secret", FILES, private=True)
        assert contents(store.pull("ada/secret")) == FILES

    def test_a_revision_that_is_not_there_names_those_that_are(
        self, hub: HubServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hub.add_repo("ada/net", FILES, tags=["first", "second"])
        status, out, err = run_here(capsys, "pull", "ada/net@v9")
        assert (status, out) == (3, "")
        assert "ada/net has no revision 'v9'; known: first, main, second" in err

    @pytest.mark.parametrize("there", [[], [CONFIG]])
    def test_a_repository_that_is_no_artifact_says_what_it_lacks(self, hub: HubServer, there: list[str]) -> None:
        hub.add_repo("ada/net", {"notes.txt": b"to do", **{name: FILES[name] for name in there}})
        with pytest.raises(NotFoundError, match=f"ada/net is no artifact: it has no {TENSORS if there else CONFIG}"):
            store.pull("ada/net")

    def test_a_download_that_breaks_off_goes_on_where_it_stopped(
        self, hub: HubServer, waits: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The client keeps whole chunks, of 10 MiB: small ones, for a small file.
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
        hub.add_repo("ada/net", FILES)
        hub.fail(f"GET /cdn/.*{TENSORS}", "drop", at=130)
        assert contents(store.pull("ada/net")) == FILES
        assert hub.ranges == ["bytes=100-"]

    @pytest.mark.parametrize(("how", "times"), [("drop", 1000), ("reset", 1), (500, 1)])
    def test_a_download_that_was_given_up_is_one_line_and_the_next_pull_succeeds(
        self, hub: HubServer, waits: list[float], capsys: pytest.CaptureFixture[str], how: Any, times: int
    ) -> None:
        hub.add_repo("ada/net", FILES)
        fault = hub.fail(f"GET /cdn/.*{TENSORS}", how, times)
        status, out, err = run_here(capsys, "pull", "ada/net")
        assert (status, out) == (3, "")
        assert "try again" in err.splitlines()[-1]
        fault.times = 0
        assert contents(store.pull("ada/net")) == FILES

    def test_a_download_that_was_interrupted_is_pulled_again(self, hub: HubServer) -> None:
        hub.add_repo("ada/net", FILES)
        fault = hub.fail(f"GET /cdn/.*{TENSORS}", "drop", times=1000)
        process = commands.started("pull", "ada/net")
        commands.wait_until(lambda: fault.times < 1000, process)
        status, out, err = commands.stopped(process, signal.SIGINT)
        assert (status, out) == (130, "")
        assert err.splitlines()[-1] == "interrupted"
        fault.times = 0
        assert contents(store.pull("ada/net")) == FILES

    def test_without_a_network_only_what_is_in_the_cache_is_found(
        self, hub: HubServer, waits: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        hub.add_repo("ada/net", FILES)
        pulled = store.pull("ada/net")
        hub.stop()
        assert store.pull("ada/net") == pulled
        status, out, err = run_here(capsys, "pull", "ada/other")
        assert (status, out) == (3, "")
        (line,) = err.splitlines()
        assert line.startswith("error: ada/other: the Hub does not answer")

    def test_a_full_disk_is_one_line_and_space_mends_it(
        self, hub: HubServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hub.add_repo("ada/net", FILES)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # No file may grow beyond 1 kB: config.json is larger.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            status, out, err = run_here(capsys, "pull", "ada/net")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (status, out) == (1, "")
        (line,) = err.splitlines()
        assert line.startswith("error: ada/net: cannot write ")
        assert "HF_HOME" in line
        assert contents(store.pull("ada/net")) == FILES

    # The client asks once more at once before it begins to wait for what a file is.
    @pytest.mark.parametrize(("place", "times"), [(f"HEAD .*{CONFIG}", 2), (f"GET /cdn/.*{TENSORS}", 1)])
    def test_a_rate_limit_is_waited_out_as_told(
        self, hub: HubServer, waits: list[float], place: str, times: int
    ) -> None:
        hub.add_repo("ada/net", FILES)
        hub.fail(place, 429, times, retry_after=17)
        assert contents(store.pull("ada/net")) == FILES
        assert sum(waits) >= 17

    def test_a_rate_limit_that_does_not_end_is_one_line(self, hub: HubServer, waits: list[float]) -> None:
        hub.add_repo("ada/net", FILES)
        hub.fail("ada/net", 429, times=1000, retry_after=17)
        with pytest.raises(HubError, match="ada/net: the Hub asks to wait"):
            store.pull("ada/net")

    @pytest.mark.parametrize("name", [CONFIG, TENSORS])
    def test_a_hub_that_stumbles_once_is_asked_again(self, hub: HubServer, waits: list[float], name: str) -> None:
        hub.add_repo("ada/net", FILES)
        fault = hub.fail(f"HEAD .*{name}", 500)
        assert contents(store.pull("ada/net")) == FILES
        assert fault.times == 0

    def test_a_token_that_the_hub_does_not_know_is_named_as_the_cause(
        self, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_tokenOfNobody")
        hub.add_repo("ada/net", FILES)
        status, out, err = run_here(capsys, "pull", "ada/net")
        assert (status, out) == (3, "")
        assert "hf auth login" in err
        assert "hf_tokenOfNobody" not in err
