"""Test which actor gets which GPU: worked cases, every shipped recipe, and invariants."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from mmprm.config import build, read_yaml
from mmprm.errors import ConfigError
from policy_rl.config import RLConfig
from policy_rl.placement import Placement, assign_gpus, place_run
from policy_rl.stages import read_stages

CONFIGS = Path(__file__).parent.parent.parent / "configs"
EIGHT, ONE_EACH = (8,), tuple(((0, gpu),) for gpu in range(8))
ALL_32, ALL_64 = (tuple(itertools.product(range(machines), range(8))) for machines in (4, 8))
WIDE, WIDE_64 = (tuple(gpus[first : first + 4] for first in range(0, len(gpus), 4)) for gpus in (ALL_32, ALL_64))
COLOCATED_7B = (EIGHT, Placement(ONE_EACH, ALL_32[:8]))
ONE_RANK = (EIGHT, Placement(ONE_EACH[:7], ALL_32[7:8]))
COLOCATED_WIDE = (EIGHT * 4, Placement(WIDE, ALL_32))

RECIPES = {
    "rl/cpgd-7b": [COLOCATED_7B],
    "rl/dapo-32b": [(EIGHT * 8, Placement(WIDE_64, ALL_64))],
    "rl/lmm-r1-direct-rl-geo": [COLOCATED_7B],
    "rl/lmm-r1-fre-multi": [COLOCATED_7B],
    "rl/lmm-r1-mgt-percereason": [COLOCATED_7B],
    "rl/mm-eureka-7b": [COLOCATED_7B],
    "rl/mm-eureka-8b": [COLOCATED_7B],
    "rl/mm-eureka-zero-38b": [COLOCATED_WIDE],
    "rl/prm-rl": [(EIGHT, Placement(ONE_EACH[:3], ALL_32[3:7], ((0, 7),)))],
    "rl/qwen3-vl-8b": [COLOCATED_7B],
    "rl/lmm-r1-sokoban": [COLOCATED_7B],
    "rl/lmm-r1-sokoban-turns": [COLOCATED_7B],
    "rl/omni-tiny": [ONE_RANK],
    "rl/sokoban-tiny": [ONE_RANK],
    "rl/tiny": [ONE_RANK],
    "rl/visualthinker-r1-zero": [(EIGHT, Placement(ONE_EACH[:4], ALL_32[:4]))],
    "stages/lmm-r1": [COLOCATED_7B, COLOCATED_7B],
    "stages/r1-omni": [COLOCATED_7B],
    "stages/sokoban-tiny": [ONE_RANK],
    "stages/mm-eureka-32b": [COLOCATED_WIDE, COLOCATED_WIDE],
    "stages/vision-r1": [COLOCATED_7B],
}


def test_every_recipe_has_its_case() -> None:
    shipped = {f"{path.parent.name}/{path.stem}" for kind in ("rl", "stages") for path in (CONFIGS / kind).iterdir()}
    assert shipped == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    if name.startswith("stages"):
        configs = [stage.config for stage in read_stages(path) if stage.kind == "rl"]
    else:
        configs = [build(RLConfig, read_yaml(path), str(path))]
    assert [place_run(config, gpus) for config, (gpus, _) in zip(configs, RECIPES[name], strict=True)] == [
        expected for _, expected in RECIPES[name]
    ]


def test_engines_get_the_gpus_left_by_ranks_and_prm() -> None:
    placed = assign_gpus([4], ranks=1, prm="own")
    assert placed == Placement((((0, 0),), ((0, 1),)), ((0, 2),), ((0, 3),))
    assert assign_gpus([4], ranks=1, prm="shared") == Placement((((0, 0),), ((0, 1),), ((0, 2),)), ((0, 3),), ((0, 2),))
    assert assign_gpus([4], ranks=1, engines=1) == Placement((((0, 0),),), ((0, 1),))


def test_a_prm_on_several_gpus_has_them_on_one_machine() -> None:
    """On 3 and 3 GPUs, an engine and a rank leave only one GPU on the first machine, so a PRM on two uses the
    second.
    """
    placed = assign_gpus([3, 3], ranks=1, engines=1, prm="own", prm_gpus=2)
    assert placed == Placement((((0, 0),),), ((0, 1),), ((1, 0), (1, 1)))
    shared = assign_gpus([4], ranks=2, tensor_parallel=2, prm="shared", prm_gpus=2)
    assert shared == Placement((((0, 0), (0, 1)),), ((0, 2), (0, 3)), ((0, 0), (0, 1)))
    with pytest.raises(ConfigError, match=r"process.scorer.tensor_parallel_size=2 must be .* fewer rollouts.engines"):
        assign_gpus([2, 1, 1], ranks=1, engines=1, prm="own", prm_gpus=2)
    with pytest.raises(ConfigError, match=r"the PRM takes 2; "):
        assign_gpus([2], ranks=1, prm="own", prm_gpus=2)


def test_ranks_make_way_for_a_prm_that_needs_a_whole_machine() -> None:
    """On 2, 2 and 1 GPUs, a rank on the second machine would leave one GPU on each of two machines."""
    placed = assign_gpus([2, 2, 1], ranks=2, engines=1, prm="own", prm_gpus=2)
    assert placed == Placement((((0, 0),),), ((0, 1), (2, 0)), ((1, 0), (1, 1)))


def test_a_prm_shares_engines_gpus_on_a_machine_that_has_enough() -> None:
    """On 3 and 2 GPUs, the engines' last two GPUs are on different machines."""
    placed = assign_gpus([3, 2], ranks=1, prm="shared", prm_gpus=2)
    assert placed.engines == tuple((slot,) for slot in ((0, 0), (0, 1), (0, 2), (1, 0)))
    assert (placed.ranks, placed.prm) == (((1, 1),), ((0, 1), (0, 2)))
    with pytest.raises(
        ConfigError, match=r"size=2 must be .* of the engines on one machine; set more rollouts.engines"
    ):
        assign_gpus([1, 1, 1], ranks=1, prm="shared", prm_gpus=2)


def test_an_engine_does_not_span_machines() -> None:
    """On 4 and 3 GPUs, the machines have two engines of two GPUs and one, and the odd GPU is used by a rank."""
    placed = assign_gpus([4, 3], ranks=1, tensor_parallel=2)
    assert placed == Placement((((0, 0), (0, 1)), ((0, 2), (0, 3)), ((1, 0), (1, 1))), ((1, 2),))
    with pytest.raises(
        ConfigError, match=r"^engine\.tensor_parallel_size=4 must be at most 2, .*: Ray has 2 \+ 2 \+ 2"
    ):
        assign_gpus([2, 2, 2], ranks=1, tensor_parallel=4)


def test_colocated_ranks_may_be_more_than_the_engines_gpus() -> None:
    placed = assign_gpus([2, 2], ranks=3, tensor_parallel=2, colocated=True, prm="own")
    assert placed == Placement((((0, 0), (0, 1)),), ((0, 0), (0, 1), (1, 0)), ((1, 1),))
    assert placed.gpus == {0: 2, 1: 2}
    assert assign_gpus([1], ranks=1, colocated=True, prm="shared") == Placement((((0, 0),),), ((0, 0),), ((0, 0),))


@pytest.mark.parametrize(
    ("gpus", "arguments", "message"),
    [
        ([1], {"ranks": 1}, r"^no GPUs are left .*size=1: Ray has 1 GPUs, trainer.ranks=1 take one .*colocated=true$"),
        ([2, 2], {"ranks": 3, "tensor_parallel": 2}, r"^no GPUs are left for .*size=2: Ray has 2 \+ 2 GPUs, trainer"),
        ([8], {"ranks": 9, "colocated": True}, r"Ray has 8 GPUs, trainer.ranks=9 take .*; set fewer trainer.ranks$"),
        ([8], {"ranks": 4, "engines": 5}, r"; set rollouts.engines=4, or fewer trainer.ranks, or rollouts.colocated"),
        ([8], {"ranks": 8, "colocated": True, "prm": "own"}, r"the PRM takes one; .*, or process.own_gpu=false"),
        ([8], {"ranks": 4, "engines": 5}, r"rollouts.engines=5 with engine.tensor_parallel_size=1 must be 1 to 4"),
        ([8], {"ranks": 4, "engines": 5, "colocated": True}, r"must be 1 to 4: .* share them with the engines"),
    ],
)
def test_too_many_gpus_are_rejected_with_a_suggestion(gpus: list[int], arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assign_gpus(gpus, **arguments)


def test_invariants_of_all_placements() -> None:
    placed = 0
    shapes = ([1], [2], [8], [4, 4], [3, 5], [8, 2, 1])
    choices = itertools.product(
        shapes, (1, 2, 4, 7), (1, 2, 3, 4), (None, 1, 2), (False, True), ("none", "own", "shared"), (1, 2)
    )
    for gpus, ranks, width, engines, colocated, prm, prm_gpus in choices:
        try:
            found = assign_gpus(gpus, ranks, width, engines, colocated, prm, prm_gpus)
        except ConfigError:
            continue
        placed += 1
        of_engines = [slot for group in found.engines for slot in group]
        assert len(set(found.ranks)) == len(found.ranks) == ranks, "NCCL refuses two ranks on a GPU"
        assert len(set(of_engines)) == len(of_engines) == width * (engines or len(found.engines))
        assert all(len({machine for machine, _ in group}) == 1 for group in found.engines)
        overlap = set(of_engines) & set(found.ranks)
        assert overlap == (set(of_engines) if colocated else set()), "ipc needs the same GPU, nccl a different one"
        assert len(found.prm) == (0 if prm == "none" else prm_gpus)
        assert len({machine for machine, _ in found.prm}) <= 1
        assert prm == "none" or set(found.prm).isdisjoint({*of_engines, *found.ranks}) == (prm == "own")
        used = {*of_engines, *found.ranks, *found.prm}
        assert used == {(machine, gpu) for machine, count in found.gpus.items() for gpu in range(count)}
        assert all(count <= gpus[machine] for machine, count in found.gpus.items())
    assert placed > 100
