"Experiments of version 0.1; they live in `alexnet_nb.claims.experiment` and `.plans`."
from alexnet_nb._moved import moved

__getattr__ = moved("experiment", ("claims.experiment", "claims.plans", "base.pictures"))

if __name__ == "__main__":
    import sys

    from alexnet_nb.claims.experiment import main
    sys.exit(main())
