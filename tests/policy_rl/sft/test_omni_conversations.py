"""Test SFT on conversations with videos and audio: R1-Omni's rows, token counts, masks and log-probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from mmprm.backbone.load import load_backbone
from mmprm.data.media import open_audio, open_video
from mmprm.errors import DataError
from mmprm.problems import ProblemsConfig
from mmprm.prompts import PromptConfig
from mmprm.tiny.omni_clip import encode_clip
from mmprm.tiny.omni_model import PIXELS
from mmprm.types import AudioRef, VideoRef
from policy_rl.sft.batch import ConversationEncoder, collate_conversations
from policy_rl.sft.conversations import read_conversations, without_unreadable
from policy_rl.trainer.policy import Policy
from tests.mmprm.data.test_media import gray_frames, tone

ASKED = "<video>\n<audio>\nWhich emotion does the clip convey?"


def turns(asked: str, label: str) -> list[dict[str, str]]:
    reply = f"<think>move=up tone={label}</think><answer>{label}</answer>"
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": reply}]


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return two rows of R1-Omni's JSON with tiny clips, one row of text, and one row whose clip is damaged."""
    folder = tmp_path_factory.mktemp("r1_omni")
    (folder / "a.mp4").write_bytes(encode_clip(gray_frames(16, 56, 56), tone(440), form="mp4"))
    (folder / "b.mp4").write_bytes(encode_clip(gray_frames(9, 56, 84), tone(900, 2.0), form="mp4"))
    (folder / "broken.mp4").write_bytes(b"not a video")
    rows = [
        {"video": "a.mp4", "conversations": turns(ASKED, "joy")},
        {"video": "b.mp4", "conversations": turns(ASKED, "fear")},
        {"conversations": turns("Which emotion?", "calm")},
        {"video": "broken.mp4", "conversations": turns(ASKED, "anger")},
    ]
    (folder / "train.json").write_text(json.dumps(rows))
    found = read_conversations(ProblemsConfig(path=str(folder / "train.json"), video_frames=4), PromptConfig())
    kept, broken = without_unreadable(found)
    assert ["cannot be read as a video" in reason for reason in broken.values()] == [True]
    return kept


@pytest.fixture(scope="module")
def encoder(omni_folder: Path) -> tuple[ConversationEncoder, Any]:
    backbone, processor = load_backbone(str(omni_folder), torch.float32)
    return ConversationEncoder(backbone, processor, PIXELS["max_pixels"], PIXELS["min_pixels"]), backbone.eval()


def test_the_counted_tokens_are_the_encoded_ones(conversations: Any, encoder: Any) -> None:
    for conversation in conversations:
        encoded, size = encoder[0](conversation), encoder[0].size(conversation)
        assert (size.tokens, size.learned) == (len(encoded.ids_T), int(encoded.learned_T.sum()))
        learned = encoder[0].tokenizer.decode(encoded.ids_T[encoded.learned_T])
        assert learned == conversation.messages[-1]["content"] + "<|im_end|>"


@pytest.mark.parametrize("stand_in", [False, True])
def test_rows_of_different_media_have_the_log_probabilities_of_transformers(
    conversations: Any, encoder: Any, omni_folder: Path, stand_in: bool
) -> None:
    encode, backbone = encoder
    encoded = [encode(conversation) for conversation in conversations]
    inputs = collate_conversations([[each] for each in encoded], encode, stand_in)
    with torch.no_grad():
        found_NT = Policy(backbone).eval()(inputs).logprobs_NT
    theirs = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(omni_folder, dtype=torch.float32).eval()
    size = {"shortest_edge": PIXELS["min_pixels"], "longest_edge": PIXELS["max_pixels"]}
    for conversation, each, found_T in zip(conversations, encoded, found_NT, strict=True):
        text = encode.processor.apply_chat_template(list(conversation.messages), tokenize=False).rstrip("\n")
        media: dict[str, Any] = {}
        if conversation.videos:
            path = conversation.videos[0].path
            media["videos"] = [open_video(VideoRef(path=path, frames=4))]
            media |= {"audio": [open_audio(AudioRef(path=path))], "videos_kwargs": {"size": size}}
        whole = encode.processor(text=[text], return_tensors="pt", **media)
        assert torch.equal(whole["input_ids"][0], each.ids_T)
        with torch.no_grad():
            logprobs_TV = theirs(**whole, use_cache=False).logits[0].log_softmax(dim=-1)
        expected_T = logprobs_TV[:-1].gather(-1, each.ids_T[1:, None])[:, 0][each.learned_T[1:]]
        torch.testing.assert_close(found_T[: len(expected_T)], expected_T, rtol=0, atol=1e-5)


def test_a_text_only_model_names_the_row(conversations: Any, policy_folder: Path) -> None:
    backbone, processor = load_backbone(str(policy_folder), torch.float32)
    with pytest.raises(DataError, match=r"train\.json.*: has videos or audio, but the model reads none; use a Qw"):
        ConversationEncoder(backbone, processor)(conversations[0])
