"""Test the training of the Sokoban policy: its tokens, images and positions are those of an engine's episodes."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmprm.environments.episode import Action
from mmprm.environments.interface import Observation
from mmprm.problems import open_image
from mmprm.prompts import PromptConfig
from mmprm.sampling.conversation import EpisodeEncoder
from mmprm.tiny.config import SokobanTrainConfig
from mmprm.tiny.model import build_model
from mmprm.tiny.sokoban import best_moves, move, moves_to_solve, parse_level
from mmprm.tiny.sokoban_image import draw_state
from mmprm.tiny.sokoban_player import action_text
from mmprm.tiny.sokoban_policy import (
    EpisodeCollator,
    build_sokoban_processor,
    cell_targets,
    evaluate_sokoban,
    single_moves,
    solver_episode,
    train_sokoban,
)
from mmprm.tiny.sokoban_problems import QUESTION

STEPS = {"vision_steps": 1, "move_steps": 1, "move_batch": 2, "play_steps": 2, "mistake_steps": 2, "batch": 2}
CONFIG = SokobanTrainConfig(size=5, max_turns=6, held_out=3, threads=1, **STEPS)


@pytest.fixture(scope="module")
def collator() -> EpisodeCollator:
    processor = build_sokoban_processor()
    return EpisodeCollator(build_model(processor.tokenizer), processor, CONFIG.size, CONFIG.max_turns)


def test_texts_have_the_tokens_of_an_engines_prompt(collator: EpisodeCollator) -> None:
    processor = build_sokoban_processor()
    tokenizer = processor.tokenizer
    episodes = [solver_episode(random.Random(seed), CONFIG) for seed in (1, 2, 3)]
    inputs, predicting_BT, probabilities_NV = collator(episodes)
    for row, episode in enumerate(episodes):
        images = [draw_state(played.state) for played in episode]
        texts = [action_text(played.name) for played in episode]
        observations = [Observation((QUESTION, images[0])), *(Observation((image,)) for image in images[1:])]
        actions = [Action(text, (*tokenizer(text).input_ids, collator.end_id)) for text in texts]
        (expected,) = EpisodeEncoder(processor, PromptConfig(preset="plain")).rows(observations, actions)
        whole = processor(text=tokenizer.decode(list(expected.ids)), images=list(map(open_image, images)))
        length = int(inputs["attention_mask"][row].sum())
        ids = inputs["input_ids"][row, :length]
        assert ids.tolist() == whole["input_ids"][0]
        sampled = [ids[at].item() for at in predicting_BT[row].nonzero()[:, 0] + 1]
        assert sampled == [token for action in actions for token in action.ids]
    assert probabilities_NV.sum(dim=1).tolist() == pytest.approx([1.0] * len(probabilities_NV))


def test_pixels_and_positions_are_those_of_the_processor_and_model(collator: EpisodeCollator) -> None:
    processor = build_sokoban_processor()
    model = build_model(processor.tokenizer)
    episode = solver_episode(random.Random(4), CONFIG)
    inputs, _, _ = collator([episode])
    images = [open_image(draw_state(played.state)) for played in episode]
    expected = processor.image_processor(images=images, return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    assert torch.equal(inputs["image_grid_thw"], expected["image_grid_thw"])
    types = (inputs["input_ids"] == processor.image_token_id).int()
    position_ids, _ = model.model.get_rope_index(
        input_ids=inputs["input_ids"], image_grid_thw=inputs["image_grid_thw"], mm_token_type_ids=types
    )
    assert torch.equal(inputs["position_ids"], position_ids)


def test_an_episode_ends_when_its_level_is_solved_or_lost() -> None:
    ends = Counter()
    for seed in range(60):
        episode = solver_episode(random.Random(seed), CONFIG)
        last = move(episode[-1].state, episode[-1].name)
        assert all(moves_to_solve(played.state) for played in episode)
        ends["solved" if last.solved else "lost" if moves_to_solve(last) is None else "turn limit"] += 1
        assert last.solved or moves_to_solve(last) is None or len(episode) == CONFIG.max_turns
    assert set(ends) == {"solved", "lost", "turn limit"}


def test_cell_targets_by_hand() -> None:
    """In a room of 3 × 6 cells, cell 7 is the second one of the second row."""
    player, boxes, goals = cell_targets(parse_level("######\n#@$*.#\n######"))
    assert player.nonzero().tolist() == [[7]]
    assert {at: value for at, value in enumerate(boxes.tolist()) if value} == {8: 0.5, 9: 0.5}
    assert {at: value for at, value in enumerate(goals.tolist()) if value} == {9: 0.5, 10: 0.5}


def test_single_moves_have_sharper_targets_than_episodes() -> None:
    """In most states, one move is best and another one loses. The player's own rate of mistakes is higher than 0.1."""
    config = CONFIG.model_copy(update={"move_batch": 40})
    moves = [played for (played,) in single_moves(config, random.Random(0))]
    highest = Counter(round(max(played.probabilities), 3) for played in moves)
    assert highest.most_common(1)[0][0] == 0.9
    assert {len(best_moves(played.state)) for played in moves} <= {1, 2}
    assert len({played.state for played in moves}) > 30


def test_training_writes_a_checkpoint_with_its_solve_rate(tmp_path: Path) -> None:
    metrics = train_sokoban(CONFIG, tmp_path, say=lambda line: None)
    assert 0 <= metrics["solve_rate"] <= 1
    assert metrics["solve_rate"] + metrics["lost_rate"] <= 1
    assert {"model.safetensors", "sokoban.json", "tokenizer.json"} <= {file.name for file in tmp_path.iterdir()}


def test_without_a_solved_level_there_is_no_number_of_moves(collator: EpisodeCollator) -> None:
    class Idle(torch.nn.Module):
        """Ends every turn without a move."""

        def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
            logits_BTV = torch.full((*input_ids.shape, collator.end_id + 1), -math.inf)
            logits_BTV[..., collator.end_id] = 0
            return SimpleNamespace(logits=logits_BTV)

    metrics = evaluate_sokoban(Idle(), collator, CONFIG)
    assert metrics == {"solve_rate": 0, "lost_rate": 0, "moves_over_optimum": None}
