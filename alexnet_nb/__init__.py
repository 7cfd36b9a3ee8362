"""AlexNet (2012) rebuilt for CIFAR-10: the lesson lies here, the rest in `base`, `engine` and `claims`."""
__version__ = "0.2.0"

import importlib
from typing import Any

# What most programs need, fetched when it is asked for: importing the package loads nothing.
_HOMES = {
    "AlexNet": "model", "LocalResponseNorm": "lrn", "layer_table": "model",
    "drawings": "data", "read_cifar10": "data", "read_folder": "data", "open_rgb": "data",
    "Recipe": "data", "Batches": "data",
    "evaluate": "train", "make_optimizer": "train", "train_step": "train",
    "Classifier": "inference", "load_pretrained": "inference", "predict": "inference",
    "learn_classes": "transfer", "load_classifier": "engine.checkpoint",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES: raise AttributeError(f"module 'alexnet_nb' has no attribute {name!r}")
    return getattr(importlib.import_module(f"alexnet_nb.{_HOMES[name]}"), name)
