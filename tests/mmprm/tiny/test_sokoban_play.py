"""Test the solver's episodes: what they contain, and that SFT reads them as the tokens of an episode."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mmprm.cli.main import main
from mmprm.environments.episode import Action
from mmprm.environments.interface import Observation
from mmprm.problems import ProblemsConfig, open_image
from mmprm.prompts import PromptConfig
from mmprm.sampling.conversation import EpisodeEncoder
from mmprm.tiny.sokoban import move, moves_to_solve, parse_level
from mmprm.tiny.sokoban_play import solver_moves
from mmprm.tiny.sokoban_policy import build_sokoban_processor
from mmprm.tiny.sokoban_problems import QUESTION
from policy_rl.sft.conversations import read_conversations

LEVEL = "######\n#@$ .#\n######"


def test_the_solver_plays_a_shortest_solution() -> None:
    moves = list(solver_moves(LEVEL, random.Random(0), 0.0))
    assert [each.name for each in moves] == ["right", "right"]
    assert move(moves[-1].state, "right").solved


def test_mistakes_are_made_until_the_level_is_lost() -> None:
    level = "#####\n#   #\n#@$.#\n#   #\n#####"
    played = [list(solver_moves(level, random.Random(seed), 1.0)) for seed in range(20)]
    assert {len(moves) for moves in played} - {1}, "moves are random"
    for moves in played:
        assert all(moves_to_solve(each.state) for each in moves), "no move in a state without a solution"
        assert len(moves) <= 12
    assert parse_level(level) == played[0][0].state


def test_sft_reads_the_tokens_of_an_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "play.jsonl"
    assert (
        main(["tiny", "sokoban", "--play", "--output", str(path), "--count", "2", "--size", "5", "--boxes", "1"]) == 0
    )
    assert "2 episodes of the annotate split" in capsys.readouterr().out
    plain, processor = PromptConfig(preset="plain"), build_sokoban_processor()
    for conversation in read_conversations(ProblemsConfig(path=str(path)), plain):
        actions = [Action(turn["content"]) for turn in conversation.messages if turn["role"] == "assistant"]
        assert len(conversation.images) == len(actions)
        assert open_image(conversation.images[0]).size == (140, 140)
        first, *later = conversation.images
        observations = [Observation((QUESTION, first)), *(Observation((image,)) for image in later)]
        (row,) = EpisodeEncoder(processor, plain).rows(observations, actions)
        text = processor.apply_chat_template(list(conversation.messages), tokenize=False)
        ids = processor.tokenizer(text, add_special_tokens=False).input_ids
        assert ids[: len(row.ids)] == list(row.ids)
