"The config of version 0.1; it lives in `alexnet_nb.engine.config`."
from alexnet_nb._moved import moved

__getattr__ = moved("config", ("engine.config", "base.errors", "base.device", "base.results", "engine.allocator", "engine.command"))
