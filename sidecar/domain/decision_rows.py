"""
The columns of the decision log: one row for each decision.

Workers, the files and the API use the same names. A row in memory is a tuple in the order of `COLUMNS`; the
time columns are integers in µs since the epoch. An unknown text is '', an unknown number -1 or 0 as stated.

On its way to the files a row is text whose values are separated by `SEPARATOR`, see `stores.decisions.lines`.
What many rows have in common, such as the values of a credential, is joined once, by `joined`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

DecisionRow: TypeAlias = tuple[str | int, ...]
"""The values of one decision, in the order of `COLUMNS`."""


SEPARATOR = "\x1f"
"""Between two values of a row; no value has it, because it is not printable."""


def printable(text: str) -> str:
    """
    Return *text* with each character that is not printable as U+FFFD, control characters among them.

    >>> printable("/a\\n\\x1b[2J")
    '/a\ufffd\ufffd[2J'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def joined(*values: object) -> str:
    """Return the text of several values of a row that are neighbours in `stores.decisions.lines`."""
    return SEPARATOR.join(printable(str(value)) for value in values)


class Column(NamedTuple):
    """A column: its name, its SQL type in the Parquet files, and its meaning for readers."""

    name: str
    sql_type: str
    meaning: str

    @property
    def is_time(self) -> bool:
        """Whether values in memory are µs since the epoch."""
        return self.sql_type == "TIMESTAMP"


COLUMNS = (
    Column("time", "TIMESTAMP", "When the decision was made, in UTC."),
    Column(
        "decision_id", "VARCHAR", "The decision's id, which the client received; of rls, only the log has it."
    ),
    Column("request_id", "VARCHAR", "The proxy's x-request-id, '' = none."),
    Column("trace_id", "VARCHAR", "The trace id of the W3C header traceparent, '' = none."),
    Column("integration", "VARCHAR", "The integration's id, '' = unknown caller."),
    Column("credential", "VARCHAR", "The id of the API key, never the key, '' = unknown caller."),
    Column("verdict", "VARCHAR", "ALLOW, DENY_403 or DENY_429."),
    Column("reason", "VARCHAR", "The reason, ok = allowed."),
    Column("would_deny", "VARCHAR", "The reason that shadow mode did not enforce, '' = none."),
    Column("method", "VARCHAR", "The request's method."),
    Column("path", "VARCHAR", "The request's path without its query; of rls, the domain."),
    Column("scope", "VARCHAR", "The scope that the request needs, '' = none or not checked."),
    Column("client_address", "VARCHAR", "The client's address, '' = unknown."),
    Column("route", "VARCHAR", "The path of the route that matched, '' = none; of rls, the rule."),
    Column("remaining", "INTEGER", "Whole tokens left in the bucket, -1 = no bucket was read."),
    Column("limit_rpm", "INTEGER", "The limit in requests per minute, 0 = no bucket was read."),
    Column("reset_at", "TIMESTAMP", "When the bucket is full again, by the store's clock; 1970 = not read."),
    Column("store_time", "TIMESTAMP", "When the bucket was read, by the store's clock; 1970 = not read."),
    Column("retry_after_us", "BIGINT", "The wait until a request passes, in µs; 0 = now, -1 = never."),
    Column("fallback", "VARCHAR", "The on_store_error policy that answered, '' = the store did."),
    Column("dialect", "VARCHAR", "ext_authz, forward_auth, native or rls."),
    Column("worker", "INTEGER", "The number of the worker process."),
    Column("latency_us", "INTEGER", "From the parsed request to the decision, in µs."),
    Column("generation", "BIGINT", "The generation of the integration's record, 0 = none."),
)
"""Every column, in the order of a row."""

COLUMN_NAMES = tuple(column.name for column in COLUMNS)
"""The names of `COLUMNS`."""
