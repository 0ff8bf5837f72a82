"""Define a toy world of short clips with sound, in which the answer needs both: what moves where, and which tone plays.

A bright square moves up, down, left or right for half a second, and a low, middle or high tone plays. The emotion of
the clip follows from both; from either alone it cannot be told:

    <step>move=up</step><step>tone=high</step><answer>fear</answer>

The k-th move and the l-th tone convey the emotion number (k + l) mod 4. Each move occurs with three emotions and each
tone with four, so knowing only the move gives an accuracy of at most 1/3, and only the tone 1/4. A clip is stored
without loss, and its truth can be read from its frames and its spectrum.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmprm.data.media import SAMPLE_RATE, open_audio, open_video
from mmprm.errors import DataError
from mmprm.steps import plain
from mmprm.tiny.omni_clip import encode_clip
from mmprm.tiny.omni_words import CLIP_MOVES, CLIP_TONES, EMOTION_QUESTION, EMOTIONS, MOVE, TONE
from mmprm.tiny.world import NO_MISTAKES, SPLITS, Mistakes, WorldSplit
from mmprm.types import AudioRef, Problem, Steps, VideoRef

FRAMES, SIDE, FPS = 4, 56, 8
SQUARE, REACH = 20, (2, 34)
"""Side of the square, and its first and last position along its way, in pixels."""
HERTZ = {"low": 300.0, "middle": 700.0, "high": 1600.0}
JITTER = 0.1
"""Maximum relative distance of a tone from the middle of its range."""
MISHEARD = {"middle": "high"}
"""Tones that are hard to tell, and what they are mistaken for. Incorrect answers about them therefore agree."""
_AXES = {"up": (0, -1), "down": (0, 1), "left": (1, -1), "right": (1, 1)}


@dataclass(frozen=True, slots=True)
class OmniProblem:
    """Holds a problem with the truth of its clip."""

    problem: Problem
    move: str
    tone: str


def emotion_of(move: str, tone: str) -> str:
    """Return the emotion that a move and a tone convey together."""
    return EMOTIONS[(CLIP_MOVES.index(move) + CLIP_TONES.index(tone)) % len(EMOTIONS)]


def make_omni_problems(n: int, seed: int, split: WorldSplit) -> list[OmniProblem]:
    """Generate `n` distinct problems of a split. A hash of each clip's content determines its split, so the splits are
    disjoint for all seeds."""
    if split not in SPLITS:
        raise DataError(f"split={split!r} must be one of {', '.join(SPLITS)}; set one of them")
    rng = random.Random(f"omni/{seed}/{split}")
    found: dict[str, OmniProblem] = {}
    while len(found) < n:
        move, tone = rng.choice(CLIP_MOVES), rng.choice(CLIP_TONES)
        aside = rng.randrange(*REACH)
        hertz = round(HERTZ[tone] * rng.uniform(1 - JITTER, 1 + JITTER), 1)
        noise = rng.randrange(2**32)
        content = hashlib.sha256(repr((move, tone, aside, hertz, noise)).encode()).hexdigest()[:16]
        if int(content, 16) % 100 in SPLITS[split] and content not in found:
            clip = encode_clip(draw_frames(move, aside, noise), play_tone(hertz, noise), FPS)
            problem = Problem(
                id=f"omni-{content}",
                question=EMOTION_QUESTION,
                answer=emotion_of(move, tone),
                videos=(VideoRef(data=clip, frames=FRAMES),),
                audios=(AudioRef(data=clip),),
            )
            found[content] = OmniProblem(problem, move, tone)
    return list(found.values())


def draw_frames(move: str, aside: int, noise: int) -> NDArray[np.uint8]:
    """Draw the frames of a bright square that moves on a noisy background; `aside` is its position across its way."""
    rng = np.random.default_rng(noise)
    frames = rng.integers(0, 40, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    axis, sign = _AXES[move]
    for frame, along in zip(frames, np.linspace(*REACH[::sign], FRAMES).astype(int), strict=True):
        top, left = (along, aside) if axis == 0 else (aside, along)
        frame[top : top + SQUARE, left : left + SQUARE] = 230
    return frames


def play_tone(hertz: float, noise: int) -> NDArray[np.float32]:
    """Return half a second of a tone with some noise."""
    rng = np.random.default_rng(noise + 1)
    time = np.arange(SAMPLE_RATE * FRAMES // FPS) / SAMPLE_RATE
    samples = 0.4 * np.sin(2 * np.pi * (hertz * time + rng.random())) + 0.01 * rng.standard_normal(len(time))
    return samples.astype(np.float32)


def clip_truth(problem: Problem) -> OmniProblem:
    """Read a problem's truth from its clip alone, for example after reading the problem from a file."""
    if problem.question != EMOTION_QUESTION or len(problem.videos) != 1 or len(problem.audios) != 1:
        raise DataError(
            f"problem {problem.id}: is not a question about one clip of the omni world; use problems that mmprm tiny "
            "omni wrote"
        )
    frames = open_video(problem.videos[0])
    first, last = (np.argwhere(frame[..., 0] > 200).mean(axis=0) for frame in (frames[0], frames[-1]))
    axis = int(np.abs(last - first).argmax())
    sign = 1 if last[axis] > first[axis] else -1
    move = next(name for name, each in _AXES.items() if each == (axis, sign))
    samples = open_audio(problem.audios[0])
    peak = np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / len(samples)
    tone = min(CLIP_TONES, key=lambda name: abs(np.log(HERTZ[name] / max(peak, 1.0))))
    return OmniProblem(problem, move, tone)


def solve_clip(omni: OmniProblem, rng: random.Random, mistakes: Mistakes = NO_MISTAKES) -> Steps:
    """Return a solution with random mistakes at the rates `mistakes`; the answer follows from what it read."""
    return solution_of(_read(omni.move, CLIP_MOVES, mistakes.easy, rng), _heard(omni.tone, mistakes, rng))


def solution_of(move: str, tone: str) -> Steps:
    """Return the solution that reads this move and this tone."""
    return (
        f"<step>{MOVE}{move}</step>",
        f"<step>{TONE}{tone}</step>",
        f"<answer>{emotion_of(move, tone)}</answer>",
    )


def judge_clip_steps(omni: OmniProblem, steps: Sequence[str]) -> list[bool]:
    """Return whether each step of a solution is correct. Steps may be given with or without their tags.

    A reading is true if it is the clip's, and the answer if it follows from the readings. A repeated or malformed step
    is false.
    """
    read: dict[str, str] = {}
    truths = []
    for step in steps:
        text = plain(step, "tags")
        name, _, value = text.partition("=")
        expected = {"move": omni.move, "tone": omni.tone}.get(name)
        if expected is not None:
            truths.append(name not in read and value == expected)
            read.setdefault(name, value)
        else:
            known = read.get("move") in CLIP_MOVES and read.get("tone") in CLIP_TONES
            truths.append(known and text == f"<answer>{emotion_of(read['move'], read['tone'])}</answer>")
    return truths


def best_accuracy(*, move: bool, tone: bool) -> float:
    """Return the accuracy of the best guess for someone who knows the move, the tone, both or nothing."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for each in itertools.product(CLIP_MOVES, CLIP_TONES):
        known = tuple(value for value, seen in zip(each, (move, tone), strict=True) if seen)
        groups.setdefault(known, []).append(emotion_of(*each))
    return sum(max(map(group.count, group)) for group in groups.values()) / (len(CLIP_MOVES) * len(CLIP_TONES))


def _read(truth: str, values: Sequence[str], rate: float, rng: random.Random) -> str:
    return rng.choice([value for value in values if value != truth]) if rng.random() < rate else truth


def _heard(truth: str, mistakes: Mistakes, rng: random.Random) -> str:
    if truth in MISHEARD:
        return MISHEARD[truth] if rng.random() < mistakes.hard else truth
    return _read(truth, CLIP_TONES, mistakes.easy, rng)
