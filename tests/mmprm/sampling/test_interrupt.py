"""Test that an interrupt completes requests with the tokens so far, with vLLM's own bookkeeping of requests."""

from __future__ import annotations

from concurrent.futures import Future
from copy import copy
from types import SimpleNamespace
from typing import Any

import pytest

from mmprm.sampling.engines import _abort


class Bookkeeping:
    """Holds vLLM's output processor, as LLMEngine does, without the part that computes tokens."""

    def __init__(self) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        self.output_processor = OutputProcessor(None, log_stats=False)
        self.aborted: list[str] = []

    def add(self, name: str, n: int) -> None:
        """Add a request for `n` samples, as LLMEngine.add_request does."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.engine.parallel_sampling import ParentRequest

        params = SamplingParams(n=n, max_tokens=9, seed=7, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
        request = EngineCoreRequest(f"{name}-id", [1, 2], None, params, None, 0.0, None, None, None)
        request.external_req_id = name
        if n == 1:
            self.output_processor.add_request(request, None)
            return
        parent = ParentRequest(request)
        for index in range(n):
            child = copy(request)
            child.request_id, child.sampling_params = parent.get_child_info(index)
            self.output_processor.add_request(child, None, parent, index)

    def sampled(self, request_id: str, tokens: list[int], finish_reason: Any = None) -> None:
        """Report tokens of a sample."""
        from vllm.v1.engine import EngineCoreOutput

        output = EngineCoreOutput(request_id, tokens, finish_reason=finish_reason)
        self.output_processor.process_outputs([output])

    def abort_request(self, names: list[str]) -> None:
        self.aborted += self.output_processor.abort_requests(names, internal=False)


@pytest.fixture
def engine() -> Bookkeeping:
    from vllm.v1.engine import FinishReason

    engine = Bookkeeping()
    engine.add("single", 1)
    engine.add("group", 3)
    engine.sampled("single-id", [4])
    engine.sampled("single-id", [5])
    engine.sampled("0_group-id", [6], FinishReason.STOP)
    engine.sampled("1_group-id", [7])
    return engine


def test_requests_end_with_the_tokens_so_far(engine: Bookkeeping) -> None:
    in_flight: dict[str, Future[Any]] = {"single": Future(), "group": Future()}
    futures = dict(in_flight)
    _abort(engine, in_flight)
    assert in_flight == {}
    found = {
        name: [(list(each.token_ids), each.finish_reason) for each in future.result(timeout=0).outputs]
        for name, future in futures.items()
    }
    assert found["single"] == [([4, 5], "abort")]
    assert found["group"] == [([6], "stop"), ([7], "abort"), ([], "abort")]


def test_vllm_keeps_nothing_of_them(engine: Bookkeeping) -> None:
    _abort(engine, {"single": Future(), "group": Future()})
    assert set(engine.aborted) == {"single-id", "1_group-id", "2_group-id"}
    processor = engine.output_processor
    assert (processor.request_states, processor.parent_requests, dict(processor.external_req_ids)) == ({}, {}, {})


def test_an_interrupt_without_requests_does_nothing() -> None:
    aborted: list[str] = []
    processor = SimpleNamespace(request_states={}, parent_requests={})
    _abort(SimpleNamespace(output_processor=processor, abort_request=aborted.extend), {})
    assert aborted == []
