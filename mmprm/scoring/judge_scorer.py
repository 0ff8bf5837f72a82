"""Score the steps of solutions with a thinking judge, whose chains of thought end in a verdict on each step.

Shapes: K chain, S step. With verdicts v_KS in {0, 1} of the K chains that can be read, score_S = (1/K) Σ_K v_KS. A
chain that was cut off, or whose verdicts cannot be read, is in neither sum. If no chain can be read, the solution has
no scores: it is unknown.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from mmprm.client import Failure
from mmprm.data.choices import asked_question
from mmprm.data.marks import check_text, strip_marks
from mmprm.errors import DataError, EngineStoppedError, SamplingError, UnknownScoresError
from mmprm.grading.reply_cache import ReplyCache, reply_key
from mmprm.problems import content_id
from mmprm.sampling.seeds import derive_seed
from mmprm.scoring.context import all_scored
from mmprm.scoring.judge_config import ThinkingJudgeConfig
from mmprm.scoring.loop_thread import LoopThread
from mmprm.scoring.verdicts import VERDICT_FORMATS, Verdicts, read_verdicts
from mmprm.types import Completion, Problem, Sampler, SampleRequest, Solution, StepScores
from mmprm.weights import fingerprint

_NAMES = re.compile(r"\{(question|steps)\}")
_WHOLE = ("stop", "length")
"""Reasons for which a chain ends by itself. A chain that the engine aborted is not cached."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Holds the verdicts of one chain of thought, or the reason why it has none, its number of tokens, and its text."""

    verdicts: Verdicts | str
    token_count: int
    text: str = ""


class JudgeScorer:
    """Scores solutions with a thinking judge. It is thread-safe: a dedicated thread sends all requests.

    `sampler` replaces the configured engine. `unread` counts the chains whose verdicts could not be read, by reason.
    """

    def __init__(self, config: ThinkingJudgeConfig, sampler: Sampler | None = None) -> None:
        self._config = config
        self._format = VERDICT_FORMATS[config.verdict_format]
        self._asked = judge_identity(config)
        self.unread: Counter[str] = Counter()
        self._any_failed = False
        self._resources = AsyncExitStack()
        self._thread = LoopThread("thinking judge")
        try:
            self._thread.wait(self._open(sampler))
        except BaseException:
            self.close()
            raise

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """Return the mean verdict on each step of each solution; raise UnknownScoresError if one is unknown."""
        return all_scored(self.score_each(solutions))

    def score_each(self, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
        """Score solutions like `score`, but return a DataError for each one that has no scores.

        It is an UnknownScoresError if the judge was asked and no chain could be read. Raises EngineStoppedError if the
        judge's engine or servers fail altogether; the chains so far are cached.
        """
        judged = zip(solutions, self.chains(solutions), strict=True)
        return [_scored(solution, chains) for solution, chains in judged]

    def chains(self, solutions: Sequence[Solution]) -> list[list[Chain] | DataError]:
        """Return the chains about each solution, or the DataError that prevents the judge from being asked about it.

        Raises EngineStoppedError like `score_each`.
        """
        return self._thread.wait(self._judged(solutions))

    def close(self) -> None:
        """Close the engine, or the connections to the servers, and the cache."""
        self._thread.wait(self._resources.aclose())
        self._thread.stop()

    async def _open(self, sampler: Sampler | None) -> None:
        self._cache = ReplyCache(self._config.cache)
        self._resources.callback(self._cache.close)
        self._sampler = sampler or await self._resources.enter_async_context(_opened(self._config))

    async def _judged(self, solutions: Sequence[Solution]) -> list[list[Chain] | DataError]:
        keys = [self._key(solution) for solution in solutions]
        distinct = dict(zip(keys, solutions, strict=True))
        tasks = {key: asyncio.create_task(self._chains(key, solution)) for key, solution in distinct.items()}
        try:
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        return [tasks[key].result() for key in keys]

    async def _chains(self, key: bytes, solution: Solution) -> list[Chain] | DataError:
        """Return the chains about a solution, or the DataError that prevents the judge from being asked."""
        chains: list[Chain] = []
        try:
            request = judge_request(self._config, solution)
            while count := self._affordable(chains):
                chains += await self._further(key, request, len(chains), count, len(solution.steps))
        except DataError as error:
            return error
        self.unread.update(chain.verdicts for chain in chains if isinstance(chain.verdicts, str))
        return chains

    def _affordable(self, chains: Sequence[Chain]) -> int:
        """Return how many further chains to ask for: they fit the budget even if each has max_tokens tokens."""
        missing = self._config.chains - len(chains)
        if self._config.token_budget is None:
            return missing
        left = self._config.token_budget - sum(chain.token_count for chain in chains)
        return min(missing, max(0, left) // self._config.sampling.max_tokens)

    async def _further(self, key: bytes, request: Problem, first: int, count: int, steps: int) -> list[Chain]:
        """Return chains `first` to `first + count - 1`, from the cache as far as possible."""
        completions = self._cached(key, first, count)
        chains = [self._read(completion, steps) for completion in completions]
        first, count = first + len(completions), count - len(completions)
        if not count:
            return chains
        seed = derive_seed(self._config.seed, key.hex(), "", 0)
        try:
            sampled = await self._sampler.sample(SampleRequest(request, "", count, seed + first))
        except EngineStoppedError:
            raise
        except SamplingError as error:
            return [*chains, *[Chain(self._failed(error), 0)] * count]
        for number, completion in enumerate(sampled, start=first):
            if completion.finish_reason in _WHOLE:
                self._cache.put(_chain_key(key, number), _cached_text(completion))
        return [*chains, *(self._read(completion, steps) for completion in sampled)]

    def _failed(self, error: SamplingError) -> str:
        """Return the reason why the chains of a failed request are unknown; print the first such error in full."""
        if not self._any_failed:
            print(f"the judge gives no verdicts for this and similar requests: {error}", file=sys.stderr, flush=True)
        self._any_failed = True
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Failure):
            cause = cause.__cause__
        return f"a request that failed: {type(error).__name__ if cause is None else cause.kind}"

    def _cached(self, key: bytes, first: int, count: int) -> list[Completion]:
        """Return the chains from `first` on that are cached, up to the first one that is missing."""
        found: list[Completion] = []
        for number in range(first, first + count):
            reply = self._cache.get(_chain_key(key, number))
            completion = None if reply is None else _completion(reply)
            if completion is None:
                break
            found.append(completion)
        return found

    def _read(self, completion: Completion, steps: int) -> Chain:
        if completion.finish_reason != "stop":
            return Chain("a chain that was cut off", completion.token_count, completion.text)
        verdicts = read_verdicts(completion.text, steps, self._format, self._config.after_error)
        return Chain(verdicts, completion.token_count, completion.text)

    def _key(self, solution: Solution) -> bytes:
        problem = solution.problem
        content = content_id(asked_question(problem), "", problem.images)
        return reply_key(self._asked, content, *solution.steps)


def judge_request(config: ThinkingJudgeConfig, solution: Solution) -> Problem:
    """Return the request about a solution as a problem. Raises DataError if a text contains a special token."""
    problem, form = solution.problem, VERDICT_FORMATS[config.verdict_format]
    location = f"problem {problem.id}"
    if solution.observations:
        raise DataError(f"{location}: is an episode, which no judge reads; use a process reward model")
    if problem.videos or problem.audios:
        raise DataError(f"{location}: has videos or audio, which no judge reads; use a process reward model")
    question = asked_question(problem)
    check_text(question, "question", location)
    steps = form.steps_text([strip_marks(step) for step in solution.steps])
    check_text(steps, "steps", location)
    texts = {"question": question, "steps": steps}
    # Substitute in one pass, because a question or a step may contain braces and even these names.
    text = _NAMES.sub(lambda match: texts[match[1]], config.request or form.request)
    return Problem(problem.id, text, "", problem.images)


def judge_identity(config: ThinkingJudgeConfig) -> str:
    """Return a text that identifies the judge: its model, and all that determines the chain of a given number."""
    request = config.request or VERDICT_FORMATS[config.verdict_format].request
    weights = "" if config.engine.servers is not None else fingerprint(config.engine.model)
    return json.dumps([config.identity(), config.prompt.chat_template, request, weights], sort_keys=True)


@asynccontextmanager
async def _opened(config: ThinkingJudgeConfig) -> AsyncIterator[Sampler]:
    if config.engine.servers is not None:
        from mmprm.sampling.server_sampler import ServerSampler

        async with ServerSampler(config.engine, config.sampling, config.prompt, reasoning="join") as server:
            yield server
        return
    from mmprm.sampling.vllm_sampler import VllmSampler

    sampler = VllmSampler(config.engine, config.sampling, config.prompt)
    try:
        yield sampler
    finally:
        sampler.close()


def _scored(solution: Solution, chains: list[Chain] | DataError) -> StepScores | DataError:
    """Average the verdicts of the readable chains, or return the reason why there are none."""
    if isinstance(chains, DataError):
        return chains
    tokens = sum(chain.token_count for chain in chains)
    verdicts_KS = [chain.verdicts for chain in chains if not isinstance(chain.verdicts, str)]
    if not verdicts_KS:
        reasons = Counter(chain.verdicts for chain in chains)
        counted = ", ".join(f"{count} × {reason}" for reason, count in reasons.items())
        return UnknownScoresError(
            f"problem {solution.problem.id}: the judge's verdicts are unknown ({counted}); raise "
            "judge.sampling.max_tokens or judge.chains, or check judge.verdict_format",
            tokens,
        )
    return StepScores(
        tuple(sum(verdicts_K) / len(verdicts_KS) for verdicts_K in zip(*verdicts_KS, strict=True)), tokens
    )


def _chain_key(key: bytes, number: int) -> bytes:
    return reply_key(key.hex(), str(number))


def _cached_text(completion: Completion) -> str:
    return json.dumps({name: getattr(completion, name) for name in ("text", "token_count", "finish_reason")})


def _completion(reply: str) -> Completion | None:
    """Parse a cached chain, or return None if the cache is damaged."""
    try:
        values = json.loads(reply)
        completion = Completion(values["text"], values["token_count"], values["finish_reason"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    sound = isinstance(completion.text, str) and isinstance(completion.token_count, int)
    return completion if sound else None
