"""Test how wordings are repaired, and how phrases that reveal the description or leak the answer are detected."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprm.bridge.wording import build_wording, leaks, read_wording
from mmprm.errors import ConfigError


@pytest.mark.parametrize(
    ("thoughts", "repaired", "count"),
    [
        ("The description says that AB is 5.", "The image shows that AB is 5.", 2),
        ("Based on the image description, AB is 5.", "Based on the image, AB is 5.", 1),
        ("According to this detailed description of the image, it is red.", "According to the image, it is red.", 1),
        ("We are told AB = 5, as described.", "We see AB = 5, as shown.", 2),
        ("The cube is described as red.", "The cube is shown as red.", 1),
        ("The image shows a cube.", "The image shows a cube.", 0),
    ],
)
def test_repairs(thoughts: str, repaired: str, count: int) -> None:
    assert build_wording().repaired(thoughts) == (repaired, count)


@pytest.mark.parametrize(
    ("thoughts", "betrayal"),
    [
        ("Another description would help.", "description"),
        ("I cannot see the figure, so I guess.", "cannot see the"),
        ("I can’t actually view the image.", "can't actually view the"),
        ("Since I cannot look at it, I guess.", "cannot look at it"),
        ("We’re told that AB is 5.", "We're told"),
        ("The user says it is red.", "The user says"),
        ("This fits the given answer.", "given answer"),
        ("The sign in the image says stop.", None),
        ("I see that the answer is 5.", None),
        ("Since the image isn't shown, I assume it.", "image isn't shown"),
        ("No diagram is given.", "No diagram"),
        ("I don't have access to the figure.", "don't have access to the figure"),
        ("The figure is not drawn to scale.", None),
        ("From what I was told, AB is 5.", "I was told"),
        ("I wasn’t given the figure.", "wasn't given the figure"),
        ("As a language model, I can't view images.", "can't view images"),
        ("The angle was not given, and I cannot see why.", None),
        ("根据描述，AB=3。", "描述"),
    ],
)
def test_phrases_that_reveal_the_description(thoughts: str, betrayal: str | None) -> None:
    wording = build_wording()
    assert wording.betrayal(wording.repaired(thoughts)[0]) == betrayal


@pytest.mark.parametrize(
    ("description", "leaked"),
    [
        ("A triangle with angles 40° and 60°.", False),
        ("Three apples lie on a table; 40° is written beside them.", False),
        ("The correct answer would follow from the angles.", True),
        ("A triangle. The answer is 80°.", True),
        ("A triangle with \\boxed{80}.", True),
        ("A triangle with angles 60° and 40°. Therefore the third is 80°.", True),
        ("A triangle; so the sides differ.", False),
        ("Option B is correct.", True),
    ],
)
def test_leaks(description: str, leaked: bool) -> None:
    assert leaks(description, "80°") == leaked


@pytest.mark.parametrize(
    ("description", "answer", "leaked"),
    [
        ("Two angles are marked, so the third is 80 degrees.", "$80^\\circ$", True),
        ("Thus it has 8 cm.", "\\boxed{8 \\text{ cm}}", True),
        ("Thus it has 8.5 cm.", "8 cm", False),
        ("It is 80 degrees.", "80°", False),
        ("Therefore the third is 80°.", "B", True),
        ("Therefore the third is not 70°.", "B", False),
    ],
)
def test_conclusions_leak_the_answer_in_any_spelling(description: str, answer: str, leaked: bool) -> None:
    assert leaks(description, answer, ("70°", "80°")) == leaked


def test_wordings_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "wording.yaml"
    file.write_text('repairs: {"\\\\bfoo (\\\\w+)": "bar \\\\1"}\nbetrayals: [qux]\n')
    wording = read_wording(str(file))
    assert wording.repaired("Foo says the description") == ("Bar says the description", 1)
    assert (wording.betrayal("a Qux"), wording.betrayal("the description")) == ("Qux", None)
    assert read_wording(None) == build_wording()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("repairs: {'(': a}", "is not a valid regular expression"),
        ("repairs: {'a': '\\2'}", "is not a valid regular expression"),
        ("betrayals: ['[']", "is not a valid regular expression"),
        ("betrayals: word", "repairs must be a mapping and betrayals a list"),
        ("repair: {}", "must hold only the keys repairs and betrayals"),
        ("a: [", "cannot be read"),
    ],
)
def test_invalid_wordings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "wording.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_wording(str(file))
