"""Test the comparison of several policies' benchmark results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmprm.cli.main import main
from mmprm.errors import DataError
from mmprm.evaluation.compare import CompareConfig, compare_policies


def write(
    folder: Path, benchmark: str, correct: dict[str, float], families: dict[str, str] | None = None, **changes: Any
) -> Path:
    """Write the results of a policy on a benchmark, with its fraction of correct responses by question."""
    folder.mkdir(exist_ok=True)
    by_question = {
        name: {"family": (families or {}).get(name, name), "content": name, "correct": {"symbolic": value}}
        for name, value in correct.items()
    }
    result = {
        **{"benchmark": benchmark, "model": f"model of {folder.name}", "questions": len(correct), "samples": 2},
        **{"left_out": 0, "failed": {}, "cut": 0, "tokens": 5.0, "scores": {"symbolic": {}}, "official": {}},
        **{"by_question": by_question},
    }
    (folder / f"policy-{benchmark}.json").write_text(json.dumps(result | changes))
    return folder


def ask(folder: Path, benchmark: str, **settings: Any) -> None:
    """Write the header of a file of responses."""
    head = {"asked_with": {"engine": {"model": folder.name}, "weights": folder.name, "seed": 0, **settings}}
    (folder / f"responses-{benchmark}.jsonl").write_text(json.dumps(head) + "\n")


def test_changes_are_paired_by_question(tmp_path: Path) -> None:
    """Both policies differ by 0.5 on every question, so the interval of the change has no width."""
    base = write(tmp_path / "base", "mmstar", {"a": 1.0, "b": 0.5, "c": 1.0, "d": 0.5})
    other = write(tmp_path / "sft", "mmstar", {"d": 0.0, "c": 0.5, "b": 0.0, "a": 0.5})
    compared = compare_policies([base, other], CompareConfig()).benchmarks["mmstar"]
    assert compared.questions == 4
    assert [each.value for each in compared.accuracy] == [0.75, 0.25]
    assert compared.accuracy[0].low < 0.75
    none, change = compared.change
    assert none is None
    assert (change.value, change.low, change.high) == (-0.5, -0.5, -0.5)


def test_members_of_a_family_are_resampled_together(tmp_path: Path) -> None:
    questions = {str(n): float(n % 2) for n in range(40)}
    base = write(tmp_path / "base", "mme", dict.fromkeys(questions, 0.0), dict.fromkeys(questions, "one"))
    other = write(tmp_path / "rl", "mme", questions, dict.fromkeys(questions, "one"))
    (_, change) = compare_policies([base, other], CompareConfig()).benchmarks["mme"].change
    assert (change.value, change.low, change.high) == (0.5, 0.5, 0.5), "a single family has no variance"


def test_only_benchmarks_with_results_of_all_policies_are_compared(tmp_path: Path) -> None:
    base = write(tmp_path / "base", "mmstar", {"a": 1.0})
    other = write(tmp_path / "sft", "mmstar", {"a": 1.0})
    write(base, "aime", {"a": 1.0})
    found = compare_policies([base, other], CompareConfig())
    assert list(found.benchmarks) == ["mmstar"]
    assert found.left_out == {"aime": [str(other)]}
    assert found.models == ["model of base", "model of sft"]


def test_policies_that_were_asked_differently_get_a_note(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, "mmstar", {"a": 1.0}) for name in ("base", "sft", "rl")]
    for folder, temperature in zip(folders, (0, 0, 1), strict=True):
        ask(folder, "mmstar", sampling={"temperature": temperature})
    (note,) = compare_policies(folders, CompareConfig()).notes
    assert note == f"mmstar: {folders[2]} was evaluated with another sampling.temperature than {folders[0]}"


def test_a_folder_with_results_of_several_models_gets_a_note(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, "mmstar", {"a": 1.0}) for name in ("base", "sft")]
    for folder in folders:
        write(folder, "aime", {"a": 1.0}, model="old" if folder.name == "sft" else "model of base")
    (note,) = compare_policies(folders, CompareConfig()).notes
    listed = "old (aime), model of sft (mmstar)"
    assert note == f"{folders[1]} has results of several models: {listed}; use an output folder per policy"


def test_questions_that_could_not_be_sampled_get_a_note(tmp_path: Path) -> None:
    base = write(tmp_path / "base", "mmstar", {"a": 1.0, "b": 1.0})
    other = write(tmp_path / "rl", "mmstar", {"a": 1.0, "b": 0.0}, failed={"b": "the prompt is too long"})
    (note,) = compare_policies([base, other], CompareConfig()).notes
    assert note == f"mmstar: 1 of 2 questions could not be sampled in {other} and count as incorrect"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"by_question": {}}, "has no results by question; repeat mmprm eval policy"),
        ({"by_question": {"z": {"family": "z", "content": "a", "correct": {"symbolic": 1}}}}, "has other questions"),
        ({"by_question": {"a": {"family": "a", "content": "z", "correct": {"symbolic": 1}}}}, "has other questions"),
        ({"scores": {}}, "has no stage=symbolic"),
        ({"tokens": "many"}, "was not written by mmprm eval policy"),
    ],
)
def test_results_that_cannot_be_compared(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    base = write(tmp_path / "base", "mmstar", {"a": 1.0})
    other = write(tmp_path / "sft", "mmstar", {"a": 1.0}, **second)
    with pytest.raises(DataError, match=message):
        compare_policies([base, other], CompareConfig())


def test_at_least_two_policies_and_one_benchmark_are_needed(tmp_path: Path) -> None:
    base = write(tmp_path / "base", "mmstar", {"a": 1.0})
    other = write(tmp_path / "sft", "aime", {"a": 1.0})
    with pytest.raises(DataError, match="no benchmark has results in all folders"):
        compare_policies([base, other], CompareConfig())
    with pytest.raises(DataError, match="is the only folder"):
        compare_policies([base], CompareConfig())


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write(tmp_path / "base", "mmstar", {"a": 1.0, "b": 1.0})
    other = write(tmp_path / "rl", "mmstar", {"a": 1.0, "b": 1.0})
    for folder, value in ((base, 0.5), (other, 0.25)):
        write(folder, "aime", {"a": value})
    assert main(["eval", "compare", str(base), str(other), f"--set=output={tmp_path}"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "benchmark policy correct / all change",
        f"aime {base} 0.500 [0.500, 0.500] –",
        f"{other} 0.250 [0.250, 0.250] -0.250 [-0.250, -0.250]",
        f"mmstar {base} 1.000 [1.000, 1.000] –",
        f"{other} 1.000 [1.000, 1.000] +0.000 [+0.000, +0.000]",
        f"mean {base} 0.750 +0.000",
        f"mean {other} 0.625 -0.125",
        f"stage symbolic; changes are from {base}, on the same questions",
        f"see {tmp_path / 'compare.json'}",
    ]
    assert json.loads((tmp_path / "compare.json").read_text())["benchmarks"]["aime"]["questions"] == 1
