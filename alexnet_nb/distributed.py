"Processes of version 0.1; they live in `alexnet_nb.engine.processes`."
from alexnet_nb._moved import moved

__getattr__ = moved("distributed", ("engine.processes",))
