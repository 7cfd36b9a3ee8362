"Two towers of version 0.1; they live in `alexnet_nb.claims.two_towers`."
from alexnet_nb._moved import moved

__all__ = [
    "LayerTraffic", "Message", "PAPER_NAMES", "Tower", "TwoTowers", "Wire", "data_parallel_bytes",
    "join_state", "layer_traffic", "mixing_layers", "model_parallel_bytes", "ring_seconds", "split_state",
]
__getattr__ = moved("two_gpus", ("claims.two_towers",))
