"""Run one rank of the RL trainer. Every rank must make the same calls.

    trainer = Trainer(model, config, prompt, temperature, total_updates, critic=False)
    trainer.resume(folder)                       # the `extra` dict passed to save, or None
    trainer.limits.check(sample)                 # DataError: count and skip the sample
    trainer.log_probs(samples)                   # {index: LogProbs} for this rank's share
    trainer.update(samples, progress)            # metrics of one optimizer step, the same on every rank
    trainer.publish(version, probe, dtype)       # send weights to the engines
    trainer.save(folder, extra, keep); trainer.save_model(folder)

Each rank receives all samples and processes its share. `log_probs` is not needed with a single update per rollout and
without KL and critic: if `old` is None, the update uses its own log-probabilities.

Shapes: N response of a micro-batch, T token.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmprm.backbone.experts import save_backbone
from mmprm.backbone.image_features import feature_cache
from mmprm.backbone.load import load_backbone, new_model_folder
from mmprm.backbone.processor import tokenizer_of, vision_token_ids
from mmprm.backbone.trainable import prepare_training
from mmprm.errors import TrainingError
from mmprm.prompts import PromptConfig
from mmprm.training import checkpoints
from mmprm.training.batches import one_ahead
from mmprm.training.engine import Engine
from mmprm.training.lora import plain_weights
from mmprm.training.ranks import check_shared, join_ranks
from mmprm.training.sharding import loading_in_parts
from policy_rl.algorithms.importance import importance_weights
from policy_rl.algorithms.losses import aggregate, policy_loss, value_loss
from policy_rl.trainer.batch import (
    CollatedRows,
    Limits,
    PromptRow,
    check_finite,
    collate_rows,
    loss_denominator,
    padded,
    plan,
    tokens_of_groups,
)
from policy_rl.trainer.config import CHANGEABLE, TrainerConfig
from policy_rl.trainer.frozen import frozen_policy
from policy_rl.trainer.policy import Policy, PolicyInputs, without_adapters
from policy_rl.trainer.prompt_encoder import PromptEncoder
from policy_rl.trainer.resume_key import current_trainer_key
from policy_rl.trainer.shared_work import prepare_shared_prompts
from policy_rl.trainer.update_metrics import Tally
from policy_rl.types import ARRAYS, LogProbs, TrainingSample
from policy_rl.weights.probe import probe_logprobs
from policy_rl.weights.transfer import ModelWeights, Published, Transfer


class Trainer:
    """Trains the policy on one rank.

    `temperature` is the sampling temperature. `total_updates` is the number of optimizer steps of the whole run (an
    estimate if there is a filter), over which the learning rate is scheduled. `critic` adds a value head.
    `max_pixels` and `min_pixels` are the engines' limits on image size.

    The reference model is the model that the run starts from, loaded only if loss.kl.coefficient is above 0; with LoRA
    it is the policy with its adapters disabled. The teacher is loaded only if `distillation` is set.
    """

    def __init__(
        self,
        model: str,
        config: TrainerConfig,
        prompt: PromptConfig,
        temperature: float,
        total_updates: int,
        critic: bool = False,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
    ) -> None:
        self.doing = f"loading {model}"
        self.config, self.ranks = config, join_ranks()
        optimization = config.optimization
        torch.manual_seed(optimization.seed)  # all ranks must initialize the same new weights
        dtype = torch.bfloat16 if optimization.precision == "bf16" else torch.float32
        with loading_in_parts(optimization):
            backbone, self.processor = load_backbone(model, dtype)
        if prompt.chat_template is not None:
            self.processor.chat_template = prompt.chat_template
        banned = vision_token_ids(backbone.config, tokenizer_of(self.processor))
        self.limits = Limits(backbone.config.get_text_config().max_position_embeddings, frozenset(banned))
        self._encoder = PromptEncoder(backbone, self.processor, prompt, max_pixels, min_pixels)
        self._share_prompt = config.share_prompt and prepare_shared_prompts(backbone, self.ranks)
        hidden = backbone.config.get_text_config().hidden_size
        # On a GPU the attention mask has blocks, and masked ones are skipped.
        self._attention_cost = 0.0 if self.ranks.device.type == "cuda" else 1 / (6 * hidden)
        self._policy = Policy(backbone, temperature, critic, banned, config.float32_logits)
        prepare_training(backbone, config)
        self._policy.image_features = feature_cache(backbone, self.ranks, optimization.zero_stage)
        block_masks = self._share_prompt and self.ranks.device.type == "cuda"
        make = partial(frozen_policy, like=self._policy, config=config, ranks=self.ranks, block_masks=block_masks)
        has_reference = config.loss.kl.coefficient > 0 and config.lora is None
        self._reference = make(model, shares_features=True) if has_reference else None
        teacher = config.distillation and config.distillation.teacher
        self._teacher = make(teacher, shares_features=False) if teacher else None
        torch.manual_seed(optimization.seed + self.ranks.rank)  # ranks draw different dropout masks
        head = () if self._policy.value_head is None else tuple(self._policy.value_head.parameters())
        self._engine = Engine(self._policy, optimization, total_updates, self.ranks, head, config.critic.learning_rate)
        self._total_updates = total_updates
        self._has_critic = critic
        self._resume_key = {
            "model": model,
            "prompt": prompt.model_dump(mode="json"),
            "temperature": temperature,
            "critic": critic,
            "max_pixels": max_pixels,
            "min_pixels": min_pixels,
            "total_updates": total_updates,
            **config.model_dump(mode="json", exclude=CHANGEABLE),
        }
        self._transfer: Transfer | None = None
        self._bad_updates = 0
        self._vision_calls = 0
        self.updates = 0
        self.doing = "nothing"

    def log_probs(self, samples: Sequence[TrainingSample], reference_only: bool = False) -> dict[int, LogProbs]:
        """Compute log-probabilities and values for this rank's share of the samples, keyed by sample index.

        `old` and, with a critic, `values` are computed under the current weights unless `reference_only` is set; `ref`
        and `teacher` are computed if there is a reference model or a teacher.
        """
        for sample in samples:
            self.limits.check(sample)
        found: dict[int, LogProbs] = {}
        with self._engine.inference() as model:
            for micro in self._micro_batches(samples, (), "log-probabilities"):
                inputs = micro.inputs.to(self.ranks.device)
                output = None if reference_only else model(inputs)
                arrays = {
                    "old": output.logprobs_NT if output else None,
                    "values": output.values_NT if output else None,
                    "ref": self._reference_logprobs(model, inputs),
                    "teacher": None if self._teacher is None else self._teacher(inputs).logprobs_NT,
                }
                arrays = {name: None if array is None else array.cpu().numpy() for name, array in arrays.items()}
                for n, position in enumerate(position for row in micro.rows for position in row):
                    length = len(samples[position].token_ids)
                    own = {name: None if array is None else array[n, :length] for name, array in arrays.items()}
                    if not micro.is_padding:
                        found[position] = LogProbs(**own)
        self.doing = "nothing"
        return found

    def update(self, samples: Sequence[TrainingSample], progress: float | None = None) -> dict[str, float]:
        """Perform one optimizer step on the samples over all ranks, and return its metrics (see Tally.metrics).

        `progress`, from 0 to 1, is the fraction of the run completed before the update and sets the learning rate; by
        default it is the fraction of `total_updates` performed so far. During the first critic.warmup_updates updates,
        only the value head is trained: the other weights get no gradient, and their learning rate is 0.

        Raises DataError or TrainingError, before any weight changes, for a response that does not fit or has a
        non-finite value. An update with a non-finite gradient is skipped, which sets the metric `skipped`.
        """
        started = time.perf_counter()
        for sample in samples:
            self.limits.check(sample)
        check_finite(samples)
        size = loss_denominator(samples, self.config.loss).to(self.ranks.device)
        if not size > 0:
            raise TrainingError(
                "an update needs a response token that counts, but all tokens are masked; skip the update, or check "
                "the filters"
            )
        warming = self._policy.value_head is not None and self.updates < self.config.critic.warmup_updates
        self._policy.detach_values = warming
        self._engine.set_rates(None if progress is None else progress * self._total_updates, head_only=warming)
        tally, rate = Tally(), self._engine.learning_rate
        micro_batches = self._micro_batches(samples, ARRAYS, f"update {self.updates + 1}")
        losses = (partial(self._loss, micro=micro, size=size, tally=tally) for micro in micro_batches)
        loss, norm = self._engine.step(losses, 1.0)  # `_loss` has already divided by `size`
        self.updates += 1
        self._count_bad_updates()
        self.doing = "metrics of all ranks"
        metrics = {"loss": loss, "learning_rate": rate, "skipped": float(self._engine.skipped)}
        metrics |= {} if norm is None else {"gradient_norm": norm}
        metrics |= tally.metrics(self.ranks)
        if any(sample.shows_images for sample in samples):
            calls = self._policy.image_features.tower_calls
            metrics["vision_calls"] = float(calls - self._vision_calls)
            self._vision_calls = calls
        metrics |= {"responses": float(len(samples)), "seconds": time.perf_counter() - started}
        self.doing = "nothing"
        return metrics

    def open_transfer(self, make: Callable[[int], Transfer]) -> None:
        """Prepare the transfer of weights to the engines. `make(rank)` creates this rank's Transfer."""
        self._transfer = make(self.ranks.rank)

    def publish(self, version: int, probe_token_ids: Sequence[int], dtype: torch.dtype) -> Published | None:
        """Send the weights to the engines in `dtype`; return None on all ranks except rank 0."""
        assert self._transfer is not None, "call open_transfer first"
        self.doing = f"sending weights of version {version}"
        with self._engine.inference():
            probe = probe_logprobs(self._policy.backbone, probe_token_ids)
            published = self._transfer.publish(ModelWeights(self._policy.backbone, dtype), version, probe)
        self.release_memory()  # gathering used memory that a colocated engine's cache needs next
        self.doing = "nothing"
        return published

    def release_memory(self) -> None:
        """Free cached GPU memory, so that a colocated engine can use it."""
        if self.ranks.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def save(self, folder: Path, extra: dict[str, Any], keep: int) -> None:
        """Write a checkpoint atomically.

        `extra` is the caller's state (JSON), stored in the same folder. The folder is numbered by `extra["step"]`
        rather than by updates, because a step without updates needs a checkpoint too.
        """
        self.doing = f"writing a checkpoint to {folder}"
        extra = {**extra, "updates": self.updates}
        checkpoints.save(self._engine, folder, extra["step"], self._resume_key, keep, extra)
        self.doing = "nothing"

    def resume(self, folder: Path) -> dict[str, Any] | None:
        """Restore the newest complete checkpoint, but keep this configuration's learning rate.

        Returns the checkpoint's `extra`, or None if there is no checkpoint.
        """
        self.doing = f"reading a checkpoint from {folder}"
        check_shared(self.ranks, folder, "output")
        rates = self._engine.deepspeed.lr_scheduler.base_lrs
        checkpoints.resume(
            self._engine,
            folder,
            self._resume_key,
            lambda stored: current_trainer_key(stored, self._resume_key, self._has_critic),
        )
        (extra, *_) = self.ranks.gather(checkpoints.read_extra(folder) if self.ranks.is_main else None)
        if extra is not None:
            self.updates = extra.pop("updates")
            # The position in the schedule is restored; each update computes its learning rate from it.
            self._engine.deepspeed.lr_scheduler.base_lrs = rates
        self.doing = "nothing"
        return extra

    def save_model(self, folder: Path) -> None:
        """Save the policy, with adapters merged, and its processor as a Hugging Face model folder."""
        self.doing = f"writing the model to {folder}"
        backbone = self._policy.backbone
        weights = self._engine.weights("backbone.")
        if self.ranks.is_main:
            weights = plain_weights(backbone, weights)
            with new_model_folder(folder) as temporary:
                save_backbone(backbone, temporary, weights)
                self.processor.save_pretrained(temporary)
        self.ranks.barrier()
        self.doing = "nothing"

    def close(self) -> None:
        """Close the weight transfer, if one is open."""
        if self._transfer is not None:
            self._transfer.close()

    def _micro_batches(
        self, samples: Sequence[TrainingSample], arrays: Sequence[str], purpose: str
    ) -> Iterator[CollatedRows]:
        """Yield this rank's micro-batches. A thread prepares the next one while the model runs."""
        budget = self.config.optimization.micro_batch_tokens
        planned = plan(samples, budget, self.ranks.count, self._share_prompt, self._attention_cost)
        own = planned.rows_of(self.ranks.rank)
        tokens = tokens_of_groups(samples)
        # Ranks also synchronize in the vision tower, so all of them must run it.
        stand_in = self.ranks.count > 1 and any(sample.shows_images for sample in samples)

        def make(rows: list[PromptRow], is_padding: bool) -> CollatedRows:
            inputs = collate_rows(rows, samples, self._encoder, stand_in)
            named = {name: padded(rows, samples, name) for name in arrays}
            named["mask"] = padded(rows, samples, "counted", torch.bool)
            named["group_tokens"] = torch.tensor([tokens[samples[position].group] for row in rows for position in row])
            return CollatedRows(rows, is_padding, inputs, named)

        for number, micro in enumerate(one_ahead(partial(make, *each) for each in own), start=1):
            self.doing = f"{purpose}: micro-batch {number} of {len(own)}"
            yield micro
        self.doing = f"{purpose}: the other ranks"

    def _loss(self, model: nn.Module, micro: CollatedRows, size: Tensor, tally: Tally) -> Tensor:
        config, device = self.config.loss, self.ranks.device
        arrays = {name: None if array is None else array.to(device) for name, array in micro.arrays.items()}
        output, mask_NT, engine_NT = model(micro.inputs.to(device)), arrays["mask"], arrays["engine"]
        assert arrays["advantages"] is not None, "compute advantages before the update"
        old_NT = output.logprobs_NT.detach() if arrays["old"] is None else arrays["old"]
        weights_NT = None
        if config.importance_cap is not None or config.importance_mask is not None:
            assert engine_NT is not None, "importance weights need the engine's log-probabilities"
            weights_NT = importance_weights(old_NT, engine_NT, mask_NT, config.importance_cap, config.importance_mask)
        loss, loss_metrics = policy_loss(
            output.logprobs_NT,
            old_NT,
            arrays["advantages"],
            mask_NT,
            size,
            config,
            arrays["ref"],
            weights_NT,
            arrays["group_tokens"],
            output.entropy_NT,
        )
        value = None
        if output.values_NT is not None:
            assert arrays["values"] is not None, "a critic's update needs values and returns"
            per_token = value_loss(output.values_NT, arrays["values"], arrays["returns"], self.config.critic.clip)
            value = aggregate(per_token, mask_NT, size, config.aggregation, arrays["group_tokens"])
            policy_weight = 0.0 if self._policy.detach_values else 1.0
            loss = policy_weight * loss + self.config.critic.coefficient * value
        if micro.is_padding:
            return loss * 0.0
        tally.add(
            loss_metrics, output.entropy_NT.detach(), mask_NT, old_NT, engine_NT, value, arrays["ref"] is not None
        )
        return loss

    def _reference_logprobs(self, model: nn.Module, inputs: PolicyInputs) -> Tensor | None:
        if self._reference is not None:
            return self._reference(inputs).logprobs_NT
        if self.config.loss.kl.coefficient > 0:
            with without_adapters(self._policy.backbone):
                return model(inputs).logprobs_NT
        return None

    def _count_bad_updates(self) -> None:
        self._bad_updates = self._bad_updates + 1 if self._engine.skipped else 0
        most = self.config.optimization.max_bad_steps
        if self._bad_updates >= most:
            raise TrainingError(
                f"{most} consecutive updates had a loss or gradient that is not finite and were skipped; lower "
                "trainer.optimization.learning_rate and run the same command again to resume from the last checkpoint"
            )
