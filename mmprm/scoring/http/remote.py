"""Score solutions on one or more `mmprm serve` servers."""

from __future__ import annotations

import asyncio
import base64
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mmprm.client import Body, Client, Failure
from mmprm.data.choices import asked_question
from mmprm.data.images import image_bytes
from mmprm.errors import ConfigError, DataError, EngineStoppedError, SamplingError, UnknownScoresError
from mmprm.problems import image_pixels
from mmprm.scoring.config import ServerConfig
from mmprm.scoring.context import all_scored
from mmprm.scoring.http.wire import MIB, BatchOut, ErrorOut, ModelOut
from mmprm.scoring.loop_thread import LoopThread
from mmprm.types import ImageRef, Solution, StepScores

REQUEST_SOLUTIONS = 32
BODY_MIB = 64
"""Default maximum size of a request body in MiB, for servers that do not report their own."""
BODY_SHARE = 0.9
"""Fraction of the maximum body size to fill with solutions. The rest is for JSON keys and separators."""
_BATCH = TypeAdapter(BatchOut)
_MODEL = TypeAdapter(ModelOut)
_SOMEBODY: Body = {"solutions": [{"question": "What is 1 + 1?", "steps": ["1 + 1 = 2"]}]}


class RemoteScorer:
    """Scores solutions on `mmprm serve` servers. It is thread-safe: a dedicated thread sends all requests.

    A server that is busy, loading or temporarily unreachable is retried as configured; if none answers, `score` raises
    EngineStoppedError. `model` describes the model of the first URL that answers. Scores from another model raise
    ConfigError, because they are not comparable.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._thread = LoopThread("remote scorer")
        try:
            self._client, self.model = self._thread.wait(self._connect())
        except BaseException:
            self._thread.stop()
            raise

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """Return P(no error so far) for each step of each solution."""
        return all_scored(self.score_each(solutions))

    def score_each(self, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
        """Score solutions like `score`, but return a DataError for each one that the server cannot score."""
        return self._thread.wait(self._score(solutions))

    def close(self) -> None:
        """Close the connections and stop the background thread."""
        self._thread.wait(self._client.close())
        self._thread.stop()

    async def _connect(self) -> tuple[Client, ModelOut]:
        client = Client(self._config)
        try:
            return client, await client.ask("/v1/model", None, "", _read_model, None)
        except BaseException:
            await client.close()
            raise

    async def _score(self, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
        scores: dict[int, StepScores | DataError] = {}
        requests = self._requests(solutions)  # shared by the workers, so that solutions are read lazily

        async def work() -> None:
            for indices in requests:
                answers = await self._ask([solutions[index] for index in indices])
                scores.update(zip(indices, answers, strict=True))

        workers = [asyncio.create_task(work()) for _ in range(self._config.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [scores[index] for index in range(len(solutions))]

    def _requests(self, solutions: Sequence[Solution]) -> Iterator[list[int]]:
        """Split the solutions into requests that fit the server's limits; yield the indices of each."""
        limits = self.model.limits
        count = min(REQUEST_SOLUTIONS, limits.get("solutions", REQUEST_SOLUTIONS))
        max_size = limits.get("body_mib", BODY_MIB) * MIB * BODY_SHARE
        max_pixels = limits.get("request_pixels", math.inf)
        indices: list[int] = []
        size = pixels = 0
        for index, solution in enumerate(solutions):
            own, own_pixels = self._size(solution), _pixels(solution)
            if indices and (len(indices) == count or size + own > max_size or pixels + own_pixels > max_pixels):
                yield indices
                indices, size, pixels = [], 0, 0
            indices.append(index)
            size += own
            pixels += own_pixels
        if indices:
            yield indices

    def _size(self, solution: Solution) -> int:
        """Return an upper bound on the size of a solution as JSON, in bytes. An escaped character takes up to 12
        bytes."""
        seen = (part for parts in solution.observations for part in parts if isinstance(part, str))
        texts = (asked_question(solution.problem), *solution.steps, *seen)
        size = sum(len(text) if text.isascii() else 12 * len(text) for text in texts) + 16 * len(texts)
        # The server limits the bytes of images sent by path like those in the body.
        return size + sum(_length(image) * 4 // 3 + 16 for image in solution.images)

    async def _ask(self, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
        body = await asyncio.to_thread(self._body, solutions)
        try:
            answer = await self._post(body, solutions[0].problem.id)
        except EngineStoppedError:
            raise
        except SamplingError as error:
            if len(solutions) > 1:
                middle = len(solutions) // 2
                return [*await self._ask(solutions[:middle]), *await self._ask(solutions[middle:])]
            return [DataError(f"problem {solutions[0].problem.id}: {error}")]
        scores: list[StepScores | DataError] = []
        for solution, result in zip(solutions, answer.results, strict=True):
            if isinstance(result, ErrorOut):
                await self._see_that_it_works(result)
                scores.append(self._failed(solution, result))
            else:
                scores.append(StepScores(tuple(result.scores), result.tokens))
        return scores

    def _failed(self, solution: Solution, result: ErrorOut) -> DataError:
        message = self._client.quoted(_complaint(solution, result))
        if result.error.type == "unknown":
            return UnknownScoresError(message, result.error.tokens or 0)
        return DataError(message)

    async def _post(self, body: Body, affinity: str) -> BatchOut:
        answer = await self._client.ask("/v1/score/batch", body, affinity, _read_batch, _SOMEBODY)
        ours, theirs = _identity(self.model), _identity(answer)
        if ours != theirs:
            raise ConfigError(
                f"scorer.server.urls={', '.join(self._config.urls)}: one serves {self._client.quoted(ours)}, another "
                f"{self._client.quoted(theirs)}; scores of different models cannot be mixed; give only the URLs of one "
                "model"
            )
        return answer

    async def _see_that_it_works(self, result: ErrorOut) -> None:
        """Raise EngineStoppedError if the model cannot score even a trivial solution."""
        if result.error.type == "internal":
            (probe,) = (await self._post(_SOMEBODY, "")).results
            if isinstance(probe, ErrorOut) and probe.error.type == "internal":
                message = self._client.quoted(probe.error.message)
                raise EngineStoppedError(
                    f"{', '.join(self._config.urls)}: the model fails on every solution ({message}); see the server's "
                    "log"
                )

    def _body(self, solutions: Sequence[Solution]) -> dict[str, Any]:
        for solution in solutions:
            if solution.problem.videos or solution.problem.audios:
                raise DataError(
                    f"problem {solution.problem.id}: has videos or audio, which are not sent to a service; use "
                    "scorer.backend=transformers"
                )
        return {
            "solutions": [
                {
                    "id": solution.problem.id[:1000],
                    "question": asked_question(solution.problem),
                    "steps": solution.steps,
                    **self._seen(solution),
                }
                for solution in solutions
            ]
        }

    def _seen(self, solution: Solution) -> dict[str, Any]:
        if not solution.observations:
            return {"images": [self._image(image) for image in solution.problem.images]}
        return {
            "observations": [
                [{"text": part} if isinstance(part, str) else self._image(part) for part in parts]
                for parts in solution.observations
            ]
        }

    def _image(self, image: ImageRef) -> dict[str, str]:
        if image.path is not None and self._config.send_paths:
            return {"path": os.path.abspath(image.path)}
        return {"data": _base64(image)}


def _base64(image: ImageRef) -> str:
    try:
        data = image_bytes(image)
    except OSError as error:
        raise DataError(
            f"{image.path}: cannot be read as an image ({error.strerror}); check the path, or set image_root"
        ) from error
    return base64.b64encode(data).decode()


def _length(image: ImageRef) -> int:
    try:
        return len(image.data) if image.data is not None else os.path.getsize(image.path or "")
    except OSError:
        return 0  # reported when the file is read


def _pixels(solution: Solution) -> int:
    try:
        return sum(map(image_pixels, solution.images))
    except DataError:
        return 0  # reported when the file is read


def _identity(answer: ModelOut | BatchOut) -> str:
    weights = f", weights {answer.fingerprint}" if answer.fingerprint else ""
    return f"{answer.model} with aggregator {answer.aggregator}{weights}"


def _complaint(solution: Solution, result: ErrorOut) -> str:
    """Return the server's error message, preceded by the problem's name unless the message already contains it."""
    message, field, name = result.error.message, result.error.field, f"problem {solution.problem.id}"
    if message.startswith(name):
        return message
    return f"{name}: {f'{field}: ' if field and field not in message else ''}{message}"


def _read_model(values: Any, _: Body) -> ModelOut:
    try:
        model = _MODEL.validate_python(values)
    except ValidationError as error:
        raise Failure("answer is not from mmprm serve", _first(error)) from error
    for name, value in model.limits.items():
        if not (math.isfinite(value) and value >= 0) or (value < 1 and name in ("solutions", "body_mib")):
            raise Failure("answer is not from mmprm serve", f"limits.{name}={value}")
    return model


def _read_batch(values: Any, body: Body) -> BatchOut:
    try:
        answer = _BATCH.validate_python(values)
    except ValidationError as error:
        raise Failure("answer is not a list of scores", _first(error)) from error
    asked = (body or {})["solutions"]
    if len(answer.results) != len(asked):
        raise Failure("answer has an incorrect number of results", f"asked for {len(asked)}, got {len(answer.results)}")
    for solution, result in zip(asked, answer.results, strict=True):
        if isinstance(result, ErrorOut):
            continue
        # A server with too_long=cut returns no scores for the last steps of a long solution.
        if not 0 < len(result.scores) <= len(solution["steps"]) or not all(0 <= score <= 1 for score in result.scores):
            raise Failure("answer has impossible scores", f"{len(solution['steps'])} steps, {result.scores[:8]}")
    return answer


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
