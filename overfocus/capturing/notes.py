"""Notes on tensors by identity."""

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor

Note = TypeVar("Note")


class TensorNotes(Generic[Note]):
    """Notes on tensors by identity; a note goes when its tensor does."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[weakref.ref[Tensor], Note]] = {}

    def __setitem__(self, tensor: Tensor, note: Note) -> None:
        key = id(tensor)
        self._notes[key] = (weakref.ref(tensor, lambda _: self._notes.pop(key, None)), note)

    def get(self, tensor: Any) -> Note | None:
        """The note on this very tensor, or None."""
        entry = self._notes.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def keep(self, wanted: Callable[[Note], bool]) -> None:
        """Forget the notes that are not wanted."""
        for key in [key for key, (_, note) in self._notes.items() if not wanted(note)]:
            del self._notes[key]

    def __len__(self) -> int:
        return len(self._notes)

    def clear(self) -> None:
        """Forget every note."""
        self._notes.clear()
