"""The base class of the small values that every decision creates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Value:
    """
    Compares by class and fields, and shows its fields in tests and logs.

    Subclasses are final, with `__slots__` and a plain `__init__`: attribute access is faster than in a named
    tuple. Values are never modified.
    """

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        """Compare field by field."""
        return type(self) is type(other) and all(
            getattr(self, name) == getattr(other, name) for name in _fields_of(self)
        )

    def __repr__(self) -> str:
        """The class and its fields."""
        fields = (f"{name}={getattr(self, name)!r}" for name in _fields_of(self))
        return f"{type(self).__name__}({', '.join(fields)})"


def _fields_of(value: Value) -> Sequence[str]:
    """Return the names of the fields in alphabetical order; compiled classes have no `__slots__`."""
    kind: Any = type(value)  # Any: mypy does not know these attributes
    names: Sequence[str] | None = getattr(kind, "__slots__", None)
    return sorted(kind.__mypyc_attrs__) if names is None else names
