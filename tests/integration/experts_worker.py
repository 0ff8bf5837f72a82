"""Train mixture-of-experts models under ZeRO-3, with each rank's tokens routed to different experts.

Arguments: the results file of this rank, which contains {rank}, and the folders of the models.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmprm.backbone.load import load_backbone
from mmprm.training.config import OptimizationConfig
from mmprm.training.engine import Engine
from mmprm.training.ranks import join_ranks
from mmprm.training.sharding import loading_in_parts

TOKENS = (20, 21)
"""Rank r reads only token TOKENS[r]."""
LENGTH = 6
CONFIG = OptimizationConfig(
    precision="fp32", zero_stage=3, learning_rate=0.001, warmup=0, weight_decay=0, gradient_clipping=0
)


class LastToken(nn.Module):
    """Computes the loss of predicting token 5 after a text that repeats one token."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, token: int) -> Tensor:
        """Return the cross-entropy as a scalar."""
        logits_1TV = self.backbone(input_ids=torch.full((1, LENGTH), token), use_cache=False).logits
        return cross_entropy(logits_1TV[:, -1], torch.tensor([5]))


def route_by_token(backbone: nn.Module) -> None:
    """Make the first layer route the two tokens to different experts: their embeddings are opposite."""
    with torch.no_grad():
        direction_H = torch.ones(backbone.config.get_text_config().hidden_size)
        table_VH = backbone.get_input_embeddings().weight
        table_VH[TOKENS[0]], table_VH[TOKENS[1]] = 10 * direction_H, -10 * direction_H
        router_EH = routers(backbone)[0].weight
        sign_E1 = torch.tensor([[1.0], [1.1], [-1.0], [-1.1]])
        router_EH.copy_(sign_E1 * direction_H)


def routers(backbone: nn.Module) -> list[nn.Module]:
    return [module for name, module in backbone.named_modules() if name.endswith(".mlp.gate")]


def train(folder: str) -> dict[str, Any]:
    """Take two steps; return losses, gradient norms, and the experts used by this rank's tokens."""
    ranks = join_ranks()
    with loading_in_parts(CONFIG):
        backbone, _ = load_backbone(folder, torch.float32)
    chosen: set[int] = set()
    routers(backbone)[0].register_forward_hook(lambda _, __, output: chosen.update(output[2].flatten().tolist()))
    engine = Engine(LastToken(backbone), CONFIG, 2, ranks)
    steps = [engine.step([lambda model: model(TOKENS[ranks.rank])], 1.0) for _ in range(2)]
    return {"steps": steps, "experts": sorted(chosen)}


if __name__ == "__main__":
    results, *folders = sys.argv[1:]
    torch.set_num_threads(1)
    found = [train(folder) for folder in folders]
    rank = torch.distributed.get_rank()
    Path(results.format(rank=rank)).write_text(json.dumps(found), encoding="utf-8")
