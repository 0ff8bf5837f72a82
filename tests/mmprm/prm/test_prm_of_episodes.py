"""Test episodes in the MM-PRM format: tokens, packing, and scores that depend only on what came before."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmprm.environments.interface import Observation
from mmprm.errors import DataError
from mmprm.labels.parquet import LabeledExample
from mmprm.prm.data import PrmSample, make_samples
from mmprm.prm.formats import MmPrmFormat, open_format
from mmprm.prm.info import PrmInfo, PrmTokens
from mmprm.prm.model import Prm, initialize_prm, save_prm
from mmprm.prm.packing import Marks
from mmprm.prm.targets import TargetConfig
from mmprm.prm.task import PackedRows
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.types import Counts, ImageRef, LabeledPath, Problem, Solution
from tests.backbones import write_backbone
from tests.mmprm.prm.test_tree_packing import assert_equal_training, packed

PROBLEM = Problem("p", "Push every box onto a goal.", "")
UP, LEFT = "<action>up</action>", "<action>left</action>"


def image(color: str, width: int = 56) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (width, 56), color).save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())


RED, BLUE, WIDE = image("red"), image("blue"), image("green", 84)
EPISODE = Solution(PROBLEM, (UP, LEFT, UP), (("Go.", RED), ("higher", WIDE, BLUE), (BLUE,)))
TEXT_ONLY = Solution(PROBLEM, ("50", "60"), (("Guess.",), ("higher",)))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "internvl"])
def prm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prm:
    folder = write_backbone(request.param, tmp_path_factory.mktemp(request.param) / "base")
    made = initialize_prm(str(folder), PrmTokens())
    made.model.train()
    return made


def samples_of(prm: Prm, *episodes: Solution) -> list[PrmSample]:
    marks = Marks(MmPrmFormat(prm.processor, prm.info.tokens))
    targets = (0.25, 1.0, 0.0)
    return [PrmSample(each, targets[: len(each.steps)], (1.0,) * len(each.steps), *marks(each)) for each in episodes]


def test_tokens_by_hand(random_policy_folder: Path) -> None:
    """An image of 56 × 56 pixels has 2 × 2 merged patches, and one of 84 × 56 pixels has 3 × 2."""
    renderer = initialize_prm(str(random_policy_folder), PrmTokens(), add_missing_tokens=True).renderer

    def shown(count: int) -> str:
        return f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>"

    (ids,) = renderer.encode([EPISODE])["input_ids"].tolist()
    assert renderer.processor.tokenizer.decode(ids) == (
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
        f"Question: Go.{shown(4)}\nProcess: {UP}\nhigher{shown(6)}{shown(4)}<prm>"
        f"\n{LEFT}\n{shown(4)}<prm>"
        f"\n{UP}<prm><|im_end|>\n"
    )
    assert [position for position, token in enumerate(ids) if token == renderer.marker_id] == [62, 92, 113]


def test_text_observations_by_hand(random_policy_folder: Path) -> None:
    renderer = initialize_prm(str(random_policy_folder), PrmTokens(), add_missing_tokens=True).renderer
    assert renderer.render(TEXT_ONLY).partition("assistant\n")[2] == (
        "Question: Guess.\nProcess: 50\nhigher<prm>\n60<prm><|im_end|>\n"
    )
    after = replace(TEXT_ONLY, observations=(*TEXT_ONLY.observations, ("lower",)))
    assert renderer.render(after).endswith("50\nhigher<prm>\n60\nlower<prm><|im_end|>\n")


def test_marks_are_the_tokens_of_the_processor(prm: Prm) -> None:
    (sample,) = samples_of(prm, EPISODE)
    (ids,) = prm.renderer.encode([EPISODE])["input_ids"].tolist()
    assert sample.ids.tolist() == ids
    assert [ids[position] for position in sample.positions] == [prm.renderer.marker_id] * 3
    assert sum(token == prm.renderer.marker_id for token in ids) == 3


def test_episodes_packed_as_trees_equal_separate_episodes(prm: Prm) -> None:
    """The two episodes begin with the same action, but are not merged."""
    other = replace(EPISODE, steps=(UP, UP), observations=EPISODE.observations[:2])
    samples = samples_of(prm, EPISODE, other, TEXT_ONLY)
    rows = packed(prm, samples, max_tokens=10_000, width=10_000)
    assert isinstance(rows, PackedRows)
    assert rows.lengths == [sum(int(sample.positions[-1]) + 1 for sample in samples)]
    assert_equal_training(prm, samples, rows, budget=10_000)


def test_a_turn_is_scored_after_the_next_observation(prm: Prm, tmp_path: Path) -> None:
    with torch.no_grad():
        for weight in prm.model.parameters():
            weight.mul_(2.0 if weight.dim() > 1 else 1.0)
    save_prm(tmp_path / "prm", prm)
    later = replace(EPISODE, observations=(*EPISODE.observations[:2], (RED,)))
    first = EPISODE.first_steps(1)
    for shared in (False, True):
        scorer = open_scorer(ScorerConfig(prm=str(tmp_path / "prm"), share_prefixes=shared))
        one, changed, alone, text = (each.scores for each in scorer.score([EPISODE, later, first, TEXT_ONLY]))
        scorer.close()
        assert (len(one), len(changed), len(alone), len(text)) == (3, 3, 1, 2)
        assert one[0] == pytest.approx(changed[0], abs=1e-6)
        assert one[0] == pytest.approx(alone[0], abs=1e-6)
        assert abs(one[1] - changed[1]) > 1e-5
        assert one == pytest.approx(separate(prm, EPISODE), abs=1e-5)


def separate(prm: Prm, solution: Solution) -> list[float]:
    """Return the scores as the softmax of the backbone's logits at each marker."""
    prm.model.eval()
    inputs = prm.renderer.encode([solution])
    with torch.inference_mode():
        logits_BTV = prm.model.backbone(**inputs).logits
    yes_no_M2 = logits_BTV[inputs["input_ids"] == prm.renderer.marker_id][:, [prm.renderer.yes_id, prm.renderer.no_id]]
    return yes_no_M2.float().softmax(dim=-1)[:, 0].tolist()


def test_labels_become_samples_with_the_observation_after_the_last_target(random_policy_folder: Path) -> None:
    renderer = initialize_prm(str(random_policy_folder), PrmTokens(), add_missing_tokens=True).renderer
    path = LabeledPath("p", EPISODE.steps, (Counts(1, 3), Counts(0, 4), None), complete=False)
    seen = tuple(map(Observation, EPISODE.observations))
    (sample,) = make_samples([LabeledExample(PROBLEM, path, "train", observations=seen)], renderer, TargetConfig())
    assert sample.targets == (0.25, 0.0)
    assert sample.solution == EPISODE.first_steps(2)
    assert sample.solution.images == (RED, WIDE, BLUE, BLUE)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(EPISODE, observations=(("a",), ("b<prm>",), ("c",))), "problem p: observation 2 contains '<prm>'"),
        (replace(EPISODE, steps=(UP, UP, "<|image_pad|>")), r"problem p: step 3 contains '<\|image_pad\|>'"),
    ],
)
def test_reserved_tokens_are_refused(bad: Solution, message: str, random_policy_folder: Path) -> None:
    renderer = initialize_prm(str(random_policy_folder), PrmTokens(), add_missing_tokens=True).renderer
    with pytest.raises(DataError, match=message):
        renderer.render(bad)


def test_other_families_refuse_episodes(random_policy_folder: Path) -> None:
    processor = initialize_prm(str(random_policy_folder), PrmTokens(), add_missing_tokens=True).processor
    form = open_format(processor, PrmInfo(format="visualprm", tokens=PrmTokens(marker="+", yes="+", no="-")))
    with pytest.raises(DataError, match="is an episode, which only the format mm-prm expresses"):
        form.mark(EPISODE)


def test_some_episodes_are_also_read_before_the_effect_of_a_turn(random_policy_folder: Path) -> None:
    """So the model also learns to score an action before it is played. The dev split has whole episodes alone, and the
    other paths do not matter."""
    renderer = initialize_prm(str(random_policy_folder), PrmTokens(), add_missing_tokens=True).renderer
    seen = tuple(map(Observation, EPISODE.observations))
    path = LabeledPath("p", EPISODE.steps, (Counts(1, 3), Counts(0, 4), None), complete=False)
    problems = [replace(PROBLEM, id=str(number)) for number in range(12)]
    examples = [
        LabeledExample(each, replace(path, problem_id=each.id), "train", observations=seen) for each in problems
    ]
    samples = make_samples(examples, renderer, TargetConfig())
    whole = [sample for sample in samples if len(sample.solution.observations) > len(sample.solution.steps)]
    begun = [sample for sample in samples if len(sample.solution.observations) == len(sample.solution.steps)]
    assert [sample.targets for sample in whole] == [(0.25, 0.0)] * 12
    assert 3 <= len(begun) <= 9
    assert {sample.targets[-1] for sample in begun} == {0.25, 0.0}, "each labeled turn can be the last"
    assert {sample.label_count for sample in begun} == {1}
    alone = [sample for each in examples for sample in make_samples([each], renderer, TargetConfig())]
    assert [sample.solution for sample in alone] == [sample.solution for sample in samples]
    dev = [replace(each, split="dev") for each in examples]
    assert len(make_samples(dev, renderer, TargetConfig())) == 12
