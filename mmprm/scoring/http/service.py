"""Implement `mmprm serve`, an HTTP service for one process reward model.

Waiting requests are scored together, and clients take turns. One thread loads the model, scores with it and closes it.
PREPARING_THREADS threads parse requests, and as many others decode images.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from mmprm.errors import DataError, UnknownScoresError
from mmprm.scoring.aggregate import aggregator
from mmprm.scoring.http.api_page import api_page
from mmprm.scoring.http.body import bounded_route, parse_body
from mmprm.scoring.http.gate import Gate, caller_of, while_connected
from mmprm.scoring.http.limits import ServiceLimits
from mmprm.scoring.http.memory import give_back
from mmprm.scoring.http.queue import Pace, ScoreQueue, ScoreResult
from mmprm.scoring.http.refusals import ERRORS, refused_for
from mmprm.scoring.http.refused import Refused
from mmprm.scoring.http.traffic import Metrics, Traffic
from mmprm.scoring.http.wire import BatchIn, BatchOut, ModelOut, Reader, ScoreOut, SolutionIn
from mmprm.scoring.open import ClosableScorer
from mmprm.types import Problem, Solution, StepScores

_BATCH_SOLUTIONS = 256
"""Maximum number of solutions per batch, so that a new request need not wait for all earlier ones."""
PREPARING_THREADS = 2
"""Number of threads that parse JSON and validate texts. The same number of other threads decode images."""
RETRY_AFTER = "1"

PROBE = Solution(Problem("probe", "What is 1 + 1?", answer=""), ("1 + 1 = 2",))
"""Solution that every working model can score, used to distinguish a broken model from an invalid solution."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Service:
    """Serves one scorer over HTTP.

    `app` is the ASGI application, `facts` is the response to GET /v1/model, and `load` creates the scorer. `failure` is
    set if the model could not be loaded or has stopped working.
    """

    def __init__(
        self,
        facts: ModelOut,
        load: Callable[[], ClosableScorer],
        *,
        limits: ServiceLimits,
        key: str | None = None,
        local_only: bool = False,
        image_root: Path | None = None,
    ) -> None:
        self.limits, self.key, self.local_only = limits, key, local_only
        self.metrics, self.traffic = Metrics(), Traffic(limits)
        self.closing = False
        self.failure: Exception | None = None
        self._facts, self._load, self._image_root = facts, load, image_root
        self._aggregate = aggregator(facts.aggregator)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._texts = ThreadPoolExecutor(PREPARING_THREADS, thread_name_prefix="texts")
        self._images = ThreadPoolExecutor(PREPARING_THREADS, thread_name_prefix="images")
        self._queue: ScoreQueue | None = None
        self._max_characters = limits.characters
        # Solution weights are fractions of a full batch; the margin allows for rounding in their sum.
        self._pace = Pace(1 + 1e-9, limits.batch_seconds, 1 + 1e-9)
        self._probing: asyncio.Task[None] | None = None
        self.metrics.in_flight.set_function(lambda: self.traffic.requests)
        self.metrics.queue.set_function(lambda: self._queue.waiting if self._queue else 0)
        self.metrics.ready.set_function(lambda: self.refusal() is None)
        self.app = self._application()

    def refusal(self) -> Refused | None:
        """Return the 503 error for requests while the service is not ready, or None once it is ready."""
        if self.failure is not None:
            return Refused(503, "internal", "the model has failed; see the service's log")
        if self.closing:
            return Refused(503, "closing", "the service is closing; use another one")
        if self._queue is None:
            return Refused(503, "loading", "the model is loading; try again later")
        return None

    def answer(self, refused: Refused) -> Response:
        self.metrics.errors.labels(refused.kind).inc()
        headers = dict(refused.headers or {})
        if refused.status in (429, 503):
            headers["Retry-After"] = RETRY_AFTER
        if refused.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(refused.body(), refused.status, headers)

    async def _on_error(self, _: Request, error: Exception) -> Response:
        return self.answer(refused_for(error))

    def _application(self) -> FastAPI:
        app = FastAPI(
            title="mmprm serve",
            description="Scores of a process reward model: P(no error so far) for each step of a solution.",
            docs_url=None,  # FastAPI's pages load scripts from other hosts
            redoc_url=None,
            lifespan=self._lifespan,
        )
        app.router.route_class = bounded_route(self._parsed)
        app.add_api_route(
            "/v1/score",
            self.score,
            methods=["POST"],
            response_model=ScoreOut,
            responses=ERRORS,
            summary="Score one solution",
        )
        app.add_api_route(
            "/v1/score/batch",
            self.score_batch,
            methods=["POST"],
            response_model=BatchOut,
            responses=ERRORS,
            summary="Score many solutions; one that cannot be scored has an error in its place",
        )
        app.add_api_route(
            "/v1/model", self.model, response_model=ModelOut, summary="Describe the served model and its limits"
        )
        app.add_api_route("/health", self.health, summary="Return 200 while requests are accepted, otherwise 503")
        app.add_api_route("/metrics", self.metrics_text, summary="Return metrics in the Prometheus text format")
        app.add_api_route("/docs", self.page, include_in_schema=False)
        app.add_middleware(Gate, service=self)
        for kind in (Refused, RequestValidationError, HTTPException, Exception):
            app.add_exception_handler(kind, self._on_error)
        return app

    async def _parsed(self, body: bytes) -> Any:
        return await _in_thread(self._texts, parse_body, body, self.limits.max_values)

    async def score(self, item: SolutionIn, request: Request) -> Response:
        (answer,) = await self._judged([item], ["request"], request)
        if isinstance(answer, Refused):
            raise answer
        return JSONResponse(answer | self._names)

    async def score_batch(self, batch: BatchIn, request: Request) -> Response:
        count, most = len(batch.solutions), self.limits.solutions
        if count > most:
            text = f"the request has {count:,} solutions, but at most {most:,} are accepted; send fewer at once"
            raise Refused(422, "too_large", text, "solutions")
        positions = [f"solutions[{index}]" for index in range(count)]
        answers = await self._judged(batch.solutions, positions, request)
        for answer in answers:
            if isinstance(answer, Refused):
                self.metrics.errors.labels(answer.kind).inc()
        results = [answer.body() if isinstance(answer, Refused) else answer for answer in answers]
        return JSONResponse({"results": results} | self._names)

    async def model(self) -> Response:
        return JSONResponse(self._facts.model_dump())

    async def health(self) -> Response:
        if (refusal := self.refusal()) is not None:
            raise refusal
        return JSONResponse({"status": "ready", "model": self._facts.model})

    async def metrics_text(self) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self) -> Response:
        return HTMLResponse(api_page(self.app.openapi()))

    @property
    def _names(self) -> dict[str, str]:
        names = {"aggregator": self._facts.aggregator, "model": self._facts.model}
        return names | ({"fingerprint": self._facts.fingerprint} if self._facts.fingerprint else {})

    async def _judged(
        self, values: Sequence[Any], positions: Sequence[str], request: Request
    ) -> list[dict[str, Any] | Refused]:
        caller = caller_of(request.scope)
        with self.traffic.holding(caller, len(values)):
            return await while_connected(request, self._judge(values, positions, caller))

    async def _judge(
        self, values: Sequence[Any], positions: Sequence[str], caller: str
    ) -> list[dict[str, Any] | Refused]:
        """Score solutions, and return a Refused error in place of a result for each one that cannot be scored."""
        assert self._queue is not None, "the gate has checked that"
        threads = self._images if any(map(_has_images, values)) else self._texts
        prepared = await _in_thread(threads, self._prepared, values, positions)
        ready = [item for item in prepared if not isinstance(item, Refused)]
        solutions, weights = [solution for solution, _ in ready], [weight for _, weight in ready]
        answers = iter(await self._queue.judge(solutions, weights, caller))
        return [item if isinstance(item, Refused) else self._scored(next(answers)) for item in prepared]

    def _prepared(self, values: Sequence[Any], positions: Sequence[str]) -> list[tuple[Solution, float] | Refused]:
        """Validate solutions and return, for each one, the solution with the fraction of a batch that it fills, or a
        Refused error."""
        limits = self.limits
        reader = Reader(limits, self._image_root, self._max_characters)
        prepared: list[tuple[Solution, float] | Refused] = []
        for value, position in zip(values, positions, strict=True):
            before = reader.pixels
            try:
                solution = reader.read(value, position)
            except Refused as refused:
                prepared.append(refused)
                continue
            pixels = (reader.pixels - before) / limits.batch_pixels
            shares = (1 / _BATCH_SOLUTIONS, _characters(solution) / limits.batch_characters, pixels)
            prepared.append((solution, max(shares)))
        return prepared

    def _scored(self, answer: ScoreResult) -> dict[str, Any] | Refused:
        if isinstance(answer, UnknownScoresError):
            return Refused(422, "unknown", str(answer), tokens=answer.tokens)
        if isinstance(answer, DataError):
            return Refused(422, "unscorable", str(answer))
        if isinstance(answer, Exception):
            logger.error("a solution could not be scored", exc_info=answer)
            if self._probing is None or self._probing.done():
                self._probing = asyncio.create_task(self._probe())
            return Refused(500, "internal", f"the model failed on it ({type(answer).__name__}); see the service's log")
        if not answer.scores or not all(map(math.isfinite, answer.scores)):
            return Refused(500, "internal", "the model returned a score that is not finite; check its weights")
        self.metrics.solutions.inc()
        self.metrics.steps.inc(len(answer.scores))
        scored = {"scores": answer.scores, "aggregate": self._aggregate(answer.scores)}
        return scored if answer.tokens is None else scored | {"tokens": answer.tokens}

    async def _probe(self) -> None:
        assert self._queue is not None, "something was scored"
        (answer,) = await self._queue.judge([PROBE])
        if isinstance(answer, Exception) and not isinstance(answer, DataError):
            self.failure = answer

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loading = loop.create_task(self._open())
        yield
        self.closing = True
        scorer = await loading  # loading cannot be interrupted
        if scorer is not None:
            await loop.run_in_executor(self._thread, scorer.close)
        self._thread.shutdown()
        self._texts.shutdown()
        self._images.shutdown()

    async def _open(self) -> ClosableScorer | None:
        begun = time.perf_counter()
        try:
            scorer = await asyncio.get_running_loop().run_in_executor(self._thread, self._loaded)
        except Exception as error:
            self.failure = error
            return None
        context = getattr(scorer, "max_tokens", None)
        if context is not None:
            self._max_characters = int(context * self.limits.characters_per_token)
        self._queue = ScoreQueue(_Counted(scorer, self.metrics), self._pace, self._thread)
        logger.info("%s is ready after %.1f s", self._facts.model, time.perf_counter() - begun)
        return scorer

    def _loaded(self) -> ClosableScorer:
        """Load the scorer, and derive the size of the first batch from the time that it takes to score a short
        solution."""
        scorer = self._load()
        with contextlib.suppress(DataError):
            scorer.score([PROBE])  # the first call takes longer than later ones
            begun = time.perf_counter()
            scorer.score([PROBE])
            share = _characters(PROBE) / self.limits.batch_characters
            first = self.limits.batch_seconds * share / (time.perf_counter() - begun)
            self._pace.limit = min(first, self._pace.most)
        return scorer


async def _in_thread(threads: ThreadPoolExecutor, work: Callable[..., T], *values: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work, *values)


def _has_images(value: Any) -> bool:
    """Return whether a solution, validated or still raw JSON, may have images."""
    if isinstance(value, SolutionIn):
        return bool(value.images or value.observations)
    return isinstance(value, dict) and bool(value.get("images") or value.get("observations"))


def _characters(solution: Solution) -> int:
    seen = (part for parts in solution.observations for part in parts if isinstance(part, str))
    return sum(map(len, (solution.problem.question, *solution.steps, *seen)))


class _Counted:
    def __init__(self, scorer: ClosableScorer, metrics: Metrics) -> None:
        self._scorer, self._metrics = scorer, metrics

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        return self._scorer.score(solutions)

    def score_each(self, solutions: Sequence[Solution]) -> Sequence[ScoreResult]:
        self._metrics.batches.observe(len(solutions))
        try:
            return getattr(self._scorer, "score_each", self._scorer.score)(solutions)
        finally:
            if any(solution.images for solution in solutions):
                give_back()
