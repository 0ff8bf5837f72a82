"""Test `import mmprm`: its import cost, and what its functions return on the tiny models."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from pyarrow import parquet

import mmprm
from mcts.campaign import run_campaign
from mcts.worker import LocalWorker
from mmprm.labels.parquet import LabeledExample, write_parquet
from mmprm.labels.schema import SCHEMA
from mmprm.prm.info import PrmTokens, read_info, write_info
from mmprm.steps import plain_split
from tests.mcts.scripted_campaign import config, local_worker, write_problems

HEAVY = ("torch", "vllm", "ray", "deepspeed", "transformers", "datasets", "pydantic")
QUESTION = "What is 1 + 2?"
CORRECT, INCORRECT = "<step>1+2=3</step>\n<answer>3</answer>", "<step>1+2=4</step>\n<answer>4</answer>"


@pytest.fixture(scope="module")
def prm(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tiny policy and a PRM's marker token; its aggregator is `min`."""
    from mmprm.prm.model import initialize_prm, save_prm

    folder = tmp_path_factory.mktemp("api") / "prm"
    save_prm(folder, initialize_prm(str(policy_folder), PrmTokens(), add_missing_tokens=True))
    write_info(folder, read_info(folder).model_copy(update={"aggregator": "min"}))
    return folder


@pytest.fixture(scope="module")
def scorer(prm: Path) -> Iterator[mmprm.LoadedScorer]:
    with mmprm.load_scorer(prm) as loaded:
        yield loaded


def test_import_is_fast_and_light() -> None:
    code = (
        "import sys, time; begun = time.perf_counter(); import mmprm; seconds = time.perf_counter() - begun; "
        f"print(seconds, *[name for name in {HEAVY} if name in sys.modules])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, loaded = zip(
        *((float(words[0]), words[1:]) for words in (run.stdout.split() for run in runs)), strict=True
    )
    assert loaded == ([], [], [])
    assert min(seconds) < 0.2


def test_every_exported_name_exists() -> None:
    assert {*mmprm.__all__} <= {*dir(mmprm)}
    for name in mmprm.__all__:
        assert getattr(mmprm, name) is not None
    assert mmprm.__version__ == "0.2.0"
    with pytest.raises(AttributeError, match="module 'mmprm' has no attribute 'scorer'"):
        _ = mmprm.scorer


def test_every_exported_name_is_known_to_editors() -> None:
    """Editors read the imports under TYPE_CHECKING, not `__getattr__`."""
    source = inspect.getsource(mmprm)
    imports = source[source.index("if TYPE_CHECKING") : source.index("__version__: str")]
    assert [name for name in mmprm.__all__ if name not in imports.replace(",", " ").split()] == []


def test_step_scores_are_those_of_the_scorer(scorer: mmprm.LoadedScorer, prm: Path) -> None:
    steps = ("1+2=3", "<answer>3</answer>")
    (expected,) = scorer.score([mmprm.Solution(mmprm.Problem("p", QUESTION, "3"), steps)])
    assert mmprm.score_steps(scorer, QUESTION, list(steps)) == expected.scores
    assert mmprm.score_steps(prm, QUESTION, list(steps)) == pytest.approx(expected.scores)


def test_all_image_types_give_the_same_scores(scorer: mmprm.LoadedScorer, tmp_path: Path) -> None:
    image = Image.effect_noise((84, 56), 80).convert("RGB")
    image.save(tmp_path / "noise.png")
    data = (tmp_path / "noise.png").read_bytes()
    kinds = [tmp_path / "noise.png", str(tmp_path / "noise.png"), data, mmprm.ImageRef(data=data), image]
    scores = [mmprm.score_steps(scorer, "blue + red = ?", ["blue=4"], images=[kind]) for kind in kinds]
    assert scores == [scores[0]] * len(kinds)
    assert scores[0] != mmprm.score_steps(scorer, "blue + red = ?", ["blue=4"])


def test_responses_are_ranked_by_reward(scorer: mmprm.LoadedScorer) -> None:
    texts = ["no step", INCORRECT, CORRECT, INCORRECT]
    ranked = mmprm.rerank(scorer, QUESTION, texts)
    expected = {
        text: mmprm.score_steps(scorer, QUESTION, plain_split(text, "tags").steps) for text in (CORRECT, INCORRECT)
    }
    best, worst = sorted(expected, key=lambda text: min(expected[text]), reverse=True)
    assert [each.response for each in ranked if each.response != INCORRECT or each.index == 1] == [
        best,
        worst,
        "no step",
    ]
    assert [each.index for each in ranked if each.response == INCORRECT] == [1, 3], "ties keep the given order"
    assert ranked[0].scores == pytest.approx(expected[best], abs=1e-6)
    assert ranked[0].reward == min(ranked[0].scores)
    assert (ranked[-1].scores, ranked[-1].reward, ranked[-1].reason) == (None, None, "no step")


def test_the_aggregator_decides_the_order(scorer: mmprm.LoadedScorer) -> None:
    responses = [INCORRECT, CORRECT]
    for name, aggregate in (("min", min), ("max", max), ("last", lambda scores: scores[-1])):
        ranked = mmprm.rerank(scorer, QUESTION, responses, aggregator=name)
        assert [each.reward for each in ranked] == sorted((aggregate(each.scores) for each in ranked), reverse=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda scorer: mmprm.load_scorer("p", bakend="vllm"),
            "load_scorer: bakend does not exist; did you mean backend",
        ),
        (lambda scorer: mmprm.load_scorer("nowhere"), "nowhere: has no prm.json"),
        (lambda scorer: mmprm.score_steps(scorer, " ", ["a"]), "score_steps: question=' ' must be"),
        (lambda scorer: mmprm.score_steps(scorer, "q", "a"), "score_steps: steps='a' must be a list"),
        (lambda scorer: mmprm.score_steps(scorer, "q", ["a"], images=[3]), "images must be a path, bytes or a list"),
        (lambda scorer: mmprm.score_steps(scorer, "q", ["a", " "]), "steps="),
        (lambda scorer: mmprm.rerank(scorer, "q", []), "rerank: responses=\\[\\] must be a list"),
        (lambda scorer: mmprm.rerank(scorer, "q", ["a"]), "none of the 1 responses has steps by step_format=tags"),
        (
            lambda scorer: mmprm.rerank(scorer, "q", [CORRECT], aggregator="best"),
            "aggregator='best'",
        ),
        (
            lambda scorer: mmprm.rerank(scorer, "q", [CORRECT], step_format="tag"),
            "step_format='tag' must be one of tags, blank_lines, numbered, thoughts",
        ),
        (
            lambda scorer: mmprm.load_labels("labels.parquet", "held_out"),
            "split='held_out' must be one of train, dev, test",
        ),
        (lambda scorer: mmprm.read_trees("nowhere"), "nowhere: .* run mmprm annotate first"),
        (
            lambda scorer: mmprm.annotate([3], "r", engine={"model": "tiny"}),
            "problems\\[0\\]=3 must be a Problem or a",
        ),
    ],
)
def test_invalid_arguments_are_named(
    scorer: mmprm.LoadedScorer,
    call: Callable[[mmprm.LoadedScorer], object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mmprm.MmprmError, match=message):
        call(scorer)


async def test_a_running_event_loop_is_an_error_that_proposes_a_thread() -> None:
    with pytest.raises(mmprm.MmprmError, match=r"await asyncio.to_thread\(mmprm.annotate"):
        mmprm.annotate([], "run", engine={"model": "tiny"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a campaign with a scripted policy."""
    folder = tmp_path_factory.mktemp("api") / "run"
    settings = config(str(write_problems(folder.parent, 8)), str(folder), workers=1)

    async def make_worker(number: int) -> LocalWorker:
        return local_worker(settings, delay=0)

    run_campaign(settings, make_worker=make_worker)
    return folder


def test_trees_come_with_their_problems_and_values(run: Path) -> None:
    found = {each.problem.id: each for each in mmprm.read_trees(run)}
    assert [*found] == [f"p{number}" for number in range(8)]
    first = found["p0"]
    assert first.problem.question == "question 0"
    assert first.tree.nodes[0].steps == ()
    assert first.evidence[()].value == first.tree.nodes[0].counts.value
    labeled = sum(bool(steps) for each in found.values() for steps in each.evidence)
    assert labeled == json.loads((run / "summary.json").read_text())["labels"]


def test_labels_load_as_a_dataset(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    summary = mmprm.write_labels(run, path, dev=0.3)
    labels = mmprm.load_labels(path)
    assert labels.column_names == SCHEMA.names
    assert len(labels) == summary.counts.paths
    known = sum(label is not None for row in labels["labels"] for label in row)
    assert known == summary.counts.labels + summary.counts.labels_terminal
    by_split = {name: len(mmprm.load_labels(path, split=name)) for name in summary.paths_by_split}
    assert by_split == summary.paths_by_split
    assert {*mmprm.load_labels(path, split="dev")["split"]} == {"dev"}


def test_labels_of_version_0_1_have_the_current_columns(run: Path, tmp_path: Path) -> None:
    mmprm.write_labels(run, tmp_path / "new.parquet")
    table = parquet.read_table(tmp_path / "new.parquet").drop_columns(["judge", "judged_by"])
    earlier = {"correct": "right", "incorrect": "wrong"}
    parquet.write_table(
        table.rename_columns([earlier.get(name, name) for name in table.column_names]), tmp_path / "old.parquet"
    )
    old, new = (mmprm.load_labels(tmp_path / name) for name in ("old.parquet", "new.parquet"))
    assert old["correct"] == new["correct"]
    assert old["incorrect"] == new["incorrect"]


def test_images_of_labels_are_decoded(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), "red").save(tmp_path / "red.png")
    problem = mmprm.Problem("p", "q", "1", (mmprm.ImageRef(data=(tmp_path / "red.png").read_bytes()),))
    path = mmprm.LabeledPath("p", ("a",), (mmprm.Counts(1, 1),), False)
    write_parquet(tmp_path / "labels.parquet", [LabeledExample(problem, path, "train")])
    (image,) = mmprm.load_labels(tmp_path / "labels.parquet")[0]["images"]
    assert (image.size, image.getpixel((0, 0))) == ((5, 4), (255, 0, 0))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b"hello"), "is not readable Parquet"),
        (lambda path: flip_a_bit(path), "CRC checksum verification failed"),
        (
            lambda path: parquet.write_table(parquet.read_table(path).drop_columns(["steps"]), path),
            "lacks the columns steps",
        ),
    ],
)
def test_damaged_labels_are_refused(run: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "labels.parquet"
    mmprm.write_labels(run, path)
    damage(path)
    with pytest.raises(mmprm.MmprmError, match=message):
        mmprm.load_labels(path)


def test_a_split_without_rows_is_named(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    mmprm.write_labels(run, path)
    with pytest.raises(mmprm.MmprmError, match=r"labels.parquet: has no rows of split=test; choose another split"):
        mmprm.load_labels(path, "test")


def flip_a_bit(path: Path) -> None:
    """Flip a bit in the first page of the first column."""
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
