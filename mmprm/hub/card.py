"""Write the model card or dataset card of an artifact from the files of the run that produced it.

A card states only what is known. The license comes from the base model's card, metrics from metrics.jsonl, prm.json and
the JSON files of `mmprm eval` in RUN/eval, and settings from settings.json. Values that could name a machine, a person
or a server are left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprm.errors import MmprmError
from mmprm.files import logged_rows, parse_json
from mmprm.hub.artifact import LABELS_FILE, Artifact, check_public, hub_name, stored_settings
from mmprm.prm.info import read_info
from mmprm.trees.database import STORE_NAME
from mmprm.trees.store import Store

MAX_VALUE_LENGTH = 80
"""Maximum length in characters of a setting's value. Longer values, such as prompts, are not shown."""
MAX_METRICS = 12
"""Maximum number of metrics shown per evaluation."""
_LICENSE_KEYS = ("license", "license_name", "license_link")
_PRIVATE = {"output", "ray_address", "servers", "server", "url", "urls", "hardware", "tracker", "api_key_env"}
"""Settings and groups of settings that are left out because they reveal where a run took place."""
_NOT_SHOWN = re.compile(r"://|\n|^[0-9a-f]{16}$")
"""Matches values that are left out: URLs, multi-line texts, and hashes that identify a run."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_CITATION = """## Citation

```bibtex
@software{mmprm,
  title = {mmprm: step labels by tree search, process reward models, and reinforcement learning for multimodal
           reasoning},
  author = {{The mmprm authors}},
  year = {2026}
}
```
"""


def card_text(artifact: Artifact, repo: str, license_of_base: Mapping[str, str]) -> str:
    """Write the README.md text of a repository; raise ConfigError if it would contain a local path or a secret."""
    front = _front_matter(artifact, license_of_base)
    body = {"prm": _prm_body, "policy": _policy_body, "labels": _labels_body}[artifact.kind]
    lines = [f"# {repo.split('/')[-1]}", "", *body(artifact, repo, license_of_base), _CITATION]
    text = f"---\n{front}\n---\n\n" + "\n".join(lines)
    check_public(text, "README.md")
    return text


def license_of(folder: Path | None) -> dict[str, str]:
    """Return the license fields of the model card in a folder, or {} if the card is missing or names no license."""
    from huggingface_hub import ModelCard

    card = None if folder is None else folder / "README.md"
    if card is None or not card.is_file():
        return {}
    try:
        stated = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError):
        return {}
    return {key: str(stated[key]) for key in _LICENSE_KEYS if stated.get(key)}


def _front_matter(artifact: Artifact, license_of_base: Mapping[str, str]) -> str:
    from huggingface_hub import DatasetCardData, ModelCardData

    if artifact.kind == "labels":
        return DatasetCardData(
            tags=["mmprm", "process-reward-model", "step-labels"],
            size_categories=[_size_category(len(artifact.examples))],
            configs=[{"config_name": "default", "data_files": LABELS_FILE}],
            **{key: value for key, value in artifact.origin.items() if key == "license"},
        ).to_yaml()
    tags = ["mmprm", "process-reward-model" if artifact.kind == "prm" else "reasoning"]
    known = {"base_model": artifact.base} if artifact.base else {}
    return ModelCardData(library_name="transformers", tags=tags, **license_of_base, **known).to_yaml()


def _size_category(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "n>1M")


def _prm_body(artifact: Artifact, repo: str, license_of_base: Mapping[str, str]) -> Iterator[str]:
    info = read_info(artifact.path)
    yield "A process reward model trained with mmprm: it returns, for each step of a solution, the probability that no"
    yield "error has occurred so far."
    yield ""
    yield from _origin(artifact, license_of_base)
    yield from _use(
        f"hf download {repo} --local-dir prm",
        "python",
        "import mmprm\n\n"
        'scorer = mmprm.load_scorer("prm")\n'
        'print(mmprm.score_steps(scorer, "What is 1 + 2?", ["1+2=3", "<answer>3</answer>"]))',
    )
    rows = {"format": info.format, "marker": info.tokens.marker, "aggregator": info.aggregator}
    rows |= {"threshold of the first error": info.threshold}
    if info.aggregator_evidence:
        found = info.aggregator_evidence
        rows["best-of-N accuracy of the aggregator"] = (
            f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%}) with N = {found.samples}, "
            f"{found.problems:,} problems"
        )
    yield from _table("Scores", rows)
    yield from _table("Labels", public_settings(info.labels))
    yield from _metric_tables(artifact.run)


def _policy_body(artifact: Artifact, repo: str, license_of_base: Mapping[str, str]) -> Iterator[str]:
    yield "A policy trained with mmprm: it solves problems step by step."
    yield ""
    yield from _origin(artifact, license_of_base)
    yield from _use(
        "pip install vllm",
        "python",
        "from vllm import LLM, SamplingParams\n\n"
        f'llm = LLM("{repo}")\n'
        'messages = [{"role": "user", "content": "What is 1 + 2?"}]\n'
        "print(llm.chat(messages, SamplingParams(max_tokens=1024))[0].outputs[0].text)",
    )
    yield from _metric_tables(artifact.run)


def _labels_body(artifact: Artifact, repo: str, license_of_base: Mapping[str, str]) -> Iterator[str]:
    if artifact.origin:
        yield f"Labels of reasoning steps, imported with mmprm from {artifact.origin['source']}."
    else:
        yield "Labels of reasoning steps, made with mmprm by tree search over rollouts: a step's label is the share of"
        yield "rollouts from it that reach the correct answer."
    yield ""
    yield from _use(
        "pip install datasets",
        "python",
        f'from datasets import load_dataset\n\nlabels = load_dataset("{repo}", split="train")\n'
        'for path in labels.filter(lambda row: row["split"] == "train"):\n'
        '    print(path["question"], list(zip(path["steps"], path["labels"])))',
    )
    yield f"`mmprm train --set labels={LABELS_FILE}` trains on the file itself. A row is one path; steps shared by"
    yield "several paths of a problem are labeled once, and `labels` is null elsewhere. Images are embedded."
    yield ""
    yield from _counts(artifact)
    yield from _campaign(artifact.run)


def _origin(artifact: Artifact, license_of_base: Mapping[str, str]) -> Iterator[str]:
    if artifact.base:
        yield f"Base model: [{artifact.base}](https://huggingface.co/{artifact.base})"
    if license_of_base:
        name = license_of_base.get("license_name") or license_of_base["license"]
        yield f"License of the base model: {name}"
    yield ""


def _use(shell: str, language: str, code: str) -> Iterator[str]:
    yield from ("## Use", "", "```bash", shell, "```", "", f"```{language}", code, "```", "")


def _counts(artifact: Artifact) -> Iterator[str]:
    yield from ("## Counts", "", "| split | problems | paths | labels | mean label |", "|---|---|---|---|---|")
    for split in ("train", "dev", "test"):
        part = [each for each in artifact.examples if each.split == split]
        values = [counts.value for each in part for counts in each.path.counts if counts and counts.value is not None]
        if part:
            problems = len({each.problem.id for each in part})
            mean = f"{sum(values) / len(values):.3f}" if values else ""
            yield f"| {split} | {problems:,} | {len(part):,} | {len(values):,} | {mean} |"
    judges = Counter(each.judged_by for each in artifact.examples if each.judged_by)
    yield ""
    if judges:
        yield f"Steps are also judged by {', '.join(sorted(judges))} (columns `judge` and `judged_by`)."
        yield ""


def _campaign(folder: Path) -> Iterator[str]:
    """Yield a table of the annotation settings, read from the run store in `folder` or in its subfolder annotate/."""
    for candidate in (folder, folder / "annotate"):
        if (candidate / STORE_NAME).is_file():
            store = Store.read(candidate)
            try:
                yield from _table("Settings of the search", public_settings(store.config))
            finally:
                store.close()
            return


def _metric_tables(run: Path) -> Iterator[str]:
    """Yield tables of the last training metrics, the results of `mmprm eval`, and the settings."""
    path = run / "metrics.jsonl"
    rows = list(logged_rows(path, ("kind",))) if path.is_file() else []
    for kind, title in (("train", "Training"), ("eval", "Held-out evaluation")):
        last = next((row for row in reversed(rows) if row["kind"] == kind), None)
        if last is not None:
            yield from _table(f"{title}, step {last['step']:,}", _numbers(last, leave_out=("step",)))
    for path in sorted((run / "eval").glob("*.json")):
        try:
            found = parse_json(path.read_bytes(), str(path))
        except (MmprmError, OSError):
            continue
        yield from _table(f"Evaluation: {path.stem}", _numbers(found) if isinstance(found, dict) else {})
    settings = public_settings(stored_settings(run))
    if settings:
        yield from ("<details><summary>Settings</summary>", *list(_table("", settings))[1:], "</details>", "")


def _numbers(values: Mapping[str, Any], leave_out: Sequence[str] = ()) -> dict[str, str]:
    flat = {key: value for key, value in _leaves(values) if key not in leave_out and _is_number(value)}
    return {key: f"{value:.6g}" for key, value in list(flat.items())[:MAX_METRICS]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def public_settings(values: Mapping[str, Any]) -> dict[str, str]:
    """Flatten settings to dotted keys, dropping those that must not be published: servers, folders and long texts.

    Paths are reduced to the file name.
    """
    found = {}
    for key, value in _leaves(values):
        text = str(value)
        private = _PRIVATE & set(key.split("."))
        if private or value is None or _NOT_SHOWN.search(text) or len(text) > MAX_VALUE_LENGTH:
            continue
        is_path = isinstance(value, str) and ("/" in value or "\\" in value) and not hub_name(value)
        found[key] = Path(text).name if is_path else text
    return found


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _table(title: str, rows: Mapping[str, Any]) -> Iterator[str]:
    """Yield a Markdown table with a heading, or nothing if none of its values is known."""
    known = {key: _cell_text(str(value)) for key, value in rows.items() if value not in (None, "")}
    if known:
        yield from (f"## {title}", "", "| | |", "|---|---|")
        yield from (f"| {key} | {value} |" for key, value in known.items())
        yield ""


def _cell_text(value: str) -> str:
    """Escape a value for a cell of a Markdown table. A token such as <prm> becomes code instead of HTML."""
    text = value.replace("|", "\\|").replace("\n", "\\n")
    return f"`{text}`" if "<" in text else text
