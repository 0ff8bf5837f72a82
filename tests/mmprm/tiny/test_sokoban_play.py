"""Test that SFT reads the solver's conversations as the tokens of an episode."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprm.cli.main import main
from mmprm.environments.episode import Action
from mmprm.environments.interface import Observation
from mmprm.problems import ProblemsConfig, open_image
from mmprm.prompts import PromptConfig
from mmprm.sampling.conversation import EpisodeEncoder
from mmprm.tiny.sokoban_policy import build_sokoban_processor
from mmprm.tiny.sokoban_problems import QUESTION
from policy_rl.sft.conversations import read_conversations


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
