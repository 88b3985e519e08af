"""Pushing to the Hub: one commit or nothing, and nothing that its owner did not ask for."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from supermask import ConflictError, HubError, UsageError, store
from supermask import artifact as artifacts
from supermask.artifact import Artifact
from supermask.card import CARD, CURVE, FILTERS
from supermask.manifest import CONFIG, TENSORS
from tests import commands
from tests.commands import run_here
from tests.hub_server import HubServer
from tests.hub_store import Commit, Repo
from tests.subnetworks import run as onnx_outputs
from tests.test_artifact import alter_tensors, make_artifact

# What the client does inside when it uploads, which its own library of requests would have otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_tokenOfAda"


def small(seed: int = 7) -> Artifact:
    """A network of 55 weights that says it is of the digits."""
    artifact = make_artifact(("seed", "stored"), seed=seed)
    config = artifact.config.model_copy(update={"provenance": {"dataset": "digits"}})
    return artifacts.with_metrics(replace(artifact, config=config), config.metrics)


@pytest.fixture
def net(tmp_path: Path) -> str:
    """The folder of a small artifact."""
    artifacts.write(small(), tmp_path / "net")
    return str(tmp_path / "net")


def ours(repo: Repo) -> list[Commit]:
    """The commits that Ada made."""
    return [commit for commit in repo.commits if commit.author == "ada"]


def test_one_commit_makes_the_repository_with_every_file(
    hub: HubServer, capsys: pytest.CaptureFixture[str], found: Path
) -> None:
    status, out, err = run_here(capsys, "push", str(found), "ada/conv2")
    assert (status, err) == (0, "")
    repo = hub.repos["ada/conv2"]
    (commit,) = ours(repo)
    assert out == f"{hub.url}/ada/conv2/commit/{commit.sha}\n"
    assert not repo.private
    assert repo.head == commit
    assert commit.title == "Add a subnetwork found by supermask"
    assert set(commit.files) == {".gitattributes", CONFIG, TENSORS, CARD, CURVE, FILTERS}
    for name in (CONFIG, TENSORS):
        assert commit.files[name] == (found / "artifact" / name).read_bytes()


def test_json_names_the_commit_and_its_files(hub: HubServer, capsys: pytest.CaptureFixture[str], net: str) -> None:
    _, out, _ = run_here(capsys, "push", net, "ada/net", "--json", "--message", "The first one")
    (commit,) = ours(hub.repos["ada/net"])
    assert commit.title == "The first one"
    assert json.loads(out) == {
        "url": f"{hub.url}/ada/net/commit/{commit.sha}",
        "commit": commit.sha,
        "files": [CONFIG, TENSORS, CARD, FILTERS],
    }


def test_a_commit_that_lands_meanwhile_is_reported_and_nothing_is_overwritten(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str
) -> None:
    store.push(net, "ada/net")
    artifacts.write(small(seed=8), Path(net))
    hub.before_commit = lambda name: hub.commit(name, {CARD: b"# by carol"})
    status, out, err = run_here(capsys, "push", net, "ada/net", "--tag", "v2")
    assert (status, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ada/net changed while this was pushed, and nothing was written")
    repo = hub.repos["ada/net"]
    assert (len(ours(repo)), repo.head.author, repo.tags) == (1, "carol", {})
    assert repo.head.files[CARD] == b"# by carol"
    assert b'"seed": 7' in repo.head.files[CONFIG]
    assert run_here(capsys, "push", net, "ada/net")[0] == 0


def test_a_commit_that_lands_in_a_new_repository_is_reported_too(hub: HubServer, net: str) -> None:
    hub.before_commit = lambda name: hub.commit(name, {CARD: b"# by carol"})
    with pytest.raises(ConflictError):
        store.push(net, "ada/net")
    assert ours(hub.repos["ada/net"]) == []


def test_private_makes_a_new_repository_private_and_leaves_a_public_one(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str
) -> None:
    assert run_here(capsys, "push", net, "ada/secret", "--private")[0] == 0
    assert hub.repos["ada/secret"].private
    store.push(net, "ada/open")
    artifacts.write(small(seed=8), Path(net))
    assert run_here(capsys, "push", net, "ada/secret", "--private")[0] == 0
    status, out, err = run_here(capsys, "push", net, "ada/open", "--private")
    assert (status, out) == (2, "")
    assert "ada/open is there already, and public" in err
    assert [len(ours(hub.repos[name])) for name in ("ada/secret", "ada/open")] == [2, 1]


def test_a_revision_makes_a_branch_and_leaves_main(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str
) -> None:
    store.push(net, "ada/net")
    repo = hub.repos["ada/net"]
    main = repo.head
    artifacts.write(small(seed=8), Path(net))
    assert run_here(capsys, "push", net, "ada/net", "--revision", "try/two")[0] == 0
    assert store.read("ada/net@try/two").config.seed == 8
    assert repo.head == main
    artifacts.write(small(seed=9), Path(net))
    store.push(net, "ada/net@try/two")
    assert store.read("ada/net", revision="try/two").config.seed == 9
    assert (repo.head, set(repo.branches)) == (main, {"main", "try/two"})


def test_somebody_else_may_open_a_pull_request(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, net: str
) -> None:
    store.push(net, "ada/net")
    repo = hub.repos["ada/net"]
    main = repo.head
    artifacts.write(small(seed=8), Path(net))
    monkeypatch.setenv("HF_TOKEN", "hf_tokenOfBob")
    status, out, err = run_here(capsys, "push", net, "ada/net")
    assert (status, out) == (3, "")
    assert "ada/net: no permission" in err
    status, out, err = run_here(capsys, "push", net, "ada/net", "--create-pr")
    assert (status, err) == (0, "")
    assert out == f"{hub.url}/ada/net/discussions/1\n"
    assert repo.find("refs/pr/1").author == "bob"
    assert store.read("ada/net@refs/pr/1").config.seed == 8
    assert repo.head == main


def test_a_tag_names_the_commit_and_is_never_moved(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str
) -> None:
    for _ in range(2):  # the same artifact, so the same commit, may be tagged so again
        assert run_here(capsys, "push", net, "ada/net", "--tag", "v1")[0] == 0
    repo = hub.repos["ada/net"]
    (commit,) = ours(repo)
    assert run_here(capsys, "push", net, "ada/net", "--tag", "best")[0] == 0
    artifacts.write(small(seed=8), Path(net))
    status, out, err = run_here(capsys, "push", net, "ada/net", "--tag", "v1")
    assert (status, out) == (2, "")
    assert f"ada/net has a tag 'v1' already, on {commit.sha[:12]}; name another" in err
    assert ours(repo) == [commit]
    assert repo.tags == {"v1": commit.sha, "best": commit.sha}


def test_pushing_again_makes_no_commit_and_leaves_what_people_wrote(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str
) -> None:
    first = store.push(net, "ada/net")
    status, out, err = run_here(capsys, "push", net, "ada/net")
    assert (status, out) == (0, f"{hub.url}/ada/net/tree/main\n")
    assert "nothing to push" in err
    repo = hub.repos["ada/net"]
    assert repo.head.sha == first.commit
    edited = hub.commit("ada/net", {CARD: b"# Mine\n\nEdited on its page.\n"})
    again = store.push(net, "ada/net")
    assert (again.commit, again.files) == (edited, [])
    assert len(ours(repo)) == 1
    assert repo.head.files[CARD] == b"# Mine\n\nEdited on its page.\n"


def test_a_file_that_somebody_deleted_comes_back_alone(hub: HubServer, net: str) -> None:
    store.push(net, "ada/net")
    hub.commit("ada/net", {FILTERS: None, CARD: b"# Mine"})
    assert store.push(net, "ada/net").files == [FILTERS]
    assert hub.repos["ada/net"].head.files[CARD] == b"# Mine"


def test_another_artifact_is_one_more_commit(hub: HubServer, net: str) -> None:
    store.push(net, "ada/net")
    artifacts.write(small(seed=8), Path(net))
    pushed = store.push(net, "ada/net")
    repo = hub.repos["ada/net"]
    assert [commit.sha for commit in ours(repo)][1:] == [pushed.commit]
    assert {CONFIG, TENSORS} <= set(pushed.files)
    assert store.read("ada/net").config.seed == 8


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_dry_run_lists_files_and_sizes_and_asks_nothing(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, net: str, token: str | None
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    status, out, _ = run_here(capsys, "push", net, "ada/net", "--dry-run", "--json")
    sizes = json.loads(out)["files"]
    assert status == 0
    assert set(sizes) == {CONFIG, TENSORS, CARD, FILTERS}
    assert all(sizes[name] == (Path(net) / name).stat().st_size for name in (CONFIG, TENSORS))
    _, table, _ = run_here(capsys, "push", net, "ada/net", "--dry-run")
    assert [line.split()[0] for line in table.splitlines()] == [*sizes]
    assert f"{sizes[TENSORS]} B" in table
    assert (hub.requests, hub.repos) == ([], {})


@pytest.mark.parametrize("token", [None, "hf_tokenOfNobody"])
@pytest.mark.parametrize("there", [False, True])
def test_without_a_token_that_holds_the_way_to_log_in_is_named(
    hub: HubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    net: str,
    token: str | None,
    there: bool,
) -> None:
    if there:
        hub.add_repo("ada/net", {"notes.txt": b"to do"})
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    status, out, err = run_here(capsys, "push", net, "ada/net")
    assert (status, out) == (3, "")
    (line,) = err.splitlines()
    assert "hf auth login" in line
    assert token is None or token not in line
    assert not there or ours(hub.repos["ada/net"]) == []


def test_an_account_of_somebody_else_is_refused(hub: HubServer, net: str) -> None:
    with pytest.raises(HubError, match="namespace"):
        store.push(net, "bob/net")
    assert hub.repos == {}


def test_the_token_is_shown_and_written_nowhere(
    hub: HubServer, capsys: pytest.CaptureFixture[str], found: Path, tmp_path: Path
) -> None:
    pushed = commands.supermask("push", str(found), "ada/conv2", env={**os.environ, "HF_DEBUG": "1"})
    assert pushed.returncode == 0, pushed.stderr
    hub.fail("ada/other", 500, times=1000)
    status, out, err = run_here(capsys, "push", str(found), "ada/other")
    assert status == 3
    written = [path for folder in (found, tmp_path, Path(os.environ["HF_HOME"])) for path in folder.rglob("*")]
    files = [path.read_bytes() for path in written if path.is_file()]
    files += hub.repos["ada/conv2"].head.files.values()
    assert len(files) > 8
    for text in (pushed.stdout.encode(), pushed.stderr.encode(), out.encode(), err.encode(), *files):
        assert TOKEN.encode() not in text


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_what_is_broken_is_refused_before_anything_is_asked(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str, name: str
) -> None:
    file = Path(net) / name
    file.write_bytes(file.read_bytes()[:-2] + b"??")
    status, out, err = run_here(capsys, "push", net, "ada/net")
    assert (status, out, hub.requests) == (4, "", [])
    assert name in err


def test_weights_of_another_hash_are_refused_before_anything_is_asked(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str
) -> None:
    alter_tensors(Path(net), lambda tensors: tensors["values/3.weight"].__setitem__(0, 9.0))
    status, _, err = run_here(capsys, "push", net, "ada/net")
    assert (status, hub.requests) == (4, [])
    assert "sha256.weights" in err


@pytest.mark.parametrize("there", [False, True])
def test_a_licence_that_the_hub_does_not_know_leaves_no_trace(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str, there: bool
) -> None:
    if there:
        hub.add_repo("ada/net", {"notes.txt": b"to do"})
    status, out, err = run_here(capsys, "push", net, "ada/net", "--license", "my own")
    assert (status, out) == (2, "")
    assert "the Hub refuses the card" in err
    assert "license" in err
    assert {name: ours(repo) for name, repo in hub.repos.items()} == ({"ada/net": []} if there else {})


@pytest.mark.parametrize("name", ["net", "ada/net/more", "ada/-net-", "ada/net.git"])
def test_what_cannot_be_a_repository_is_a_usage_error(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str, name: str
) -> None:
    status, out, err = run_here(capsys, "push", net, name)
    assert (status, out, hub.repos) == (2, "", {})
    assert name in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["net", "net", "--dry-run"], "'net' is no repository"),
        (["net", "net"], "'net' is no repository"),
        (["net", "ada/net", "--revision", ""], "'' is no name of a revision"),
        (["net", "ada/net", "--tag", ""], "'' is no name of a tag"),
        (["net", "ada/net", "--tag", "v1", "--create-pr"], "a tag names what is merged"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_usage_errors_before_any_request(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str, words: list[str], said: str
) -> None:
    status, out, err = run_here(capsys, "push", net, *words[1:])
    assert (status, out, hub.requests) == (2, "", [])
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_tag_that_fails_after_the_commit_is_not_hidden(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str
) -> None:
    hub.fail("POST .*/tag/", 400)
    status, out, err = run_here(capsys, "push", net, "ada/net", "--tag", "v1")
    assert (status, out) == (3, "")
    assert f"committed as {hub.repos['ada/net'].head.sha[:12]}, but not tagged 'v1'" in err
    assert run_here(capsys, "push", net, "ada/net", "--tag", "v1")[0] == 0
    assert hub.repos["ada/net"].tags == {"v1": hub.repos["ada/net"].head.sha}


@pytest.mark.parametrize("name", ["v 2", "v..1", "-v", "v.lock", "refs/"])
def test_a_name_that_git_cannot_have_is_refused_before_any_request(hub: HubServer, net: str, name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a tag"):
        store.push(net, "ada/net", tag=name)
    with pytest.raises(UsageError, match="is no name of a revision"):
        store.push(net, "ada/net", revision=name)
    assert hub.requests == []


def test_a_token_that_is_none_is_one_line_without_it(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, net: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_geheimä")
    status, _, err = run_here(capsys, "push", net, "ada/net")
    assert (status, len(err.splitlines())) == (3, 1)
    assert "HF_TOKEN holds 'ä'" in err
    assert "geheim" not in err


def test_a_dry_run_to_a_branch_writes_the_card_of_the_real_push(
    hub: HubServer, capsys: pytest.CaptureFixture[str], net: str
) -> None:
    sizes = json.loads(run_here(capsys, "push", net, "ada/net@dev", "--dry-run", "--json")[1])["files"]
    store.push(net, "ada/net@dev")
    pushed = hub.repos["ada/net"].find("dev").files
    assert {name: len(pushed[name]) for name in sizes} == sizes


def test_a_folder_without_an_artifact_is_named(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run_here(capsys, "push", "nowhere", "ada/net")
    assert (status, hub.requests) == (3, [])
    assert "nowhere" in err


@pytest.mark.parametrize("place", ["GET /api/models/ada/net", "POST .*/preupload/", "POST .*/commit/"])
def test_a_rate_limit_is_waited_out_as_told(hub: HubServer, waits: list[float], net: str, place: str) -> None:
    fault = hub.fail(place, 429, retry_after=17)
    store.push(net, "ada/net")
    assert fault.times == 0
    assert sum(waits) >= 17
    assert len(ours(hub.repos["ada/net"])) == 1


def test_an_upload_that_breaks_leaves_the_repository_as_it_was(
    hub: HubServer, waits: list[float], capsys: pytest.CaptureFixture[str], net: str
) -> None:
    store.push(net, "ada/net")
    before = hub.repos["ada/net"].head
    artifacts.write(small(seed=8), Path(net))
    fault = hub.fail("PUT /upload/", "refuse", times=1000)
    status, out, err = run_here(capsys, "push", net, "ada/net")
    assert (status, out, hub.repos["ada/net"].head) == (3, "", before)
    assert err.splitlines()[-1].startswith("error: ada/net")
    fault.times = 0
    assert run_here(capsys, "push", net, "ada/net")[0] == 0
    assert store.read("ada/net").config.seed == 8


def test_an_onnx_file_is_added_to_what_is_there_and_gives_the_networks_logits(hub: HubServer, net: str) -> None:
    store.push(net, "ada/net")
    pushed = store.push(net, "ada/net", with_onnx=True)
    assert pushed.files == ["model.onnx"]
    assert store.push(net, "ada/net", with_onnx=True).files == []
    pictures = torch.rand(3, 2, 2, 2)
    logits = onnx_outputs(hub.repos["ada/net"].head.files["model.onnx"], pictures.numpy())
    torch.testing.assert_close(torch.from_numpy(logits), store.load("ada/net")(pictures), rtol=1e-5, atol=1e-6)
