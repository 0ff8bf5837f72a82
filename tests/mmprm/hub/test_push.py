"""Test pushing to a fake Hub on loopback through huggingface_hub itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import TOKEN, FakeHub

from mmprm.errors import ConfigError, SetupError
from mmprm.hub.push import HubError, push
from mmprm.labels.parquet import LabeledExample, read_metadata, read_parquet, write_parquet
from mmprm.prm.info import PrmInfo, write_info
from mmprm.tiny.model import weights_path
from mmprm.types import Counts, ImageRef, LabeledPath, Problem

BASE = "acme/solver-7b"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as found:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a finished `mmprm train` run with a checkpoint and logs."""
    folder = tmp_path / "secret-project" / "train"
    shutil.copytree(weights_path(), folder / "prm")
    config = json.loads((folder / "prm/config.json").read_text())
    (folder / "prm/config.json").write_text(json.dumps(config | {"_name_or_path": str(tmp_path / "models/base")}))
    write_info(folder / "prm", PrmInfo(base=BASE, aggregator="min", threshold=0.4))
    rows = [{"kind": "train", "step": 8, "loss": 0.25}, {"kind": "eval", "step": 8, "loss": 0.3, "auc": 0.875}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"model": BASE, "batch_size": 512, "data": "0123456789abcdef", "servers": "http://10.0.0.7"}
    settings["labels"] = str(tmp_path / "k12.parquet")
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "checkpoints/step-00000008").mkdir(parents=True)
    (folder / "checkpoints/step-00000008/optimizer.pt").write_bytes(b"state")
    (folder / "prm/optimizer.pt").write_bytes(b"state")
    return folder


def test_a_prm_is_pushed_with_its_card(hub: FakeHub, run: Path) -> None:
    hub.cards[BASE] = {"license": "apache-2.0"}
    pushed = push(run, "me/k12-prm", private=True)
    files = hub.repos["models/me/k12-prm"]
    assert pushed.location == f"{hub.url}/models/me/k12-prm/commit/0"
    assert files["model.safetensors"] == (run / "prm/model.safetensors").read_bytes()
    assert files.keys() == pushed.files.keys()
    assert hub.private["models/me/k12-prm"]
    card = huggingface_hub.ModelCard(files["README.md"].decode())
    assert card.data.to_dict() == {
        "base_model": BASE,
        "library_name": "transformers",
        "license": "apache-2.0",
        "tags": ["mmprm", "process-reward-model"],
    }
    for line in (
        "| auc | 0.875 |",
        "| aggregator | min |",
        "| marker | `<prm>` |",
        "| batch_size | 512 |",
        "| labels | k12.parquet |",
    ):
        assert line in card.text
    assert "0123456789abcdef" not in card.text, "a hash tells readers nothing"


def test_an_unknown_license_is_left_out(hub: FakeHub, run: Path) -> None:
    push(run, "me/k12-prm")
    assert "license" not in hub.repos["models/me/k12-prm"]["README.md"].decode()


def test_nothing_private_is_pushed(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    push(run, "me/k12-prm")
    files = hub.repos["models/me/k12-prm"]
    assert not [name for name in files if name.endswith(".pt") or "settings" in name or "metrics" in name]
    for name, content in files.items():
        for private in (str(tmp_path), "secret-project", "10.0.0.7", TOKEN, str(Path.home())):
            assert private == "/" or private.encode() not in content, f"{name} contains {private}"
    assert json.loads(files["config.json"])["_name_or_path"] == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{# see /home/someone/notes #}", "contains '/home/someone', a path of this machine"),
        ("{# password of the cluster: swordfish-42 #}", "the value of the environment variable CLUSTER_PASSWORD"),
        ("{# hf_abcdefghijklmnopqrstuvwxyz #}", "contains an access token"),
    ],
)
def test_a_file_with_something_private_ends_the_push(
    text: str, found: str, hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTER_PASSWORD", "swordfish-42")
    (run / "prm/chat_template.jinja").write_text(text)
    with pytest.raises(ConfigError, match=rf"^chat_template.jinja: .*{found}"):
        push(run, "me/k12-prm")
    assert not hub.repos


def test_labels_are_pushed_with_their_images(hub: FakeHub, tmp_path: Path) -> None:
    image = _png()
    (tmp_path / "image.png").write_bytes(image)
    problem = Problem("p", "What is shown?", "1", images=(ImageRef(path=str(tmp_path / "image.png")),))
    path = LabeledPath("p", ("one", "two"), (Counts(3, 1, 0), Counts(0, 4, 0)), True)
    example = LabeledExample(problem, path, "train", (0.9, 0.1), str(tmp_path / "models/judge"))
    write_parquet(tmp_path / "labels.parquet", [example])
    push(tmp_path / "labels.parquet", "me/k12-labels")
    files = hub.repos["datasets/me/k12-labels"]
    (tmp_path / "pushed.parquet").write_bytes(files["labels.parquet"])
    (found,) = read_parquet(tmp_path / "pushed.parquet")
    assert found.path == path
    assert found.problem.images == (ImageRef(data=image),)
    assert found.judged_by == "judge"
    assert str(tmp_path).encode() not in files["labels.parquet"]
    card = huggingface_hub.DatasetCard(files["README.md"].decode())
    assert "| train | 1 | 1 | 2 | 0.375 |" in card.text
    assert card.data.configs == [{"config_name": "default", "data_files": "labels.parquet"}]


def test_the_card_of_imported_labels_states_source_and_license(hub: FakeHub, tmp_path: Path) -> None:
    example = LabeledExample(Problem("p", "q", ""), LabeledPath("p", ("one",), (Counts(1, 0),), False), "train")
    origin = {"source": "someone/labels", "format": "steps", "license": "cc-by-4.0"}
    write_parquet(tmp_path / "labels.parquet", [example], origin)
    push(tmp_path / "labels.parquet", "me/imported")
    files = hub.repos["datasets/me/imported"]
    card = huggingface_hub.DatasetCard(files["README.md"].decode())
    assert card.data.license == "cc-by-4.0"
    assert "imported with mmprm from someone/labels" in card.text
    (tmp_path / "pushed.parquet").write_bytes(files["labels.parquet"])
    assert read_metadata(tmp_path / "pushed.parquet") == origin


def _png() -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(out, "PNG")
    return out.getvalue()


def test_a_policy_is_pushed_from_its_run(hub: FakeHub, run: Path) -> None:
    (run / "prm").rename(run / "policy")
    (run / "policy/prm.json").unlink()
    assert push(run, "me/policy").kind == "policy"
    assert f"base_model: {BASE}" in hub.repos["models/me/policy"]["README.md"].decode()


def test_an_existing_repository_is_changed_only_on_request(hub: FakeHub, run: Path) -> None:
    push(run, "me/k12-prm")
    with pytest.raises(HubError, match=r"^me/k12-prm: .*the name is taken; use --update"):
        push(run, "me/k12-prm")
    assert push(run, "me/k12-prm", update=True).files
    with pytest.raises(HubError, match=r"me/other: .* it does not exist, .* leave out --update"):
        push(run, "me/other", update=True)


def test_no_permission(hub: FakeHub, run: Path) -> None:
    with pytest.raises(HubError, match=r"^acme/prm: .*don't have the rights.*the token has no permission"):
        push(run, "acme/prm")


def test_an_invalid_token(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(HubError, match=r"the token is not valid; run `hf auth login`"):
        push(run, "me/prm")


def test_no_token(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SetupError, match=r"no access token .* `hf auth login` or set HF_TOKEN"):
        push(run, "me/prm")


def test_no_network(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"http://127.0.0.1:9 cannot be reached .* HF_ENDPOINT"):
        push(run, "me/prm")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SetupError, match=r"HF_HUB_OFFLINE=1 .* --dry-run"):
        push(run, "me/prm")


def test_a_dry_run_uses_no_network(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    pushed = push(run, "me/k12-prm", dry_run=True)
    assert pushed.location == str(run / "card.md")
    assert "hf download me/k12-prm" in (run / "card.md").read_text()
    assert {"README.md", "config.json", "model.safetensors", "prm.json", "tokenizer.json"} <= pushed.files.keys()


@pytest.mark.parametrize(
    ("source", "repo", "message"),
    [
        ("train", "prm", "'prm' is not the name of a repository: .* owner/name"),
        ("train", "me/a--b", "is not the name of a repository"),
        ("missing", "me/prm", "missing: does not exist"),
        ("empty", "me/prm", "holds no model and no labels"),
        ("train/checkpoints", "me/prm", "holds a checkpoint .*mmprm convert"),
    ],
)
def test_invalid_folders_are_not_pushed(source: str, repo: str, message: str, run: Path) -> None:
    (run.parent / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        push(run.parent / source, repo, dry_run=True)


def test_a_folder_with_several_contents(run: Path) -> None:
    (run / "labels.parquet").touch()
    with pytest.raises(ConfigError, match=r"holds prm and labels.parquet; give one of them, such as .*/prm"):
        push(run, "me/prm", dry_run=True)


def test_the_command_pushes_to_hf_endpoint(run: Path) -> None:
    with FakeHub() as hub:
        keys = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "mmprm", "push", str(run), "me/k12-prm"]
        done = subprocess.run(command, env=os.environ | keys, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "model.safetensors  4,350,784 bytes" in done.stdout
        assert f"pushed: {hub.url}/models/me/k12-prm/commit/0" in done.stdout
        assert "model.safetensors" in hub.repos["models/me/k12-prm"]
