"""Provide rows of published policy benchmarks in their original format."""

from __future__ import annotations

import io

from PIL import Image


def png(size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(file, "PNG")
    return file.getvalue()


MMK12 = {
    "id": "math-1",
    "question": "As in the figure, ∠A is ( )\nA. 30°\nB. 40°\nC. 50°\nD. 60°",
    "answer": "B",
    "subject": "math",
    "image": {"bytes": png(), "path": None},
}

MATHVISTA = {
    "pid": "1",
    "question": "When a spring does work, by what distance is it compressed?",
    "image": "images/1.jpg",
    "decoded_image": {"bytes": png(), "path": None},
    "choices": None,
    "unit": "m",
    "precision": 1.0,
    "answer": "1.2",
    "question_type": "free_form",
    "answer_type": "float",
    "metadata": {"category": "math-targeted-vqa", "task": "textbook question answering", "source": "SciBench"},
    "query": "Hint: …",
}

MATHVISTA_CHOICE = {
    **MATHVISTA,
    "pid": "2",
    "question": "The derivative at 2 is ____ that at 5",
    "choices": ["larger than", "equal to", "smaller than"],
    "unit": None,
    "precision": None,
    "answer": "equal to",
    "question_type": "multi_choice",
    "answer_type": "text",
    "metadata": {"category": "math-targeted-vqa", "task": "geometry problem solving", "source": "FunctionQA"}
    | {"skills": ["algebraic reasoning", "geometry reasoning"]},
}

MATHVERSE = {
    "sample_index": "1",
    "problem_index": "1",
    "problem_version": "Text Dominant",
    "question": "AB ∥ CD; find ∠E.\nChoices:\nA:145°\nB:125°\nC:100°\nD:55°",
    "image": {"bytes": png(), "path": None},
    "answer": "B",
    "question_type": "multi-choice",
    "metadata": {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Angle"},
    "query_wo": "…",
    "query_cot": "…",
}

MATHVERSE_VISION = {**MATHVERSE, "sample_index": "5", "problem_version": "Vision Only", "question": ""}

MATHVISION = {
    "id": "4",
    "question": "Which bridge must be closed? <image1>",
    "options": ["A", "B", "C", "D", "E"],
    "image": "images/4.jpg",
    "answer": "B",
    "solution": None,
    "level": 2,
    "subject": "graph theory",
}

MATHVISION_FREE = {**MATHVISION, "id": "5", "question": "How many? <image1>", "options": [], "answer": "7"}

OLYMPIAD = {
    "id": 2231,
    "question": "Solve $x^2 = 4$ as in <image_1>.",
    "solution": ["…"],
    "final_answer": ["$2$, $-2$"],
    "context": "Let x be real.",
    "image_1": {"bytes": png(), "path": None},
    "image_2": None,
    "modality": "Multimodal",
    "difficulty": "Competition",
    "is_multiple_answer": True,
    "unit": None,
    "answer_type": "Numerical",
    "error": None,
    "question_type": "Open-ended",
    "subfield": "Algebra",
    "subject": "Math",
    "language": "English",
}

WE_MATH = {
    "ID": "7",
    "split": "testmini",
    "knowledge concept": "Area of Circles",
    "question": "The circumference is ( ) cm?",
    "option": "A. 18; B. 15 ; C. 12; D. 10; E. No correct answer",
    "answer": "C",
    "image_path": "2steps/image/7-1.png",
    "key": "2steps_1",
    "question number": 1,
    "knowledge concept description": "…",
}
