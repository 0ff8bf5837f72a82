"""Test Sokoban levels as problem files: splits, columns, solutions, and reading them back."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprm.cli.main import main
from mmprm.environments.load import EnvironmentConfig, make_environment
from mmprm.environments.replay import replay
from mmprm.errors import DataError
from mmprm.problems import ProblemsConfig, image_size, load_problems
from mmprm.tiny.sokoban import moves_to_solve, parse_level
from mmprm.tiny.sokoban_problems import make_sokoban_problems


def test_levels_match_their_columns() -> None:
    problems = make_sokoban_problems(5, 0, "annotate", 6, 2)
    assert len({problem.id for problem in problems}) == 5
    for problem in problems:
        state = parse_level(problem.extra["level"])
        assert (state.layout.height, state.layout.width, len(state.boxes)) == (6, 6, 2)
        assert moves_to_solve(state) == problem.extra["moves"]
        assert 6 <= problem.extra["moves"] <= 20
        assert problem.extra["environment"] == "sokoban"
        assert problem.solution is None
    assert make_sokoban_problems(5, 0, "annotate", 6, 2) == problems
    assert make_sokoban_problems(5, 1, "annotate", 6, 2) != problems


def test_splits_share_no_layout() -> None:
    """Small levels may repeat a layout within a split, but never across splits."""
    layouts = []
    for split in ("train", "annotate", "dev", "test"):
        levels = [parse_level(each.extra["level"]) for each in make_sokoban_problems(15, 0, split, 5, 1)]
        layouts.append({level.layout for level in levels})
    assert len(set.union(*layouts)) == sum(map(len, layouts))


def test_too_few_levels_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmprm.tiny.sokoban_problems._ATTEMPTS_PER_LEVEL", 1)
    with pytest.raises(DataError, match=r"--size=5 with --boxes=1 gave only \d+ distinct levels of the dev split"):
        make_sokoban_problems(60, 0, "dev", 5, 1)


def test_levels_with_too_many_states_are_refused() -> None:
    """Eight by eight cells hold (64 over 3) · 64 states with three boxes."""
    with pytest.raises(DataError, match="--size=10 with --boxes=3 has up to 2,666,496 states"):
        make_sokoban_problems(1, 0, "train", 10, 3)
    assert len(make_sokoban_problems(1, 0, "train", 7, 3)) == 1


def test_the_command_writes_levels_that_the_environment_plays(tmp_path: Path) -> None:
    path = tmp_path / "levels.jsonl"
    arguments = ["--output", str(path), "--count", "3", "--size", "5", "--boxes", "1", "--solutions"]
    assert main(["tiny", "sokoban", *arguments]) == 0
    problems = load_problems(ProblemsConfig(path=str(path)), episodes=True)
    assert len(problems) == 3
    environment = make_environment(EnvironmentConfig(path="sokoban"))
    for problem in problems:
        assert image_size(problem.images[0]) == (5 * 28, 5 * 28)
        turns = [f"{text}</action>" for text in problem.solution.split("</action>")[:-1]]
        assert len(turns) == problem.extra["moves"]
        episode = replay(environment, problem, 0, turns)
        assert episode.transitions[-1].success


@pytest.mark.parametrize(("option", "value"), [("--size", "4"), ("--boxes", "0"), ("--count", "0")])
def test_impossible_levels_are_refused(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tiny", "sokoban", "--output", str(tmp_path / "l.jsonl"), option, value]) == 2
    assert f"{option}={value} must be at least" in capsys.readouterr().err
