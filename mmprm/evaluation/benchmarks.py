"""List the policy benchmarks, and read their questions.

To add a benchmark, write a reader in math_benchmarks or vision_benchmarks and add a row to BENCHMARKS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from mmprm.data.cells import Row
from mmprm.data.choices import with_choices
from mmprm.data.marks import place_marks
from mmprm.data.media_cells import read_audios, read_videos
from mmprm.errors import DataError
from mmprm.evaluation import math_benchmarks as maths
from mmprm.evaluation import official
from mmprm.evaluation import vision_benchmarks as vision
from mmprm.evaluation.clip_benchmarks import EMOTION_BENCHMARKS
from mmprm.evaluation.entries import Entry, Item, group_values
from mmprm.evaluation.official import AggregateScores
from mmprm.problems import ProblemsConfig, image_folder, read_image, read_rows
from mmprm.types import Problem


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Describes a benchmark: its reader, the split to load from a hub data set or a folder, and its aggregate scores.

    With `repeats`, rows may share an id, as variants of a question or questions about one image do.
    """

    split: str
    read: Callable[[Row], Entry | None]
    aggregate: AggregateScores | None = None
    repeats: bool = False


_VARIANTS = "+".join(f"sample_variant{number}" for number in range(1, 11))

BENCHMARKS = {
    "mmk12": Benchmark("test", maths.read_mmk12),
    "k12": Benchmark("test", maths.read_k12),
    "mathvista": Benchmark("testmini", maths.read_mathvista),
    "mathverse": Benchmark("testmini", maths.read_mathverse, official.mean_by("version")),
    "mathvision": Benchmark("test", maths.read_mathvision),
    "olympiadbench": Benchmark("train", maths.read_olympiadbench),
    "we-math": Benchmark("testmini", maths.read_we_math, official.we_math),
    "mm-math": Benchmark("train", maths.read_mm_math, repeats=True),
    "dynamath": Benchmark(_VARIANTS, maths.read_dynamath, official.dynamath, repeats=True),
    "math-500": Benchmark("test", maths.read_math_500),
    "aime": Benchmark("train", maths.read_aime, repeats=True),
    "gpqa": Benchmark("train", maths.read_gpqa),
    "cv-bench": Benchmark("test", vision.read_cv_bench, official.cv_bench),
    "mmstar": Benchmark("val", vision.read_mmstar, official.mean_by("category")),
    "chartqa": Benchmark("test", vision.read_chartqa, official.mean_by("split"), repeats=True),
    "blink": Benchmark("val", vision.read_blink, official.mean_by("task")),
    "vsr": Benchmark("test", vision.read_vsr, repeats=True),
    "mmmu": Benchmark("validation", vision.read_mmmu),
    "mme": Benchmark("test", vision.read_mme, official.mme, repeats=True),
    "hallusionbench": Benchmark("image", vision.read_hallusionbench, official.hallusionbench),
    **{name: Benchmark("test", reader, official.recalls) for name, reader in EMOTION_BENCHMARKS.items()},
}


def read_items(benchmark: str, config: ProblemsConfig) -> tuple[list[Item], int]:
    """Read the questions in file order, and count the rows that are not part of the benchmark."""
    root = image_folder(config)
    items: list[Item] = []
    left_out, seen = 0, dict[str, str]()
    for location, row in read_rows(config):
        entry = _entry(benchmark, row, location)
        if entry is None:
            left_out += 1
            continue
        if entry.id in seen and not BENCHMARKS[benchmark].repeats:
            raise DataError(f"{location}: id {entry.id!r} was used before, at {seen[entry.id]}; make the ids unique")
        seen[entry.id] = location
        images = tuple(read_image(value, root, location) for value in entry.images)
        fields = ("question", *(f"choices[{number}]" for number in range(len(entry.choices))))
        # "drop": questions whose numbers of marks and images differ are asked as published, with the images first.
        texts = (entry.question, *entry.choices)
        question, *choices = place_marks(texts, len(images), location, fields, "drop")
        videos = read_videos([("video", entry.videos)] if entry.videos else [], config.video_frames, root, location)
        audios = read_audios([("audio", entry.audios)] if entry.audios else [], root, location)
        asked = with_choices(question, choices)
        problem = Problem(entry.id, asked, entry.answer, images, tuple(choices), videos=videos, audios=audios)
        # Versions of one problem share a family, so that the bootstrap resamples them together.
        family = entry.family or entry.id
        groups = group_values(entry.groups)
        items.append(Item(problem, groups, family, entry.part, entry.rule, tuple(entry.also)))
    if not items:
        raise DataError(f"{config.path}: contains no question of {benchmark}; check the path and the split")
    return items, left_out


def _entry(benchmark: str, row: Row, location: str) -> Entry | None:
    """Convert a row to an Entry, or to None if it is not part of the benchmark; raise DataError if it is invalid."""
    try:
        entry = BENCHMARKS[benchmark].read(row)
        is_blank = entry is not None and not (entry.question.strip() and entry.answer.strip())
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{location}: is not a row of {benchmark}: {reason}; it has {', '.join(row)}; check the benchmark's name"
        ) from error
    if is_blank:
        raise DataError(
            f"{location}: has an empty question or answer, so it cannot be graded; use a split with published answers"
        )
    return entry


def with_distinct_ids(items: Iterable[Item]) -> list[Item]:
    """Number the questions that share an id, in order: the second one with the id 7 gets the id 7/2."""
    counts: Counter[str] = Counter()
    found = []
    for item in items:
        counts[item.problem.id] += 1
        number = counts[item.problem.id]
        name = item.problem.id if number == 1 else f"{item.problem.id}/{number}"
        found.append(replace(item, problem=replace(item.problem, id=name)))
    return found


def aggregate_scores(benchmark: str, items: Sequence[Item], correct_NQ: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Return the benchmark's aggregate scores, computed from one response per question and averaged over samples."""
    aggregate = BENCHMARKS[benchmark].aggregate if benchmark in BENCHMARKS else None
    if aggregate is None:
        return {}
    return official.mean_scores([aggregate(items, correct_Q) for correct_Q in correct_NQ])
