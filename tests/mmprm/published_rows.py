"""Provide hand-made rows in the schemas of published benchmarks, in addition to benchmark_rows."""

from __future__ import annotations

from benchmark_rows import png

IMAGE = {"bytes": png(), "path": None}

K12 = {"id": "k-1", "question": "Then $f(x)=$ .", "answer": "$2\\sin x$", "image_path": "images/k-1.png"}

MM_MATH = {
    "question": "Find $AB$ to one decimal.",
    "file_name": "51.png",
    "solution": "First $\\boxed{x=2}$ is set; so $AB=\\boxed{3.46}$.",
    "year": "nine",
    "difficult": "hard",
    "knowledge": ["Properties of Figures", "Triangles"],
}

MM_MATH_TABLE = {
    "index": 7,
    "image": "51.png",
    "question": "Find $AB$.",
    "answer": "45^{\\circ}",
    "difficulty": "easy",
    "year": "seven",
    "knowledge_l1": "Properties of Figures",
}

DYNAMATH = {
    "id": "1",
    "question": "What is the period?",
    "image": "image/1.png",
    "decoded_image": IMAGE,
    "ground_truth": "2.094",
    "answer_type": "float",
    "subject": "analytic geometry",
    "knowledge_level": "high school",
}

MATH_500 = {
    "problem": "Convert $(0,3)$ to polar coordinates.",
    "solution": "…",
    "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
    "subject": "Precalculus",
    "level": 2,
    "unique_id": "test/precalculus/807.json",
}

AIME = {"ID": "2024-II-4", "Problem": "Find $m+n$.", "Solution": "…", "Answer": "033"}

GPQA = {
    "Record ID": "rec1",
    "Question": "Which particle mediates it?",
    "Correct Answer": "the photon\n",
    "Incorrect Answer 1": "the gluon",
    "Incorrect Answer 2": "the W boson",
    "Incorrect Answer 3": "the Higgs boson",
    "High-level domain": "Physics",
    "Subdomain": "Particle physics",
}

CV_BENCH = {
    "idx": 0,
    "type": "2D",
    "task": "Count",
    "image": IMAGE,
    "question": "How many organs are in the image?",
    "choices": ["3", "2", "1", "0"],
    "answer": "(C)",
    "prompt": "How many organs are in the image? Select from the following choices.\n(A) 3\n(B) 2\n(C) 1\n(D) 0",
    "source": "ADE20K",
}

MMSTAR = {
    "index": 0,
    "question": "What is on the book?\nOptions: A: The suitcase, closed., B: A cat., C: Nothing., D: A cup.",
    "image": IMAGE,
    "answer": "A",
    "category": "coarse perception",
    "l2_category": "image scene and topic",
    "meta_info": {"source": "MMBench"},
}

CHARTQA = {"image": IMAGE, "query": "How much?", "label": ["14"], "human_or_machine": 0}

CHARTQA_COPY = {"type": "augmented_test", "question": "Which year?", "answer": "2012", "image": IMAGE}

BLINK = {
    "idx": "val_Counting_1",
    "sub_task": "Counting",
    "question": "How many blue?",
    "prompt": "How many blue?\nSelect from the following choices.\n(A) 0\n(B) 3",
    "image_1": IMAGE,
    "image_2": IMAGE,
    "image_3": None,
    "image_4": None,
    "choices": ["0", "3"],
    "answer": "(B)",
}

VSR = {
    "image": "000000050403.jpg",
    "image_link": "…",
    "caption": "The bear is in front of the person.",
    "label": 1,
    "relation": "in front of",
}

MMMU = {
    "id": "validation_Art_Theory_1",
    "question": "Which work is like <image 1>?",
    "options": "['<image 2>', '<image 3>']",
    "image_1": IMAGE,
    "image_2": IMAGE,
    "image_3": IMAGE,
    "answer": "B",
    "question_type": "multiple-choice",
    "subfield": "Art Theory",
}

MMMU_OPEN = {
    **MMMU,
    "id": "validation_Electronics_3",
    "question": "Find $V$ in <image 1>.",
    "options": "[]",
    "image_2": None,
    "image_3": None,
    "answer": "['8.35', 'eight volts']",
    "question_type": "open",
}

MME = {
    "question_id": "0020.png",
    "image": IMAGE,
    "question": "Is there a dog? Please answer yes or no.",
    "answer": "Yes",
    "category": "existence",
}

HALLUSIONBENCH = {
    "category": "VS",
    "subcategory": "chart",
    "visual_input": "1",
    "set_id": "0",
    "figure_id": "1",
    "question_id": "2",
    "question": "Is France the leader?",
    "gt_answer": "0",
    "gt_answer_details": "Switzerland leads.",
    "image": IMAGE,
    "filename": "./VS/chart/0_1.png",
}
