"""Measure two savings of the trainer on images, on CPU, with random weights.

windows   one pass of a narrow vision tower of Qwen2.5-VL (32 layers, as in the 7B model) over an image of one
          megapixel: one attention call per window, as in transformers, compared with one call per window size
features  a step of `mmprm rl` on the tiny policy with frozen vision: log-probabilities of policy and reference, and
          two updates, with and without cached image features

Writes benchmarks/results/vision.json: `python benchmarks/vision.py [--rounds 3]`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmprm.backbone.image_features import FeatureCache
from mmprm.backbone.window_attention import use_window_batches
from mmprm.prompts import PromptConfig
from mmprm.tiny.model import build_model
from mmprm.tiny.tokenizer import build_processor
from mmprm.tiny.world import make_problems
from policy_rl.algorithms.losses import KlConfig, LossConfig
from policy_rl.trainer.config import TrainerConfig, UpdateConfig
from policy_rl.trainer.trainer import Trainer
from policy_rl.types import TrainingSample

RESULTS = Path(__file__).parent / "results" / "vision.json"
GRID = (1, 74, 74)
"""Patches of 14 pixels: an image of 1036 × 1036 pixels."""
DEPTH, WIDTH, HEADS = 32, 128, 4
PROBLEMS, GROUP_SIZE, TOKENS = 16, 8, 32
UPDATES = 2


def narrow_model() -> Qwen2_5_VLForConditionalGeneration:
    """Build a Qwen2.5-VL whose tower has the depth of the real one, but a small width, and one text layer."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rope}
    vision = {"depth": DEPTH, "num_heads": HEADS, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
    vision |= {"out_hidden_size": 32, "fullatt_block_indexes": [7, 15, 23, 31]}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


class Calls:
    """Counts the calls of scaled_dot_product_attention inside a `with` block."""

    def __enter__(self) -> Calls:
        self.count, self._original = 0, torch.nn.functional.scaled_dot_product_attention
        torch.nn.functional.scaled_dot_product_attention = self._counted
        return self

    def __exit__(self, *error: object) -> None:
        torch.nn.functional.scaled_dot_product_attention = self._original

    def _counted(self, *arguments: Any, **options: Any) -> Any:
        self.count += 1
        return self._original(*arguments, **options)


def measure_windows(rounds: int) -> dict[str, Any]:
    """Measure forward passes, alternating between the two forms, and compare their features."""
    pixels, grid = torch.randn(int(np.prod(GRID)), 3 * 2 * 14 * 14), torch.tensor([GRID])
    models = [narrow_model().requires_grad_(False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    use_window_batches(models[1])
    seconds: list[list[float]] = [[], []]
    features, calls = [None, None], [0, 0]
    for _ in range(rounds + 1):
        for number, model in enumerate(models):
            with Calls() as counted:
                started = time.process_time()
                found = model.model.get_image_features(pixels, grid, return_dict=True)
                seconds[number].append(time.process_time() - started)
            features[number], calls[number] = torch.cat(tuple(found.pooler_output)), counted.count
    before, after = (statistics.median(each[1:]) for each in seconds)  # the first round warms up
    return {
        "calls": {"before": calls[0], "after": calls[1]},
        "seconds": {"before": round(before, 3), "after": round(after, 3)},
        "ratio": round(before / after, 2),
        "max_difference": float((features[0] - features[1]).abs().max()),
    }


def make_samples(trainer: Trainer) -> list[TrainingSample]:
    """Make GROUP_SIZE random responses to each of PROBLEMS problems with an image."""
    rng, made = np.random.default_rng(0), []
    for group, tiny in enumerate(make_problems(PROBLEMS, seed=0, split="train")):
        tokens = len(trainer._encoder._encode(tiny.problem).ids_P)
        for _ in range(GROUP_SIZE):
            ids, advantages = rng.integers(10, 100, TOKENS), np.full(TOKENS, rng.normal())
            made.append(TrainingSample(tiny.problem, group, tokens, ids, advantages=advantages))
    return made


def run_step(trainer: Trainer, samples: list[TrainingSample], enabled: bool) -> tuple[float, float]:
    """Run a step's passes; return (CPU seconds, calls of the vision tower)."""
    trainer._policy.image_features = FeatureCache(enabled)
    trainer._reference.image_features = trainer._policy.image_features
    trainer._vision_calls = 0
    started = time.process_time()
    found = trainer.log_probs(samples)
    ready = [replace(sample, old=found[n].old, ref=found[n].ref) for n, sample in enumerate(samples)]
    calls = sum(trainer.update(ready)["vision_calls"] for _ in range(UPDATES))
    return time.process_time() - started, calls


def measure_features(rounds: int) -> dict[str, Any]:
    """Measure steps with and without the cache, alternating between both."""
    optimization = UpdateConfig(precision="fp32", micro_batch_tokens=2048)
    loss = LossConfig(kl=KlConfig(coefficient=0.1))
    config = TrainerConfig(loss=loss, optimization=optimization, frozen=("vision", "projector"))
    with tempfile.TemporaryDirectory() as folder:
        processor = build_processor()
        build_model(processor.tokenizer).save_pretrained(folder)
        processor.save_pretrained(folder)
        trainer = Trainer(folder, config, PromptConfig(preset="plain"), 1.0, 100)
    samples = make_samples(trainer)
    steps = [[run_step(trainer, samples, enabled) for enabled in (False, True)] for _ in range(rounds + 1)][1:]
    before, after = (statistics.median(step[number][0] for step in steps) for number in range(2))
    return {
        "calls": {"before": steps[0][0][1], "after": steps[0][1][1]},
        "seconds": {"before": round(before, 3), "after": round(after, 3)},
        "ratio": round(before / after, 2),
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts: dict[str, Callable[[int], dict[str, Any]]] = {"windows": measure_windows, "features": measure_features}
    result: dict[str, Any] = {name: part(arguments.rounds) for name, part in parts.items()}
    result |= {
        "machine": machine(),
        "rounds": arguments.rounds,
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result, indent=2))
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
