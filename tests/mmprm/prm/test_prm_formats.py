"""Test every family of process reward models token by token.

The published tokenizers are not available offline, so small ones of the same kinds are used, with ids written out by
hand.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from prm_tokenizers import byte_level, form, sentencepiece, sentencepiece_with_template, solution

from mmprm.errors import CheckpointError, DataError
from mmprm.prm.formats import Format
from mmprm.prm.info import PrmInfo, PrmTokens, read_info
from mmprm.prm.model import load_prm
from mmprm.types import ImageRef, Solution

LLAMA3 = (
    "<|bos|>{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
)


def ids_and_places(found: Format, item: Solution) -> tuple[list[int], list[int]]:
    marked = found.mark(item)
    return list(marked.ids), list(marked.positions)


def test_math_shepherd() -> None:
    """The marker is one token with the preceding space, anywhere in the text. So are the judgment tokens, which differ
    from a + without a space.
    """
    found = form("math-shepherd", sentencepiece())
    first, second = [18, 16, 4, 19, 16], [18, 16, 5, 19, 16]  # "Step 1: " and "Step 2: "
    ids = [1, 3, 4, 6, 4, 3, *first, 4, 6, 4, 8, 5, 13, 9, *second, 5, 7, 4, 8, 4, 13]
    assert ids_and_places(found, solution(question="1+1")) == (ids, [16, 28])
    assert ids_and_places(found, solution(("1+1=2 \n", "\n2-1=1"), "1+1")) == (ids, [16, 28])
    assert ids_and_places(found, solution(("Step 1: 1+1=2", "Step 2: 2-1=1"), "1+1")) == (ids, [16, 28])
    assert (found.yes_id, found.no_id, found.head) == (14, 15, "two_tokens")
    spaced = solution(("1 + 1",), "a")
    assert ids_and_places(found, spaced) == ([1, 3, 17, 3, *first, 4, 14, 3, 4, 13], [13])
    with pytest.raises(DataError, match="problem p: step 2 contains 'ки'"):
        found.mark(solution(("1", "1 ки 2")))
    assert ids_and_places(found, solution(("1", ""), "a")) == ([1, 3, 17, 3, *first, 4, 13, 9, *second, 13], [10, 17])
    merging = form("math-shepherd", byte_level(), marker="+", yes="=", no="-")
    with pytest.raises(DataError, match=r"problem p: step 1: its text merges with the following marker '\+'"):
        merging.mark(solution(("1",), "1"))
    with pytest.raises(CheckpointError, match="'ки' must be one token"):
        form("math-shepherd", byte_level())


def test_openrlhf_is_math_shepherd_with_other_tokens() -> None:
    found = form("math-shepherd", byte_level(), marker="<extra_0>", yes="=", no="-")
    assert ids_and_places(found, solution(question="1?")) == (
        [
            *(0, 6, 7, 23, 7, 0, 24, 7, 0, 3, 0, 5, 1, 7, 18),
            *(8, 23, 7, 1, 24, 7, 1, 4, 0, 5, 0, 7, 18),
        ],
        [14, 27],
    )
    assert (found.yes_id, found.no_id) == (5, 4)


def test_qwen() -> None:
    found = form("qwen", byte_level())
    head = [12, 15, 8, 19, 14, 8, 12, 16, 8, 0, 3, 0, 6, 14, 8, 12, 17, 8]
    assert ids_and_places(found, solution()) == (
        [*head, 0, 3, 0, 5, 1, 18, 1, 4, 0, 5, 0, 18, 14, 8],
        [23, 29],
    )
    assert ids_and_places(found, solution(("", "2"))) == ([*head, 18, 1, 18, 14, 8], [18, 20])
    assert (found.yes_id, found.no_id, found.head) == (None, None, "two_classes")
    with pytest.raises(DataError, match="problem p: question contains '<extra_0>'"):
        found.mark(solution(question="<extra_0>"))
    with pytest.raises(CheckpointError, match="'<extra_0>' must be one token"):
        form("qwen", sentencepiece_with_template())


def test_rlhflow() -> None:
    """Scores are read before each + of the assistant, which is not the token of a + inside a step."""
    found = form("rlhflow", byte_level(LLAMA3))
    first = [11, 12, 16, 13, 9, 0, 3, 0, 6, 7, 0, 10, 0, 5, 1, 14, 12, 17, 13, 9, 3, 14]
    second = [12, 16, 13, 9, 1, 4, 0, 5, 0, 14, 12, 17, 13, 9, 3, 14]
    assert ids_and_places(found, solution(("1 +1=2 ", "2-1=1"))) == ([*first, *second], [19, 35])
    assert (found.yes_id, found.no_id, found.head) == (3, 4, "two_tokens")
    plus = ids_and_places(found, solution(("+", "", "+")))
    assert plus[0] == [
        *(11, 12, 16, 13, 9, 0, 3, 0, 6, 10, 14, 12, 17, 13, 9, 3, 14),
        *(12, 16, 13, 9, 14, 12, 17, 13, 9, 3, 14),
        *(12, 16, 13, 9, 3, 14, 12, 17, 13, 9, 3, 14),
    ]
    assert plus[1] == [14, 25, 37]
    with pytest.raises(CheckpointError, match=r"'12' must be one token in the assistant's turn, but is part of '1'"):
        form("rlhflow", byte_level(LLAMA3), yes="12")
    with pytest.raises(CheckpointError, match="no chat template"):
        form("rlhflow", sentencepiece())
    with pytest.raises(CheckpointError, match="drops assistant turns"):
        form("rlhflow", byte_level("{% for m in messages %}{{ m['role'] }}{% endfor %}"))


def test_judgment_tokens_are_those_of_the_assistant_turn() -> None:
    """If the template adds a space before the turn, the judgment tokens include it, as the model predicts them."""
    found = form("rlhflow", byte_level("{% for m in messages %}<|head|> {{ m['content'] }}{% endfor %}"), no="-")
    assert (found.yes_id, found.no_id) == (10, 4)
    assert ids_and_places(found, solution(("1",), "1")) == ([12, 7, 0, 7, 0, 12, 10], [5])


def test_visualprm_without_image() -> None:
    found = form("visualprm", byte_level())
    opening = [12, 15, 8, 20, 14, 8, 12, 16, 8, 21, 8, 0, 3, 0, 6, 9, 22, 8]
    assert ids_and_places(found, solution()) == (
        [
            *(*opening, 0, 3, 0, 5, 1, 14, 8, 12, 17, 8, 3, 14, 8),
            *(12, 16, 8, 1, 4, 0, 5, 0, 14, 8, 12, 17, 8, 3, 14, 8),
        ],
        [27, 43],
    )
    assert (found.yes_id, found.no_id, found.head) == (3, 4, "two_tokens")


def test_skywork() -> None:
    """Line breaks inside and after a step are tokenized separately, so they remain two tokens."""
    found = form("skywork", byte_level(bos="<|bos|>"))
    assert ids_and_places(found, solution()) == (
        [11, 0, 3, 0, 6, 8, 0, 3, 0, 5, 1, 8, 1, 4, 0, 5, 0, 8],
        [11, 17],
    )
    assert ids_and_places(found, solution(("1\n", ""))) == ([11, 0, 3, 0, 6, 8, 0, 8, 8, 8], [8, 9])
    with pytest.raises(CheckpointError, match="no bos token"):
        form("skywork", byte_level())


def test_trl() -> None:
    """Question and first step are tokenized separately, so `? +` contains no token for a space and +."""
    found = form("trl", byte_level())
    assert ids_and_places(found, solution()) == ([0, 3, 0, 6, 0, 3, 0, 5, 1, 8, 1, 4, 0, 5, 0, 8], [9, 15])
    assert ids_and_places(found, solution(("+1", "\n"), "1 ")) == ([0, 7, 3, 0, 8, 8, 8], [4, 6])
    with_bos = form("trl", byte_level(bos="<|bos|>"), marker="\n\n")
    assert ids_and_places(with_bos, solution(("1",), "2")) == ([11, 1, 0, 9], [3])
    longer = form("trl", byte_level(), marker="=?")
    assert ids_and_places(longer, solution(("1",), "2")) == ([1, 0, 5, 6], [3])


def test_padding_is_on_the_right_and_never_scored() -> None:
    found = form("rlhflow", byte_level(LLAMA3))
    inputs, read_BT = found.encode([solution(("1",), "1"), solution()])
    assert inputs["attention_mask"].sum(dim=1).tolist() == [15, 38]
    assert read_BT.nonzero().tolist() == [[0, 12], [1, 19], [1, 35]]


@pytest.mark.parametrize("name", ["math-shepherd", "qwen", "rlhflow", "visualprm", "skywork", "trl"])
def test_solutions_that_no_family_supports(name: str) -> None:
    found = form(name, sentencepiece() if name == "math-shepherd" else byte_level(bos="<|bos|>"))
    with pytest.raises(DataError, match="problem p: a solution must have at least one step"):
        found.mark(solution(()))
    with pytest.raises(DataError, match="problem p: has images"):
        found.mark(solution(images=(ImageRef(path="x.png"),)))


def test_tokens_come_from_the_family(tmp_path: Path) -> None:
    (tmp_path / "prm.json").write_text('{"format": "math-shepherd", "tokens": {"marker": "<extra_0>"}}')
    assert read_info(tmp_path).tokens == PrmTokens(marker="<extra_0>", yes="+", no="-")
    assert PrmInfo(format="qwen").tokens.marker == "<extra_0>"
    assert PrmInfo().tokens == PrmTokens()
    with pytest.raises(CheckpointError, match=r"has format math-shepherd, but scorer\.format=qwen"):
        read_info(tmp_path, "qwen")
    with pytest.raises(CheckpointError, match="has format 'math-shepherd', which only supports scoring"):
        load_prm(tmp_path)
    assert read_info(tmp_path / "other", "trl").format == "trl"
    with pytest.raises(
        CheckpointError, match=r"set its format \(scorer\.format\) to one of math-shepherd, qwen, rlhflow"
    ):
        read_info(tmp_path / "other")
