"""Test that the tables in docs/recipes.md and the shipped configurations have the same keys and values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcts.config import CampaignConfig
from mmprm.config import Config, differing_keys, load
from mmprm.prm.train import TrainConfig
from policy_rl.config import RLConfig
from policy_rl.sft.train import SftConfig
from policy_rl.stages import read_stages

ROOT = Path(__file__).parent.parent
MODELS: dict[str, type[Config]] = {
    "annotate": CampaignConfig,
    "rl": RLConfig,
    "sft": SftConfig,
    "train": TrainConfig,
}
PLACEMENT = {
    *("output", "run", "labels", "problems", "held_out", "data", "rollouts", "weights", "hardware"),
    *("prompt.system", "prompt.user"),
    *("save_every", "eval_every", "gradient_checkpointing", "trainer.gradient_checkpointing", "trainer.ranks"),
    *("engine.gpu_memory_utilization", "engine.tensor_parallel_size"),
    *(
        f"{group}.{key}"
        for group in ("training", "trainer.optimization")
        for key in ("micro_batch_tokens", "zero_stage")
    ),
    *("training.save_every", "training.eval_every", "training.precision"),
}
"""Keys, or groups of them, that say where a run reads, writes and computes, or hold our own wording."""
OURS = {
    *("rl/prm-rl.yaml", "rl/qwen3-vl-8b.yaml", "rl/tiny.yaml", "rl/sokoban-tiny.yaml", "rl/lmm-r1-sokoban-turns.yaml"),
    *("rl/omni-tiny.yaml", "sft/tiny.yaml", "stages/sokoban-tiny.yaml"),
}
"""Configurations of no published system."""

SECTION = re.compile(r"^### ([^\n]+)\n`configs/([\w/.-]+)(?:, stage (\d))?`(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
LEGEND = re.compile(r"^- `(\w+)`: [\w.-]+/[\w.-]+(?:@[0-9a-f]{7}| v[\d.]+).* `[\w./-]+`", re.MULTILINE)
ROW = re.compile(r"^\| `([\w.]+)` \| (.*) \| (.*) \| (.*) \| (.*) \| (.*) ?\|$", re.MULTILINE)
PAPER = re.compile(r"^As in the paper: `--set ([^`]+)`\.$", re.MULTILINE)
NOWHERE = "–"


@dataclass(frozen=True)
class Row:
    key: str
    paper: str
    released: str
    places: tuple[str, ...]
    ours: Any
    reason: str


@dataclass(frozen=True)
class Recipe:
    title: str
    file: str
    stage: int | None
    sources: frozenset[str]
    rows: tuple[Row, ...] = field(repr=False)
    paper: dict[str, str] = field(default_factory=dict, repr=False)
    """Options that restore the paper's values, by key."""

    @property
    def config(self) -> Config:
        return self.with_sets({})

    def with_sets(self, values: dict[str, str]) -> Config:
        path = ROOT / "configs" / self.file
        if self.stage is not None:
            sets = [f"{self.stage}.{key}={value}" for key, value in values.items()]
            return read_stages(path, sets)[self.stage - 1].config
        return load(MODELS[path.parent.name], path, [f"{key}={value}" for key, value in values.items()])

    @property
    def given(self) -> dict[str, Any]:
        values = yaml.safe_load((ROOT / "configs" / self.file).read_text(encoding="utf-8"))
        if self.stage is not None:
            (values,) = values["stages"][self.stage - 1].values()
        return values


def read_row(cells: tuple[str, ...]) -> Row:
    key, paper, released, where, ours, reason = cells
    return Row(
        key, paper, released, tuple(re.findall(r"`(\w+):\d+`", where)), yaml.safe_load(ours.strip("`")), reason.strip()
    )


def recipes() -> Iterator[Recipe]:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for title, file, stage, body in SECTION.findall(text):
        rows = tuple(map(read_row, ROW.findall(body)))
        assert len(rows) == body.count("\n| `"), f"{title}: a row that cannot be read"
        sets = [item for found in PAPER.findall(body) for item in found.split(" --set ")]
        paper = dict(item.removeprefix(f"{stage}.").split("=") for item in sets)
        yield Recipe(title, file, int(stage) if stage else None, frozenset(LEGEND.findall(body)), rows, paper)


RECIPES = list(recipes())
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.title)


def value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config


def agrees(shown: Any, real: Any) -> bool:
    """Return whether a table value equals a configuration value; groups are compared by their listed keys."""
    if isinstance(shown, dict):
        return all(agrees(item, real[key]) for key, item in shown.items())
    if isinstance(shown, list):
        return len(shown) == len(real) and all(map(agrees, shown, real))
    return shown == real


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, item in values.items():
        if isinstance(item, dict):
            yield from leaves(item, f"{prefix}{name}.")
        else:
            yield prefix + name


@each_recipe
def test_the_resolved_keys_equal_the_table(recipe: Recipe) -> None:
    resolved = recipe.config.model_dump(mode="json")
    differing = {
        row.key: (row.ours, value(resolved, row.key))
        for row in recipe.rows
        if not agrees(row.ours, value(resolved, row.key))
    }
    assert differing == {}, "(table, configuration)"


@each_recipe
def test_the_table_has_every_key_that_the_file_sets(recipe: Recipe) -> None:
    shown = {row.key for row in recipe.rows}
    placed = [key for key in leaves(recipe.given) if not any(f"{key}.".startswith(f"{p}.") for p in PLACEMENT)]
    assert sorted(set(placed) - shown) == []


@each_recipe
def test_released_values_have_a_source_and_deviations_a_reason(recipe: Recipe) -> None:
    for row in recipe.rows:
        assert set(row.places) <= recipe.sources, f"{row.key}: {row.places} has no source"
        if row.released == NOWHERE:
            assert row.reason, f"{row.key}: is not released; say where it is from"
            continue
        assert row.places, f"{row.key}: give the place of {row.released}"
        same = agrees(yaml.safe_load(row.released.strip("`")), row.ours)
        assert same or row.reason, f"{row.key}: {row.released} became {row.ours}; say why"


@pytest.mark.parametrize("recipe", [each for each in RECIPES if each.paper], ids=lambda recipe: recipe.title)
def test_the_table_shows_where_paper_and_code_differ(recipe: Recipe) -> None:
    rows = {row.key: row for row in recipe.rows}
    before = recipe.config.model_dump(mode="json")
    after = recipe.with_sets(recipe.paper).model_dump(mode="json")
    for key, text in recipe.paper.items():
        assert rows[key].paper not in (NOWHERE, rows[key].released.strip("`")), key
        assert value(before, key) != value(after, key) == yaml.safe_load(text)


def test_some_papers_differ_from_their_code() -> None:
    assert {"CPGD-7B", "MM-Eureka-32B, stage 2", "MM-PRM, PRM"} <= {each.title for each in RECIPES if each.paper}


def test_every_recipe_has_its_table() -> None:
    shipped = {
        (f"{kind}/{path.name}", stage)
        for kind in ("rl", "sft", "stages")
        for path in (ROOT / "configs" / kind).glob("*.yaml")
        for stage in (range(1, len(read_stages(path)) + 1) if kind == "stages" else (None,))
    }
    shown = [(recipe.file, recipe.stage) for recipe in RECIPES]
    assert len(shown) == len(set(shown))
    assert {*shown} >= {(file, stage) for file, stage in shipped if file not in OURS}
    assert {*shown} - shipped == {("annotate/mm-prm-8b.yaml", None), ("train/mm-prm-8b.yaml", None)}


def test_every_published_system_is_compared_with_its_release() -> None:
    """The table has four columns, none of them empty; DAPO-32B has its own table only."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = text.partition("## Compared with the releases")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in table.splitlines() if "|" in line][2:]
    assert all(len(row) == 4 and all(row) for row in rows)
    systems = {row[0].partition(",")[0] for row in rows}
    assert systems == {
        *("MM-Eureka", "CPGD", "MM-PRM", "LMM-R1", "Vision-R1", "R1-Omni", "VisualThinker-R1-Zero"),
    }
    assert {"LMM-R1, Sokoban", "LMM-R1, football"} <= {row[0] for row in rows}
    named = set(re.findall(r"--config configs/([\w/.-]+)", " ".join(row[1] for row in rows)))
    assert named == {recipe.file for recipe in RECIPES} - {"rl/dapo-32b.yaml"}


FINDINGS = re.findall(
    r"^\| [^|]+ \| `mmprm (rl|stages) --config configs/([\w/.-]+)([^`]*)`",
    (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").partition("## Findings of")[2].partition("\n## ")[0],
    re.MULTILINE,
)


def dumped(command: str, file: Path, sets: list[str]) -> dict[str, Any]:
    """Return the configuration as nested keys; those of a stages file begin with the number of the stage."""
    if command == "rl":
        return load(RLConfig, file, sets).model_dump(mode="json")
    stages = enumerate(read_stages(file, sets), start=1)
    return {str(number): stage.config.model_dump(mode="json") for number, stage in stages}


@pytest.mark.parametrize(("command", "file", "options"), FINDINGS, ids=lambda text: text.strip() or "as shipped")
def test_the_configuration_of_a_finding_differs_in_its_keys_only(command: str, file: str, options: str) -> None:
    words = shlex.split(options)
    assert set(words[::2]) <= {"--set"}
    sets = words[1::2]
    keys = {item.partition("=")[0] for item in sets}
    before, after = (dumped(command, ROOT / "configs" / file, each) for each in ([], sets))
    changed = differing_keys(before, after)
    assert all(any(key == each or key.startswith(f"{each}.") for each in keys) for key in changed), changed
    assert all(any(key == each or key.startswith(f"{each}.") for key in changed) for each in keys), "a key does nothing"


def test_the_findings_have_the_ablations_of_length_kl_filter_and_size() -> None:
    options = " ".join(each for _, _, each in FINDINGS)
    keys = ("rewards.length", "trainer.loss.kl.coefficient", "filter", "engine.model")
    assert [key for key in keys if f"--set {key}=" not in options.replace("'", "")] == []
