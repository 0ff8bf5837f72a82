"""Test exports: each format by a worked example and a round trip, splits, balance, duplicates, and invalid input."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from mmprm.cli.main import main
from mmprm.config import load
from mmprm.errors import ConfigError, DataError
from mmprm.labels.export import ExportConfig, ExportSummary, balance, export_labels
from mmprm.labels.formats import LABEL_FORMATS, VISUALPRM_SYSTEM, Content, content_of
from mmprm.labels.parquet import LabeledExample, Split, read_parquet, write_parquet
from mmprm.problems import write_problems
from mmprm.types import Counts, ImageRef, LabeledPath, Problem


def png(shade: int) -> ImageRef:
    """Return a PNG that is dark to the left of `shade` and white elsewhere."""
    buffer = io.BytesIO()
    image = Image.new("L", (32, 32), "white")
    image.paste(0, (0, 0, shade, 32))
    image.save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())


WITH_IMAGE = Problem("p", "<image>\nHow many cats?", "5", (png(8),))
PLAIN = Problem("q", "What is 2 + 3?", "5")
PATH = LabeledPath(
    "p",
    ("Two here.", "Three there.", "Five in all.", "<answer>5</answer>", "Done."),
    (Counts(3, 1), None, Counts(0, 4), Counts(1, 3), None),
    False,
)
"""Values 0.75, none, 0, 0.25, none: hard labels right, none, wrong, right, none."""


def export(folder: Path, examples: list[LabeledExample], form: str, **keys: Any) -> ExportSummary:
    write_parquet(folder / "labels.parquet", examples)
    return export_labels(
        ExportConfig(labels=str(folder / "labels.parquet"), output=str(folder / "out"), format=form, **keys)
    )


def only_record(folder: Path, problem: Problem, form: str, **keys: Any) -> dict[str, Any]:
    path = LabeledPath(problem.id, PATH.steps, PATH.counts, PATH.complete)
    export(folder, [LabeledExample(problem, path, "train")], form, **keys)
    (line,) = (folder / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(line)


def test_trl_merges_steps_that_it_cannot_mask(tmp_path: Path) -> None:
    assert only_record(tmp_path, PLAIN, "trl") == {
        "prompt": "What is 2 + 3?",
        "completions": ["Two here.", "Three there.\nFive in all.", "<answer>5</answer>"],
        "labels": [True, False, True],
    }


def test_math_shepherd_marks_labeled_steps_only(tmp_path: Path) -> None:
    assert only_record(tmp_path, PLAIN, "math-shepherd", threshold=0.5) == {
        "input": "What is 2 + 3? Step 1: Two here. ки\nStep 2: Three there.\nStep 3: Five in all. ки\n"
        "Step 4: <answer>5</answer> ки",
        "label": "What is 2 + 3? Step 1: Two here. +\nStep 2: Three there.\nStep 3: Five in all. -\n"
        "Step 4: <answer>5</answer> -",
        "task": "mmprm",
    }


@pytest.mark.parametrize(("kind", "labels"), [("soft", [0.75, 0.0, 0.25]), ("hard", ["+", "-", "+"])])
def test_openrlhf_has_a_label_for_each_mark(tmp_path: Path, kind: str, labels: list[Any]) -> None:
    record = only_record(tmp_path, PLAIN, "openrlhf", kind=kind)
    assert record["label"] == labels
    assert record["input"].endswith("Step 2: Three there.\nStep 3: Five in all. ки\nStep 4: <answer>5</answer> ки")


def test_prm800k_leaves_ratings_empty(tmp_path: Path) -> None:
    record = only_record(tmp_path, PLAIN, "prm800k")
    steps = record["label"]["steps"]
    assert [step["completions"][0]["rating"] for step in steps] == [1, None, -1, 1]
    assert [step["completions"][0]["text"] for step in steps] == list(PATH.steps[:4])
    assert {step["chosen_completion"] for step in steps} == {0}
    assert record["label"]["finish_reason"] == "found_error"
    assert record["question"]["problem"] == "What is 2 + 3?"
    assert record["question"]["ground_truth_answer"] == "5"
    assert record["question"]["pre_generated_steps"] == list(PATH.steps[:4])


def test_visualprm_has_one_turn_per_step(tmp_path: Path) -> None:
    record = only_record(tmp_path, WITH_IMAGE, "visualprm")
    values = [(turn["from"], turn["value"]) for turn in record["conversations"]]
    assert values == [
        ("system", VISUALPRM_SYSTEM),
        ("human", "### Question:\n<image>\nHow many cats?\n\n### Solution Process:\nTwo here."),
        ("gpt", "+"),
        ("human", "Three there.\n\nFive in all."),
        ("gpt", "-"),
        ("human", "<answer>5</answer>"),
        ("gpt", "+"),
    ]
    assert (tmp_path / "out" / record["image"]).read_bytes() == WITH_IMAGE.images[0].data


def test_mm_prm_has_soft_labels_in_the_second_turn(tmp_path: Path) -> None:
    record = only_record(tmp_path, WITH_IMAGE, "mm-prm")
    human, gpt = record["conversations"]
    assert human["value"] == (
        "<image>\nQuestion: How many cats?\n"
        "Process: Two here.<prm>Three there.\n\nFive in all.<prm><answer>5</answer><prm>"
    )
    assert gpt == {"from": "gpt", "value": [0.75, 0.0, 0.25]}
    assert record["id"] == "p"
    assert record["image"].startswith("images/")


def test_several_images_are_a_list_and_no_image_has_no_key(tmp_path: Path) -> None:
    two = Problem("p", "Which is darker?", "1", (png(8), png(20)))
    record = only_record(tmp_path, two, "mm-prm", kind="hard")
    assert record["conversations"][0]["value"].startswith("<image><image>\nQuestion: Which is darker?\n")
    assert record["conversations"][1]["value"] == [1.0, 0.0, 1.0]
    images = [(tmp_path / "out" / position).read_bytes() for position in record["image"]]
    assert images == [image.data for image in two.images]
    assert "image" not in only_record(tmp_path / "plain", PLAIN, "visualprm")


@pytest.mark.parametrize("name", LABEL_FORMATS)
def test_every_format_round_trips(tmp_path: Path, name: str) -> None:
    form = LABEL_FORMATS[name]
    for kind in form.kinds:
        folder = tmp_path / kind
        examples = [
            LabeledExample(WITH_IMAGE, PATH, "train"),
            LabeledExample(
                Problem("q", "Line one\nStep one: 2 < 3 ?", "yes", (), (), "It is."),
                LabeledPath("q", ("- a\n\n- b +", 'ä 中 "c" \\frac{1}{3}'), (Counts(1, 2), Counts(1, 0)), True),
                "train",
            ),
        ]
        export(folder, examples, name, kind=kind)
        expected = [content_of(example.path, example.problem, form, kind, 0.0) for example in examples]
        lines = (folder / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        assert [form.read(json.loads(line)) for line in lines] == expected
        assert expected[1] == Content(
            examples[1].problem.question, examples[1].path.steps, (1 / 3 if kind == "soft" else True, True)
        )
        table = datasets.load_dataset(str(folder / "out"), data_files="train.jsonl", cache_dir=str(folder / "cache"))
        assert table["train"].num_rows == 2


def test_formats_with_and_without_a_mask() -> None:
    masked = content_of(PATH, WITH_IMAGE, LABEL_FORMATS["openrlhf"], "soft", 0.0)
    assert masked == Content("How many cats?", PATH.steps[:4], (0.75, None, 0.0, 0.25))
    merged = content_of(PATH, WITH_IMAGE, LABEL_FORMATS["trl"], "hard", 0.25)
    assert merged == Content(
        "How many cats?", ("Two here.", "Three there.\nFive in all.", "<answer>5</answer>"), (True, False, False)
    )
    unlabeled = LabeledPath("p", ("a",), (None,), False)
    assert content_of(unlabeled, WITH_IMAGE, LABEL_FORMATS["trl"], "hard", 0.0) is None


def test_without_a_mask_only_unknown_steps_are_merged(tmp_path: Path) -> None:
    steps = ("a", "b", "c", "d")
    first = LabeledPath("q", steps, (Counts(1, 0), Counts(0, 1), None, Counts(0, 2)), False)
    second = LabeledPath("q", ("a", "b", "x", "y", "z"), (None, None, Counts(2, 0), None, Counts(0, 3)), False)
    stranger = LabeledPath("p", ("a", "b"), (None, Counts(0, 1)), False)
    examples = [
        LabeledExample(PLAIN, first, "train"),
        LabeledExample(PLAIN, second, "train"),
        LabeledExample(WITH_IMAGE, stranger, "train"),
    ]
    summary = export(tmp_path / "trl", examples, "trl")
    lines = (tmp_path / "trl" / "out" / "train.jsonl").read_text().splitlines()
    assert [(row["completions"], row["labels"]) for row in map(json.loads, lines)] == [
        (["a", "b", "c\nd"], [True, False, False]),
        (["a", "b", "x", "y\nz"], [True, False, True, False]),
        (["a\nb"], [False]),
    ]
    assert (summary.splits["train"].labels, summary.splits["train"].correct) == (6, 2), "each label counts once"
    export(tmp_path / "masked", examples, "openrlhf")
    lines = (tmp_path / "masked" / "out" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == [[1.0, 0.0, 0.0], [1.0, 0.0], [0.0]]


def test_parquet_reproduces_the_file_of_mmprm_labels(tmp_path: Path) -> None:
    examples = [LabeledExample(WITH_IMAGE, PATH, "train"), LabeledExample(PLAIN, PATH, "dev")]
    examples[1] = LabeledExample(PLAIN, LabeledPath("q", ("a",), (Counts(1, 1, 2),), False), "dev")
    summary = export(tmp_path, examples, "parquet")
    assert read_parquet(tmp_path / "out" / "labels.parquet") == examples
    assert (summary.splits["train"].labels, summary.splits["train"].correct, summary.splits["dev"].labels) == (3, 2, 1)


@pytest.mark.parametrize(
    ("form", "word"),
    [("math-shepherd", "a ки b"), ("openrlhf", "a\nStep 7: b"), ("mm-prm", "a <prm> b"), ("math-shepherd", "маки")],
)
def test_solutions_with_reserved_words_are_dropped_and_counted(tmp_path: Path, form: str, word: str) -> None:
    bad = LabeledPath("q", (word,), (Counts(1, 0),), False)
    examples = [LabeledExample(PLAIN, bad, "train"), LabeledExample(WITH_IMAGE, PATH, "train")]
    summary = export(tmp_path, examples, form)
    assert summary.unfit == {"q": 1}
    assert summary.splits["train"].solutions == 1
    with pytest.raises(DataError, match="all solutions contain text"):
        export(tmp_path / "none", examples[:1], form)
    assert not (tmp_path / "none" / "out").exists()


def many(count: int = 60) -> list[LabeledExample]:
    """Return two paths per problem with one positive and five negative labels, stored in three splits."""
    splits: tuple[Split, ...] = ("train", "train", "dev", "test")
    examples = []
    for number in range(count):
        problem = Problem(f"p{number:03}", f"What is {number} + 1?", str(number + 1))
        for path in (0, 1):
            steps = tuple(f"{path}.{step}" for step in range(3))
            counts = (Counts(1 - path, 1), Counts(0, 2), Counts(0, 3))
            examples.append(LabeledExample(problem, LabeledPath(problem.id, steps, counts, False), splits[number % 4]))
    return examples


def ids(folder: Path) -> dict[str, set[str]]:
    """Map each split to its problems, identified by their questions."""
    return {
        file.stem: {json.loads(line)["prompt"] for line in file.read_text().splitlines()}
        for file in (folder / "out").glob("*.jsonl")
    }


def test_the_stored_split_is_kept_and_a_new_one_is_by_problem(tmp_path: Path) -> None:
    stored = export(tmp_path / "a", many(), "trl")
    assert {name: split.problems for name, split in stored.splits.items()} == {"train": 30, "dev": 15, "test": 15}
    assert "What is 2 + 1?" in ids(tmp_path / "a")["dev"]
    export(tmp_path / "b", many(), "trl", dev=0.3, seed=1)
    export(tmp_path / "c", many(), "trl", dev=0.3, seed=1)
    export(tmp_path / "d", many(), "trl", dev=0.3, seed=2)
    new = ids(tmp_path / "b")
    assert set(new) == {"train", "dev"}
    assert len(new["train"] | new["dev"]) == 60
    assert not new["train"] & new["dev"]
    assert 8 <= len(new["dev"]) <= 28
    assert new == ids(tmp_path / "c") != ids(tmp_path / "d")


def test_negatives_are_balanced_in_the_train_split_with_a_seed(tmp_path: Path) -> None:
    summary = export(tmp_path / "a", many(), "parquet", negatives=2)
    train, dev = summary.splits["train"], summary.splits["dev"]
    assert (train.correct, train.labels - train.correct) == (30, 60)
    assert summary.negatives_dropped == 30 * 5 - 60
    assert (dev.correct, dev.labels - dev.correct) == (15, 75)
    config = ExportConfig(labels="x", output="y", format="trl", negatives=1)
    examples = many()
    first, again = balance(examples, config)[0], balance(examples[::-1], config)[0]
    assert first == again[::-1], "the order of rows does not matter"
    other, _ = balance(examples, config.model_copy(update={"seed": 1}))
    assert first != other
    assert (
        sum(counts is not None for example in first for counts in example.path.counts if example.split == "train") == 60
    )
    assert balance(examples, config.model_copy(update={"negatives": 9.0})) == (examples, 0)


def test_a_solution_without_its_verdict_is_not_complete(tmp_path: Path) -> None:
    """Balancing drops its last label, a negative, together with the step."""
    path = LabeledPath("q", ("a", "b", "5"), (Counts(4, 0), Counts(2, 2), Counts(0, 1)), True)
    export(tmp_path, [LabeledExample(PLAIN, path, "train")], "prm800k", negatives=0.1)
    label = json.loads((tmp_path / "out" / "train.jsonl").read_text())["label"]
    assert (len(label["steps"]), label["finish_reason"]) == (2, "give_up")


def test_only_labels_confirmed_by_a_judge(tmp_path: Path) -> None:
    """The values are 0.75, none, 0, 0.25, none; the judge agrees with the first only, so the first errors differ."""
    judged = LabeledExample(PLAIN, replace(PATH, problem_id="q"), "train", (0.9, None, 0.8, 0.2, None), "a judge")
    summary = export(tmp_path / "steps", [judged], "parquet", agree="steps")
    (kept,) = read_parquet(tmp_path / "steps" / "out" / "labels.parquet")
    assert kept.path.counts == (Counts(3, 1), None, None, None, None)
    assert summary.disagreements_dropped == 2
    with pytest.raises(DataError, match="leave no label"):
        export(tmp_path / "errors", [judged], "parquet", agree="first_errors")
    with pytest.raises(ConfigError, match=r"agree=steps needs a judge.*mmprm consensus"):
        export(tmp_path / "alone", [replace(judged, judged=None)], "parquet", agree="steps")


def test_near_duplicates_across_problems_are_dropped(tmp_path: Path) -> None:
    def example(name: str, question: str, labels: int, split: Split, *images: ImageRef) -> LabeledExample:
        counts = tuple(Counts(1, 1) for _ in range(labels))
        path = LabeledPath(name, tuple("abc"[:labels]), counts, False)
        return LabeledExample(Problem(name, question, "1", images), path, split)

    examples = [
        example("a", "How many cats?", 1, "train", png(8)),
        example("b", "How many cats ?", 2, "dev", png(8)),
        example("c", "How many cats?", 1, "train", png(20)),
        example("d", "What is 2+3?", 1, "train"),
        example("e", "What is 2 + 3", 1, "train"),
        example("f", "What is 2+4?", 1, "train"),
    ]
    summary = export(tmp_path, examples, "parquet")
    assert summary.duplicates == {"a": "b", "e": "d"}
    kept = {example.problem.id for example in read_parquet(tmp_path / "out" / "labels.parquet")}
    assert kept == {"b", "c", "d", "f"}
    assert json.loads((tmp_path / "out" / "export.json").read_text())["duplicates"] == {"a": "b", "e": "d"}


def test_overlap_with_a_benchmark_is_reported_and_kept(tmp_path: Path) -> None:
    benchmark = tmp_path / "test.jsonl"
    theirs = [
        Problem("x1", "how many cats", "5", (png(8),)),
        Problem("x2", "How many dogs?", "5", (png(8),)),
        Problem("x3", "How many cats?", "5", (png(24),)),
    ]
    write_problems(benchmark, theirs)
    examples = [LabeledExample(WITH_IMAGE, PATH, "train")]
    config = load(ExportConfig, None, ["labels=a", "output=b", "format=trl", f"benchmark={benchmark}"])
    assert config.benchmark == (str(benchmark),)
    summary = export(tmp_path, examples, "trl", benchmark=config.benchmark)
    assert summary.overlap == {str(benchmark): {"x1": "p"}}
    assert summary.splits["train"].problems == 1
    assert summary.images_left_out == 1


@pytest.mark.parametrize("form", ["trl", "math-shepherd", "prm800k", "visualprm"])
def test_soft_labels_are_refused_where_the_format_is_hard(tmp_path: Path, form: str) -> None:
    with pytest.raises(ConfigError, match=rf"kind=soft does not work with format={form}.*use kind=hard"):
        export(tmp_path, [LabeledExample(PLAIN, PATH, "train")], form, kind="soft")
    with pytest.raises(ConfigError, match=r"kind=hard does not work with format=parquet.*targets\.kind=hard"):
        export(tmp_path, [LabeledExample(PLAIN, PATH, "train")], "parquet", kind="hard")


def test_invalid_input_is_rejected_without_output(tmp_path: Path) -> None:
    good = [LabeledExample(PLAIN, LabeledPath("q", ("a",), (Counts(1, 0),), False), "train")]
    with pytest.raises(ConfigError, match="format"):
        load(ExportConfig, None, ["labels=a", "output=b", "format=csv"])
    with pytest.raises(DataError, match=r"does not exist.*mmprm labels"):
        export_labels(ExportConfig(labels=str(tmp_path / "no.parquet"), output=str(tmp_path / "o"), format="trl"))
    with pytest.raises(ConfigError, match=r"dev=0\.6 and test=0\.4 must sum to less than 1"):
        export(tmp_path, good, "trl", dev=0.6, test=0.4)
    with pytest.raises(DataError, match="problem q is in two splits"):
        export(tmp_path, [*good, LabeledExample(PLAIN, good[0].path, "dev")], "trl")
    with pytest.raises(DataError, match="split must be train, dev or test, got None"):
        export(tmp_path, [LabeledExample(PLAIN, good[0].path, None)], "trl")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="leave no label"):
        export(tmp_path, [LabeledExample(PLAIN, LabeledPath("q", ("a",), (None,), False), "train")], "trl")
    missing = Problem("q", "What?", "1", (ImageRef(path=str(tmp_path / "gone.png")),))
    with pytest.raises(DataError, match=r"gone\.png"):
        export(tmp_path, [LabeledExample(missing, good[0].path, "train")], "mm-prm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.parquet"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        export(tmp_path, good, "trl")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_parquet(tmp_path / "labels.parquet", many(8))
    benchmark = tmp_path / "test.jsonl"
    write_problems(benchmark, [Problem("x", "What is 3 + 1 ?", "4")])
    paths = [f"labels={tmp_path / 'labels.parquet'}", f"output={tmp_path / 'out'}", f"benchmark={benchmark}"]
    sets = [word for item in [*paths, "negatives=1"] for word in ("--set", item)]
    assert main(["labels", "export", "--format", "math-shepherd", *sets]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'out'}: math-shepherd, hard labels\n"
        "train: 4 problems, 6 solutions, 8 labels (4 correct, 4 incorrect: not above 0)\n"
        "dev: 2 problems, 4 solutions, 12 labels (2 correct, 10 incorrect: not above 0)\n"
        "test: 2 problems, 4 solutions, 12 labels (2 correct, 10 incorrect: not above 0)\n"
        "near-duplicates dropped: 0 problems\n"
        "negative labels dropped from train: 16 (at most 1 per positive label)\n"
        f"overlap with {benchmark}: 1 of its problems (x; see export.json)\n"
    )
    assert main(["labels", "export", "--format", "trl", *sets]) == 2
    assert "is not empty" in capsys.readouterr().err
    for before in (["--config", "/nope.yaml"], ["--set", "threshold=0.5"]):
        assert main(["labels", *before, "export", "--format", "trl", *sets]) == 2
        assert "after export" in capsys.readouterr().err
    assert main(["labels", "--set", f"store={tmp_path}", "--set", f"output={tmp_path / 'x.parquet'}"]) == 2
    assert "no store" in capsys.readouterr().err
