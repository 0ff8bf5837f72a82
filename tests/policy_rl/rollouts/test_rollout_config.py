"""Test the seeds of rollouts and the tokens that a policy must not sample."""

from __future__ import annotations

from types import SimpleNamespace

from mmprm.backbone.processor import vision_token_ids
from policy_rl.rollouts.config import rollout_seed


def test_seeds_come_from_content():
    seeds = {rollout_seed(*key) for key in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 0, "a", 1)]}
    assert len(seeds) == 5
    assert rollout_seed(0, 3, "a") == rollout_seed(0, 3, "a", 0)


def test_vision_tokens_are_found_by_key_and_by_name():
    keys = {
        "image_token_id": 4,
        "vision_start_token_id": 5,
        "eos_token_id": 1,
        "image_token_index": 7,
        "video_token_id": None,
    }
    config = SimpleNamespace(to_dict=lambda: keys)
    names = {"<img>": 6, "<|im_end|>": 1, "<|vision_pad|>": 8}
    tokenizer = SimpleNamespace(all_special_tokens=list(names), convert_tokens_to_ids=names.get)
    assert vision_token_ids(config, tokenizer) == (4, 5, 6, 7, 8)
