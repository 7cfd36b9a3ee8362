"The benchmark of version 0.1; it lives in `alexnet_nb.engine.bench` and `.speed`."
from alexnet_nb._moved import moved

__all__ = [
    "Bench", "Chain", "HEADER", "Job", "PARTS", "PAUSE", "Rates",
    "SMALL", "Side", "Sizes", "TYPES", "Task", "UsualPictures", "about", "allow_tf32", "best_seconds",
    "chains", "conv_rate", "cpu_name", "describe", "elements", "floor_of", "floor_seconds", "flops",
    "folder_job", "folder_of_drawings", "format_row", "go_on", "interleave", "kept_bytes",
    "lrn_job", "main", "make_job", "markdown_table", "measure_floor", "measure_memory", "measure_row",
    "measure_staircase", "memory_rate", "obey", "one_rate", "others_busy", "our_job", "our_run",
    "peak_bytes", "pick_bench_device", "pick_precisions", "resident_bytes", "run_bench", "seconds",
    "serve", "stairs", "summary", "synchronise", "too_late", "usual_alexnet", "usual_job", "usual_loader",
    "usual_optimizer", "usual_predict", "usual_step", "usual_transform", "variants", "warm_up_job",
    "write_result",
]
__getattr__ = moved("speed", ("engine.bench", "engine.bench_tasks", "engine.turns", "engine.speed"))

if __name__ == "__main__":
    import sys

    from alexnet_nb.engine.bench import main
    sys.exit(main())
