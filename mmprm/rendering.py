"""Render chat messages to prompt text, with or without the model's chat template, and check the result.

text = render(processor, problem, prefix, config)
begins = turn_beginning(processor, config)       # the part of the policy's turn that precedes its first token

Some templates open the assistant turn themselves, for example with `<think>` (DeepSeek-R1-Distill, QwQ,
Qwen3-Thinking). Text that the generation prompt appends to the assistant header is part of the response, just like
`prompt.prefill`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprm.data.marks import MARKS, split_at_marks
from mmprm.errors import CheckpointError, ConfigError
from mmprm.prompts import PromptConfig, assistant_beginning, messages
from mmprm.types import Problem

Messages = Sequence[Mapping[str, Any]]

_USER, _ASSISTANT = "\ue000", "\ue001"
"""Private-use characters used as the contents of turns, so that the contents can be located in the rendered text."""


def render(template_owner: Any, problem: Problem, prefix: str, config: PromptConfig) -> str:
    """Render the text of a prompt: the messages, the generation prompt, the prefill, and the prefix.

    `template_owner` is a transformers tokenizer or processor; `prefix` continues where turn_beginning ends. Raises
    CheckpointError if there is no chat template, and ConfigError for messages that the template rejects.
    """
    turns = messages(problem, config, prefix)
    return render_turns(template_owner, turns, config, True) + assistant_beginning(config, prefix)


def render_turns(template_owner: Any, turns: Messages, config: PromptConfig, generation_prompt: bool) -> str:
    """Apply the chat template to the turns; with `generation_prompt`, also add the start of an assistant turn."""
    if config.template == "raw":
        return _raw(template_owner, turns)
    template = config.chat_template or getattr(template_owner, "chat_template", None)
    if not template:
        raise CheckpointError(
            f"{_name(template_owner)}: has no chat template; add chat_template.jinja to the model folder, name a file "
            "with engine.chat_template, or set prompt.template=raw"
        )
    options = {"chat_template": config.chat_template} if config.chat_template else {}
    try:
        return template_owner.apply_chat_template(
            list(turns),
            tokenize=False,
            add_generation_prompt=generation_prompt,
            **options,
            **(config.template_options or {}),
        )
    except Exception as error:  # templates raise arbitrary exceptions
        raise ConfigError(_refusal(template_owner, turns, config, error)) from error


def turn_beginning(template_owner: Any, config: PromptConfig) -> str:
    """Return the text of an assistant turn before the policy's first token: the template's opening and the prefill."""
    return opening(template_owner, config) + assistant_beginning(config, "")


def opening(template_owner: Any, config: PromptConfig) -> str:
    """Return the text that the template's generation prompt adds after the header of an assistant turn.

    The header is the text before the content of a turn in mid-conversation: some templates insert thoughts, but only
    into the last turn.
    """
    if config.template == "raw":
        return ""
    user, answer = {"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}
    asked = render_turns(template_owner, [user], config, True).rpartition(_USER)[2]
    for turns in ([user, answer, {"role": "user", "content": "?"}], [user, answer]):
        try:
            before, found, _ = render_turns(template_owner, turns, config, False).partition(_ASSISTANT)
        except ConfigError:  # some templates accept only one turn
            continue
        header = before.rpartition(_USER)[2]
        if found and asked.startswith(header.rstrip()):
            added = asked[len(header) :] if asked.startswith(header) else asked[len(header.rstrip()) :]
            return added if added.strip() else ""
    return ""


def end_of_turn(template_owner: Any, config: PromptConfig) -> str:
    """Return the text that follows the content of an assistant turn."""
    if config.template == "raw":
        return _tokenizer(template_owner).eos_token or ""
    turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
    return render_turns(template_owner, turns, config, False).rpartition(_ASSISTANT)[2]


def check_rendering(template_owner: Any, problems: Sequence[Problem], config: PromptConfig, name: str = "") -> None:
    """Raise ConfigError if a rendered prompt lacks the question or an image placeholder. One problem of each kind is
    checked.

    `name` is the name of the model. A base model's chat template may render nothing for messages made of content parts.
    """
    name = name or _name(template_owner)
    _check_options(template_owner, config, name)
    kinds = {tuple(map(type, problem.media)): problem for problem in reversed(problems)}
    for problem in kinds.values():
        text = render(template_owner, problem, "", config)
        pieces = [piece.strip() for piece in split_at_marks(problem.question, list(MARKS))[1]]
        missing = next((piece for piece in pieces if piece not in text), None)
        if missing is not None:
            raise ConfigError(
                f"{name}: its chat template leaves the question out: {missing[:60]!r} of problem {problem.id} is not "
                f"in the prompt {text[-120:]!r}; set prompt.template=raw, or name a template with engine.chat_template"
            )
        for kind, media in (("image", problem.images), ("video", problem.videos), ("audio", problem.audios)):
            mark = getattr(template_owner, f"{kind}_token", None)
            if isinstance(mark, str) and mark and text.count(mark) < len(media):
                raise ConfigError(
                    f"{name}: its chat template writes {text.count(mark)} placeholders for the {len(media)} {kind}s of "
                    f"problem {problem.id}; set prompt.template=raw, or name a template with engine.chat_template"
                )


def template_of_file(values: Any, *keys: str) -> Any:
    """Return the raw configuration `values`; if the setting at `keys` names a file, set prompt.chat_template to its
    text."""
    path: Any = values
    for key in keys:
        path = path.get(key) if isinstance(path, Mapping) else getattr(path, key, None)
    if not path or not isinstance(path, str | Path) or not isinstance(values, Mapping):
        return values
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{'.'.join(keys)}={path}: cannot be read as a chat template ({error}); give a readable text file"
        ) from error
    prompt = values.get("prompt") or {}
    if isinstance(prompt, PromptConfig):
        prompt = prompt.model_dump(exclude_unset=True)
    return {**values, "prompt": {**prompt, "chat_template": text}}


def _raw(template_owner: Any, turns: Messages) -> str:
    tokenizer = _tokenizer(template_owner)
    text = "".join(_content(template_owner, turn) for turn in turns)
    begin = tokenizer.bos_token
    adds_begin = begin is not None and tokenizer("").input_ids == [tokenizer.bos_token_id]
    return f"{begin}{text}" if adds_begin else text


def _content(template_owner: Any, turn: Mapping[str, Any]) -> str:
    content = turn["content"]
    if isinstance(content, str):
        text = content
    else:
        parts = (
            part["text"] if part["type"] == "text" else raw_placeholder(template_owner, part["type"])
            for part in content
        )
        text = "".join(parts)
    ends = turn["role"] == "assistant"
    return text + (_tokenizer(template_owner).eos_token or "" if ends else "")


def raw_placeholder(template_owner: Any, kind: str = "image") -> str:
    """Return the placeholder for one medium: the processor's token of this kind, enclosed in two others for Qwen."""
    mark = getattr(template_owner, f"{kind}_token", None)
    if not isinstance(mark, str):
        raise CheckpointError(
            f"{_name(template_owner)}: cannot read {kind}s, but the problem has one; choose another model"
        )
    around = _AROUND.get(mark, ())
    return mark.join(around) if around and set(around) <= _tokenizer(template_owner).get_vocab().keys() else mark


_AROUND = {
    "<|image_pad|>": ("<|vision_start|>", "<|vision_end|>"),
    "<|IMAGE|>": ("<|vision_bos|>", "<|vision_eos|>"),
    "<|VIDEO|>": ("<|vision_bos|>", "<|vision_eos|>"),
    "<|AUDIO|>": ("<|audio_bos|>", "<|audio_eos|>"),
}
"""Maps the media tokens of Qwen-VL and Qwen2.5-Omni to the tokens that enclose them in a prompt."""


def _check_options(template_owner: Any, config: PromptConfig, name: str) -> None:
    if not config.template_options or config.template == "raw":
        return
    template = config.chat_template or getattr(template_owner, "chat_template", None) or ""
    known = _variables(template) if isinstance(template, str) else None
    unknown = sorted(config.template_options.keys() - known) if known is not None else []
    if unknown:
        own = sorted(
            known - {"messages", "add_generation_prompt", "raise_exception", "strftime_now", "bos_token", "eos_token"}
        )
        raise ConfigError(
            f"prompt.template_options.{unknown[0]}: the chat template of {name} does not read it; remove it, or use "
            f"one of its options ({', '.join(own) or 'none'})"
        )


def _variables(template: str) -> set[str] | None:
    """Return the names of the variables that a template uses, or None if the template is not valid Jinja."""
    from jinja2 import Environment, TemplateError, meta
    from jinja2.ext import loopcontrols

    try:
        return meta.find_undeclared_variables(Environment(extensions=[loopcontrols]).parse(template))
    except TemplateError:
        return None


def _refusal(template_owner: Any, turns: Messages, config: PromptConfig, error: Exception) -> str:
    """Return an error message for a prompt that the template rejects, naming the system turn if that is the cause."""
    reason = f"{_name(template_owner)}: its chat template rejects the prompt ({type(error).__name__}: {error})"
    others = [turn for turn in turns if turn["role"] != "system"]
    if len(others) < len(turns):
        try:
            render_turns(template_owner, others, config, True)
        except ConfigError:
            pass
        else:
            return (
                f"{reason}, because it has no system turn; leave prompt.system empty, and put its text into prompt.user"
            )
    return f"{reason}; name another template with engine.chat_template, or set prompt.template=raw"


def _tokenizer(template_owner: Any) -> Any:
    return getattr(template_owner, "tokenizer", template_owner)


def _name(template_owner: Any) -> str:
    return getattr(_tokenizer(template_owner), "name_or_path", "") or type(template_owner).__name__
