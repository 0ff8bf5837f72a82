"""Test that mmprm score reads images, options and marks like all commands, and that problem ids are unique in
labels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmprm.cli import score
from mmprm.cli.main import main
from mmprm.data.images import open_image
from mmprm.errors import DataError
from mmprm.evaluation.labeled import Options, read_labeled
from mmprm.labels.parquet import LabeledExample, read_parquet, write_parquet
from mmprm.prm.info import PrmInfo, PrmTokens
from mmprm.prm.mm_prm_format import Renderer
from mmprm.tiny.tokenizer import build_processor
from mmprm.types import Counts, ImageRef, LabeledPath, Problem, Solution, StepScores


def png(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(buffer, "PNG")
    return buffer.getvalue()


class RedScorer:
    """Scores 1 with a red image and 0 without."""

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        return [StepScores((self._red(item.problem.images),) * len(item.steps)) for item in solutions]

    def _red(self, images: Sequence[ImageRef]) -> float:
        return float(any(open_image(image).getpixel((0, 0)) == (255, 0, 0) for image in images))

    def close(self) -> None:
        pass


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "red.png").write_bytes(png())
    monkeypatch.setattr(score, "open_scorer", lambda config: RedScorer())
    monkeypatch.setattr(score, "scorer_info", lambda config: PrmInfo(aggregator="min"))

    def command(*rows: dict[str, Any], sets: Sequence[str] = ()) -> tuple[int, list[dict[str, Any]]]:
        file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        file.write_text("".join(json.dumps({"question": "q", "steps": ["a"]} | row) + "\n" for row in rows))
        options = [word for item in ("scorer.prm=p", *sets) for word in ("--set", item)]
        code = main(["score", str(file), "--output", str(out), *options])
        return code, [json.loads(line) for line in out.read_text().splitlines()] if code == 0 else []

    return command


class EpisodeScorer(RedScorer):
    """Scores a turn 1 if a red image was seen before it."""

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        return [
            StepScores(tuple(self._red([part for part in parts if isinstance(part, ImageRef)]) for parts in seen))
            for item in solutions
            for seen in [item.observations[: len(item.steps)]]
        ]


def test_the_turns_of_an_episode_are_scored_with_their_observations(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "blue.png").write_bytes(png("blue"))
    monkeypatch.setattr(score, "open_scorer", lambda config: EpisodeScorer())
    seen = [["Go.", {"image": "red.png"}], [{"image": "blue.png"}]]
    for observations in (seen, [*seen, ["The end."]]):
        code, (row,) = run({"steps": ["up", "down"], "observations": observations})
        assert (code, row["scores"], row["observations"]) == (0, [1.0, 0.0], observations)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ([["Go."]], "in.jsonl:1: has 1 observations for 2 steps"),
        (["Go.", "on"], "in.jsonl:1: observations must be a list of texts and images per turn"),
        ([["Go."], [{"text": "on"}]], "in.jsonl:1: a part of observations must be a text or"),
    ],
)
def test_invalid_observations_are_reported_with_their_line(
    seen: list, message: str, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = run({"steps": ["up", "down"], "observations": seen})
    assert code == 2
    assert message in capsys.readouterr().err


def test_observations_of_a_raw_response_are_refused(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = run({"steps": None, "response": "<step>up</step>", "observations": [["Go."]]})
    assert code == 2
    assert "in.jsonl:1: has observations, but no steps" in capsys.readouterr().err


def test_images_in_every_usual_column(run: Any) -> None:
    cells = ["red.png", ["red.png"], {"bytes": None, "path": "red.png"}]
    rows = [{name: cell} for name in ("images", "image", "images", "image_path", "image_urls") for cell in cells]
    code, found = run(*rows, {"image": ""}, {})
    assert (code, [row["aggregate"] for row in found]) == (0, [1.0] * 15 + [0.0, 0.0])
    code, found = run({"photo": "red.png"}, sets=["columns.images=photo"])
    assert found[0]["aggregate"] == 1.0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "does-not-exist.png"}, r"in.jsonl:2: .*does-not-exist.png: cannot be read as an image"),
        ({"photo": "red.png"}, r"in.jsonl:2: column 'photo' looks like images"),
        ({"question": "<image>q"}, r"in.jsonl:2: question has 1 <image> marks and the row 0 images"),
        ({"question": "q<|im_end|>"}, r"in.jsonl:2: question holds '<|im_end|>'"),
        ({"my_video": "a.mp4"}, r"in.jsonl:2: column 'my_video'"),
        ({"steps": "x" * 500}, r"in.jsonl:2: steps must be a list"),
    ],
)
def test_unread_columns_are_reported_with_their_line(
    run: Any, row: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run({}, row)[0] == 2
    said = capsys.readouterr().err
    head, _, tail = words.partition(".*")
    assert head in said
    assert tail in said
    assert len(said) < 500


def test_prms_read_the_options_but_no_special_tokens() -> None:
    processor = build_processor()
    processor.tokenizer.add_tokens(["<prm>"], special_tokens=True)
    renderer = Renderer(processor, PrmTokens())
    problem = Problem("p", "How long?", "B", choices=("3 cm", "5 cm"))
    text = renderer.render(Solution(problem, ("a",)))
    assert "Question: How long?\nChoices:\nA. 3 cm\nB. 5 cm\nProcess: a<prm>" in text
    stored = replace(problem, question="How long?\nChoices:\nA. 3 cm\nB. 5 cm", choices=())
    assert renderer.render(Solution(stored, ("a",))) == text
    with pytest.raises(DataError, match=r"problem p: step 2 contains '<\|im_end\|>', which the format reserves"):
        renderer.render(Solution(problem, ("a", "b<|im_end|>")))


PATH = LabeledPath("1", ("a",), (Counts(1, 1),), False)
PROBLEM = Problem("1", "What is 1 + 1?", "2", (ImageRef(data=png()),))


def test_labels_contain_the_question_as_prompted(tmp_path: Path) -> None:
    problem = Problem("1", "How long?", "B", choices=("3 cm", "5 cm"))
    write_parquet(tmp_path / "a.parquet", [LabeledExample(problem, PATH, "train")])
    assert read_parquet(tmp_path / "a.parquet")[0].problem.question == "How long?\nChoices:\nA. 3 cm\nB. 5 cm"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"question": "What is the capital?"}, "question is 'What is the capital.', but was 'What is 1 . 1.'"),
        ({"answer": "Paris"}, "answer is 'Paris', but was '2'"),
        ({"images": (ImageRef(data=png("blue")),)}, "with other images"),
    ],
)
def test_labels_of_two_problems_with_one_id_are_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    problems = [PROBLEM, PROBLEM, replace(PROBLEM, **changed)]
    write_parquet(tmp_path / "a.parquet", [LabeledExample(problem, PATH, "train") for problem in problems[:2]])
    assert len(read_parquet(tmp_path / "a.parquet")) == 2
    write_parquet(tmp_path / "a.parquet", [LabeledExample(problem, PATH, "train") for problem in problems])
    with pytest.raises(
        DataError, match=rf"a\.parquet: row 3: problem_id '1' already belongs to a different problem.*{words}"
    ):
        read_parquet(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["image", "images", "image_path", "pictures"])
def test_judged_solutions_have_their_images_in_every_usual_column(tmp_path: Path, name: str) -> None:
    (tmp_path / "red.png").write_bytes(png())
    record = {"question": "See <|image_pad|>.", "response": {"steps": ["a"], "process_correctness": [1]}}
    records = [("row 1", record | {name: ["red.png"]})]
    (found,) = read_labeled("visualprocessbench", records, tmp_path, "v", Options())
    assert [image.path for image in found.solution.problem.images] == [str(tmp_path / "red.png")]
    assert found.solution.problem.question == "See <image>."
    with pytest.raises(DataError, match="row 1: column 'photo' looks like images"):
        read_labeled("visualprocessbench", [("row 1", record | {"photo": "red.png"})], tmp_path, "v", Options())
