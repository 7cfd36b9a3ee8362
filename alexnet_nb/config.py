"The config of version 0.1; it lives in `alexnet_nb.engine.config`."
from alexnet_nb._moved import moved

__all__ = [
    "CONFIG_DIR", "Config", "DataConfig", "DeviceConfig", "Fraction", "InputError", "MOST_YAML",
    "ModelConfig", "PRECISIONS", "PathText", "PathsConfig", "Positive", "RunError", "Section",
    "TrainingConfig", "brief", "config_path", "describe_device", "given_values", "load_config",
    "make_config", "merge", "one_line", "out_of_memory", "parse_overrides", "parse_yaml", "pick_device",
    "pick_precision", "read_config_file", "read_results", "reuse_memory", "run_command", "set_seed",
    "to_yaml",
]
__getattr__ = moved("config", ("engine.config", "base.errors", "base.device", "base.results",
                               "engine.allocator", "engine.command"))
