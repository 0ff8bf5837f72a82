"""Run supervised fine-tuning (SFT) of a policy on the assistant turns of conversations or on step-tagged solutions.

The loss is L = −Σ log π(token) / M over the M target tokens (tokens that the loss covers) of a batch, over all
micro-batches and ranks. With aggregation=sequence_mean, it is L = −(1/N) Σ_n (1/M_n) Σ log π(token) over the batch's N
conversations.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmprm.backbone.experts import save_backbone
from mmprm.backbone.image_features import feature_cache
from mmprm.backbone.load import load_backbone, new_model_folder
from mmprm.backbone.masks import CPU_ROW, use_block_masks, why_not_packed
from mmprm.backbone.token_tree import fill_rows
from mmprm.backbone.trainable import TrainableConfig, prepare_training
from mmprm.config import PathText
from mmprm.errors import DataError
from mmprm.hardware import HardwareConfig
from mmprm.model_limits import check_packing
from mmprm.preflight import check_disk_space, check_model
from mmprm.problems import ProblemsConfig
from mmprm.prompts import PromptConfig
from mmprm.rendering import template_of_file
from mmprm.sampling.config import check_pixel_limits
from mmprm.trackers import check_tracker
from mmprm.training.batches import micro_batches
from mmprm.training.config import TrainingConfig
from mmprm.training.engine import Engine
from mmprm.training.loop import fit, step_count
from mmprm.training.lora import plain_weights
from mmprm.training.ranks import Ranks, alone_in, join_ranks
from mmprm.training.sharding import loading_in_parts
from mmprm.training.stop_request import StopRequest
from policy_rl.sft.batch import ConversationEncoder, Size, collate_conversations
from policy_rl.sft.conversations import Conversation, read_conversations, without_unreadable
from policy_rl.trainer.policy import Policy, PolicyInputs


class SftConfig(TrainableConfig):
    """Configures `mmprm sft`."""

    model: PathText
    """Model to start from: a folder, a hub id such as Qwen/Qwen2.5-VL-7B-Instruct, or tiny (the built-in policy)."""
    data: ProblemsConfig
    """Training data: conversations (ShareGPT, MM-Eureka, LMM-R1), or problems with solutions."""
    held_out: ProblemsConfig | None = None
    """Held-out conversations on which to measure the loss."""
    output: PathText
    """Run folder, which receives the model in policy/, checkpoints/, metrics.jsonl and tensorboard/. If it contains an
    unfinished run, that run is resumed."""
    chat_template: PathText | None = None
    """Chat template file (Jinja) that replaces the checkpoint's template. It is saved with the model."""
    prompt: PromptConfig = PromptConfig()
    """Prompt format of problems. Conversations are used unchanged."""
    packing: Literal["none", "samples"] = "samples"
    """Row packing. samples: pack several conversations into a row, without attention between them; the loss is the
    same. none: one conversation per row. Unsupported models fall back to none with a warning."""
    max_length: int = Field(4096, ge=1)
    """Maximum number of tokens per conversation, including images. Longer ones are excluded and counted."""
    max_pixels: int | None = Field(None, ge=1)
    """Scale larger images down to this many pixels (Qwen-VL processors). Defaults to the checkpoint's limit."""
    min_pixels: int | None = Field(None, ge=1)
    """Scale smaller images up to this many pixels (Qwen-VL processors). Defaults to the checkpoint's limit."""
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Loss aggregation. token_mean: average the loss over all target tokens of a batch; sequence_mean: average each
    conversation's per-token loss, then average over conversations, like trainers that average over devices with one
    conversation each."""
    training: TrainingConfig = TrainingConfig()
    """Training settings: optimization, batches, sharding, checkpoints."""
    hardware: HardwareConfig = Field(HardwareConfig(), exclude=True)
    """Target machines for `mmprm plan`. The run itself ignores these keys."""

    @model_validator(mode="before")
    @classmethod
    def _chat_template_of_a_file(cls, values: Any) -> Any:
        return template_of_file(values, "chat_template")

    @model_validator(mode="after")
    def _pixel_limits_in_order(self) -> SftConfig:
        check_pixel_limits(self.min_pixels, self.max_pixels)
        return self


@dataclass(frozen=True, slots=True)
class SftSummary:
    """Summarizes an SFT run: its policy folder, sample and token counts, and last evaluation.

    `evaluation` holds the last held-out loss per token; `tokens` is the number of target tokens in one epoch.
    """

    policy: Path
    steps: int
    samples: int
    tokens: int
    too_long: int
    seconds: float
    evaluation: dict[str, float]


class ConversationRows:
    """Arranges conversations in rows, one per row or packed up to `width` tokens.

    For each row, `lengths` holds the number of tokens, `terms` that of target tokens, and `conversations` that of
    conversations.
    """

    def __init__(
        self, samples: Sequence[Conversation], sizes: Sequence[Size], encoder: ConversationEncoder, width: int | None
    ) -> None:
        self._samples, self._encoder = samples, encoder
        lengths = [size.tokens for size in sizes]
        self._rows = [[position] for position in range(len(samples))] if width is None else fill_rows(lengths, width)
        # fill_rows returns the longest rows first; shuffle, so that batches mix rows of different lengths.
        random.Random(0).shuffle(self._rows)
        self.lengths = [sum(sizes[position].tokens for position in row) for row in self._rows]
        self.terms = [sum(sizes[position].learned for position in row) for row in self._rows]
        self.conversations = [len(row) for row in self._rows]

    def collate(self, rows: Sequence[int], stand_in: bool) -> PolicyInputs:
        """Collate the given rows into a micro-batch."""
        chosen = [[self._encoder(self._samples[position]) for position in self._rows[row]] for row in rows]
        return collate_conversations(chosen, self._encoder, stand_in)


def token_loss(logprobs_NT: Tensor, response_NT: Tensor) -> Tensor:
    """Return the summed loss −Σ log π(token) of the target tokens. Padding contributes 0."""
    return -logprobs_NT.sum()


def sequence_loss(logprobs_NT: Tensor, response_NT: Tensor) -> Tensor:
    """Return the mean token loss of each conversation, summed over conversations.

    The loss is −Σ_n (1/M_n) Σ_t log π(token), where conversation n has M_n target tokens. Padding contributes 0.
    """
    return -(logprobs_NT.sum(dim=1) / response_NT.sum(dim=1)).sum()


class SftTask:
    """Implements the training loop's Task (mmprm.training.loop) for SFT.

    A sample is a row; a loss term is a target token (token_mean) or a conversation (sequence_mean).
    """

    def __init__(
        self,
        train: ConversationRows,
        held_out: ConversationRows,
        micro_batch_tokens: int,
        stand_in: bool,
        ranks: Ranks,
        aggregation: str = "token_mean",
    ) -> None:
        self._train, self._held_out = train, held_out
        self._micro_batch_tokens, self._stand_in, self._ranks = micro_batch_tokens, stand_in, ranks
        self.lengths = train.lengths
        self.terms = {"token_mean": train.terms, "sequence_mean": train.conversations}[aggregation]
        self._loss = {"token_mean": token_loss, "sequence_mean": sequence_loss}[aggregation]

    def collate(self, samples: Sequence[int]) -> PolicyInputs:
        """Collate the given training rows into a micro-batch."""
        return self._train.collate(samples, self._stand_in)

    def loss_sum(self, model: nn.Module, batch: PolicyInputs) -> Tensor:
        """Compute a micro-batch's loss, summed over its target tokens or, with sequence_mean, its conversations."""
        batch = batch.to(self._ranks.device)
        return self._loss(model(batch).logprobs_NT, batch.response_NT)

    def evaluate(self, engine: Engine) -> dict[str, float]:
        """Return the held-out loss per target token, regardless of the aggregation, or {} if nothing is held out."""
        lengths = self._held_out.lengths
        if not lengths:
            return {}
        rows = micro_batches(range(len(lengths)), lengths, self._micro_batch_tokens, self._ranks.count)
        loss = 0.0
        with engine.inference() as model:
            for row in rows:
                micro = row[self._ranks.rank]
                batch = self._held_out.collate(micro.samples, self._stand_in).to(self._ranks.device)
                part = token_loss(model(batch).logprobs_NT, batch.response_NT).item()
                loss += 0.0 if micro.is_padding else part
        (loss,) = self._ranks.sum(loss)
        tokens = sum(self._held_out.terms)
        return {"loss": loss / tokens, "tokens": float(tokens)}


def train_sft(config: SftConfig) -> SftSummary:
    """Run SFT in a single process or as one of torchrun's ranks. Every rank returns the summary."""
    ranks = join_ranks()
    with alone_in(ranks, Path(config.output), "output"):
        return _train(config, ranks)


def _train(config: SftConfig, ranks: Ranks) -> SftSummary:
    started, optimization, output = time.perf_counter(), config.training, Path(config.output)
    check_tracker(config.training.tracker, "training.tracker")
    check_model(config.model)
    check_packing(config.model, config.packing)
    check_disk_space(config.output, "output", config.model)
    # Read the data first, so that invalid data fails before a model is loaded.
    found = _readable(config.data, config, ranks)
    found_held_out = _readable(config.held_out, config, ranks) if config.held_out else []
    dtype = torch.bfloat16 if optimization.precision == "bf16" else torch.float32
    torch.manual_seed(optimization.seed)  # all ranks must initialize the same adapters
    with loading_in_parts(optimization):
        backbone, processor = load_backbone(config.model, dtype)
    if config.prompt.chat_template is not None:
        processor.chat_template = config.prompt.chat_template
    encoder = ConversationEncoder(backbone, processor, config.max_pixels, config.min_pixels, config.prompt)
    samples, sizes, too_long = _samples(config.data, config, encoder, found)
    held_out, held_out_sizes, left_out = [], [], 0
    if config.held_out:
        held_out, held_out_sizes, left_out = _samples(config.held_out, config, encoder, found_held_out)
    width = _width(config, backbone, sizes, ranks)
    policy = Policy(backbone)
    prepare_training(backbone, config)
    policy.image_features = feature_cache(backbone, ranks, optimization.zero_stage)
    encoder.describes_images = policy.image_features.enabled
    torch.manual_seed(optimization.seed + ranks.rank)  # ranks draw different dropout masks
    rows, held_out_rows = (
        ConversationRows(samples, sizes, encoder, width),
        ConversationRows(held_out, held_out_sizes, encoder, width),
    )
    # The configured batch size counts conversations; that of the loop counts rows.
    batch_size = max(1, round(optimization.batch_size * len(rows.lengths) / len(samples)))
    optimization = optimization.model_copy(update={"batch_size": batch_size})
    total = step_count(len(rows.lengths), optimization)
    engine = Engine(policy, optimization, total, ranks)
    # Ranks also synchronize in the vision tower, so each must run it.
    stand_in = ranks.count > 1 and any(each.media for each in (*samples, *held_out))
    task = SftTask(rows, held_out_rows, optimization.micro_batch_tokens, stand_in, ranks, config.aggregation)
    if ranks.is_main:
        print(
            f"{len(samples):,} conversations in {len(rows.lengths):,} rows, {sum(rows.terms):,} tokens to learn; "
            f"excluded as too long: {too_long:,} conversations, {left_out:,} held-out conversations; "
            f"{total:,} steps on {ranks.count} ranks",
            flush=True,
        )
    evaluation = fit(task, engine, optimization, output, _origin(config, samples))
    with StopRequest(ranks):  # the last steps may have no checkpoint: write the policy before stopping
        weights = engine.weights("backbone.")
        if ranks.is_main:
            _stop_at(backbone, encoder.ends)
            with new_model_folder(output / "policy") as folder:
                save_backbone(backbone, folder, plain_weights(backbone, weights))
                processor.save_pretrained(folder)
        ranks.barrier()
    seconds = time.perf_counter() - started
    return SftSummary(output / "policy", total, len(samples), sum(rows.terms), too_long, seconds, evaluation)


def _readable(data: ProblemsConfig, config: SftConfig, ranks: Ranks) -> list[Conversation]:
    """Read the conversations, excluding those with unreadable images, and print how many are excluded."""
    found, broken = without_unreadable(read_conversations(data, config.prompt))
    if broken and ranks.is_main:
        location, reason = next(iter(broken.items()))
        print(
            f"{len(broken):,} conversations are excluded because an image cannot be read; {location}: {reason}",
            flush=True,
        )
    return found


def _samples(
    data: ProblemsConfig, config: SftConfig, encoder: ConversationEncoder, found: Sequence[Conversation] | None = None
) -> tuple[list[Conversation], list[Size], int]:
    """Return the conversations of at most max_length tokens with their sizes, and the number of longer ones.

    `found` holds the conversations of `data` if they have already been read. Raises DataError if all are longer.
    """
    found = read_conversations(data, config.prompt) if found is None else found
    sizes = [encoder.size(conversation) for conversation in found]
    kept = [(each, size) for each, size in zip(found, sizes, strict=True) if size.tokens <= config.max_length]
    if not kept:
        raise DataError(
            f"{data.path}: all {len(found)} conversations exceed max_length={config.max_length} tokens; raise it"
        )
    return [each for each, _ in kept], [size for _, size in kept], len(found) - len(kept)


def _width(config: SftConfig, backbone: Any, sizes: Sequence[Size], ranks: Ranks) -> int | None:
    """Return the length of packed rows in tokens, or None if each row holds a single conversation."""
    if config.packing == "none":
        return None
    why_not = why_not_packed(backbone)
    if why_not is not None:
        if ranks.is_main:
            print(f"packing={config.packing} falls back to none for {type(backbone).__name__}: {why_not}", flush=True)
        return None
    longest = max(size.tokens for size in sizes)
    # On CPU, the full attention matrix of a row is computed, so rows stay short.
    if ranks.device.type == "cpu":
        return min(config.training.micro_batch_tokens, CPU_ROW * longest)
    use_block_masks(backbone)
    return longest


def _origin(config: SftConfig, samples: Sequence[Conversation]) -> dict[str, Any]:
    """Return the settings, and a hash of the conversations, that must be unchanged for a run to be resumed."""
    free = {"chat_template", "data", "held_out", "output", "training", "gradient_checkpointing"}
    texts = hashlib.sha256(json.dumps([each.messages for each in samples]).encode()).hexdigest()
    return config.model_dump(mode="json", exclude=free) | {"conversations": texts[:16]}


def _stop_at(backbone: Any, ends: set[int]) -> None:
    """Add the end-of-turn tokens of the training data to the model's EOS tokens. A base model may lack them."""
    settings = backbone.generation_config
    known = settings.eos_token_id
    known = set() if known is None else {known} if isinstance(known, int) else set(known)
    settings.eos_token_id = sorted(known | ends)
