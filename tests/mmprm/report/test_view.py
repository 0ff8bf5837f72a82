"""Test the tree views: branches, terminal output, and the page in a headless browser."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import texts_of_scenes
from PIL import Image
from rich.console import Console

from mmprm.cli.main import main
from mmprm.cli.tree import find_id
from mmprm.errors import DataError
from mmprm.report.terminal import tree_lines
from mmprm.report.trees import grow
from mmprm.report.view import evenly_spaced
from mmprm.trees.serialization import pack_batch
from mmprm.trees.stopping import StoppingRule
from mmprm.trees.store import Finished, Store
from mmprm.trees.tallies import ProblemTally
from mmprm.types import Batch, Counts, ImageRef, Node, Problem, Rollout, Steps, Tree, Verdict

R, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
EVIL = "</script><script>document.title='owned'</script><!--"


def steps(*texts: str) -> Steps:
    return tuple(f"<step>{text}</step>" for text in texts)


def rollout(verdict: Verdict, *texts: str) -> Rollout:
    return Rollout(steps(*texts), verdict, 7, "".join(steps(*texts)), None, "exact")


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (28, 28), "blue").save(stream, "PNG")
    return stream.getvalue()


CUT = Rollout((), U, 5, "<step>half a step \ud800\x1b[2J", "unclosed step", "time-out")
PROBLEMS = [
    Problem("alpha-1", "How many cubes?", "3", (ImageRef(data=png()),), ("two", "three")),
    Problem("alpha-2", f"Who wins? {EVIL}", "b", (ImageRef(path="gone.png"),)),
    Problem("beta-1", "Is it easy?", "yes"),
    Problem("beta-2", "Nobody knows", "0"),
]
ROOT_END = (rollout(R, "look", "count", "3"), rollout(W, "guess", "add", EVIL, "4"))
LOG = [
    Batch("alpha-1", (), 0, (*[rollout(R, "look", "count", "3")] * 2, CUT, *ROOT_END)),
    Batch("alpha-1", steps("guess", "add"), 0, (rollout(W, "4"), rollout(W, "5"))),
    Batch("alpha-1", steps("guess"), 0, (rollout(R, "3"), rollout(W, "again", "4"))),
    Batch("beta-1", (), 0, (rollout(R, "yes"),)),
]
ENDS = [
    Finished("alpha-1", "done", "no candidates left"),
    Finished("alpha-2", "failed", "gone.png: cannot be read as an image"),
    Finished("beta-1", "done", "too easy"),
]
RULE = StoppingRule(rollouts=5, false_negative_rate=0, min_shared_rollouts=3)


def make_run(folder: Path) -> Path:
    store = Store.create_or_open(folder / "run" / "trees.sqlite", {"search": RULE.model_dump(), "step_format": "tags"})
    store.add_problems(PROBLEMS)
    store.append(map(pack_batch, LOG), ENDS)
    store.close()
    return folder / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


@pytest.fixture
def store(run: Path) -> Iterator[Store]:
    reader = Store.read(run)
    yield reader
    reader.close()


def test_each_prefix_is_below_its_longest_proper_prefix(store: Store) -> None:
    root = grow(store.tree("alpha-1"), RULE)
    found = [(branch.number, branch.steps[branch.above :], branch.counts) for branch in root.walk()]
    assert found[0][:2] == (0, ())
    assert found[1:] == [
        (2, steps("guess"), Counts(1, 1)),
        (1, steps("add"), Counts(0, 2)),
        # No rollouts start here: three rollouts of the root pass through each.
        (None, steps("look"), Counts(3, 0)),
        (None, steps("count"), Counts(3, 0)),
    ]
    assert (root.counts.correct, root.counts.incorrect, root.counts.unknown) == (3, 1, 1)
    look = root.children[1]
    assert look.through == [(0, 0), (0, 1), (0, 3)]
    assert root.children[0].through == [], "a state is labeled by its own rollouts"


def test_a_step_between_two_states_is_shown_with_the_later_one() -> None:
    log = [LOG[0], Batch("alpha-1", steps("a", "b", "c"), 0, (rollout(W, "d"),))]
    tree = Tree("alpha-1", tuple(Node(b.steps, (Counts(1, 1),), b.rollouts) for b in log))
    (branch,) = grow(tree, StoppingRule(min_shared_rollouts=None)).children
    assert (branch.above, branch.steps) == (0, steps("a", "b", "c"))


def test_a_problem_without_a_gold_answer_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    tree = Tree("p", (Node((), (Counts(0, 1),), (rollout(W, "left"),)),))
    root = grow(tree, StoppingRule(min_shared_rollouts=None))
    Console().print(tree_lines(Problem("p", "Go.", ""), "done, too hard", root, "tags", rollouts=False))
    assert capsys.readouterr().out.splitlines()[:2] == ["Go.", "done, too hard"]


def test_tree_in_the_terminal(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["tree", str(run), "alpha-1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "How many cubes?",
        "gold answer 3 · done, no candidates left",
        "",
        "  0 0.75 3✓ 1✗ 1?  (the question)",
        "├──   2 0.50 1✓ 1✗  guess",
        "│   └──   1 0.00 0✓ 2✗  add",
        "└──   · 1.00 3✓ 0✗  look",
        "    └──   · 1.00 3✓ 0✗  count",
    ]
    assert main(["tree", str(run), "alpha-1", "--all"]) == 0
    shown = capsys.readouterr().out
    assert "│   ├── ✓ 7 tokens  3\n│   ├── ✗ 7 tokens  again ↵ 4\n" in shown
    assert "├── ? 5 tokens (unclosed step)  half a step" in shown
    assert max(map(len, shown.splitlines())) <= 60


def test_colors_are_for_terminals(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    main(["tree", str(run), "alpha-1"])
    assert "\x1b[38;" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    main(["tree", str(run), "alpha-1"])
    assert "\x1b[38;" not in capsys.readouterr().out


def test_a_unique_id_prefix_is_enough(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_id("a", ["a", "ab"]) == "a"
    assert find_id("beta", ["alpha", "beta-1"]) == "beta-1"
    assert main(["tree", str(run), "beta"]) == 2
    assert (
        "'beta' matches the beginning of 2 ids and must match one; give one of beta-1, beta-2"
        in capsys.readouterr().err
    )
    with pytest.raises(DataError, match=r"of 0 ids and must match one; give one of a0, .*, a7, …"):
        find_id("x", [f"a{i}" for i in range(20)])
    assert main(["tree", str(run), "alpha-2"]) == 2
    assert "alpha-2: has no rollouts (status: failed, gone.png" in capsys.readouterr().err


def test_fewer_problems_are_spread_over_the_run() -> None:
    entries = [ProblemTally(str(i), "done", "", 0, 0, 0, 0, 0) for i in range(10)]
    assert [tally.problem_id for tally in evenly_spaced(entries, 4)] == ["0", "2", "5", "7"]
    assert evenly_spaced(entries, 99) == entries


class Scripts(HTMLParser):
    """Collects the content of the page's JSON elements by id, and counts all scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.data: dict[str, str] = {}
        self.scripts = 0
        self._id: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self._id = dict(attrs).get("id") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._id:
            self.data[self._id] = self.data.get(self._id, "") + data


def test_data_of_the_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(run)]) == 0
    assert f"{run / 'view.html'}: 4 of 4 problems" in capsys.readouterr().out
    page = (run / "view.html").read_text(encoding="utf-8")
    parsed = Scripts(page)
    assert parsed.scripts == 1 + 4 + 2, "only the run, its problems and the program: problem texts add no scripts"
    listed = json.loads(parsed.data["run"])
    assert [(entry["id"], entry["outcome"]) for entry in listed["problems"]] == [
        ("alpha-1", "searched"),
        ("alpha-2", "failed"),
        ("beta-1", "too easy"),
        ("beta-2", "open"),
    ]
    first = json.loads(parsed.data["problem-0"])
    texts = first["texts"]
    assert len(texts) == len(set(texts))
    assert [branch["parent"] for branch in first["branches"]] == [None, 0, 1, 0, 3]
    assert [[texts[step] for step in branch["steps"]] for branch in first["branches"]] == [
        [],
        ["guess"],
        ["add"],
        ["look"],
        ["count"],
    ]
    sampled = first["branches"][0]["rollouts"]
    assert [texts[step] for step in sampled[4][0]] == ["guess", "add", EVIL, "4"]
    assert [texts[step] for step in sampled[2][0]] == [CUT.text]
    assert sampled[2][1:] == [2, 5, texts.index("time-out"), "unclosed step"]
    assert first["images"][0]["url"].startswith("data:image/png;base64,")
    assert "gone.png" in json.loads(parsed.data["problem-1"])["images"][0]["error"]
    assert not re.search(r"(src|href)=\"(?!data:)|https?://(?!www.w3.org/2000/svg)|@import", page)


SCENES = {
    "a state": ["problem=alpha-1&state=1"],
    "failed": ["outcome=failed"],
    "text": ["q=EASY+beta"],
    "nothing": ["outcome=failed&q=easy"],
    "down": ["problem=alpha-1", "ArrowDown", "ArrowDown", "ArrowDown"],
    "next": ["problem=alpha-1", "j"],
    "back in the search": ["problem=alpha-1&state=2", "ArrowLeft", "ArrowLeft"],
}
"""What is done to the page, in one run of the browser: the address, then keys."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the texts on the page after each scene, one per line."""
    folder = tmp_path_factory.mktemp("view")
    run = make_run(folder)
    assert main(["view", str(run)]) == 0
    return texts_of_scenes(run / "view.html", SCENES)


def test_the_page_shows_a_problem_and_the_rollouts_of_a_state(seen: dict[str, str]) -> None:
    shown = seen["a state"]
    assert "all 4\nsearched 1\ntoo easy 1\nfailed 1\nopen 1" in shown
    assert "gold answer\n3\nchoices\nA  two\nB  three\noutcome\nno candidates left\nsize\n3 states, 9 rollouts" in shown
    assert (
        "0\nthe question\n0.75\n3 ✓\n1 ✗\n1 ?\n2\nguess\n0.50\n1 ✓\n1 ✗\n1\nadd\n0.00\n0 ✓\n2 ✗\n·\nlook\n1.00" in shown
    )
    panel = shown.split("State 2 · value 0.50\n")[1]
    sampled = "Rollouts sampled from this state: 2\n✓ correct\n7 tokens\n3\n✗ incorrect\n7 tokens\nagain\n4"
    assert panel == f"1 ✓\n1 ✗\n{sampled}"


def test_the_page_filters_by_outcome_and_text(seen: dict[str, str]) -> None:
    assert "beta" not in seen["failed"]
    assert EVIL in seen["failed"], "texts are not interpreted as HTML"
    assert "gone.png: cannot be read as an image" in seen["failed"]
    assert "No rollouts were sampled." in seen["failed"]
    assert "all 1\nsearched 0\ntoo easy 1\nfailed 0\nopen 0\nIs it easy?" in seen["text"]
    assert "No problem matches." in seen["nothing"]


def test_the_page_reacts_to_keys(seen: dict[str, str]) -> None:
    shown = seen["down"]
    assert "Not a state · value 1.00\n3 ✓\n0 ✗" in shown
    assert "pass through it: 3\n✓ correct\nfrom state 0 · 7 tokens\ncount\n3\n" in shown
    assert "Who wins?" in seen["next"].split("gold answer")[0].split("Nobody knows")[1]
    # Two steps back in the search, only the question has been sampled from, and it is selected.
    assert "1 of 3 states" in seen["back in the search"]
    assert "The question · value 0.75" in seen["back in the search"]
