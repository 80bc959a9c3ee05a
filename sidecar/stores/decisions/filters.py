"""Filters of the decision log and their SQL: each value is a parameter, never a part of the text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, TypeAlias

from sidecar.domain.cidr import Cidr, format_address

LATEST_US = 253_402_300_799_999_999
"""The latest time that can be asked for: the end of the year 9999, in µs since the epoch."""

Value: TypeAlias = "str | int | datetime | list[str]"
_EPOCH = datetime(1970, 1, 1)  # the files hold times in UTC without a zone


class Condition(NamedTuple):
    """A condition of a WHERE clause, and the values of its parameters."""

    sql: str
    values: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class DecisionFilters:
    """
    The rows that a reader asks for; None = any.

    Times are µs since the epoch; `from_us` belongs to the span and `to_us` does not. A path must begin with
    `path_prefix`, a client address must be in `addresses`, and everything else must be equal.
    """

    from_us: int = 0
    to_us: int = LATEST_US
    integration: str | None = None
    credential: str | None = None
    verdict: str | None = None
    reason: str | None = None
    would_deny: str | None = None
    addresses: Cidr | None = None
    scope: str | None = None
    method: str | None = None
    path_prefix: str | None = None
    request_id: str | None = None
    decision_id: str | None = None

    def conditions(self) -> list[Condition]:
        """Return what rows must fulfill."""
        found = []
        if self.from_us > 0:
            found.append(Condition("time >= ?", (timestamp(self.from_us),)))
        if self.to_us < LATEST_US:
            found.append(Condition("time < ?", (timestamp(self.to_us),)))
        for name in _EQUAL:
            value = getattr(self, name)
            if value is not None:
                found.append(Condition(f"{name} = ?", (value,)))
        if self.path_prefix is not None:
            found.append(Condition("starts_with(path, ?)", (self.path_prefix,)))
        if self.addresses is not None:
            found.append(address_condition(self.addresses))
        return found

    @property
    def indexed_value(self) -> str:
        """The value of each row in a column of `id_index.COLUMNS`, '' = there is none."""
        if self.addresses is not None and self.addresses.length_bits == self.addresses.width_bits:
            address = format_address(self.addresses.network)
        else:
            address = ""
        return self.decision_id or self.request_id or address


_EQUAL = (
    "integration",
    "credential",
    "verdict",
    "reason",
    "would_deny",
    "scope",
    "method",
    "request_id",
    "decision_id",
)


def joined(conditions: list[Condition]) -> Condition:
    """Return the condition that all *conditions* are fulfilled."""
    sql = " AND ".join(f"({condition.sql})" for condition in conditions)
    return Condition(sql or "true", tuple(value for condition in conditions for value in condition.values))


def timestamp(us: int) -> datetime:
    """Return *us* since the epoch, 0 to `LATEST_US`, as a parameter of a query."""
    return _EPOCH + timedelta(microseconds=us)


def address_condition(block: Cidr) -> Condition:
    """
    Return the condition that `client_address` is in *block*.

    Addresses are texts in canonical form. For IPv4 the whole octets of the block are a prefix of the text, so
    that most rows need no more than a comparison of texts.
    """
    if block.length_bits == block.width_bits:
        return Condition("client_address = ?", (format_address(block.network),))
    return _ipv4(block) if block.width_bits == 32 else _ipv6(block)


def _ipv4(block: Cidr) -> Condition:
    whole, rest_bits = divmod(block.length_bits, 8)
    prefix = "".join(f"{octet}." for octet in block.network[:whole])
    condition = Condition("starts_with(client_address, ?) AND contains(client_address, '.')", (prefix,))
    if rest_bits == 0:
        return condition
    first = block.network[whole]
    last = first | (0xFF >> rest_bits)
    octet = f"TRY_CAST(split_part(client_address, '.', {whole + 1}) AS INTEGER) BETWEEN ? AND ?"
    return Condition(f"{condition.sql} AND {octet}", (*condition.values, first, last))


def _ipv6(block: Cidr) -> Condition:
    host = (1 << (128 - block.length_bits)) - 1
    first = int.from_bytes(block.network)
    left, right = (_digits(f"split_part(client_address, '::', {part})") for part in (1, 2))
    # RFC 5952 writes the longest run of zero groups as '::'; the comparison needs all 32 digits.
    expanded = f"({left}) || repeat('0', 32 - length({left}) - length({right})) || ({right})"
    sql = f"contains(client_address, ':') AND {expanded} BETWEEN ? AND ?"
    return Condition(sql, (f"{first:032x}", f"{first | host:032x}"))


def _digits(groups: str) -> str:
    """SQL for the hexadecimal digits of *groups*, such as '2001:db8', four for each group."""
    padded = f"list_transform(string_split({groups}, ':'), lambda digits: lpad(digits, 4, '0'))"
    return f"CASE WHEN {groups} = '' THEN '' ELSE array_to_string({padded}, '') END"
