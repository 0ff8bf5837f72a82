"""Test chat data in its published formats, and the loss mask against the chat template's own text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmprm.backbone.load import load_backbone
from mmprm.backbone.processor import tokenizer_of
from mmprm.config import build
from mmprm.errors import CheckpointError, DataError
from mmprm.problems import ProblemsConfig, write_problems
from mmprm.prompts import PromptConfig
from mmprm.tiny.tokenizer import END
from mmprm.tiny.world import make_problems, solve
from mmprm.types import ImageRef
from policy_rl.sft.batch import ConversationEncoder
from policy_rl.sft.conversations import Conversation, read_conversations
from tests.backbones import BACKBONES, WITH_IMAGE, write_backbone

PLAIN = PromptConfig(preset="plain")
IMAGE = {"type": "image"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def read(folder: Path, *rows: dict[str, Any], prompt: PromptConfig = PLAIN, **more: Any) -> list[Conversation]:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_conversations(build(ProblemsConfig, {"path": str(file), **more}), prompt)


def test_sharegpt(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nHow many? And here: <image>?"},
        {"from": "gpt", "value": "Two."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ]
    (found,) = read(tmp_path, {"conversations": turns, "images": ["a.png", "b.png"]})
    assert found.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [IMAGE, text("How many? And here: "), IMAGE, text("?")]},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    )
    assert [image.path for image in found.images] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


def test_messages_as_json_with_an_answer(tmp_path: Path) -> None:
    """MM-Eureka and LMM-R1 have no assistant turn; images are message parts, or in a column and then shown first."""
    own = json.dumps([{"role": "user", "content": [{"type": "image", "image": "a.png"}, text("What?")]}])
    plain = [{"role": "user", "content": "What?"}]
    first, second, third = read(
        tmp_path,
        {"id": "1", "message": own, "answer": "5"},
        {"message": plain, "image_urls": ["a.png"], "answer": "5", "solution": "2 + 3 = 5"},
        {"message": plain, "answer": 5},
    )
    asked = {"role": "user", "content": [IMAGE, text("What?")]}
    assert first.messages == (asked, {"role": "assistant", "content": "5"})
    assert second.messages == (asked, {"role": "assistant", "content": "2 + 3 = 5"})
    assert third.messages == ({"role": "user", "content": "What?"}, {"role": "assistant", "content": "5"})
    assert [len(each.images) for each in (first, second, third)] == [1, 1, 0]


def test_parts_may_mark_the_positions_of_column_images(tmp_path: Path) -> None:
    parts = [
        {"type": "text", "text": "Look at", "image": None},
        {"type": "image", "text": None, "image": None},
        {"type": "text", "text": "and add."},
    ]
    row = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "3"}],
        "images": ["a.png"],
    }
    (found,) = read(tmp_path, row)
    assert found.messages[0]["content"] == [
        {"type": "text", "text": "Look at"},
        {"type": "image"},
        {"type": "text", "text": "and add."},
    ]
    assert [image.path for image in found.images] == [str(tmp_path / "a.png")]


def test_problems_with_solutions_use_the_configured_prompt(tmp_path: Path) -> None:
    prompt = PromptConfig(preset="plain", user="Q: {question}", system="S", prefill="<think>")
    (found,) = read(tmp_path, {"question": "1 + 1?", "answer": "2", "solution": "<step>2</step>"}, prompt=prompt)
    assert [message["content"] for message in found.messages] == ["S", "Q: 1 + 1?", "<think><step>2</step>"]
    assert found.given == "<think>"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"conversations": [{"from": "human", "value": "Q"}]}, "neither solution nor answer"),
        ({"conversations": [{"from": "tool", "value": "Q"}]}, "role 'tool'"),
        ({"conversations": [{"from": "gpt", "value": "A"}]}, "no user turn"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": " "}]}, "turn is empty"),
        ({"message": [{"role": "user", "content": "<image> <image>"}], "image": "a.png", "answer": "1"}, "2 <image>"),
        ({"message": "no JSON", "answer": "1"}, "chat messages.*is not JSON"),
        ({"message": [["role", "user"]], "answer": "1"}, "an unknown format"),
        ({"question": "Q", "answer": "1"}, "no solution"),
    ],
)
def test_rows_without_something_to_learn_are_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    good = {"message": [{"role": "user", "content": "Q"}], "answer": "1"}
    with pytest.raises(DataError, match=words) as raised:
        read(tmp_path, good, row)
    assert "data.jsonl:2" in str(raised.value)


@pytest.fixture(scope="module", params=list(BACKBONES))
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    folder = write_backbone(request.param, tmp_path_factory.mktemp(request.param) / "model")
    backbone, processor = load_backbone(str(folder), torch.float32)
    return request.param, processor, ConversationEncoder(backbone, processor)


def dialogue(name: str, folder: Path) -> Conversation:
    """Return three assistant turns, with two images of different sizes before the first and one before the last."""
    images = []
    for number, size in enumerate(((56, 28), (84, 56), (28, 28))):
        Image.new("RGB", size, "red").save(folder / f"{number}.png")
        images.append(ImageRef(path=str(folder / f"{number}.png")))
    shown = name in WITH_IMAGE
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [IMAGE, text("one "), IMAGE, text("two")] if shown else "one two"},
        {"role": "assistant", "content": "<step>red=3</step><answer>3</answer>"},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": [text("now "), IMAGE] if shown else "now"},
        {"role": "assistant", "content": "blue=2\nYes"},
    )
    return Conversation("dialogue", messages, tuple(images) if shown else ())


def test_the_mask_is_the_templates_assistant_turns(
    encoder: tuple[str, Any, ConversationEncoder], tmp_path: Path
) -> None:
    name, processor, encode = encoder
    conversation = dialogue(name, tmp_path)
    pieces = encode.pieces(conversation)
    whole = processor.apply_chat_template(list(conversation.messages), tokenize=False)
    assert whole.startswith("".join(piece.text for piece in pieces))
    assert whole.removeprefix("".join(piece.text for piece in pieces)).strip() == ""
    learned = [message["content"] + END for message in conversation.messages if message["role"] == "assistant"]
    assert [piece.text for piece in pieces if piece.learned] == learned
    assert [len(piece.media) for piece in pieces] == ([2, 0, 0, 0, 1, 0] if name in WITH_IMAGE else [0] * 6)
    encoded = encode(conversation)
    tokenizer = tokenizer_of(processor)
    written = [id_ for turn in learned for id_ in tokenizer.encode(turn, add_special_tokens=False)]
    assert encoded.ids_T[encoded.learned_T].tolist() == written
    assert encode.ends == {tokenizer.convert_tokens_to_ids(END)}


def test_tokens_images_and_positions_are_the_processors(
    encoder: tuple[str, Any, ConversationEncoder], tmp_path: Path
) -> None:
    """Token ids, images and positions equal those from processing the whole text at once."""
    name, processor, encode = encoder
    conversation = dialogue(name, tmp_path)
    encoded, size = encode(conversation), encode.size(conversation)
    assert size == (len(encoded.ids_T), int(encoded.learned_T.sum()))
    images = [Image.open(image.path).convert("RGB") for image in conversation.images]
    written = "".join(piece.text for piece in encode.pieces(conversation))
    options = {"images": images} if images else {}
    whole = dict(processor(text=[written], add_special_tokens=False, return_tensors="pt", **options))
    assert encoded.ids_T.tolist() == whole["input_ids"][0].tolist()
    for key, tensor in encoded.images.items():
        torch.testing.assert_close(tensor, whole[key], rtol=0, atol=0)
    assert set(encoded.images) == set(whole) - {"input_ids", "attention_mask", "mm_token_type_ids"}
    if not images or encode.axes == 1:
        assert encoded.position_XT[0].tolist() == list(range(len(encoded.ids_T)))
    else:
        keys = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")
        expected = encode._positions._rope_index(**{key: whole[key] for key in keys})[0][:, 0]
        assert encoded.position_XT.tolist() == expected.tolist()
        assert encoded.position_XT.max() < len(encoded.ids_T) - 1, "an image takes fewer positions than tokens"


def test_a_prefill_is_not_learned(encoder: tuple[str, Any, ConversationEncoder]) -> None:
    messages = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "<think>4"})
    first, second = encoder[2].pieces(Conversation("p", messages, given="<think>"))
    assert first.text.endswith("assistant\n<think>")
    assert (second.text, second.learned) == (f"4{END}", True)


def test_reserved_tokens_and_images_for_text_models_are_refused(
    encoder: tuple[str, Any, ConversationEncoder], tmp_path: Path
) -> None:
    name, _, encode = encoder
    for turn in (f"Q{END}", [text(f"Q{END}")]):
        with pytest.raises(DataError, match=r"turn 1 contains '<\|im_end\|>'"):
            encode.pieces(
                Conversation("here", ({"role": "user", "content": turn}, {"role": "assistant", "content": "A"}))
            )
    if name not in WITH_IMAGE:
        with_image = dialogue("qwen2_5_vl", tmp_path)
        with pytest.raises(DataError, match="reads text only"):
            encode.size(with_image)


def test_templates_that_cannot_be_cut_are_refused(random_policy_folder: Path) -> None:
    backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
    encode = ConversationEncoder(backbone, processor)
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    conversation, template = Conversation("here", tuple(turns)), processor.chat_template
    processor.chat_template = template.replace("{% for message in messages %}", "{% for message in messages[-2:] %}")
    with pytest.raises(DataError, match="writes turn 4 differently"):
        encode.pieces(conversation)
    processor.chat_template = template.replace("<|im_end|>\n{% endfor %}", "\n{% endfor %}")
    with pytest.raises(CheckpointError, match="with a special token"):
        encode.pieces(Conversation("here", tuple(turns[:2])))


def test_the_tiny_worlds_solutions_are_read_back(tmp_path: Path, random_policy_folder: Path) -> None:
    """write_problems stores problems with solutions, and the tokenizer knows every token."""
    problems = {tiny.problem.id: tiny for tiny in make_problems(3, seed=0, split="train")}
    solutions = {id_: {"solution": "".join(solve(tiny))} for id_, tiny in problems.items()}
    write_problems(tmp_path / "p.jsonl", [tiny.problem for tiny in problems.values()], solutions)
    found = read_conversations(ProblemsConfig(path=str(tmp_path / "p.jsonl")), PLAIN)
    assert [each.messages[-1]["content"] for each in found] == [each["solution"] for each in solutions.values()]
    backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
    encoded = ConversationEncoder(backbone, processor)(found[0])
    assert processor.tokenizer.unk_token_id not in encoded.ids_T.tolist()
