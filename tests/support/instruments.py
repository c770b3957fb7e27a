"""An instrument that writes down what it is told."""

from typing import Any

from flowno.core.event_loop.instrumentation import EventLoopInstrument

__all__ = ["HOOKS", "Recorder"]

#: The names of the hooks, in the order in which the class has them.
HOOKS = [name for name in vars(EventLoopInstrument) if name.startswith("on_")]


class Recorder(EventLoopInstrument):
    """Keeps the name and the arguments of every call in ``calls``.

    Args:
        prefix: What the names of the hooks to keep begin with.
    """

    def __init__(self, prefix: str = "on_") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._prefix = prefix

    @property
    def names(self) -> list[str]:
        """The names of the hooks, as they were called."""
        return [name for name, _ in self.calls]

    def only(self, name: str) -> Any:
        """The metadata of the only call of this hook."""
        (metadata,) = self.all(name)
        return metadata

    def all(self, name: str) -> list[Any]:
        """The first argument of each call of this hook."""
        return [args[0] for each, args in self.calls if each == name]

    def _keep(self, name: str, args: tuple[Any, ...]) -> None:
        if name.startswith(self._prefix):
            self.calls.append((name, args))


def _hook(name: str) -> Any:
    def hook(self: Recorder, *args: Any) -> None:
        self._keep(name, args)

    return hook


for _name in HOOKS:
    setattr(Recorder, _name, _hook(_name))
