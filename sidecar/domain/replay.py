"""
Replays the logged requests of one integration against another record or other routes: what would change?

The replay begins after authentication. It evaluates each request with the real policy, and takes from buckets
with the real `draw`, at the store's time of the logged decision. Rows must come in the order of
`Replay.sort_key`.

A bucket begins as the log shows it: the first row that read it has the time at which it was full again
(`reset_at`), which is its whole state; an admitted row has added one token to it. A debt from a burst that
was lowered before the first row is unknown and counts as none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sidecar.domain.answers import Decision
from sidecar.domain.bucket import Level, Quota, Taken, draw
from sidecar.domain.client_address import PeerAddress
from sidecar.domain.decision_rows import COLUMN_NAMES, DecisionRow
from sidecar.domain.decisions import Reason
from sidecar.domain.enforcement import RULE_OF, Rule
from sidecar.domain.integrations import Credential, Integration
from sidecar.domain.policy import AccessRequest, Evaluation, Policy
from sidecar.domain.snapshot import CompiledCredential, CompiledIntegration

HOUR_US = 3_600_000_000
EVALUATIONS_MAX = 50_000
"""Maximum number of different requests whose evaluation is kept; beyond it, all are forgotten."""
CHANGES_MAX = 1_000
"""Maximum number of kinds of changes that are counted separately; the others are only counted."""


class LoggedRequest(NamedTuple):
    """
    The columns of the decision log that the replay reads; see `decision_rows.COLUMNS`.

    Times are µs since the epoch, `store_time` 0 = the decision did not read a bucket of the store. `bucket`
    names the bucket if sidecars or workers have buckets of their own, '' = all share one.
    """

    decision_id: str
    time: int
    credential: str
    reason: str
    would_deny: str
    method: str
    path: str
    scope: str
    client_address: str
    route: str
    limit_rpm: int
    reset_at: int
    store_time: int
    fallback: str
    generation: int
    bucket: str = ""

    @classmethod
    def of(cls, row: DecisionRow) -> LoggedRequest:
        """Return what *row* says, with one bucket for all."""
        named = dict(zip(COLUMN_NAMES, row, strict=True))
        return cls(*(named[name] for name in cls._fields if name != "bucket"))  # type: ignore[arg-type]

    @property
    def at_us(self) -> int:
        """When the decision was made, by the store's clock if it read a bucket."""
        return self.store_time or self.time

    @property
    def stated_scope(self) -> str | None:
        """The scope that the proxy stated; None = the route table decided, or the row does not say."""
        if self.route:
            return None
        if self.scope:
            return self.scope
        reached_bucket = self.reason in _AFTER_SCOPE and not _is_path_fault(self.would_deny)
        return "none" if reached_bucket else None


_AFTER_SCOPE = {
    reason.label for reason in (Reason.OK, Reason.RATE_LIMITED, Reason.STORE_UNAVAILABLE, Reason.OVERLOADED)
}
_PATH_FAULTS = {
    reason.label
    for reason in (
        Reason.PATH_REFUSED,
        Reason.URI_TOO_LONG,
        Reason.ROUTE_UNKNOWN,
        Reason.METHOD_NOT_ALLOWED,
        Reason.ROUTE_MISCONFIGURED,
    )
}
_UNREPEATABLE = {
    reason.label
    for reason in (
        Reason.URI_TOO_LONG,  # the log does not have the whole path
        Reason.ROUTE_MISCONFIGURED,  # the log does not have the scope that the proxy stated
    )
}
_KEPT = _UNREPEATABLE | {Reason.INTEGRATION_SUSPENDED.label}
_REFUSED_ADDRESS = Reason.IP_NOT_ALLOWED.label
_LIMITED = {reason.label for reason, rule in RULE_OF.items() if rule is Rule.LIMIT}
_REASONS = {reason.label: reason for reason in Reason}
_ALLOWED = Reason.OK.label


def _is_path_fault(label: str) -> bool:
    return label in _PATH_FAULTS


class Outcome(NamedTuple):
    """The decision of the replay; `taken` None = no bucket was read, so that the logged outcome was kept."""

    reason: Reason
    would_deny: Reason | None
    taken: Taken | None = None


class ChangeKind(NamedTuple):
    """What is counted separately: the logged reason, that of the replay, and the API key."""

    was: str
    becomes: str
    credential: str


class ChangeCount:
    """How often one kind of change occurs, when, and in which hours."""

    __slots__ = ("count", "first_decision_id", "first_us", "hours", "last_us")

    def __init__(self, row: LoggedRequest) -> None:
        """Begin with the first request, *row*; it is not counted yet."""
        self.count = 0
        self.first_us = self.last_us = row.at_us
        self.first_decision_id = row.decision_id
        self.hours: dict[int, int] = {}

    def add(self, at_us: int) -> None:
        """Count one request."""
        self.count += 1
        self.last_us = at_us
        hour_us = at_us - at_us % HOUR_US
        self.hours[hour_us] = self.hours.get(hour_us, 0) + 1

    @property
    def worst_hour(self) -> tuple[int, int]:
        """The hour with the most changes, the earliest of equal ones: its begin in µs, and their number."""
        return max(self.hours.items(), key=lambda hour: (hour[1], -hour[0]))


class Replay:
    """
    Decides logged requests by *record* and counts what changes.

    `changes` are the requests that are newly refused, newly admitted, or refused for another reason.
    """

    def __init__(self, policy: Policy, record: Integration, credential: Credential | None = None) -> None:
        """
        Decide by *policy* and *record*, which is in force (`effective.in_force`).

        *credential* is that of every request, for explanations; None = decisions do not name one.
        """
        self._policy = policy
        integration = CompiledIntegration(record)
        self._credential = CompiledCredential(credential or _NO_CREDENTIAL, integration)
        self._quota = record.quota
        self._generation = record.generation
        self.shadow = tuple(rule for rule in Rule if policy.is_shadowed(integration, rule))
        """The rules that refuse nothing, in the replay too."""
        self._levels: dict[str, Level | None] = {}
        self._evaluations: dict[tuple[str, str, str | None, str], Evaluation] = {}
        self.changes: dict[ChangeKind, ChangeCount] = {}
        self.rows = 0
        self.kept = 0
        """Rows whose logged outcome was kept, because the log does not have what another decision needs."""
        self.other_generations = 0
        """Rows that were decided by another version of the record."""
        self.refused_logged = 0
        self.refused_replayed = 0
        self.newly_refused = 0
        self.newly_admitted = 0
        self.uncounted_changes = 0
        """Changes beyond CHANGES_MAX kinds."""

    def sort_key(self, row: LoggedRequest) -> tuple[int, int, bool]:
        """
        Return the key of the order in which the store decided: time, state of the bucket, takes before peeks.

        Takes of one batch have one time. Each admitted take moves `reset_at` ahead, and a row that only read
        the bucket has the `reset_at` of the take before it.
        """
        return row.at_us, row.reset_at, not self.has_taken(row)

    def has_taken(self, row: LoggedRequest) -> bool:
        """
        Return whether the logged decision took a token.

        The log does not say whether the limit was in shadow; what the record says now decides.
        """
        if row.reason != _ALLOWED or row.would_deny in _LIMITED:
            return False
        return not row.would_deny or Rule.LIMIT not in self.shadow

    def run(self, rows: Iterable[LoggedRequest]) -> None:
        """Decide and count *rows*, in order."""
        for row in rows:
            self.note(row)

    def note(self, row: LoggedRequest) -> None:
        """Decide and count *row*."""
        outcome = self.decide(row)
        becomes = outcome.reason.label
        was = row.reason
        self.rows += 1
        self.kept += outcome.taken is None
        self.other_generations += row.generation != self._generation
        self.refused_logged += was != _ALLOWED
        self.refused_replayed += becomes != _ALLOWED
        if was == becomes:
            return
        self.newly_refused += was == _ALLOWED
        self.newly_admitted += becomes == _ALLOWED
        kind = ChangeKind(was, becomes, row.credential)
        count = self.changes.get(kind)
        if count is None:
            if len(self.changes) >= CHANGES_MAX:
                self.uncounted_changes += 1
                return
            count = self.changes[kind] = ChangeCount(row)
        count.add(row.at_us)

    def decide(self, row: LoggedRequest) -> Outcome:
        """Return the decision about *row*; the bucket moves."""
        if row.reason in _KEPT:
            return _logged(row)
        evaluation = self.evaluate(row)
        read_bucket = row.store_time > 0 and not row.fallback
        if not read_bucket and evaluation.reason is Reason.OK and row.reason in _AFTER_SCOPE:
            return _logged(row)  # the store failed, and nobody knows what its bucket would have said
        level = self._level(row) if read_bucket else self._levels.get(row.bucket)
        takes = self._policy.takes(evaluation)
        taken, drawn = draw(level, self._quota, takes, row.at_us)
        if read_bucket or row.bucket in self._levels:
            self._levels[row.bucket] = drawn or level
        reason, would_deny = evaluation.reason, evaluation.would_deny
        if reason is Reason.OK and not taken.admitted:
            reason, would_deny = self._policy.limited(evaluation, Reason.RATE_LIMITED)
        return Outcome(reason, would_deny, taken)

    def decision(self, row: LoggedRequest, taken: Taken | None = None) -> Decision:
        """
        Return the decision about *row* alone, for an explanation; the replay does not move.

        *taken* is what the store answered; None = it is worked out from the state that the row shows.
        """
        evaluation = self.evaluate(row)
        if taken is None and row.store_time > 0 and not row.fallback:
            taken, _ = draw(self._shown_level(row), self._quota, self._policy.takes(evaluation), row.at_us)
        reason, would_deny = evaluation.reason, evaluation.would_deny
        if reason is Reason.OK and taken is None:
            reason, would_deny, _ = _logged(row)
        elif reason is Reason.OK and taken is not None and not taken.admitted:
            reason, would_deny = self._policy.limited(evaluation, Reason.RATE_LIMITED)
        return Decision(row.decision_id, reason, evaluation, taken, None, would_deny)

    def request(self, row: LoggedRequest) -> AccessRequest:
        """Return the request of *row*, without its headers."""
        scope = row.stated_scope
        if scope is None and not self._policy.routes.has_entries and row.reason == _REFUSED_ADDRESS:
            scope = "none"  # it was refused before the scope that the proxy stated was looked at
        return AccessRequest(
            row.method, row.path, _no_header, row.client_address, scope, address_rule=_LOGGED_ADDRESS
        )

    def evaluate(self, row: LoggedRequest) -> Evaluation:
        """Return the evaluation of *row*; the log does not have what some faults of paths need."""
        if row.reason in _UNREPEATABLE:
            return Evaluation(_REASONS[row.reason], self._credential.integration, self._credential)
        request = self.request(row)
        key = (request.method, request.path, request.scope, request.peer)
        evaluation = self._evaluations.get(key)
        if evaluation is None:
            evaluation = self._policy.evaluate_known(request, self._credential, ())
            if len(self._evaluations) >= EVALUATIONS_MAX:
                self._evaluations.clear()
            self._evaluations[key] = evaluation
        return evaluation

    def _level(self, row: LoggedRequest) -> Level | None:
        """Return the bucket before *row*; for the first row of a bucket, as that row shows it."""
        if row.bucket in self._levels:
            return self._levels[row.bucket]
        return self._shown_level(row)

    def _shown_level(self, row: LoggedRequest) -> Level:
        """Return the bucket before *row*, as the row shows it."""
        interval_us = Quota.per_minute(row.limit_rpm).interval_us
        return Level(row.reset_at - self.has_taken(row) * interval_us, interval_us)


def _logged(row: LoggedRequest) -> Outcome:
    return Outcome(_REASONS[row.reason], _REASONS.get(row.would_deny))


def _no_header(name: str) -> str | None:
    """The log has no headers."""


_NO_CREDENTIAL = Credential("replay", "sha256:" + 64 * "0")
_LOGGED_ADDRESS = PeerAddress("the decision log")
