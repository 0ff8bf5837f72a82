from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "grading.py"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("grading_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(SCRIPT.parent))
    return module


def test_rewritings(benchmark) -> None:
    assert benchmark.without_unit("$15{}^\\circ $") == "$15$"
    assert benchmark.without_unit("15\\mbox{ cm}^2") == "15"
    assert benchmark.fraction_as_decimal("$\\dfrac{1}{4}$") == "0.25"
    assert benchmark.fraction_as_decimal("-\\frac65") == "-1.2"
    assert benchmark.fraction_as_decimal("\\frac{x}{4}") == "\\frac{x}{4}"
    assert benchmark.without_dollars("$\\$5$") == "\\$5"


def test_golds_that_look_or_are_equal_are_not_different(benchmark) -> None:
    assert benchmark.skeleton("6 6") == benchmark.skeleton("6\n6")
    assert benchmark.skeleton("$$3$$") == benchmark.skeleton("3.")
    assert benchmark.skeleton("-1") != benchmark.skeleton("1")
    assert not benchmark.really_different("0.5", "\\frac{1}{2}")
    assert benchmark.really_different("0.5", "\\frac{1}{3}")
    assert benchmark.really_different("10^{-20}", "10^{-21}")
    assert not benchmark.really_different("\\sqrt{8}", "2\\sqrt{2}")


def test_writes_rates_counts_and_denominators(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golds = {"k12/problems.json": ["\\frac{1}{2}", "acute"], "math/problems.jsonl": ["7", "0.5"]}
    for name, answers in golds.items():
        rows = [{"question": f"{answer}?", "answer": answer} for answer in answers]
        text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    out = tmp_path / "grading.json"
    cases = tmp_path / "cases"
    cases.mkdir()
    rows = [("7", "7", "correct"), ("7", "8", "incorrect"), ("the wind", "a storm", "correct")]
    lines = [json.dumps({"gold": g, "response": f"<answer>{a}</answer>", "expected": known}) for g, a, known in rows]
    (cases / "some.jsonl").write_text("\n".join(lines) + "\n")
    words = ["--data", str(tmp_path), "--output", str(out), "--cases", str(cases), "--pairs", "3"]
    monkeypatch.setattr(sys, "argv", ["grading.py", *words])
    benchmark.main()
    results = json.loads(out.read_text())
    assert (results["repeat"], results["rewritten"], results["shuffled"], results["perturbed"]) == (1.0, 1.0, 0, 0)
    # 1/2 and 0.5 are equal gold answers of two problems, so two of the twelve pairs do not count.
    assert results["n"]["shuffled"] == 10
    assert results["n"]["perturbed"] == 2 + 1 + 2
    assert results["unknown"]["repeat"] == 0
    assert (results["cases"], results["false_correct"], results["n"]["cases"]) == (0.6667, 0, 3)
    assert set(results["speed"]) == {"easy", "symbolic"}
    assert results["machine"]
