"""Train a process reward model from labeled paths and a base model (`mmprm train`)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from mmprm.backbone.image_features import feature_cache
from mmprm.backbone.masks import why_not_packed
from mmprm.backbone.trainable import TrainableConfig, prepare_training
from mmprm.config import PathText
from mmprm.errors import ConfigError, DataError
from mmprm.hardware import HardwareConfig
from mmprm.labels.checks import check_splits
from mmprm.labels.parquet import LabeledExample, read_parquet
from mmprm.labels.selection import SelectionConfig, SelectionCounts, select_labels
from mmprm.model_limits import check_packing
from mmprm.preflight import check_disk_space, check_model, load_template_owner
from mmprm.prm.data import PrmSample, TargetConfig, make_samples
from mmprm.prm.formats import open_format
from mmprm.prm.info import INFO_FILE, PrmInfo, PrmTokens, read_info
from mmprm.prm.mm_prm_format import check_tokens
from mmprm.prm.model import Prm, PrmModel, initialize_prm, save_prm
from mmprm.prm.task import Packing, PrmTask, TrainingRows, make_rows
from mmprm.sampling.config import check_pixel_limits, pixel_limits
from mmprm.trackers import check_tracker
from mmprm.training import checkpoints
from mmprm.training.config import TrainingConfig
from mmprm.training.engine import Engine
from mmprm.training.loop import fit, step_count
from mmprm.training.lora import plain_weights
from mmprm.training.ranks import Ranks, alone_in, join_ranks
from mmprm.training.sharding import loading_in_parts
from mmprm.training.stop_request import StopRequest
from mmprm.types import AudioRef, Solution


class TrainConfig(TrainableConfig):
    """Configures a run of `mmprm train`."""

    model: PathText
    """Base model: a folder, a hub id such as Qwen/Qwen2.5-VL-7B-Instruct, or tiny (the built-in policy)."""
    labels: PathText
    """Parquet file written by mmprm labels. Its train split is used for training, its dev split for evaluation."""
    output: PathText
    """Run folder for the model (prm/), checkpoints/, metrics.jsonl and tensorboard/. An existing run is resumed. On
    several machines, it must be on shared storage."""
    tokens: PrmTokens = PrmTokens()
    """Tokens that mark the steps and represent the two judgments."""
    add_missing_tokens: bool = False
    """Add Yes and No to the vocabulary if they are not yet single tokens."""
    target: TargetConfig = TargetConfig()
    """Settings that turn a step's rollout counts into its training target."""
    selection: SelectionConfig = SelectionConfig()
    """Rules that select the labels and solutions of the train split."""
    packing: Packing = "none"
    """How to pack paths into rows. none: one path per row. samples: pack several paths per row without attention
    between them. trees: pack all paths of a problem as one sequence that contains shared steps once. The loss is the
    same. Unsupported models fall back to none with a warning. Episodes are packed as with samples."""
    max_length: int = Field(4096, ge=1)
    """Maximum number of tokens per path. Longer paths are excluded from training, and their number is reported."""
    max_pixels: int | None = Field(None, ge=1)
    """Maximum number of pixels per image or video frame (Qwen-VL and Qwen2.5-Omni processors), by default the
    processor's own limit. It is stored in prm.json and applies to scoring, too. Use the limits of the policy's engine.
    """
    min_pixels: int | None = Field(None, ge=1)
    """Minimum number of pixels per image or video frame, likewise. The own limit is 100,352 for the frames of
    Qwen2.5-Omni."""
    training: TrainingConfig = TrainingConfig()
    """Settings of the optimizer, batches, sharding and checkpoints."""
    hardware: HardwareConfig = Field(HardwareConfig(), exclude=True)
    """Hardware that `mmprm plan` assumes; the run itself ignores these settings."""

    @model_validator(mode="after")
    def _pixel_limits_in_order(self) -> TrainConfig:
        check_pixel_limits(self.min_pixels, self.max_pixels)
        return self


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """Summarizes a run of `mmprm train`.

    `evaluation` holds the last loss and AUC on held-out trees; `labels` is the number of training labels per epoch.
    """

    prm: Path
    steps: int
    samples: int
    labels: int
    too_long: int
    seconds: float
    evaluation: dict[str, float]


def train_prm(config: TrainConfig) -> TrainSummary:
    """Train a PRM in a single process or as one torchrun rank. Every rank returns the summary."""
    ranks = join_ranks()
    with alone_in(ranks, Path(config.output), "output"):
        return _train(config, ranks)


def _train(config: TrainConfig, ranks: Ranks) -> TrainSummary:
    started, output = time.perf_counter(), Path(config.output)
    examples = read_parquet(config.labels, turns=True)  # read first, to report its errors before a model is loaded
    splits = (example.split for example in examples)
    check_splits(splits, config.labels, "rename it, or split again with mmprm labels export --format parquet")
    examples, selected = _select(examples, config)
    check_tracker(config.training.tracker, "training.tracker")
    check_model(config.model)
    check_packing(config.model, config.packing)
    check_disk_space(config.output, "output", config.model)
    check_tokens(load_template_owner(config.model), config.tokens, config.add_missing_tokens)
    torch.manual_seed(config.training.seed)  # all ranks must initialize new weights identically
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    with loading_in_parts(config.training):
        limits = pixel_limits(config.min_pixels, config.max_pixels)
        prm = initialize_prm(config.model, config.tokens, config.add_missing_tokens, dtype, limits)
    prepare_model(prm.model, config)
    prm.model.image_features = feature_cache(prm.model.backbone, ranks, config.training.zero_stage)
    torch.manual_seed(config.training.seed + ranks.rank)
    (train, too_long), (held_out, _) = _samples(config, prm, examples)
    _check_media(train + held_out, config, ranks)
    rows, held_out_rows = _rows(config, prm, [train, held_out], ranks)
    # batch_size counts samples, but a packed row holds several.
    batch_size = max(1, round(config.training.batch_size * len(rows.lengths) / len(train)))
    training = config.training.model_copy(update={"batch_size": batch_size})
    total = step_count(len(rows.lengths), training)
    engine = Engine(prm.model, training, total, ranks)
    task = PrmTask(rows, held_out_rows, training.micro_batch_tokens, ranks.device)
    if ranks.is_main:
        removed = sum((selected.agree, selected.min_rollouts, selected.max_posterior_std, selected.informative))
        if removed:
            print(f"selection: {removed:,} labels removed, {selected.solutions:,} paths left", flush=True)
        print(f"{len(train):,} samples, {sum(task.terms):,} labels, {total:,} steps on {ranks.count} ranks", flush=True)
    finished = ranks.is_main and checkpoints.steps_done(output / "checkpoints") == total
    evaluation = fit(task, engine, training, output, _origin(config))
    with StopRequest(ranks):  # finish writing before stopping: there may be no checkpoint of these weights
        weights = engine.weights("backbone.")
        if ranks.is_main:
            settings = {**config.target.model_dump(), "file": Path(config.labels).name}
            if config.selection != SelectionConfig():
                settings["selection"] = config.selection.model_dump(mode="json", exclude_defaults=True)
            info = prm.info.model_copy(update={"labels": settings})
            if finished:
                info = _with_choices(info, output / "prm")
            weights = plain_weights(prm.model.backbone, weights)
            save_prm(output / "prm", Prm(prm.model, prm.renderer, info), weights)
        ranks.barrier()
    seconds = time.perf_counter() - started
    return TrainSummary(output / "prm", total, len(train), sum(task.terms), too_long, seconds, evaluation)


def _select(examples: list[LabeledExample], config: TrainConfig) -> tuple[list[LabeledExample], SelectionCounts]:
    """Apply the selection to the train split. The dev split keeps all labels, so that runs can be compared."""
    train = [example for example in examples if example.split == "train"]
    others = [example for example in examples if example.split != "train"]
    kept, counts = select_labels(train, config.selection)
    if train and not kept:
        raise DataError(f"{config.labels}: selection leaves no label of the train split; relax its rules")
    return kept + others, counts


def _with_choices(info: PrmInfo, folder: Path) -> PrmInfo:
    """Restore the aggregator and threshold that were chosen for this model after it was first written."""
    if not (folder / INFO_FILE).is_file():
        return info
    written = read_info(folder)
    unchosen = dict.fromkeys(("aggregator", "aggregator_evidence", "threshold"))
    return written if written.model_copy(update=unchosen) == info else info


def _origin(config: TrainConfig) -> dict[str, Any]:
    """Return the settings, other than `training`, that determine the trained weights, with a hash of the label file.

    A run is resumed only if they are unchanged.
    """
    excluded = {"labels", "output", "training", "gradient_checkpointing"}
    # Runs of earlier versions do not have these keys and can be resumed.
    added = {"selection": SelectionConfig(), "max_pixels": None, "min_pixels": None}
    excluded |= {name for name, default in added.items() if getattr(config, name) == default}
    kept = config.model_dump(mode="json", exclude=excluded)
    return kept | {"labels": hashlib.sha256(Path(config.labels).read_bytes()).hexdigest()[:16]}


def prepare_model(model: PrmModel, config: TrainableConfig) -> None:
    """Freeze parts of a PRM, add its LoRA adapters, and set training mode; see prepare_training."""
    prepare_training(model.backbone, config, [model.marker_id], model.judgment_ids)
    model.train()


def _samples(config: TrainConfig, prm: Prm, examples: Sequence[LabeledExample]) -> list[tuple[list[PrmSample], int]]:
    """Return (samples, number of samples that are too long) for both the train split and the dev split."""
    parts = []
    for split in ("train", "dev"):
        chosen = [example for example in examples if example.split == split]
        samples = make_samples(chosen, prm.renderer, config.target)
        kept = [sample for sample in samples if sample.length <= config.max_length]
        parts.append((kept, len(samples) - len(kept)))
    if not parts[0][0]:
        raise DataError(
            f"{config.labels}: the train split has no labeled path of at most max_length={config.max_length} tokens; "
            "raise max_length or add labels"
        )
    return parts


def _rows(config: TrainConfig, prm: Prm, parts: list[list[PrmSample]], ranks: Ranks) -> list[TrainingRows]:
    """Arrange each split's samples in rows, packed if configured and supported by the backbone."""
    packing, backbone = config.packing, prm.model.backbone
    why_not = why_not_packed(backbone)
    if packing != "none" and why_not:
        packing = "none"
        if ranks.is_main:
            print(
                f"warning: packing={config.packing} does not work for {type(backbone).__name__} because {why_not}; "
                "using none",
                flush=True,
            )
    if packing == "trees" and ranks.is_main and any(sample.solution.observations for part in parts for sample in part):
        print("packing=trees: episodes share no tokens, because of the images between their turns", flush=True)
    form, training = open_format(prm.processor, prm.info), config.training
    shares = [ranks.count * max(1, -(-len(part) // training.batch_size)) for part in parts]
    return [
        make_rows(part, form, backbone, packing, training.micro_batch_tokens, share)
        for part, share in zip(parts, shares, strict=True)
    ]


def _check_media(samples: list[PrmSample], config: TrainConfig, ranks: Ranks) -> None:
    """Raise ConfigError if problems with different media are mixed on several ranks at an unsupported ZeRO stage.

    A rank whose batch has no image or video runs neither vision tower nor projector; one without audio runs no audio
    tower. Under ZeRO-3, the other ranks would wait for it to gather these weights. Under stages 1 and 2, they would
    reduce gradients that it does not have.
    """
    kinds = {_towers(sample.solution) for sample in samples}
    needed = {"projector"}.union(*kinds)
    stage, still = config.training.stage, needed <= set(config.frozen) and config.lora is None
    if ranks.count > 1 and len(kinds) > 1 and stage > (2 if still else 0):
        raise ConfigError(
            f"training.zero_stage={stage} cannot mix problems with and without "
            f"{'images, videos or audio' if 'audio' in needed else 'images'} on several ranks; use only one kind of "
            f"problem, or training.zero_stage=0 with fp32, or frozen=[{', '.join(sorted(needed))}] with stage 2"
        )


def _towers(solution: Solution) -> frozenset[str]:
    """Return the parts of the model, by their names in `frozen`, that read the media of a solution."""
    return frozenset("audio" if isinstance(each, AudioRef) else "vision" for each in solution.media)
