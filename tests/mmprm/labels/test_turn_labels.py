"""Test labels of turns: observations restored by replay, verbatim steps, and commands that reject such files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from mmprm.environments.interface import Observation
from mmprm.environments.load import EnvironmentConfig, make_environment
from mmprm.environments.replay import replay
from mmprm.errors import DataError, EpisodeError
from mmprm.labels.build import LabelsConfig, build_labels
from mmprm.labels.parquet import LabeledExample, read_parquet, write_parquet
from mmprm.tiny.sokoban_environment import SokobanEnvironment
from mmprm.trees.serialization import pack_batch
from mmprm.trees.stopping import StoppingRule
from mmprm.trees.store import Finished, Store
from mmprm.types import Batch, Counts, Problem, Rollout, Verdict

LEVEL = "######\n#    #\n# $. #\n#@   #\n######"
PROBLEM = Problem("p", "Solve the level.", "", extra={"level": LEVEL})
UP, RIGHT, LEFT = (f"<action>{name}</action>" for name in ("up", "right", "left"))
WON, LOST = (UP, RIGHT), (f"Hm. {UP}\n", LEFT, LEFT)


def rollout(steps: tuple[str, ...], verdict: Verdict) -> Rollout:
    return Rollout(steps, verdict, len(steps), "".join(steps))


def run(folder: Path, won: tuple[str, ...] = WON, lost: tuple[str, ...] = LOST, path: str = "sokoban") -> Path:
    """Write a run with three root episodes, and two more that start after the first turn of the lost ones."""
    environment = EnvironmentConfig(path=path, max_turns=3).resume_key()
    config = {"search": StoppingRule(rollouts=3).model_dump(), "seed": 7, "environment": environment}
    store = Store.create_or_open(folder / "trees.sqlite", config)
    store.add_problems([PROBLEM], with_extra=True)
    root = (rollout(won, Verdict.CORRECT), *[rollout(lost, Verdict.INCORRECT)] * 2)
    after = (rollout((RIGHT,), Verdict.CORRECT), rollout((LEFT, LEFT), Verdict.INCORRECT))
    batches = [Batch("p", (), 0, root), Batch("p", lost[:1], 0, after)]
    store.append(list(map(pack_batch, batches)), [Finished("p", "done", "no candidates left", 1)])
    store.close()
    return folder


def labels(folder: Path, **steps: Any) -> list[LabeledExample]:
    output = folder / "labels.parquet"
    build_labels(LabelsConfig(store=str(run(folder, **steps)), output=str(output)))
    return read_parquet(output, turns=True)


def test_each_turn_has_the_observations_of_the_policy(tmp_path: Path) -> None:
    examples = {example.path.steps: example for example in labels(tmp_path)}
    assert set(examples) == {WON, LOST}, "verbatim"
    environment = make_environment(EnvironmentConfig(path="sokoban"))
    for steps, example in examples.items():
        episode = replay(environment, PROBLEM, 7, steps)
        seen = [episode.start, *(transition.observation for transition in episode.transitions)]
        assert example.observations == tuple(seen)
        assert example.path.complete
    assert examples[LOST].path.counts == (Counts(1, 1), None, Counts(0, 1))
    assert examples[WON].path.counts == (None, Counts(1, 0))


def test_a_changed_environment_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="problem p: an episode of 2 turns ends differently than in the run"):
        labels(tmp_path, won=(UP, LEFT))


class Breaking(SokobanEnvironment):
    """Breaks in every episode but the third, sixth, …"""

    resets, opened = 0, 0

    def __init__(self) -> None:
        super().__init__()
        Breaking.opened += 1

    def close(self) -> None:
        super().close()
        Breaking.opened -= 1
        raise OSError("no display")

    def reset(self, problem: Problem, seed: int) -> Observation:
        Breaking.resets += 1
        if Breaking.resets % 3:
            raise OSError("no display")
        return super().reset(problem, seed)


def test_an_environment_that_breaks_is_replaced(tmp_path: Path) -> None:
    labels(tmp_path, path=f"{__name__}:Breaking")
    assert Breaking.resets == 6, "three attempts for each of the two paths"
    assert Breaking.opened == 0, "those that broke are closed, too"


def test_row_groups_hold_a_limited_number_of_image_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of two turns comes first and has two images, which reach the limit."""
    whole = labels(tmp_path)
    sizes = [sum(len(seen.images[0].data) for seen in example.observations) for example in whole]
    for limit, groups in ((sum(sizes) + 1, 1), (sizes[0], 2), (sizes[0] + 1, 1)):
        monkeypatch.setattr("mmprm.labels.parquet._ROW_GROUP_BYTES", limit)
        write_parquet(tmp_path / "again.parquet", whole)
        assert parquet.ParquetFile(tmp_path / "again.parquet").num_row_groups == groups
        assert read_parquet(tmp_path / "again.parquet", turns=True) == whole


def test_commands_for_solutions_refuse_turns(tmp_path: Path) -> None:
    labels(tmp_path)
    with pytest.raises(DataError, match="row 1: its steps are turns of an environment"):
        read_parquet(tmp_path / "labels.parquet")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[{"text": "a", "image": None}]], "has 1 observations for"),
        ([[{"text": "a", "image": b"x"}]] * 3, "must have a text or an image"),
        ([[{"text": None, "image": None}]] * 3, "must have a text or an image"),
    ],
)
def test_observations_of_other_programs_are_checked(tmp_path: Path, cells: list, message: str) -> None:
    labels(tmp_path)
    table = parquet.read_table(tmp_path / "labels.parquet")
    rows = [row for row in table.to_pylist() if len(row["steps"]) == 3]
    changed = pyarrow.Table.from_pylist([row | {"observations": cells} for row in rows], schema=table.schema)
    parquet.write_table(changed, tmp_path / "changed.parquet")
    with pytest.raises(DataError, match=message):
        read_parquet(tmp_path / "changed.parquet", turns=True)


def test_labels_from_fewer_shared_rollouts_than_in_the_search(tmp_path: Path) -> None:
    """Two of the root's episodes pass through the first two turns of the lost one; the search requires five. The first
    turn keeps its own rollouts."""
    stored, own = str(run(tmp_path)), (Counts(1, 1), None)
    for minimum, expected in ((None, own), (2, (Counts(1, 1), Counts(0, 2))), (3, own)):
        output = str(tmp_path / "labels.parquet")
        build_labels(LabelsConfig(store=stored, output=output, min_shared_rollouts=minimum))
        (counts,) = [each.path.counts for each in read_parquet(output, turns=True) if each.path.steps == LOST]
        assert counts[:2] == expected


def test_a_single_rollout_labels_the_prefixes_it_passes_through(tmp_path: Path) -> None:
    output = str(tmp_path / "labels.parquet")
    build_labels(LabelsConfig(store=str(run(tmp_path)), output=output, min_shared_rollouts=1))
    (counts,) = [each.path.counts for each in read_parquet(output, turns=True) if each.path.steps == WON]
    assert counts == (Counts(1, 0), Counts(1, 0)), "the first turn of the only solution, and its end"
