"Two towers of version 0.1; they live in `alexnet_nb.claims.two_towers`."
from alexnet_nb._moved import moved

__getattr__ = moved("two_gpus", ("claims.two_towers",))
