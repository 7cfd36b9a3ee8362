"""Names of version 0.1 at their old addresses."""
import importlib
import warnings
from collections.abc import Callable
from typing import Any

RENAMED = {"take_folders": "lock_folders", "joined": "process_group", "own_stream": "seed_for_rank",
           "total": "all_reduce_sum", "agree": "all_reduce_max", "gather": "all_gather",
           "set_rate": "change_rate"}


def moved(old: str, homes: tuple[str, ...]) -> Callable[[str], Any]:
    "A module's `__getattr__` that finds a name in its new home, and says where that is."
    def find(name: str) -> Any:
        for home in () if name.startswith("__") else homes:
            module = importlib.import_module(f"alexnet_nb.{home}")
            new = RENAMED.get(name, name)
            for found in (new, f"_{new}"):  # private now, where nobody else used it
                if found not in vars(module): continue
                said = f"alexnet_nb.{old}.{name} is now alexnet_nb.{home}.{found}"
                warnings.warn(said, DeprecationWarning, stacklevel=3)
                return vars(module)[found]
        raise AttributeError(f"module 'alexnet_nb.{old}' has no attribute {name!r}")
    return find
