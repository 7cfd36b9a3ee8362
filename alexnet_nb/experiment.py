"Experiments of version 0.1; they live in `alexnet_nb.claims.experiment` and `.plans`."
from alexnet_nb._moved import moved

__all__ = [
    "ABLATIONS", "EXPERIMENTS", "Experiment", "LRN_13_TO_11", "Lab", "ORDER", "Pictures", "RELU_VS_TANH",
    "alexnet_config", "alexnet_epochs", "alexnet_test", "alexnet_trial", "choose", "convnet_epoch",
    "convnet_test", "convnet_trial", "data_name", "default_file", "describe", "find_data", "find_trial",
    "forget", "full_length", "identity", "is_done", "list_trials", "load_pictures", "main", "new_trial",
    "next_trial", "note", "open_results", "plan", "rate_arms", "rate_rule", "rates_by_epoch",
    "reason_to_stop", "run_experiment", "run_trial", "same_identity", "settings", "speed",
    "ten_view_error", "write_json",
]
__getattr__ = moved("experiment", ("claims.experiment", "claims.plans", "base.pictures"))

if __name__ == "__main__":
    import sys

    from alexnet_nb.claims.experiment import main
    sys.exit(main())
