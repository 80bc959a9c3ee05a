"""The base class of the small values that every decision creates."""

from __future__ import annotations


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
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """The class and its fields."""
        fields = (f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({', '.join(fields)})"
