"""Define torchvision::nms and ::qnms when torchvision is first imported beside a torch without CUDA and HIP.

Loaded by torchvision_cpu.pth at the start of every Python process, so it imports nothing heavy itself.
"""

import sys
from importlib.machinery import PathFinder

_kept = []  # a torch Library takes its definitions along when it is collected


class _TorchvisionFinder:
    """Finds torchvision as usual and runs `_define_operators` just before its first line."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                _define_operators()
                execute(module)

            spec.loader.exec_module = exec_module
        return spec


def _define_operators():
    import torch

    if _kept or torch.version.cuda or torch.version.hip:
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


sys.meta_path.insert(0, _TorchvisionFinder)
