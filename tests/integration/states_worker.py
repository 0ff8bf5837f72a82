"""Run the workers that inspect a model on two ranks in one launch, because starting ranks takes most of the time.

Arguments: the model's folder, and a folder for the results.
"""

from __future__ import annotations

import sys
from pathlib import Path

import features_worker
import memory_worker
import reference_worker
import torch

if __name__ == "__main__":
    model, folder = sys.argv[1:]
    torch.set_num_threads(1)
    memory_worker.main(model, Path(folder) / "memory.json")
    reference_worker.main(model, Path(folder))
    features_worker.main(model, Path(folder))
