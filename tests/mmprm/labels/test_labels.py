"""Test labeled paths built from trees, and their Parquet round trip."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprm.config import load
from mmprm.errors import ConfigError, DataError, StoreError
from mmprm.labels.build import LabelsConfig, build_labels
from mmprm.labels.parquet import LabeledExample, read_parquet, split_of, write_parquet
from mmprm.labels.soft_labels import CORRECT, INCORRECT, count_labels, label_tree
from mmprm.trees.serialization import count_verdicts, pack_batch
from mmprm.trees.stopping import StoppingRule
from mmprm.trees.store import Store
from mmprm.types import Batch, Counts, ImageRef, LabeledPath, Node, Problem, Rollout, Steps, Tree, Verdict

FIXED = StoppingRule(false_negative_rate=0, min_shared_rollouts=None)
SEARCH = {"search": FIXED.model_dump()}
VERDICTS = {"r": Verdict.CORRECT, "w": Verdict.INCORRECT, "?": Verdict.UNKNOWN}


def steps_of(words: str) -> Steps:
    return tuple(f"<step>{word}</step>" if word != "A" else "<answer>1</answer>" for word in words.split())


def rollout(words: str, verdict: str) -> Rollout:
    steps = steps_of(words)
    return Rollout(steps, VERDICTS[verdict], 1, "".join(steps))


def node(prefix: str, *rollouts: tuple[str, str]) -> Node:
    sampled = tuple(rollout(*pair) for pair in rollouts)
    return Node(steps_of(prefix), (count_verdicts(sampled),), sampled)


def tree(*nodes: Node) -> Tree:
    return Tree("p", nodes)


SMALL = tree(
    node("", ("a b A", "r"), ("a x A", "w"), ("y z A", "w"), ("a b A", "r")),
    node("a", ("b A", "r"), ("x A", "w"), ("c A", "r"), ("q", "?")),
    node("a x", ("z A", "w"), ("d A", "w")),
    node("y", ("z A", "w"), ("e A", "?")),
)


def labels_of(paths: list[LabeledPath]) -> dict[Steps, Counts]:
    """Map each labeled prefix to its counts; fail if a prefix is labeled twice."""
    found: dict[Steps, Counts] = {}
    for path in paths:
        for depth, counts in enumerate(path.counts, start=1):
            if counts is not None:
                assert path.steps[:depth] not in found
                found[path.steps[:depth]] = counts
    return found


def test_each_state_once_by_its_own_rollouts() -> None:
    paths = label_tree(SMALL, FIXED, "tags", seed=0)
    states = {steps: counts for steps, counts in labels_of(paths).items() if "<answer>1</answer>" not in steps}
    assert states == {("a",): Counts(2, 1, 1), ("a", "x"): Counts(0, 2, 0), ("y",): Counts(0, 1, 1)}


def test_last_steps_take_their_own_verdict_in_equal_numbers() -> None:
    paths = label_tree(SMALL, FIXED, "tags", seed=0)
    ends = Counter(path.counts[-1] for path in paths if path.complete)
    assert ends == {CORRECT: 1, INCORRECT: 1}
    assert count_labels(paths).labels == 3
    assert (count_labels(paths).labels_terminal, count_labels(paths).terminal_correct) == (2, 1)


def test_complete_solutions_are_those_of_the_root() -> None:
    """The correct "a x d" recovers from a bad step; complete solutions come only from rollouts at the root."""
    recovery = node("a x", ("d A", "r"), ("z A", "w"))
    paths = label_tree(tree(node("", ("a b A", "r"), ("a x z A", "w")), recovery), FIXED, "tags", seed=0)
    correct = {path.steps for path in paths if path.complete and path.counts[-1] == CORRECT}
    assert correct == {("a", "b", "<answer>1</answer>")}


def test_one_path_per_deepest_state_with_an_unlabeled_tail() -> None:
    paths = label_tree(tree(node("", ("q A", "r"), ("a b c A", "w")), node("a", ("b c A", "w"))), FIXED, "tags", seed=0)
    (incorrect,) = [path for path in paths if path.counts[-1] == INCORRECT]
    assert incorrect.steps == ("a", "b", "c", "<answer>1</answer>")
    assert incorrect.counts == (Counts(0, 1), None, None, INCORRECT)


def test_surplus_ends_at_its_state() -> None:
    """Two states have only incorrect solutions and one solution is correct, so one final step of each kind is used."""
    searched = tree(node("", ("a A", "w"), ("b A", "w"), ("c A", "r")), node("a", ("A", "w")), node("b", ("A", "w")))
    paths = label_tree(searched, FIXED, "tags", seed=0)
    assert sorted(len(path.steps) for path in paths) == [1, 2, 2]
    assert Counter(path.counts[-1] for path in paths if path.complete) == {CORRECT: 1, INCORRECT: 1}


def test_states_without_a_label() -> None:
    unknown_only = node("a", ("b A", "?"))
    assert label_tree(tree(node("", ("a b A", "r")), unknown_only), FIXED, "tags", seed=0) == []
    unsplit = Node((), (Counts(incorrect=1),), (Rollout((), Verdict.INCORRECT, 1, "no tags", "no step"),))
    assert label_tree(tree(unsplit), FIXED, "tags", seed=0) == []
    empty_step = node("a", ("b A", "w"))
    empty_step = Node(("<step> </step>",), empty_step.batches, empty_step.rollouts)
    assert label_tree(tree(empty_step), FIXED, "tags", seed=0) == []


def test_states_that_differ_in_step_format_alone_are_one() -> None:
    other = Node(("<step_1>a</step_1>",), (Counts(3, 1),), ())
    assert labels_of(label_tree(tree(node("a", ("b A", "w")), other), FIXED, "tags", seed=0)) == {("a",): Counts(0, 1)}


def test_the_seed_decides() -> None:
    many = tree(node("", ("b A", "w"), *[(f"a{i} A", "r") for i in range(20)]), node("b", ("A", "w")))
    assert label_tree(many, FIXED, "tags", seed=1) == label_tree(many, FIXED, "tags", seed=1)
    assert len({tuple(label_tree(many, FIXED, "tags", seed=seed)) for seed in range(5)}) > 1


words = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(" ".join)
nodes = st.builds(
    lambda prefix, sampled: node(prefix, *sampled),
    st.lists(st.sampled_from("abc"), max_size=3).map(" ".join),
    st.lists(st.tuples(words.map(lambda text: f"{text} A"), st.sampled_from("rw?")), max_size=5),
)


@given(st.lists(nodes, max_size=6, unique_by=lambda node: node.steps))
def test_any_tree(sampled: list[Node]) -> None:
    searched = tree(*sampled)
    paths = label_tree(searched, FIXED, "tags", seed=3)
    labels = labels_of(paths)
    ends = {path.steps for path in paths if path.complete}
    assert {steps for steps in labels if steps not in ends} == {
        tuple(step[6:-7] for step in node.steps) for node in sampled if node.steps and node.counts.known
    }
    counts = count_labels(paths)
    assert counts.terminal_correct * 2 == counts.labels_terminal
    assert len({path.steps for path in paths}) == len(paths)


PROBLEM = Problem("p", "what?", "1", (ImageRef(data=b"\x89PNG"), ImageRef(path="other.png")))
PATH = LabeledPath("p", ("a", "b", "c"), (Counts(1, 2, 3), None, CORRECT), True)


def test_parquet_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "labels.parquet"
    text_only = LabeledExample(Problem("q", "?", "2"), LabeledPath("q", ("a",), (INCORRECT,), False), "dev")
    examples = [LabeledExample(PROBLEM, PATH, "train"), text_only, LabeledExample(PROBLEM, PATH, "train")]
    write_parquet(file, examples)
    read = read_parquet(file)
    assert read == examples
    assert read[0].problem is read[2].problem
    assert read_parquet(file, "dev") == [text_only]
    row = datasets.load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path / "cache"))["train"][0]
    assert row["labels"] == [pytest.approx(1 / 3), None, 1.0]
    assert (row["correct"], row["unknown"], row["images"][0]["bytes"]) == ([1, None, 1], [3, None, 0], b"\x89PNG")


def test_images_of_a_problem_are_stored_once(tmp_path: Path) -> None:
    import random

    image = ImageRef(data=random.Random(0).randbytes(100_000))
    example = LabeledExample(Problem("p", "?", "1", (image,)), PATH, "train")
    write_parquet(tmp_path / "many.parquet", [example] * 50)
    assert (tmp_path / "many.parquet").stat().st_size < 200_000


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.parquet"
    write_parquet(file, [LabeledExample(PROBLEM, PATH, "train")])

    def failing():
        yield LabeledExample(PROBLEM, PATH, "train")
        raise DataError("image gone")

    with pytest.raises(DataError, match="image gone"):
        write_parquet(file, failing())
    assert len(read_parquet(file)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["labels.parquet"]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_parquet(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match="not readable Parquet"):
        read_parquet(tmp_path / "text.parquet")
    datasets.Dataset.from_dict({"steps": [["a"]]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="lacks the columns answer"):
        read_parquet(tmp_path / "other.parquet")


def test_split_by_problem_content() -> None:
    splits = Counter(split_of(f"problem {i}", 0, dev=0.2, test=0.1) for i in range(5000))
    assert splits["dev"] == pytest.approx(1000, rel=0.1)
    assert splits["test"] == pytest.approx(500, rel=0.15)
    assert split_of("x", 0, 0.2, 0.1) == split_of("x", 0, 0.2, 0.1)


def test_build_from_a_store(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"\x89PNG")
    problems = [Problem(f"p{i}", "?", "1", (ImageRef(path=str(tmp_path / "one.png")),)) for i in range(40)]
    store = Store.create_or_open(tmp_path / "run" / "trees.sqlite", SEARCH)
    store.add_problems(problems)
    for problem in problems:
        store.append([pack_batch(Batch(problem.id, n.steps, 0, n.rollouts)) for n in SMALL.nodes])
    store.close()
    config = LabelsConfig(store=str(tmp_path / "run"), output=str(tmp_path / "labels.parquet"), dev=0.3)
    summary = build_labels(config)
    examples = read_parquet(config.output)
    assert (summary.counts.problems, summary.counts.labels, summary.counts.labels_terminal) == (40, 120, 80)
    assert summary.paths_by_split == Counter(example.split for example in examples)
    by_split = {s: {e.problem.id for e in examples if e.split == s} for s in ("train", "dev")}
    assert {len(ids) > 0 for ids in by_split.values()} == {True}
    assert not by_split["train"] & by_split["dev"]
    assert examples[0].problem.images[0].data == b"\x89PNG"


def test_only_images_of_labeled_problems_are_read(tmp_path: Path) -> None:
    store = Store.create_or_open(tmp_path / "trees.sqlite", SEARCH)
    gone = (ImageRef(path=str(tmp_path / "gone.png")),)
    store.add_problems([Problem("p", "?", "1"), Problem("easy", "?", "1", gone)])
    store.append([pack_batch(Batch("p", n.steps, 0, n.rollouts)) for n in SMALL.nodes])
    store.append([pack_batch(Batch("easy", (), 0, (rollout("a A", "r"),) * 4))])
    store.close()
    summary = build_labels(LabelsConfig(store=str(tmp_path), output=str(tmp_path / "labels.parquet")))
    assert summary.counts.problems == 1


def test_build_rejects_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store"):
        build_labels(LabelsConfig(store=str(tmp_path / "none"), output=str(tmp_path / "x.parquet")))
    Store.create_or_open(tmp_path / "trees.sqlite", SEARCH).close()
    with pytest.raises(DataError, match="no tree has a label"):
        build_labels(LabelsConfig(store=str(tmp_path), output=str(tmp_path / "x.parquet")))
    with pytest.raises(ConfigError, match="leave problems"):
        build_labels(LabelsConfig(store=str(tmp_path), output="x", dev=0.6, test=0.4))
    with pytest.raises(ConfigError, match="step_format"):
        load(LabelsConfig, None, ["store=a", "output=b", "step_format=html"])
