"""Test `mmprm plan serve`: a scorer alone, engines before a scorer, both at once, and engines alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcts.config import CampaignConfig
from mmprm.cli.main import main
from mmprm.cli.plan_serve import plan_serve, read_served
from mmprm.cli.rerank import RerankConfig
from mmprm.cli.search import GuidedSearchConfig
from mmprm.cli.serve import ServeConfig
from mmprm.planning.parts import GIB

CONFIGS = Path(__file__).parents[3] / "configs"
SERVE_38B = ["scorer.prm=OpenGVLab/InternVL3-38B-hf", "scorer.backend=transformers"]


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("search/internvl3-8b", GuidedSearchConfig),
        ("rerank/internvl3-8b", RerankConfig),
        ("annotate/internvl3-8b", CampaignConfig),
    ],
)
def test_the_command_of_a_file_is_inferred_from_its_keys(file: str, kind: type) -> None:
    assert isinstance(read_served(str(CONFIGS / f"{file}.yaml")), kind)
    assert isinstance(read_served(None, SERVE_38B), ServeConfig)


@pytest.mark.parametrize("key", ["trees_in_flight=8", "max_restarts=1", "search.rollouts=8"])
def test_any_key_specific_to_annotate_identifies_its_files(key: str) -> None:
    assert isinstance(read_served(None, ["engine.model=tiny", "output=run", key]), CampaignConfig)


def test_search_has_engine_and_scorer_on_the_first_gpu() -> None:
    first, others = plan_serve(read_served(str(CONFIGS / "search" / "internvl3-8b.yaml"))).groups
    assert (first.name, others.name) == ("1 GPU, engine and scorer", "7 GPUs, engine")
    assert first.total("search") == pytest.approx(0.9 * 79 * GIB), "0.45 each"
    assert others.total("sampling") == pytest.approx(0.45 * 79 * GIB)
    both = plan_serve(read_served(str(CONFIGS / "search" / "internvl3-8b.yaml"), ["engine.gpu_memory_utilization=0.6"]))
    assert both.shortfalls()[0].startswith("1 GPU, engine and scorer: 83.0 GiB in the phase search do not fit")


def test_rerank_closes_its_engines_before_it_scores() -> None:
    first, _ = plan_serve(read_served(str(CONFIGS / "rerank" / "internvl3-8b.yaml"))).groups
    assert list(first.phases) == ["sampling", "scoring"]
    assert max(map(first.total, first.phases)) == pytest.approx(0.9 * 79 * GIB)


def test_a_78b_scorer_fits_on_four_gpus_in_the_checkpoints_dtype() -> None:
    """The weights are split over four GPUs, except for the attention of InternViT-6B, which vLLM does not split."""
    sets = ["scorer.prm=OpenGVLab/InternVL2_5-78B", "scorer.backend=vllm", "scorer.tensor_parallel_size=4"]
    (group,) = plan_serve(read_served(None, [*sets, "hardware.gpus=4"])).groups
    assert group.name == "4 GPUs, scorer"
    attention = 45 * 4 * 3200**2
    split = 78_408_318_336 - attention
    assert group.phases["scoring"]["scorer: weights"] == 2 * (split / 4 + attention)
    assert group.fits


def test_a_model_is_split_over_the_gpus_of_one_machine() -> None:
    sets = ["scorer.prm=OpenGVLab/InternVL2_5-78B", "scorer.backend=vllm", "scorer.tensor_parallel_size=4"]
    eight = [*sets, "hardware.gpus=8"]
    assert not plan_serve(read_served(None, [*eight, "hardware.nodes=2"])).refusals
    (refusal,) = plan_serve(read_served(None, [*eight, "hardware.nodes=4"])).refusals
    assert refusal == "scorer.tensor_parallel_size=4 is more than hardware.gpus=8 / hardware.nodes=4"


def test_a_38b_scorer_on_one_gpu_is_advised_to_use_more(capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["scorer.prm=OpenGVLab/InternVL3-38B-hf", "hardware.gpus=4"]
    assert main(["plan", "serve", *(word for pair in sets for word in ("--set", pair))]) == 2
    assert "what would fit: --set scorer.backend=vllm --set scorer.tensor_parallel_size=2" in capsys.readouterr().err


def test_a_38b_scorer_in_float32_does_not_fit_on_one_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    sets = [*SERVE_38B, "scorer.dtype=float32"]
    command = ["plan", "serve", *(word for pair in sets for word in ("--set", pair)), "--set", "hardware.gpus=1"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "GiB in the phase scoring do not fit into 77.4 usable GiB of a GPU of 79" in error
    settings = "--set scorer.dtype=bfloat16 --set scorer.batch_tokens=8192"
    assert error.endswith(f"what would fit: {settings}; --set hardware.gpu_memory_gib=178\n")
    assert main([*command, "--set", "scorer.backend=vllm"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("what would fit: --set scorer.dtype=bfloat16 --set hardware.gpu_memory_gib=139\n")
    parts = plan_serve(read_served(None, [*sets, "hardware.gpus=1"])).groups[0].phases["scoring"]
    assert parts["scorer: weights"] == 4 * 38_388_164_992


def test_an_engine_that_cannot_hold_its_context_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "serve", "--config", str(CONFIGS / "annotate" / "internvl3-8b.yaml")]
    tight = ["--set", "engine.max_model_len=32768", "--set", "engine.gpu_memory_utilization=0.24"]
    assert main([*command, *tight]) == 2
    error = capsys.readouterr().err
    assert "the key-value cache of an engine needs 1.8 GiB for one sequence of 32,768 tokens" in error
    found = error.rpartition("what would fit: ")[2].split("; ")[0].split()
    assert main([*command, *tight, *found]) == 0


def test_servers_have_nothing_to_plan(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "serve", "--config", str(CONFIGS / "annotate" / "internvl3-8b.yaml")]
    servers = ["--set", "engine.servers.urls=[http://localhost:8000]", "--set", "engine.servers.dialect=vllm"]
    assert main([*command, *servers]) == 2
    assert "mmprm plan: servers " in capsys.readouterr().err
