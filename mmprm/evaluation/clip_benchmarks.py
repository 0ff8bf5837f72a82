"""Read the rows of emotion benchmarks, which ask about short clips with sound: DFEW, MAFW and RAVDESS.

    video            path of the clip, whose audio track is shown as well, unless the row has a column audio
    conversations    the question, and the label as the reply, as in R1-Omni's JSON; or
    question, and label, emotion or answer

R1-Omni reports the weighted average recall (WAR), which is the accuracy, and the unweighted average recall (UAR), the
mean of the accuracies on the clips of each label.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

from mmprm.data.cells import Row
from mmprm.data.chat import read_turns
from mmprm.evaluation.entries import Entry, published_answer
from mmprm.evaluation.rules import labeled
from mmprm.grading.symbolic import Decision
from mmprm.problems import listed

DFEW = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
MAFW = (*DFEW, "contemptuous", "anxious", "helpless", "disappointed")
RAVDESS = ("neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise")
SPELLINGS = {"fearful": "fear", "surprised": "surprise"}
"""Maps names of labels in the released files to the names that R1-Omni's evaluation compares."""
MAFW_NOUNS = {
    **{"anger": "angry", "happiness": "happy", "sadness": "sad", "contempt": "contemptuous"},
    **{"anxiety": "anxious", "helplessness": "helpless", "disappointment": "disappointed"},
}
"""Maps the labels of MAFW's own files to R1-Omni's."""


def emotions(labels: Sequence[str], spellings: Mapping[str, str] = SPELLINGS) -> Callable[[Row], Entry]:
    """Return the reader of a benchmark with these labels; an answer that is another label is incorrect.

    `spellings` maps other spellings in rows and answers to the labels.
    """
    return functools.partial(_read, labels, spellings)


def _read(labels: Sequence[str], spellings: Mapping[str, str], row: Row) -> Entry:
    question, label = _asked(row)
    label = spellings.get(label.strip().lower(), label.strip().lower())
    if label not in labels:
        raise ValueError(f"label {label!r} must be one of {', '.join(labels)}")
    videos = listed(row["video"])
    if not videos:
        raise ValueError("its video is empty")
    audios = listed(row["audio"]) if row.get("audio") else videos
    name = row.get("id") or hashlib.sha256(str(videos).encode()).hexdigest()[:16]
    return Entry(
        id=str(name),
        question=question.replace("<video>", "").replace("<audio>", "").strip(),
        answer=label,
        groups={"emotion": label},
        rule=functools.partial(_same_label, labels, spellings),
        videos=videos,
        audios=audios,
    )


def _same_label(labels: Sequence[str], spellings: Mapping[str, str], gold: str, answer: str) -> Decision:
    for spelling, label in spellings.items():
        answer = re.sub(rf"\b{spelling}\b", label, answer, flags=re.IGNORECASE)
    return labeled(*labels)(gold, answer)


def _asked(row: Row) -> tuple[str, str]:
    if "conversations" not in row:
        column = next((name for name in ("label", "emotion", "answer") if name in row), "label")
        return row["question"], published_answer(row[column])
    asked, told = [turn for turn in read_turns(row["conversations"], "conversations") if turn.role != "system"][:2]
    return asked.text, told.text.rpartition("<answer>")[2].partition("</answer>")[0]


EMOTION_BENCHMARKS = {
    "dfew": emotions(DFEW),
    "mafw": emotions(MAFW, SPELLINGS | MAFW_NOUNS),
    "ravdess": emotions(RAVDESS),
}
"""Maps the emotion benchmarks to their readers."""
