"""Test the custom environment that the documentation shows."""

from __future__ import annotations

import re
from pathlib import Path

from mmprm.environments.replay import check_deterministic, replay
from mmprm.types import Problem

PAGE = Path(__file__).parents[3] / "docs/environments.md"


def test_the_documented_environment_plays() -> None:
    code = re.findall(r"^```python\n(from mmprm.environments.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(code[0], names)
    environment = names["GuessTheNumber"]()
    problem = Problem("p", "Guess.", "", extra={"number": 5})
    episode = replay(environment, problem, 0, ["3", "nine", "8", "5"])
    assert episode.start.text == "Guess."
    assert [each.observation.text for each in episode.transitions[:3]] == ["higher", "higher", "lower"]
    assert episode.transitions[-1].success
    check_deterministic(environment, problem, 0, ["1", "5"])
