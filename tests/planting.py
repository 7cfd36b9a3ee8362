"Puts something else in a name's place, and fails where there is no such name."
import contextlib
from types import ModuleType


def plant(owner, name: str, value) -> None:
    """Give a module or class another `name`, for as long as this process lives. A name that the module does
    not have of its own is an error: nobody would read what is planted there."""
    if name not in (vars(owner) if isinstance(owner, ModuleType) else dir(owner)):
        raise AttributeError(f"{owner.__name__} has no {name} of its own, where something was to be planted")
    setattr(owner, name, value)


@contextlib.contextmanager
def planted(owner, name: str, value):
    "`plant`, for a while."
    before = getattr(owner, name)
    plant(owner, name, value)
    try: yield
    finally: plant(owner, name, before)
