"""Read the rows of perception and general benchmarks in their published formats, which use different columns:

    cv-bench         idx, prompt, image, choices, answer "(A)", task, type, source
    mmstar           index, question with "Options: A: …, B: …", image, answer, category, l2_category
    chartqa          query, label, image, human_or_machine; or question, answer, image, type
    blink            idx, prompt, choices, answer "(A)", image_1…image_4, sub_task
    vsr              image, caption, label (1 if the caption is true), relation
    mmmu             id, question, options, answer, question_type, image_1…image_7
    mme              question_id, question, answer, category, image; two questions per image
    hallusionbench   category, subcategory, set_id, figure_id, question_id, question, gt_answer, image (or filename)

For readers, see math_benchmarks.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mmprm.data.cells import Row, parsed
from mmprm.evaluation.entries import YES_NO, Entry, published_answer
from mmprm.evaluation.math_benchmarks import first_images
from mmprm.evaluation.rules import containing, first_of, rounded, within, yes_or_no_label
from mmprm.grading.choice import inline_choices
from mmprm.problems import listed


def read_cv_bench(row: Row) -> Entry:
    """Read a row of CV-Bench, with the published prompt, which lists the options."""
    return Entry(
        id=str(row["idx"]),
        question=row["prompt"],
        answer=_letter(row["answer"]),
        images=first_images(row, "image", "filename"),
        choices=list(row["choices"]),
        groups={"task": row["task"], "type": row["type"], "source": row["source"]},
    )


def read_mmstar(row: Row) -> Entry:
    """Read a row of MMStar, whose question lists the options on one line."""
    options = row["question"].rpartition("Options:")[2]
    groups = {"category": row["category"], "l2_category": row.get("l2_category")}
    images, choices = listed(row["image"]), inline_choices(options.strip())
    return Entry(str(row["index"]), row["question"], _letter(row["answer"]), images, choices, groups)


def read_chartqa(row: Row) -> Entry:
    """Read a row of ChartQA. Source of the rule: its paper, section 5.1 (within 5% of the gold value, or the same
    text)."""
    question = row["query"] if "query" in row else row["question"]
    label = row["label"] if "label" in row else row["answer"]
    golds = [published_answer(gold) for gold in (label if isinstance(label, list | tuple) else [label])]
    # The hub's class label has 0 for questions by people; lmms-lab's copy has human_test and augmented_test.
    kind = row["human_or_machine"] if "human_or_machine" in row else row["type"]
    images = listed(row["image"])
    digest = hashlib.sha256(json.dumps([question, golds, str(images)]).encode()).hexdigest()[:16]
    return Entry(
        id=str(row.get("id") or digest),
        question=f"{question}\nAnswer with a single word or number.",
        answer=golds[0],
        images=images,
        groups={"split": "human" if str(kind).startswith(("0", "human")) else "augmented"},
        rule=within(relative=0.05),
        also=golds[1:],
    )


def read_blink(row: Row) -> Entry:
    """Read a row of BLINK, with the published prompt, which lists the options."""
    return Entry(
        id=str(row["idx"]),
        question=row["prompt"],
        answer=_letter(row["answer"]),
        images=[row[f"image_{number}"] for number in range(1, 5) if row.get(f"image_{number}")],
        choices=list(row["choices"]),
        groups={"task": row["sub_task"]},
    )


def read_vsr(row: Row) -> Entry:
    """Read a row of Visual Spatial Reasoning, which asks whether a caption is true."""
    digest = hashlib.sha256(f"{row['image']}\n{row['caption']}".encode()).hexdigest()[:16]
    return Entry(
        id=digest,
        question=f"Is this statement about the image true? {row['caption']}\n{YES_NO}",
        answer=_yes_if(row["label"]),
        images=listed(row["image"]),
        groups={"relation": row["relation"]},
        rule=yes_or_no_label,
    )


MMMU_DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
"""MMMU's subjects by domain. Source: DOMAIN_CAT2SUB_CAT in its mmmu/utils/data_utils.py."""
_DOMAIN_OF = {subject: domain for domain, subjects in MMMU_DOMAINS.items() for subject in subjects}


def read_mmmu(row: Row) -> Entry:
    """Read a row of MMMU; the subject is in its id (validation_Art_Theory_1).

    Source of the rule for open questions: mmmu/utils/eval_utils.py (numbers to two decimals; text by containment).
    """
    subject = "_".join(row["id"].split("_")[1:-1])
    answers = parsed(row["answer"]) if row["question_type"] == "open" else row["answer"]
    golds = [published_answer(gold) for gold in (answers if isinstance(answers, list | tuple) else [answers])]
    options = row["options"] or []
    return Entry(
        id=row["id"],
        question=row["question"],
        answer=golds[0],
        images=[row[f"image_{number}"] for number in range(1, 8) if row.get(f"image_{number}")],
        choices=list(parsed(options) if isinstance(options, str) else options),
        groups={"subject": subject, "domain": _DOMAIN_OF[subject]},
        rule=first_of(rounded(2), containing) if row["question_type"] == "open" else None,
        also=golds[1:],
    )


def read_mme(row: Row) -> Entry:
    """Read one of the two questions about an image of MME; both rows have the id of the image."""
    return Entry(
        id=f"{row['category']}/{row['question_id']}",
        question=row["question"],
        answer=_yes_or_no(row["answer"]),
        images=listed(row["image"]),
        groups={"category": row["category"]},
        rule=yes_or_no_label,
    )


def read_hallusionbench(row: Row) -> Entry:
    """Read a question of HallusionBench; `part` holds the keys of its question pair and of its figure."""
    group = f"{row['category']}/{row['subcategory']}/{row['set_id']}"
    figure, number = str(row["figure_id"]), str(row["question_id"])
    return Entry(
        id=f"{group}/{figure}/{number}",
        question=f"{row['question']}\n{YES_NO}",
        answer=_yes_if(row["gt_answer"]),
        images=first_images(row, "image", "filename"),
        groups={"category": row["category"], "subcategory": row["subcategory"]},
        rule=yes_or_no_label,
        family=group,
        part=f"{figure}/{number}",
    )


def _letter(answer: str) -> str:
    """Return the letter in a gold answer such as "(A)"; raise ValueError if it has none, as in a hidden split."""
    letter = str(answer).strip().strip("().").upper()
    if len(letter) != 1 or not letter.isalpha():
        raise ValueError(f"its answer {answer!r} is not an option's letter")
    return letter


def _yes_if(label: Any) -> str:
    """Convert the label 0 or 1 to No or Yes; raise ValueError for others."""
    if int(label) not in (0, 1):
        raise ValueError(f"its label {label!r} is not 0 or 1")
    return "Yes" if int(label) else "No"


def _yes_or_no(answer: str) -> str:
    label = str(answer).strip().strip(".").capitalize()
    if label not in ("Yes", "No"):
        raise ValueError(f"its answer {answer!r} is not Yes or No")
    return label
