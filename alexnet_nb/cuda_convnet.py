"The authors' small networks of version 0.1; they live in `alexnet_nb.claims.small_nets`."
from alexnet_nb._moved import moved

__all__ = [
    "DATA_BATCH", "Layer", "Local2d", "NETS", "Net", "SameMapNorm", "Stage", "build_net", "chances",
    "cut", "mean_image", "net_optimizer", "net_table", "set_rate", "ten_views", "train_epoch",
    "view_probabilities",
]
__getattr__ = moved("cuda_convnet", ("claims.small_nets",))
