"Processes of version 0.1; they live in `alexnet_nb.engine.processes`."
from alexnet_nb._moved import moved

__all__ = [
    "World", "agree", "by_leader", "find_world", "gather", "joined", "launch", "leader", "lost_peer",
    "orphaned", "own_stream", "rank", "replicated", "share", "total", "world_size",
]
__getattr__ = moved("distributed", ("engine.processes",))
