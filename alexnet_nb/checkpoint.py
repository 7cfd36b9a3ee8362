"Checkpoints of version 0.1; they live in `alexnet_nb.engine.checkpoint` and `.files`."
from alexnet_nb._moved import moved

__all__ = [
    "Away", "CheckpointFolder", "HELD", "architecture", "build_model", "copy_checkpoint", "file_system",
    "group_state", "match_layout", "random_state", "rates_by_group", "read_checkpoint", "read_held",
    "remove_leftovers", "replacing", "save_checkpoint", "save_json", "schedule_state", "set_random_state",
    "stored_classes", "stored_recipe", "take_folders",
]
__getattr__ = moved("checkpoint", ("engine.checkpoint", "engine.files", "engine.safe_loading"))
