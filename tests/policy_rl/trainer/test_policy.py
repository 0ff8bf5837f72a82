"""Test log-probabilities of response tokens: they equal the full computation in every batch layout.

Gradients are tested by finite differences through the whole model and the loss.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from mmprm.backbone.image_features import FeatureCache, why_not_cached
from mmprm.backbone.load import load_backbone
from mmprm.backbone.trainable import TrainableConfig, prepare_training
from mmprm.errors import CheckpointError, ConfigError
from mmprm.prompts import PromptConfig
from mmprm.training.lora import LoraConfig
from mmprm.types import Problem
from policy_rl.algorithms.losses import KlConfig, LossConfig, aggregate, denominator, policy_loss, value_loss
from policy_rl.trainer import batch
from policy_rl.trainer.batch import collate_rows, plan
from policy_rl.trainer.policy import Policy, PolicyOutput, without_adapters
from policy_rl.trainer.prompt_encoder import EncodedPrompt, PromptEncoder
from policy_rl.types import TrainingSample
from tests.backbones import BACKBONES, WITH_IMAGE, tiny_solutions, write_backbone

PLAIN = PromptConfig(preset="plain")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(BACKBONES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    folder = write_backbone(request.param, tmp_path_factory.mktemp(request.param) / "model")
    return request.param, *load_backbone(str(folder), torch.float32)


def make_samples(
    name: str, encoder: PromptEncoder, groups: int = 3, each: int = 3, seed: int = 0
) -> list[TrainingSample]:
    """Return groups of random responses of different lengths, some with common prefixes; the last group has no
    image.
    """
    rng = random.Random(seed)
    problems = [solution.problem for solution in tiny_solutions(name, groups)]
    if name in WITH_IMAGE:
        problems[-1] = Problem("text", "2 + 3 = ?", "5")
    made = []
    for group, problem in enumerate(problems):
        tokens = len(encoder._encode(problem).ids_P)
        stem = [rng.randrange(8, 40) for _ in range(4)]
        for _ in range(each):
            ids = (*stem[: rng.randrange(5)], *(rng.randrange(8, 40) for _ in range(rng.randrange(1, 9))))
            made.append(TrainingSample(problem, group, tokens, ids))
    return made


def run(
    policy: Policy,
    samples: Sequence[TrainingSample],
    encoder: PromptEncoder,
    budget: int = 10_000,
    share: bool = False,
) -> list[PolicyOutput]:
    """Return the policy's outputs for each response, in the order of the samples."""
    planned = plan(samples, budget, 1, share)
    found: dict[int, PolicyOutput] = {}
    for rows, _ in planned.rows_of(0):
        output = policy(collate_rows(rows, samples, encoder))
        for n, position in enumerate(position for row in rows for position in row):
            own = slice(len(samples[position].token_ids))
            found[position] = PolicyOutput(*(None if part is None else part[n, own] for part in output))
    return [found[position] for position in range(len(samples))]


def alone(backbone: Any, processor: Any, sample: TrainingSample, temperature: float) -> tuple[Tensor, Tensor]:
    """Return (log-probabilities, entropies) of one response from the model's own forward pass, with full logits."""
    encoded = PromptEncoder(backbone, processor, PLAIN)._encode(sample.problem)
    ids_1L = torch.cat([encoded.ids_P, torch.tensor(sample.token_ids)])[None]
    images = dict(encoded.images)
    if "image_grid_thw" in images:
        images["mm_token_type_ids"] = (ids_1L == backbone.config.image_token_id).int()
    logits_LV = backbone(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L), **images).logits[0]
    logp_TV = (logits_LV[len(encoded.ids_P) - 1 : -1] / temperature).log_softmax(dim=-1)
    token_T1 = torch.tensor(sample.token_ids, dtype=torch.int64)[:, None]
    return logp_TV.gather(1, token_T1)[:, 0], -(logp_TV.exp() * logp_TV).sum(dim=-1)


def test_padding_to_the_grid_of_a_gpu_changes_neither_loss_nor_gradients(
    loaded: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, backbone, processor = loaded
    encoder, policy = PromptEncoder(backbone, processor, PLAIN), Policy(copy.deepcopy(backbone))
    samples = make_samples(name, encoder)
    (rows, _), *_ = plan(samples, 10_000, 1, share_prompt=True).rows_of(0)
    found = []
    for block in (1, 128):
        monkeypatch.setattr(batch, "on_grid", lambda width, block=block: -(-width // block) * block)
        inputs = collate_rows(rows, samples, encoder)
        policy.zero_grad()
        output = policy(inputs)
        output.logprobs_NT.sum().backward()
        gradients = {key: p.grad.clone() for key, p in policy.named_parameters() if p.grad is not None}
        found.append((inputs.input_ids_BL.shape[1], output.logprobs_NT.detach(), gradients))
    (width, logprobs_NT, gradients), (on_grid, padded_NT, others) = found
    assert on_grid % 128 == 0 < width % 128
    torch.testing.assert_close(padded_NT, logprobs_NT, rtol=1e-5, atol=1e-5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("share", [False, True])
def test_log_probs_equal_the_full_computation(loaded: tuple[str, Any, Any], share: bool) -> None:
    """Checks every backbone, with and without images, and with prompts shared or repeated per response."""
    name, backbone, processor = loaded
    encoder = PromptEncoder(backbone, processor, PLAIN)
    samples = make_samples(name, encoder)
    outputs = run(Policy(backbone, temperature=0.7), samples, encoder, share=share)
    for sample, output in zip(samples, outputs, strict=True):
        logprobs_T, entropy_T = alone(backbone, processor, sample, 0.7)
        assert logprobs_T.std() > 1e-4 or len(logprobs_T) == 1
        torch.testing.assert_close(output.logprobs_NT, logprobs_T, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(output.entropy_NT, entropy_T, rtol=1e-5, atol=1e-5)


def test_sharing_the_prompt_changes_neither_loss_nor_gradients(loaded: tuple[str, Any, Any]) -> None:
    """Micro-batches and the order of the responses do not matter either."""
    name, backbone, processor = loaded
    encoder = PromptEncoder(backbone, processor, PLAIN)
    policy = Policy(copy.deepcopy(backbone), critic=True)
    nn.init.normal_(policy.value_head.weight)
    samples = make_samples(name, encoder)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(2, len(sample.token_ids), generator=generator) for sample in samples]
    order = random.Random(1).sample(range(len(samples)), len(samples))
    results = []
    forms = ((range(9), 10_000, False), (range(9), 10_000, True), (order, 60, False), (order, 90, True))
    for positions, budget, share in forms:
        policy.zero_grad()
        outputs = run(policy, [samples[position] for position in positions], encoder, budget, share)
        loss = sum(
            (weights[position][0] * output.logprobs_NT + weights[position][1] * output.values_NT).sum()
            for position, output in zip(positions, outputs, strict=True)
        )
        loss.backward()
        gradients = {key: p.grad.clone() for key, p in policy.named_parameters() if p.grad is not None}
        results.append((loss.item(), gradients))
    (loss, gradients), *others = results
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-2
    for other_loss, other_gradients in others:
        assert other_loss == pytest.approx(loss, rel=1e-4, abs=1e-4)
        assert gradients.keys() == other_gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[key], gradient, rtol=1e-3, atol=1e-4)


def test_values_leave_the_backbone_alone_when_detached() -> None:
    policy = tiny_text_policy(critic=True)
    samples = [TrainingSample(Problem("a", "3 4 5", ""), 0, 3, (4, 9, 2))]
    inputs = collate_rows([(0,)], samples, TextEncoder())
    for detached in (False, True):
        policy.zero_grad()
        policy.detach_values = detached
        policy(inputs).values_NT.sum().backward()
        reached = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
        assert (reached == {"value_head.weight", "value_head.bias"}) == detached


def tiny_text_policy(critic: bool) -> Policy:
    """Return a Qwen2 in float64 whose norms are replaced, because the originals compute in float32."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone = Qwen2ForCausalLM(Qwen2Config(vocab_size=30, num_key_value_heads=1, **shape)).double()
    for name, module in list(backbone.named_modules()):
        if type(module).__name__ == "Qwen2RMSNorm":
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, nn.RMSNorm(16, eps=1e-6, dtype=torch.float64))
    policy = Policy(backbone, temperature=1.3, critic=critic)
    if critic:
        nn.init.normal_(policy.value_head.weight)
    return policy


class TextEncoder:
    """Encodes prompts of numbers without a tokenizer."""

    axes, padding = 1, 0
    media_ids, reads_clips = (0,), False

    def __call__(self, problem: Problem, expected_tokens: int) -> Any:
        ids_P = torch.tensor([int(word) for word in problem.question.split()])
        return EncodedPrompt(ids_P, torch.arange(len(ids_P))[None], {})


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(kl=KlConfig(coefficient=0.3)),
        LossConfig(entropy_coefficient=0.5),
        # The drift's force is not the slope of its value: see the tests of the losses.
        LossConfig(surrogate="cpgd", drift=0, aggregation="sequence_mean", kl=KlConfig(coefficient=1, estimator="k2")),
    ],
)
def test_gradient_by_finite_differences(config: LossConfig) -> None:
    """Checks policy loss, KL and value loss through the whole model along random directions."""
    policy, rng = tiny_text_policy(critic=True), np.random.default_rng(0)
    problems = [Problem("a", "3 4 5", ""), Problem("b", "7 8 9 10", "")]
    responses = [(0, (4, 9, 2)), (0, (5, 6)), (1, (11, 12, 13, 2))]
    samples = [TrainingSample(problems[g], g, len(problems[g].question.split()), ids) for g, ids in responses]
    inputs = collate_rows([(0, 1), (2,)], samples, TextEncoder())
    shape = inputs.response_NT.shape
    with torch.no_grad():
        now = policy(inputs)
    # Away from the clips' corners, where there is no derivative.
    old, ref = (now.logprobs_NT + torch.from_numpy(rng.uniform(0.02, 0.1, shape)) for _ in range(2))
    advantages, returns = (torch.from_numpy(rng.normal(size=shape)) for _ in range(2))
    size = denominator(inputs.response_NT, config).double()

    def loss() -> Tensor:
        output = policy(inputs)
        total, _ = policy_loss(
            output.logprobs_NT, old, advantages, inputs.response_NT, size, config, ref, entropy=output.entropy_NT
        )
        critic = value_loss(output.values_NT, now.values_NT, returns, clip=None)
        return total + 0.5 * aggregate(critic, inputs.response_NT, size, config.aggregation)

    policy.zero_grad()
    loss().backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters()}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in policy.named_parameters()}
        expected = sum((gradients[name] * direction[name]).sum() for name in gradients).item()
        ends = []
        for sign in (1, -1):
            moved = copy.deepcopy(policy.state_dict())
            with torch.no_grad():
                for name, parameter in policy.named_parameters():
                    parameter += sign * 1e-6 * direction[name]
                ends.append(loss().item())
            policy.load_state_dict(moved)
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(expected, rel=1e-5, abs=1e-8)
        assert abs(expected) > 1e-3


def test_a_new_critic_predicts_zero(random_policy_folder: Path) -> None:
    backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
    encoder = PromptEncoder(backbone, processor, PLAIN)
    samples = make_samples("qwen2_5_vl", encoder)
    for output in run(Policy(backbone, critic=True), samples, encoder):
        assert output.values_NT.tolist() == [0.0] * len(output.logprobs_NT)


def test_preparation(random_policy_folder: Path) -> None:
    backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
    encoder = PromptEncoder(backbone, processor, PLAIN)
    samples = make_samples("qwen2_5_vl", encoder)
    policy = Policy(copy.deepcopy(backbone))
    prepare_training(policy.backbone, TrainableConfig(frozen=("vision",)))
    frozen = {name for name, p in policy.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in backbone.named_parameters() if "visual" in n and "merger" not in n}
    with pytest.raises(ConfigError, match="'color' matches no parameter; use one of vision, audio, projector"):
        prepare_training(policy.backbone, TrainableConfig(frozen=("color",)))
    with pytest.raises(ConfigError, match="leaves no trainable parameter"):
        prepare_training(policy.backbone, TrainableConfig(frozen=("",)))
    adapted = Policy(copy.deepcopy(backbone))
    prepare_training(adapted.backbone, TrainableConfig(lora=LoraConfig(rank=2)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        plain = run(Policy(backbone), samples, encoder)
        with_adapters = run(adapted, samples, encoder)
        with without_adapters(adapted.backbone):
            without = run(adapted, samples, encoder)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == {
        name for name, _ in adapted.named_parameters() if "lora_" in name
    }
    for base, off, on in zip(plain, without, with_adapters, strict=True):
        torch.testing.assert_close(off.logprobs_NT, base.logprobs_NT)
        assert not torch.allclose(on.logprobs_NT, base.logprobs_NT, atol=1e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_adapters_of_the_output_layer_are_refused(tied: bool) -> None:
    """Log-probabilities use only its base weights, so an adapter would affect only the engine's policy."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=40, num_key_value_heads=2, tie_word_embeddings=tied, **shape)
    with pytest.raises(ConfigError, match=r"must not match the output layer lm_head"):
        prepare_training(
            Qwen2ForCausalLM(config), TrainableConfig(lora=LoraConfig(rank=2, targets=("_proj$", "lm_head")))
        )


def test_gradient_checkpointing_changes_nothing(random_policy_folder: Path) -> None:
    backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
    encoder = PromptEncoder(backbone, processor, PLAIN)
    samples = make_samples("qwen2_5_vl", encoder)
    gradients = []
    for again in (False, True):
        policy = Policy(copy.deepcopy(backbone))
        prepare_training(policy.backbone, TrainableConfig(gradient_checkpointing=again))
        sum(output.logprobs_NT.sum() for output in run(policy, samples, encoder, share=True)).backward()
        gradients.append({name: parameter.grad for name, parameter in policy.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_rescaled_logits_are_refused() -> None:
    backbone = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    )
    backbone.config.final_logit_softcapping = 30.0
    with pytest.raises(CheckpointError, match="logits are not"):
        Policy(backbone)


def test_cached_image_features_change_neither_log_probs_nor_gradients(loaded: tuple[str, Any, Any]) -> None:
    name, backbone, processor = loaded
    if name not in WITH_IMAGE:
        pytest.skip("reads text only")
    backbone = copy.deepcopy(backbone)
    prepare_training(backbone, TrainableConfig(frozen=("vision", "projector")))
    encoder, policy = PromptEncoder(backbone, processor, PLAIN), Policy(backbone)
    samples = make_samples(name, encoder)
    found = []
    for enabled in (False, True):
        policy.image_features = FeatureCache(enabled=enabled)
        assert why_not_cached(backbone) is None
        for _ in range(3):
            policy.zero_grad()
            outputs = run(policy, samples, encoder, budget=60, share=True)
            sum(output.logprobs_NT.sum() for output in outputs).backward()
        gradients = [parameter.grad.clone() for parameter in policy.parameters() if parameter.requires_grad]
        found.append(([output.logprobs_NT.detach() for output in outputs], gradients, policy.image_features))
    (logprobs, gradients, plain), (own_logprobs, own_gradients, cache) = found
    assert all(map(torch.equal, own_logprobs, logprobs))
    assert all(map(torch.equal, own_gradients, gradients))
    images = {sample.problem for sample in samples if sample.problem.images}
    assert cache.tower_calls <= len(images) < plain.tower_calls
