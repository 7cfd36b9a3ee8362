"Checkpoints of version 0.1; they live in `alexnet_nb.engine.checkpoint` and `.files`."
from alexnet_nb._moved import moved

__getattr__ = moved("checkpoint", ("engine.checkpoint", "engine.files", "engine.safe_loading"))
