"""Test the service with oversized requests: limits apply before they cost resources, and other clients get
their turn.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image
from served import StepScorer, ask, client, make_service, running, until

from mmprm.errors import ConfigError, DataError
from mmprm.problems import image_size
from mmprm.scoring.http.body import parse_body
from mmprm.scoring.http.limits import MIB, ServiceLimits
from mmprm.scoring.http.queue import Pace
from mmprm.scoring.http.refused import Refused
from mmprm.scoring.http.traffic import Traffic
from mmprm.scoring.http.turns import FairQueue
from mmprm.types import ImageRef

VALUES = ServiceLimits().max_values


def bomb(value: bytes, size: int) -> bytes:
    return b'{"question": "q", "steps": [' + b",".join([value] * (size // (len(value) + 1))) + b"]}"


@pytest.mark.parametrize("value", [b"{}", b'"ab"', b"[]", b"null", b"1"])
def test_values_are_counted_before_parsing(value: bytes) -> None:
    """Parsed into objects, 10 MiB of values would take hundreds of megabytes."""
    body = bomb(value, 10 * MIB)
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(Refused, match=r"more than [\d,]+ JSON values") as caught:
        parse_body(body, VALUES)
    assert time.process_time() - begun < 10
    assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    tracemalloc.stop()
    assert (caught.value.status, caught.value.kind) == (422, "too_large")


def test_commas_and_braces_in_text_do_not_count_as_values() -> None:
    body = json.dumps(ask('{[,\\"' * 200_000)).encode()
    assert parse_body(body, VALUES)["steps"] == ['{[,\\"' * 200_000]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"question": NaN}', 422, "NaN is not a JSON number"),
        (b'{"question": -Infinity}', 422, "-Infinity is not a JSON number"),
        (b'{"question": "a", "question": "b"}', 422, "the key 'question' occurs twice"),
        (b'{"a": {"\\u0062": 1, "b": 2}}', 422, "the key 'b' occurs twice"),
        (b"{" + b",".join(b'"%d": 1' % number for number in range(17)) + b"}", 422, "an object has 17 keys"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"a":' * 100_000, 400, "nested too deeply"),
        (b'{"question": "\xc3"}', 400, "not UTF-8"),
        (b"\xff\xfe{\x00}\x00", 400, "not UTF-8"),
        (b'{"question": "a', 422, "Unterminated string"),
        (b'"' + b"\\" * 100_000, 422, "not JSON"),
        (b"{} {}", 422, "Extra data"),
    ],
)  # fmt: skip
def test_invalid_json_is_explained(body: bytes, status: int, message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        parse_body(body, VALUES)
    assert (caught.value.status, caught.value.kind) == (status, "invalid_request")


def test_huge_numbers_cost_nothing() -> None:
    begun = time.process_time()
    assert parse_body(b"[" + b"9" * 10**6 + b", 1e999999999, -0.5]", VALUES) == [0, 0, 0]
    assert time.process_time() - begun < 2


def png(side: int) -> str:
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_pixels_are_bounded_per_solution_and_per_request() -> None:
    """Images have 10,000 pixels; a solution may have 25,000 and a request 45,000."""
    scorer = StepScorer()
    limits = ServiceLimits(pixels=10_000, solution_pixels=25_000, request_pixels=45_000)
    image = {"data": png(100)}
    with running(make_service(lambda: scorer, limits)) as url, client(url) as http:
        solutions = [ask("1", images=[image] * count) for count in (2, 3, 1, 1)]
        results = http.post("/v1/score/batch", json={"solutions": solutions}).json()["results"]
    messages = [result.get("error", {}).get("message", "") for result in results]
    assert "scores" in results[0]
    assert messages[1].startswith(
        "the images of a solution have 30,000 pixels or more, but at most 25,000 are accepted"
    )
    assert messages[2].startswith(
        "the images of the request have 60,000 pixels or more, but at most 45,000 are accepted"
    )
    with pytest.raises(ConfigError, match="solution_pixels must be at least pixels"):
        make_limits(pixels=100, solution_pixels=10)


def make_limits(**values: Any) -> ServiceLimits:
    from mmprm.config import build

    return build(ServiceLimits, values)


def frames() -> str:
    buffer = io.BytesIO()
    images = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:])
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    "data",
    ["", base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(), frames(), "iVBORw0KGgo=", "\ud800"],
    ids=["empty", "SVG", "two frames", "signature alone", "surrogate"],
)
def test_an_invalid_image_is_explained_without_object_addresses(data: str) -> None:
    body = json.dumps(ask("1", images=[{"data": data}])).encode()
    with running(make_service(StepScorer)) as url, client(url) as http:
        answer = http.post("/v1/score", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]["type"] == "invalid_request"
    assert " object at " not in answer.text


def many_chunks() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    return head + chunk(b"tEXt", b"a\0b") * 200_000 + chunk(b"IDAT", zlib.compress(bytes(72))) + chunk(b"IEND", b"")


def many_frames() -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    return head + (b"\x2c" + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + b"\x02\x02\x8c\x05\x00") * 200_000 + b"\x3b"


@pytest.mark.parametrize("make", [many_chunks, many_frames, lambda: b"\xff\xd8" + b"\xff\xfe\x00\x02" * 200_000])
def test_an_image_with_too_many_chunks_is_not_read_to_its_end(make: Callable[[], bytes]) -> None:
    begun = time.process_time()
    with pytest.raises(DataError, match="too many parts for an image of its size"):
        image_size(ImageRef(data=make()))
    assert time.process_time() - begun < 2


def test_pillows_internal_names_are_not_shown() -> None:
    with pytest.raises(DataError, match=r"\(UnidentifiedImageError: cannot identify image file\)"):
        image_size(ImageRef(data=b"no image"))


class Reading(StepScorer):
    """Has a model context of ten tokens."""

    max_tokens = 10


def test_length_is_bounded_before_anything_is_tokenized() -> None:
    scorer = Reading()
    with running(make_service(lambda: scorer)) as url, client(url) as http:
        error = http.post("/v1/score", json=ask("1" * 200)).json()["error"]
        assert http.post("/v1/score", json=ask("1" * 150)).status_code == 200
    assert error["type"] == "unscorable"
    assert "at most 160 are tokenized" in error["message"]
    assert [len(batch) for batch in scorer.batches] == [1]


def test_a_small_request_overtakes_a_large_one() -> None:
    """The large request has 200 solutions, and its first batch is being scored when the small one arrives."""
    scorer = StepScorer()
    service = make_service(lambda: scorer, ServiceLimits(batch_characters=200, batch_seconds=1000))
    with running(service) as url, client(url) as http, ThreadPoolExecutor(2) as pool:
        scorer.go.clear()
        large = [ask(str(number / 256), "1" * 1) for number in range(200)]
        taken = pool.submit(http.post, "/v1/score/batch", json={"solutions": large})
        until(lambda: len(scorer.batches) == 1)
        small = pool.submit(http.post, "/v1/score", json=ask("0.5", "0"))
        until(lambda: service._queue.waiting == 200 - len(scorer.batches[0]) + 1)
        scorer.go.set()
        assert small.result().status_code == 200
        assert [result["aggregate"] for result in taken.result().json()["results"]] == [n / 256 for n in range(200)]
    assert ("0.5", "0") in [solution.steps for solution in scorer.batches[1]]
    assert len(scorer.batches) > 4


def order(turns: FairQueue[str]) -> str:
    return "".join(turns.pop() for _ in range(len(turns)))


def test_clients_take_turns_with_their_smallest_request_first() -> None:
    turns: FairQueue[str] = FairQueue()
    turns.add("x", [(item, 1.0) for item in "abcd"])
    turns.add("x", [("e", 1.0)])
    turns.add("y", [(item, 1.0) for item in "12"])
    assert order(turns) == "e1a2bcd"
    assert len(turns) == 0


def test_the_request_that_was_served_least_is_next() -> None:
    """Service is weighted: a heavy item counts as much as two light ones of another request."""
    turns: FairQueue[str] = FairQueue()
    turns.add("x", [(item, 2.0) for item in "AB"])
    turns.add("x", [(item, 1.0) for item in "abcdef"])
    assert turns.pop() == "A"
    turns.add("x", [("n", 1.0)])
    assert order(turns) == "nabBcdef"


def test_a_canceled_item_costs_no_turn() -> None:
    turns: FairQueue[str] = FairQueue()
    turns.add("x", [("a", 1.0), ("b", 1.0)])
    turns.add("y", [("1", 1.0)])
    assert turns.peek() == ("a", 1.0)
    assert turns.pop(free=True) == "a"
    assert order(turns) == "b1"


def test_the_pace_adapts_to_the_duration_of_batches() -> None:
    pace = Pace(most=1.0, seconds=0.5, limit=0.5)
    pace.took(weight=0.5, solutions=8, seconds=2.0)
    assert pace.limit == 0.125
    pace.took(weight=0.5, solutions=1, seconds=2.0)  # a single item cannot be split
    pace.took(weight=0.01, solutions=4, seconds=0.01)  # says little about a full batch
    assert pace.limit == 0.125
    for _ in range(5):
        pace.took(weight=pace.limit, solutions=8, seconds=0.1)
    assert pace.limit == 1.0


def test_pending_requests_are_limited_per_address() -> None:
    traffic = Traffic(ServiceLimits(in_flight=10, solutions=2, body_mib=1, in_flight_mib=4))
    with traffic.holding("a", 5):
        with pytest.raises(Refused, match="5 solutions of this address are not answered yet, but at most 5"):
            traffic.holding("a", 1).__enter__()
        with traffic.holding("b", 4), pytest.raises(Refused, match="9 solutions are not answered yet, but at most 10"):
            traffic.holding("c", 2).__enter__()
    traffic.bytes["a"] = 2 * MIB
    with pytest.raises(Refused, match="bytes of this address are not answered yet"):
        traffic.check_bytes("a", 1)
    traffic.check_bytes("b", MIB)
    assert traffic.solutions.total() == 0


def test_one_full_request_always_fits_the_limit_per_address() -> None:
    traffic = Traffic(ServiceLimits(in_flight=3, solutions=3))
    with traffic.holding("a", 3):
        assert traffic.solutions["a"] == 3
