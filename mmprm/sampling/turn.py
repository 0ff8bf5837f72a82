"""Handle prefilled text: the beginning of the assistant turn, which ends the prompt and begins every completion.

A completion from an empty prefix starts with it. The steps of a response, and every prefix made of them, thus contain
it as if the policy had written it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmprm.prompts import PRESETS, PromptConfig, assistant_beginning
from mmprm.types import Completion, SampleRequest, Tokens


@dataclass(frozen=True, slots=True)
class TurnBeginning:
    """Describes the text with which the prompt begins an assistant turn.

    `opening` is the text that the chat template adds after the header; the prefill of `prompt` follows it.
    """

    opening: str
    prompt: PromptConfig

    def own(self, request: SampleRequest) -> tuple[SampleRequest, str]:
        """Remove from the request's prefix the text that the prompt already contains.

        The prompt ends with the opening of the assistant turn and the prefill. Returns the stripped request and the
        text to prepend to its completions.
        """
        if request.prefix and PRESETS[self.prompt.preset].continuation is not None:
            return request, self.opening  # the user turn shows the prefix, and the assistant turn starts afresh
        begins = self.opening + assistant_beginning(self.prompt, "")
        if begins.startswith(request.prefix):  # a step may end within it, as after a blank line
            return replace(request, prefix="", prefix_ids=None), begins[len(request.prefix) :]
        return replace(request, prefix=request.prefix.removeprefix(begins)), ""


def with_given(completion: Completion, given: str) -> Completion:
    """Prepend `given`, which the prompt already contains, to a completion's text, and shift its token end offsets."""
    if not given:
        return completion
    tokens = completion.tokens
    if tokens is not None:
        tokens = Tokens(tokens.ids, tuple(len(given) + end for end in tokens.ends))
    return replace(completion, text=given + completion.text, tokens=tokens)
