"""The function mode that sees scores, weights and values pass by, and changes nothing."""

from collections.abc import Callable
from typing import Any, Self

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

Observe = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]


class CaptureMode(TorchFunctionMode):
    """Hands every torch function's arguments and result to an observer; the result is returned as it is."""

    def __init__(self, observe: Observe) -> None:
        super().__init__()
        self._observe = observe
        self._below: list[TorchFunctionMode] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._observe(func, args, kwargs or {}, result)
        return result

    def __enter__(self) -> Self:
        self._below = list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def active(self, wanted: bool) -> None:
        """Step aside, or come back, wherever in the stack of modes this one stands."""
        stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        others = [mode for mode in stack if mode is not self]
        if wanted == (len(others) < len(stack)):
            return
        if wanted:  # above the modes that were there first, below those that came later
            below = [place for place, mode in enumerate(others) if any(mode is earlier for earlier in self._below)]
            others.insert(max(below, default=-1) + 1, self)
        for _ in stack:
            _pop_mode()  # type: ignore[no-untyped-call]
        for mode in others:
            _push_mode(mode)  # type: ignore[no-untyped-call]
