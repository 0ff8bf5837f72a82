"""Sample completions from OpenAI-compatible servers that are already running."""

from __future__ import annotations

import itertools
import re
from typing import Any, Literal

from mmprm.client import Choice, Client, Reply
from mmprm.data.marks import IMAGE
from mmprm.errors import EngineStoppedError, MmprmError, SamplingError
from mmprm.prompts import PromptConfig, assistant_beginning, messages
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.images import with_images
from mmprm.sampling.turn import TurnBeginning, with_given
from mmprm.steps import ends_with_step_tag
from mmprm.types import Completion, Problem, SampleRequest

_FINISHED = ("stop", "length")
_OPENING = re.compile(r"<(?:think|step(?:_\d+)?)>[^<]*(?:</think>\s*)?\Z")


class ServerSampler:
    """Samples from `engine.servers` on one event loop; must be closed on the same loop, or used in an `async with`
    block.

    A prefix is the beginning of the assistant turn, which the server is asked to continue. All n samples are one
    request: vLLM gives sample i the seed `seed + i`, as local engines do. `token_count` counts the token ids if the
    server returns them (vLLM). Otherwise, the server's total token count is split in proportion to the text lengths.

    A chain of thought that the server returns in a separate field is an error with reasoning="refuse", because the
    steps of a policy would be missing from its text. With "join", the text begins with it, between <think> tags.
    """

    def __init__(
        self,
        engine: EngineConfig,
        sampling: SamplingConfig | None = None,
        prompt: PromptConfig | None = None,
        reasoning: Literal["refuse", "join"] = "refuse",
    ) -> None:
        assert engine.servers is not None, "the caller has checked the configuration"
        self._engine, self._servers = engine, engine.servers
        self._sampling = sampling or SamplingConfig()
        self._prompt = prompt or PromptConfig()
        self._reasoning = reasoning
        self._client = Client(engine.servers)

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        """Return the completions of a request; see types.Sampler.

        SamplingError and DataError (an unreadable image) name the problem; EngineStoppedError means that no server
        is usable, regardless of the problem.
        """
        problem = request.problem
        try:
            own, given = TurnBeginning("", self._prompt).own(request)
            beginning = assistant_beginning(self._prompt, own.prefix)
            turns = await with_images(messages(problem, self._prompt, request.prefix), problem.images)
            reply = await self._client.chat(self._body(turns, beginning, request), affinity=problem.id)
            if self._reasoning == "refuse":
                _check_whole_text(reply)
            trimmed = self._trimmed(reply, beginning)
            if not beginning:
                self._check_question(reply, problem)
                given = served_opening(reply.prompt_text or "")
            counts = token_counts(reply)
        except EngineStoppedError:
            raise
        except MmprmError as error:
            raise type(error)(f"problem {problem.id}: {error}") from error
        sampled = (
            Completion(_whole_text(choice, given).removeprefix(trimmed), count, _finish_reason(choice))
            for choice, count in zip(reply.choices, counts, strict=True)
        )
        return tuple(with_given(completion, given) for completion in sampled)

    def load(self) -> tuple[int, int]:
        """Return the number of running requests and the number of requests waiting for a slot."""
        return self._client.running, self._client.waiting

    async def close(self) -> None:
        """Close the connections to the servers."""
        await self._client.close()

    async def __aenter__(self) -> ServerSampler:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _body(self, turns: list[dict[str, Any]], beginning: str, request: SampleRequest) -> dict[str, Any]:
        sampling = self._sampling
        body: dict[str, Any] = {
            "model": self._engine.model,
            "messages": turns,
            "n": request.n,
            "seed": request.seed,
            "temperature": 0.0 if request.greedy else sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        if self._servers.dialect == "openai":
            self._check_plain(beginning)
            return body
        # Send these even if neutral, because a server's defaults come from the checkpoint's generation_config.json.
        # top_k=-1 means all tokens: vLLM treats it like 0, and SGLang accepts no other value.
        body |= {"top_k": sampling.top_k or -1, "repetition_penalty": sampling.repetition_penalty}
        body |= {"return_token_ids": True, "return_prompt_text": True}
        if request.stop:  # OpenAI's API omits the stop string from the text, which would lose the end of a step
            body |= {"stop": list(request.stop), "include_stop_str_in_output": True}
        if self._prompt.template_options:
            body["chat_template_kwargs"] = self._prompt.template_options
        if self._engine.pixel_limits:
            body["mm_processor_kwargs"] = self._engine.pixel_limits
        if beginning:
            body["messages"] = [*turns, {"role": "assistant", "content": beginning}]
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    def _check_plain(self, beginning: str) -> None:
        if self._sampling.top_k or self._sampling.repetition_penalty != 1:
            raise EngineStoppedError(
                "engine.servers.dialect=openai has neither top_k nor repetition_penalty; leave them at 0 and 1"
            )
        if beginning:
            raise EngineStoppedError(
                "engine.servers.dialect=openai cannot continue an assistant turn; set prompt.preset=previous_steps "
                "without prompt.prefill"
            )

    def _check_question(self, reply: Reply, problem: Problem) -> None:
        """Raise EngineStoppedError if the rendered prompt does not contain the question.

        The chat template of a base model may render nothing for messages with content parts.
        """
        pieces = [piece.strip() for piece in problem.question.split(IMAGE)]
        if reply.prompt_text is not None and any(piece not in reply.prompt_text for piece in pieces):
            raise EngineStoppedError(
                f"{self._engine.model}: the server's chat template omits the question from the prompt "
                f"{reply.prompt_text[-120:]!r}; give the server another one (vllm serve --chat-template)"
            )

    def _trimmed(self, reply: Reply, beginning: str) -> str:
        """Return the trailing line breaks of the prefix that the server's chat template has removed.

        Such line breaks may only follow a step tag. Raises EngineStoppedError if the server ignores
        continue_final_message, or if its template trims other text or rewrites the turn. The server would then continue
        something other than the prefix.
        """
        if not beginning:
            return ""
        if reply.prompt_text is None:
            if self._servers.trust_prefix:
                return ""
            raise EngineStoppedError(
                f"{self._engine.model}: the server returns no prompt_text, so it is unknown whether it continues the "
                "prefix; use a version of vLLM with return_prompt_text, set prompt.preset=previous_steps without "
                "prompt.prefill, or, for a server known to respect continue_final_message, set "
                "engine.servers.trust_prefix=true"
            )
        if reply.prompt_text.endswith(beginning):
            return ""
        tag = beginning.rstrip()
        if not (ends_with_step_tag(tag) and reply.prompt_text.endswith(tag)):
            raise EngineStoppedError(
                f"{self._engine.model}: the server's chat template changes the end of the prefix {beginning[-40:]!r} "
                f"to {reply.prompt_text[-40:]!r}; give the server a template that keeps it (vllm serve "
                "--chat-template), or set prompt.preset=previous_steps"
            )
        return beginning[len(tag) :]


def _finish_reason(choice: Choice) -> str:
    return choice.finish_reason if choice.finish_reason in _FINISHED else "abort"


def served_opening(prompt_text: str) -> str:
    """Return the tag that the server's chat template writes at the start of an assistant turn, or "" if it writes
    none."""
    found = _OPENING.search(prompt_text)
    return found[0] if found else ""


def _whole_text(choice: Choice, given: str) -> str:
    """Return the text with its chain of thought in <think> tags; `given`, which precedes it, may end with the first."""
    if not choice.reasoning:
        return choice.text
    opening = "" if given.rstrip().endswith("<think>") else "<think>"
    return f"{opening}{choice.reasoning}</think>{choice.text}"


def _check_whole_text(reply: Reply) -> None:
    """Raise SamplingError if the server returned the chain of thought in a separate field.

    Its steps would be missing from the text.
    """
    if any(choice.reasoning for choice in reply.choices):
        raise SamplingError(
            "the server returns the reasoning apart from the text, so its steps cannot be searched; start it without a "
            "reasoning parser"
        )


def token_counts(reply: Reply) -> list[int]:
    """Return the number of tokens in each choice of a server's response.

    If only their total is known, it is split in proportion to the text lengths, and the counts still add up to it.
    Raises SamplingError if the server reports no counts.
    """
    counts = [choice.token_count for choice in reply.choices if choice.token_count is not None]
    if len(counts) == len(reply.choices):
        return counts
    if reply.completion_tokens is None:
        raise SamplingError("the server's answer has no usage.completion_tokens; use a server that counts tokens")
    lengths = [len(choice.reasoning) + len(choice.text) for choice in reply.choices]
    total = sum(lengths) or 1
    ends, position = [0], 0
    for length in lengths:
        position += length
        ends.append(reply.completion_tokens * position // total)
    ends[-1] = reply.completion_tokens
    return [end - start for start, end in itertools.pairwise(ends)]
