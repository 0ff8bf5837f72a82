"""Test rollouts and weight transfer with real engines: in process, in vLLM's own processes, and in two Ray actors."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmprm.errors import EngineStoppedError, SamplingError, TrainingError
from mmprm.prompts import PromptConfig
from mmprm.rendering import render
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.tiny.world import make_problems
from mmprm.types import Problem
from policy_rl.rollouts.config import RolloutConfig, rollout_seed
from policy_rl.rollouts.engine import RolloutEngine
from policy_rl.rollouts.pool import RolloutPool
from policy_rl.types import Group, Response
from policy_rl.weights.config import WeightsConfig
from policy_rl.weights.probe import probe_logprobs
from policy_rl.weights.transfer import FileTransfer, ModelWeights, Published
from tests.backbones import BACKBONES, WITH_IMAGE, write_backbone

pytestmark = pytest.mark.integration

PROBLEMS = [tiny.problem for tiny in make_problems(8, seed=0, split="dev")]
PLAIN = PromptConfig(preset="plain")
SAMPLING = SamplingConfig(max_tokens=48, temperature=0.8)


def load_model(folder: Path):
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def change(model, choose: Callable[[str], bool] = lambda name: True, size: float = 0.05) -> None:
    """Perturb each chosen parameter by about `size` times its mean magnitude."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if choose(name):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += size * parameter.abs().mean() * noise


@torch.no_grad()
def trainer_logprobs(model, processor, problem: Problem, response: Response, banned: tuple[int, ...]) -> list[float]:
    """Return the trainer's log-probabilities of these tokens, with the temperature and banned tokens of sampling."""
    from mmprm.problems import open_image

    text = [render(processor, problem, "", PLAIN)]
    images = {"images": [open_image(image) for image in problem.images]} if problem.images else {}
    inputs = dict(processor(text=text, **images, return_tensors="pt"))
    ids_1T = torch.cat([inputs.pop("input_ids"), torch.tensor([response.token_ids])], dim=1)
    inputs.pop("attention_mask")
    if "mm_token_type_ids" in inputs:
        kinds = inputs.pop("mm_token_type_ids")
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, len(response.token_ids)))
    logits_1TV = model(input_ids=ids_1T, **inputs).logits.float() / SAMPLING.temperature
    logits_1TV[..., list(banned)] = -torch.inf
    lp_1TV = logits_1TV[:, :-1].log_softmax(dim=-1)
    return lp_1TV.gather(-1, ids_1T[:, 1:, None]).flatten()[-len(response.token_ids) :].tolist()


@pytest.fixture(scope="module")
def started(policy_folder: Path):
    """Start a float32 engine in this process; its own event loop lets tests on any loop await its futures."""
    engine = RolloutEngine()
    config = EngineConfig(model=str(policy_folder), dtype="float32", max_num_seqs=64, kv_cache_gib=0.1)
    probe, banned = asyncio.run(engine.start(config, SAMPLING, PLAIN, {}))
    yield engine, probe, banned
    engine._sampler.close()


@pytest.fixture
async def engine(started, policy_folder: Path, tmp_path: Path):
    """Return the `started` engine with the checkpoint's weights, regardless of what earlier tests loaded."""
    engine, probe, _ = started
    model = load_model(policy_folder)
    await engine.load(publish(model, tmp_path / "original", 0, probe))
    return engine


def publish(model, folder: Path, version: int, probe: tuple[int, ...], dtype=torch.float32) -> Published:
    return FileTransfer(folder).publish(ModelWeights(model, dtype), version, probe_logprobs(model, probe))


def distance(answer: tuple[float, ...], published: Published) -> float:
    return max(abs(a - b) for a, b in zip(answer, published.probe, strict=True))


async def test_logprobs_belong_to_the_sampled_tokens(engine, started, policy_folder):
    from transformers import AutoProcessor

    _, _, banned = started
    processor, model = AutoProcessor.from_pretrained(policy_folder), load_model(policy_folder)
    text_only = Problem("text", "Left to right: 1 + 1 = ?", "2")
    ends = set()
    for problem in (*PROBLEMS[:2], text_only):
        group = await engine.sample(problem, 4, 7, 0)
        assert (group.problem, group.version, len(group.responses)) == (problem, 0, 4)
        for response in group.responses:
            ends.add(response.finish_reason)
            ended = response.token_ids[-1] == model.config.text_config.eos_token_id
            assert ended == (response.finish_reason == "stop")
            assert response.text == processor.tokenizer.decode(response.token_ids, skip_special_tokens=True)
            ours = trainer_logprobs(model, processor, problem, response, banned)
            assert response.logprobs == pytest.approx(ours, abs=2e-3)
        inputs = processor(
            text=[render(processor, problem, "", PLAIN)],
            images=[image_pixels(problem)] if problem.images else None,
        )
        assert group.prompt_tokens == len(inputs["input_ids"][0])
    assert "stop" in ends


async def test_a_prefix_is_continued_with_exactly_its_tokens(engine, started, policy_folder):
    from transformers import AutoProcessor

    _, _, banned = started
    processor, model = AutoProcessor.from_pretrained(policy_folder), load_model(policy_folder)
    for problem in PROBLEMS[:2]:
        assert problem.images
        whole = await engine.sample(problem, 1, 7, 0)
        prefix = whole.responses[0].prefix(9)
        group = await engine.sample(problem, 4, 11, 0, prefix=prefix, max_tokens=20)
        assert group.prompt_tokens == whole.prompt_tokens
        assert len({response.text for response in group.responses}) > 1
        for response in group.responses:
            assert response.token_ids[:9].tolist() == prefix.token_ids.tolist()
            assert 9 < len(response.token_ids) <= 29
            assert response.text == processor.tokenizer.decode(response.token_ids, skip_special_tokens=True)
            expected = trainer_logprobs(model, processor, problem, response, banned)
            assert response.logprobs.tolist() == pytest.approx(expected, abs=1e-4)


async def test_an_interrupt_returns_the_tokens_so_far(engine, started, policy_folder):
    from transformers import AutoProcessor

    _, _, banned = started
    processor, model = AutoProcessor.from_pretrained(policy_folder), load_model(policy_folder)
    for delay in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2):  # responses may not have begun, or have ended already
        request = asyncio.ensure_future(engine.sample(PROBLEMS[0], 48, 7, 0))
        await asyncio.sleep(delay)
        await engine.interrupt()
        responses = (await asyncio.wait_for(request, 60)).responses
        partial = [each for each in responses if each.finish_reason == "interrupted" and len(each.token_ids) > 1]
        if partial:
            break
    assert len(responses) == 48
    assert partial
    for response in partial[:2]:
        assert len(response.token_ids) < 48
        expected = trainer_logprobs(model, processor, PROBLEMS[0], response, banned)
        assert response.logprobs == pytest.approx(expected, abs=2e-3)
    done = len(partial[0].token_ids)
    (rest,) = (await engine.sample(PROBLEMS[0], 1, 11, 0, prefix=partial[0].prefix(done))).responses
    assert rest.token_ids[:done].tolist() == partial[0].token_ids.tolist()
    assert rest.finish_reason in ("stop", "length")


def image_pixels(problem: Problem):
    from mmprm.problems import open_image

    return open_image(problem.images[0])


async def test_vision_tokens_are_never_sampled(engine, started, policy_folder, tmp_path):
    """The policy assigns equal probability to all tokens, and still no vision token is sampled."""
    _, probe, banned = started
    model = load_model(policy_folder)
    assert set(banned) >= {model.config.image_token_id, model.config.video_token_id}
    assert model.config.text_config.eos_token_id not in banned
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.language_model.norm.weight.fill_(1.0)
    await engine.load(publish(model, tmp_path / "flat", 1, probe))
    group = await engine.sample(PROBLEMS[0], 32, 0, 1)
    sampled = {token for response in group.responses for token in response.token_ids}
    assert len(sampled) > 100
    assert not sampled & set(banned)


async def test_new_weights_give_the_trainers_logprobs(engine, started, policy_folder, tmp_path):
    _, probe, _ = started
    model = load_model(policy_folder)
    old = probe_logprobs(model, probe)
    change(model)
    published = publish(model, tmp_path / "new", 3, probe)
    assert max(abs(a - b) for a, b in zip(old, published.probe, strict=True)) > 0.1
    assert distance(await engine.load(published), published) < 1e-3


@pytest.mark.parametrize(
    ("part", "size"), [("visual.merger", 3), ("visual.blocks.0", 3), ("self_attn.k_proj", 0.3), ("lm_head", 0.3)]
)
async def test_each_part_of_the_model_takes_effect_at_once(engine, started, policy_folder, tmp_path, part, size):
    """No cached images or prompts survive an update: log-probabilities equal the trainer's again."""
    from transformers import AutoProcessor

    _, probe, banned = started
    processor, model = AutoProcessor.from_pretrained(policy_folder), load_model(policy_folder)
    before = (await engine.sample(PROBLEMS[0], 1, 1, 0)).responses[0]
    change(model, lambda name: part in name, size)
    moved = trainer_logprobs(model, processor, PROBLEMS[0], before, banned)
    assert max(abs(a - b) for a, b in zip(moved, before.logprobs, strict=True)) > 0.02, (
        "the change is large enough to be measured"
    )
    await engine.load(publish(model, tmp_path / "part", 1, probe))
    after = (await engine.sample(PROBLEMS[0], 1, 1, 1)).responses[0]
    ours = trainer_logprobs(model, processor, PROBLEMS[0], after, banned)
    assert after.logprobs == pytest.approx(ours, abs=3e-3)


@pytest.mark.parametrize("missing", ["k_proj.weight", "visual.merger.mlp.0.bias", "norm.weight", "lm_head.weight"])
async def test_a_tensor_that_is_not_sent_is_an_error(engine, policy_folder, tmp_path, missing):
    model = load_model(policy_folder)
    published = write([(n, t) for n, t in ModelWeights(model, torch.float32) if not n.endswith(missing)], tmp_path, 1)
    with pytest.raises(TrainingError, match="incomplete"):
        await engine.load(published)


async def test_an_unknown_tensor_name_is_an_error(engine, policy_folder, tmp_path):
    model = load_model(policy_folder)
    renamed = [(name.replace("layers.3", "layers.4"), tensor) for name, tensor in ModelWeights(model, torch.float32)]
    with pytest.raises(TrainingError, match=r"layers\.4"):
        await engine.load(write(renamed, tmp_path, 1))


async def test_another_version_is_an_error(engine, started, policy_folder, tmp_path):
    _, probe, _ = started
    published = publish(load_model(policy_folder), tmp_path / "one", 1, probe)
    with pytest.raises(TrainingError, match="contains weights of version 1, not 2"):
        await engine.load(replace(published, version=2))


def write(tensors: list, folder: Path, version: int) -> Published:
    return FileTransfer(folder / "files").publish(tensors, version, ())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_a_reloaded_engine_equals_a_fresh_one(policy_folder, tmp_path, dtype):
    """The embedding and the head are tied, and vLLM keeps a separate packed copy of them."""
    from transformers import AutoProcessor

    model = load_model(policy_folder)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    for name in ("old", "new"):
        model.save_pretrained(tmp_path / name)
        AutoProcessor.from_pretrained(policy_folder).save_pretrained(tmp_path / name)
        change(model)
    tied = load_model(tmp_path / "new")
    assert tied.lm_head.weight is tied.model.language_model.embed_tokens.weight
    answers = []
    for name in ("old", "new"):
        engine = RolloutEngine()
        config = EngineConfig(model=str(tmp_path / name), dtype=dtype, kv_cache_gib=0.1)
        probe, _ = await engine.start(config, SAMPLING, PLAIN, {})
        published = publish(tied, tmp_path / "files", 1, probe, getattr(torch, dtype))
        answers.append(await engine.load(published) if name == "old" else await engine._sampler.logprobs(probe))
        engine._sampler.close()
    assert answers[0] == answers[1]
    assert distance(answers[0], published) < (1e-3 if dtype == "float32" else 0.5)


@pytest.mark.parametrize("name", BACKBONES)
async def test_every_backbone_takes_new_weights(tmp_path, name):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

    folder = write_backbone(name, tmp_path / "model")
    problem = PROBLEMS[0] if name in WITH_IMAGE else replace(PROBLEMS[0], images=())
    model_class = AutoModelForImageTextToText if name in WITH_IMAGE else AutoModelForCausalLM
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    engine = RolloutEngine()
    config = EngineConfig(model=str(folder), dtype="float32", kv_cache_gib=0.1)
    probe, banned = await engine.start(config, SAMPLING, PLAIN, {})
    try:
        assert banned or name not in WITH_IMAGE
        old = publish(model, tmp_path / "old", 0, probe)
        change(model, size=0.5)
        published = publish(model, tmp_path / "new", 1, probe)
        assert distance(old.probe, published) > 0.1
        assert distance(await engine.load(published), published) < 1e-3
        response = (await engine.sample(problem, 1, 0, 1)).responses[0]
        ours = trainer_logprobs(model, AutoProcessor.from_pretrained(folder), problem, response, banned)
        assert response.logprobs == pytest.approx(ours, abs=3e-3)
    finally:
        engine._sampler.close()


async def test_an_engine_in_separate_processes(policy_folder, tmp_path):
    engine = RolloutEngine()
    config = EngineConfig(model=str(policy_folder), dtype="float32", mode="separate", kv_cache_gib=0.1)
    probe, _ = await engine.start(config, SAMPLING, PLAIN, {})
    try:
        model = load_model(policy_folder)
        change(model)
        published = publish(model, tmp_path / "new", 1, probe)
        in_flight = asyncio.create_task(engine.sample(PROBLEMS[0], 4, 0, 0))
        while not (in_flight.done() or engine._sampler._engine._in_flight):
            await asyncio.sleep(0.001)
        answer, late = await asyncio.gather(engine.load(published), engine.sample(PROBLEMS[1], 4, 0, 1))
        assert in_flight.done(), "weights change when nothing is in flight"
        assert distance(answer, published) < 1e-3
        assert len(late.responses) == 4
        stopped = asyncio.create_task(engine.sample(PROBLEMS[0], 16, 0, 1))
        await asyncio.sleep(0.1)
        await engine.interrupt()
        assert len((await asyncio.wait_for(stopped, 60)).responses) == 16
        short = write([(n, t) for n, t in ModelWeights(model, torch.float32) if "q_proj" not in n], tmp_path, 2)
        with pytest.raises(TrainingError, match="incomplete"):
            await engine.load(short)
    finally:
        engine._sampler.close()


async def ask_all(pool: RolloutPool, n: int = 8) -> list[Group]:
    version = pool.version
    seeds = {problem.id: rollout_seed(0, version, problem.id) for problem in PROBLEMS}
    return await asyncio.gather(*(pool.sample(problem, n, seeds[problem.id], version) for problem in PROBLEMS))


async def test_the_pool_replaces_a_dead_engine(policy_folder, tmp_path, capfd):
    engine = EngineConfig(model=str(policy_folder), dtype="float32", max_num_seqs=64, kv_cache_gib=0.1)
    pool = await RolloutPool.start(engine, SAMPLING, PLAIN, RolloutConfig(engines=2, max_restarts=1), WeightsConfig())
    try:
        first = await ask_all(pool)
        assert first == await ask_all(pool), "the same seeds give the same responses"

        model = load_model(policy_folder)
        change(model)
        published = publish(model, tmp_path / "new", 1, pool.probe_token_ids)
        assert await pool.load_weights(published) < 1e-3
        expected = await ask_all(pool)
        assert {group.version for group in expected} == {1}

        pid = await pool.engines[0].__ray_call__.remote(lambda _: os.getpid())
        asking = asyncio.create_task(ask_all(pool))
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        assert await asking == expected, "sampled again with the weights of version 1"
        assert pool.restarts == 1
        assert "starting another engine in its place" in capfd.readouterr().err
        new_pid = await pool.engines[0].__ray_call__.remote(lambda _: os.getpid())
        assert new_pid != pid

        with pytest.raises(SamplingError, match="maximum context length"):
            await pool.sample(Problem("long", "1" * 5000, "1"), 1, 0, 1)

        os.kill(new_pid, signal.SIGKILL)
        answers = await asyncio.gather(*(ask_all(pool) for _ in range(2)), return_exceptions=True)
        assert all(isinstance(answer, EngineStoppedError) for answer in answers)
        assert "rollouts.max_restarts=1" in str(answers[0])
    finally:
        pool.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two GPUs")
async def test_weights_from_gpu_to_gpu(policy_folder):
    from policy_rl.weights.vllm import VllmTransfer

    engine = EngineConfig(model=str(policy_folder), dtype="float32", gpu_memory_utilization=0.3)
    pool = await RolloutPool.start(engine, SAMPLING, PLAIN, RolloutConfig(engines=1), WeightsConfig(transport="nccl"))
    transfer = VllmTransfer("nccl", pool.engines, engine.tensor_parallel_size, rank=0, timeout_seconds=120)
    try:
        model = load_model(policy_folder).cuda(torch.cuda.device_count() - 1)
        torch.cuda.set_device(torch.cuda.device_count() - 1)
        change(model.cpu())
        model.cuda()
        probe = probe_logprobs(model, pool.probe_token_ids)
        published = await asyncio.to_thread(transfer.publish, ModelWeights(model, torch.float32), 1, probe)
        assert await pool.load_weights(published) < 1e-2
    finally:
        transfer.close()
        pool.close()
