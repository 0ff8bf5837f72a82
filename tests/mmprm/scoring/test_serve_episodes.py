"""Test that episodes reach a served model with their observations, and that invalid observations are refused."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image
from served import StepScorer, make_service, running

from mmprm.scoring.config import ServerConfig
from mmprm.scoring.http.limits import ServiceLimits
from mmprm.scoring.http.refused import Refused
from mmprm.scoring.http.remote import RemoteScorer
from mmprm.scoring.http.wire import Reader
from mmprm.types import ImageRef, Problem, Solution, StepScores


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, "PNG")
    return buffer.getvalue()


FRAME = ImageRef(data=png())
PICTURE = {"data": base64.b64encode(png()).decode()}
EPISODE = Solution(Problem("p", "q", ""), ("0.5", "0.25"), (("Go.", FRAME), (FRAME,)))


def read(value: dict[str, Any], **limits: int) -> Solution:
    return Reader(ServiceLimits(**limits), None, 1000).read(value, "solution 0")


def test_an_episode_arrives_as_it_was_sent() -> None:
    scorer = StepScorer()
    with running(make_service(lambda: scorer)) as url:
        asked = RemoteScorer(ServerConfig(urls=(url,)))
        plain = Solution(Problem("s", "q", ""), ("1",))
        assert asked.score([EPISODE, plain]) == [StepScores((0.5, 0.25)), StepScores((1.0,))]
        asked.close()
    arrived = {each.problem.id: each for batch in scorer.batches for each in batch}
    assert (arrived["p"].steps, arrived["p"].observations) == (EPISODE.steps, EPISODE.observations)
    assert arrived["s"].observations == ()


def test_the_question_of_an_episode_may_be_empty() -> None:
    value = {"question": "", "steps": ["a"], "observations": [[{"text": "Go."}, PICTURE]]}
    assert read(value).observations == (("Go.", FRAME),)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"observations": [[{"text": "Go."}]]}, "observations", "1 observations for 2 steps"),
        ({"images": [PICTURE]}, "images", "the images of an episode are in its observations"),
        ({"observations": [[{"text": "a"} | PICTURE], []]}, "observations[0][0]", "a text and an image"),
        ({"observations": [[], [{}]]}, "observations[1][0]", "must have either data"),
        ({"observations": [[], [{"text": "\ud800"}]]}, "observations[1][0]", "half of a surrogate pair"),
    ],
)
def test_invalid_observations_are_refused(change: dict[str, Any], field: str, message: str) -> None:
    value = {"question": "q", "steps": ["a", "b"], "observations": [[{"text": "Go."}], [PICTURE]]}
    with pytest.raises(Refused, match=message) as caught:
        read(value | change)
    assert caught.value.field == field


def test_the_images_of_all_observations_are_counted() -> None:
    value = {"question": "q", "steps": ["a", "b"], "observations": [[PICTURE, PICTURE], [PICTURE]]}
    assert len(read(value, images=3).images) == 3
    with pytest.raises(Refused, match="a solution has 3 images, but at most 2"):
        read(value, images=2)
