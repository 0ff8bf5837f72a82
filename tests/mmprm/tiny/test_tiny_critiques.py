"""Test the critiques with which the built-in world teaches a thinking judge."""

from __future__ import annotations

import json
from pathlib import Path

from mmprm.cli.main import main
from mmprm.config import build
from mmprm.critiques.build import build_critiques
from mmprm.critiques.config import CritiquesConfig
from mmprm.labels.parquet import read_parquet
from mmprm.scoring.verdicts import VERDICT_FORMATS, read_verdicts
from mmprm.tiny.critiques import JUDGE, WorldTeacher, make_labeled, write_critique, write_labeled
from mmprm.tiny.world import NO_MISTAKES, Mistakes

OFTEN = Mistakes(0.1, 0.5)
FORM = VERDICT_FORMATS["thinkprm"]


def test_a_critique_ends_at_the_first_difference_from_the_own_solution() -> None:
    own = ("<step>blue=5</step>", "<step>red=3</step>", "<step>5+3=8</step>", "<answer>8</answer>")
    text = write_critique(own, ["blue=5", "red=8", "5+8=13", "<answer>13</answer>"])
    first, second = "Step 1: <step>blue=5</step>blue=5", "Step 2: <step>red=3</step>red=8"
    assert text == f"{first} \\boxed{{correct}}\n{second} \\boxed{{incorrect}}"
    assert read_verdicts(text, 4, FORM, "incorrect") == (True, False, False, False)
    whole = write_critique(own, ["blue=5", "red=3", "5+3=8", "<answer>8</answer>"])
    assert read_verdicts(whole, 4, FORM, "incorrect") == (True,) * 4


def test_steps_beyond_the_own_solution_are_compared_with_its_answer() -> None:
    text = write_critique(("<step>red=3</step>", "<answer>3</answer>"), ["red=3", "<answer>3</answer>", "red=3"])
    assert text.endswith("Step 3: <answer>3</answer>red=3 \\boxed{incorrect}")


def counts_of(folder: Path, mistakes: Mistakes) -> dict[str, int]:
    write_labeled(folder, make_labeled(40, 0, "train", OFTEN))
    teacher = JUDGE | {"engine": {"model": "world"}, "cache": str(folder / "replies.sqlite")}
    values = {"labels": str(folder / "labels.parquet"), "output": str(folder / "out"), "teacher": teacher}
    counts = build_critiques(build(CritiquesConfig, values), WorldTeacher(mistakes))
    return {"kept": counts.kept, "with_error": counts.with_error, "refused": sum(counts.refused.values())}


def test_a_teacher_without_mistakes_agrees_with_the_truth_and_another_does_not(tmp_path: Path) -> None:
    perfect = counts_of(tmp_path / "perfect", NO_MISTAKES)
    assert (perfect["kept"], perfect["refused"]) == (40, 0)
    assert 20 < perfect["with_error"] < 40
    erring = counts_of(tmp_path / "erring", OFTEN)
    assert erring["kept"] + erring["refused"] == 40
    assert 10 < erring["refused"] < 35


def test_labels_and_benchmark_have_the_same_first_errors(tmp_path: Path) -> None:
    write_labeled(tmp_path, make_labeled(20, 1, "test", OFTEN))
    rows = [json.loads(line) for line in (tmp_path / "solutions.jsonl").read_text().splitlines()]
    for example, row in zip(read_parquet(tmp_path / "labels.parquet"), rows, strict=True):
        values = [counts.value for counts in example.path.counts if counts is not None]
        assert len(values) == len(row["steps"])
        assert row["label"] == (values.index(0.0) if 0.0 in values else -1)
        assert (tmp_path / row["images"][0]).is_file()


def test_the_command_writes_rows_for_sft_rl_and_eval(tmp_path: Path) -> None:
    main(["tiny", "critiques", "--output", str(tmp_path), "--count", "12", "--split", "train"])
    lines = {name: (tmp_path / name).read_text().splitlines() for name in ("kept.jsonl", "problems.jsonl")}
    assert 0 < len(lines["kept.jsonl"]) <= 12
    assert len(lines["problems.jsonl"]) == len((tmp_path / "solutions.jsonl").read_text().splitlines()) == 12
