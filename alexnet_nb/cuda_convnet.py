"The authors' small networks of version 0.1; they live in `alexnet_nb.claims.small_nets`."
from alexnet_nb._moved import moved

__getattr__ = moved("cuda_convnet", ("claims.small_nets",))
