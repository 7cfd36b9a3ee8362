"The benchmark of version 0.1; it lives in `alexnet_nb.engine.bench` and `.speed`."
from alexnet_nb._moved import moved

__getattr__ = moved("speed", ("engine.bench", "engine.bench_tasks", "engine.speed"))

if __name__ == "__main__":
    import sys

    from alexnet_nb.engine.bench import main
    sys.exit(main())
