"""
Conversion of integrations between YAML nodes or plain dictionaries and records.

`integration_to_dict` and `integration_from_dict` are inverse, except for fields that a file does not have:
the generation (read as 1), temporary limit raises, webhook secrets, and history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sidecar.domain.bucket import QuotaError
from sidecar.domain.cidr import (
    Cidr,
    CidrError,
    describe_embedded,
    describe_overlaps,
    embedded_ipv4,
    parse_cidr,
)
from sidecar.domain.enforcement import RULE_NAMES, Rule
from sidecar.domain.fail_policy import FAIL_POLICIES, FailPolicy
from sidecar.domain.integrations import DETAILS, Credential, Integration, IntegrationError, Status
from sidecar.domain.records import has_default, written
from sidecar.domain.scopes import Scope, ScopeCatalogue, ScopeError
from sidecar.domain.texts import DETAIL_LENGTH_MAX, text_problems
from sidecar.sources.file_faults import FaultList, quoted
from sidecar.sources.node_fields import Fields, NodeReader, Place
from sidecar.sources.yaml_nodes import YamlMap, YamlNode, YamlScalar, node_of

INTEGRATION_KEYS = (
    "id", "name", "status", *DETAILS, "scopes", "rate_limit_rpm", "burst", "on_store_error", "shadow",
    "ip_allowlist", "is_allowlist_enabled", "credentials",
)  # fmt: skip
CREDENTIAL_KEYS = ("id", "digest", "expires_at")

Record = TypeVar("Record", Integration, Credential)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_VALID: dict[str, Any] = {"id": "x", "name": "x"}
_VALID_CREDENTIAL: dict[str, Any] = {"id": "x", "digest": "sha256:" + 64 * "0"}
_ID_CHARS_SHOWN_MAX = 64
SUGGESTIONS_MAX = 20
"""Number of mistakes after which messages no longer suggest scopes, because comparing names is slow."""


class RecordReader(NodeReader):
    """
    Reads the integrations of one registry; reports mistakes, and unusual values in `warnings`.

    Ids must be unique across all calls of one reader. `keys` are the keys set for each integration, by its
    id.
    """

    def __init__(self, catalogue: ScopeCatalogue, faults: FaultList) -> None:
        """Use the scopes of *catalogue*; add mistakes to *faults*."""
        super().__init__(faults)
        self.warnings = FaultList(faults.file)
        self.keys: dict[str, frozenset[str]] = {}
        self._key_sets: dict[frozenset[str], frozenset[str]] = {}
        self._catalogue = catalogue
        self._scopes: dict[str, Scope] = {}
        self._owners: dict[tuple[str, str], Place] = {}

    def integration(self, place: Place, node: YamlNode) -> Integration | None:
        """The integration at *node*; None = it has a mistake."""
        if not isinstance(node, YamlMap):
            self.wrong(place, "must be a mapping with the keys of an integration: 'id', 'name' and more")
            return None
        place = _named(place, node)
        before = len(self.faults)
        fields = self.fields(node, place, INTEGRATION_KEYS)
        values = {
            "id": self.required_text(fields, place, "id"),
            "name": self.required_text(fields, place, "name"),
            "status": self._status(fields),
            **{key: self._detail(fields, key) for key in DETAILS},
            "scopes": self._scope_set(fields),
            "rate_limit_rpm": self.integer(fields, "rate_limit_rpm"),
            "burst": self.integer(fields, "burst"),
            "on_store_error": self._on_store_error(fields),
            "shadow": self._shadow(fields),
            "ip_allowlist": self._allowlist(fields),
            "is_allowlist_enabled": self._switch(fields, "is_allowlist_enabled"),
            "credentials": self._credentials(fields),
        }
        record = self._build(Integration, values, _VALID, fields)
        if record is not None and len(self.faults) == before:
            self._claim("integration", record.id, place)
            keys = frozenset(fields)
            self.keys[record.id] = self._key_sets.setdefault(keys, keys)
        return record if len(self.faults) == before else None

    def _build(
        self, kind: Callable[..., Record], read: Mapping[str, Any], valid: Mapping[str, Any], fields: Fields
    ) -> Record | None:
        """The record of the values *read*; reports every value that is not allowed."""
        values = {key: value for key, value in read.items() if value is not None}
        try:
            return kind(**{**valid, **values})
        except (IntegrationError, QuotaError):
            pass
        for key, value in values.items():  # check each value alone, because the first error hides others
            try:
                kind(**{**valid, key: value})
            except (IntegrationError, QuotaError) as error:
                self.wrong(fields[key][0], str(error))
            else:
                valid = {**valid, "id": value} if key == "id" else valid  # so that messages show the id
        return None

    def _claim(self, kind: str, identity: str, place: Place) -> None:
        first = self._owners.setdefault((kind, identity), place)
        if first is not place:
            self.wrong(
                place,
                f"the {kind} id {identity!r} is already used by {first.field} on line {first.line};"
                " change one of the two ids",
            )

    def _status(self, fields: Fields) -> Status | None:
        if "status" not in fields:
            return None
        place, node = fields["status"]
        text = self.text(place, node)
        if text in ("active", "suspended"):
            return Status(text)
        if text is not None:
            self.wrong(place, f"must be 'active' or 'suspended', not {quoted(text)}")
        return None

    def _detail(self, fields: Fields, key: str) -> str | None:
        if key not in fields:
            return None
        place, node = fields[key]
        text = self.text(place, node)
        problems = text_problems(key, text, DETAIL_LENGTH_MAX) if text is not None else ()
        for problem in problems:
            self.wrong(place, f"{problem.message}: {problem.remedy}")
        return None if problems else text

    def _switch(self, fields: Fields, key: str) -> bool | None:
        if key not in fields:
            return None
        place, node = fields[key]
        text = self.text(place, node)
        if text not in (None, "true", "false"):
            self.wrong(place, f"must be true or false, not {quoted(text)}")
        return text == "true" if text in ("true", "false") else None

    def _on_store_error(self, fields: Fields) -> FailPolicy | None:
        if "on_store_error" not in fields:
            return None
        place, node = fields["on_store_error"]
        text = self.text(place, node)
        if text in FAIL_POLICIES:
            return FailPolicy(text)
        if text is not None:
            known = ", ".join(map(repr, FAIL_POLICIES))
            self.wrong(
                place, f"must be one of {known}, not {quoted(text)}; omit it to use the global setting"
            )
        return None

    def _shadow(self, fields: Fields) -> frozenset[Rule]:
        rules: set[Rule] = set()
        for place, node in self.items(fields, "shadow"):
            text = self.text(place, node)
            if text in RULE_NAMES:
                rules.add(Rule(text))
            elif text is not None:
                self.wrong(place, f"must be one of {', '.join(RULE_NAMES)}, not {quoted(text)}")
        return frozenset(rules)

    def _scope_set(self, fields: Fields) -> frozenset[Scope]:
        scopes: set[Scope] = set()
        for place, node in self.items(fields, "scopes"):
            text = self.text(place, node)
            scope = self._scope(place, text) if text is not None else None
            if scope is None:
                continue
            if scope in scopes:
                self.warnings.add(place.line, place.field, f"{scope} is listed more than once")
            scopes.add(scope)
        return frozenset(scopes)

    def _scope(self, place: Place, text: str) -> Scope | None:
        scope = self._scopes.get(text)
        if scope is None:
            try:
                scope = self._scopes[text] = self._catalogue.parse(text)
            except ScopeError as error:
                meant = self._catalogue.did_you_mean(text) if self.faults.total < SUGGESTIONS_MAX else ""
                self.wrong(place, f"{error}{meant}")
        return scope

    def _allowlist(self, fields: Fields) -> tuple[Cidr, ...]:
        cidrs: list[Cidr] = []
        places: list[Place] = []
        for place, node in self.items(fields, "ip_allowlist"):
            text = self.text(place, node)
            if text is None:
                continue
            try:
                cidrs.append(parse_cidr(text))
                places.append(place)
            except CidrError as error:
                self.wrong(place, str(error))
        for place, cidr in zip(places, cidrs, strict=True):
            if (ipv4 := embedded_ipv4(cidr)) is not None:
                self.warnings.add(place.line, place.field, f"{cidr} {describe_embedded(ipv4)}")
        for overlap in describe_overlaps(cidrs):
            place = places[overlap.index]
            self.warnings.add(place.line, place.field, f"{overlap}; remove it")
        return tuple(cidrs)

    def _credentials(self, fields: Fields) -> tuple[Credential, ...]:
        read = [self._credential(place, node) for place, node in self.items(fields, "credentials")]
        return tuple(credential for credential in read if credential is not None)

    def _credential(self, place: Place, node: YamlNode) -> Credential | None:
        if not isinstance(node, YamlMap):
            self.wrong(place, "must be a mapping with 'id' and 'digest', as 'sidecar keys new' prints it")
            return None
        before = len(self.faults)
        fields = self.fields(node, place, CREDENTIAL_KEYS)
        values = {
            "id": self.required_text(fields, place, "id"),
            "digest": self.required_text(fields, place, "digest"),
            "expires_at_us": self._expiry(fields),
        }
        record = self._build(Credential, values, _VALID_CREDENTIAL, fields)
        if record is not None and len(self.faults) == before:
            self._claim("credential", record.id, place)
        return record if len(self.faults) == before else None

    def _expiry(self, fields: Fields) -> int | None:
        if "expires_at" not in fields:
            return None
        place, node = fields["expires_at"]
        text = self.text(place, node)
        try:
            return microseconds_of(text) if text is not None else None
        except ValueError as error:
            self.wrong(place, str(error))
            return None


def _named(place: Place, node: YamlMap) -> Place:
    """*place* with the integration's id beside its number in the list."""
    entry = node.entries.get("id")
    if entry is None or not isinstance(entry.node, YamlScalar):
        return place
    return Place(f"{place.field} ({entry.node.text[:_ID_CHARS_SHOWN_MAX]})".lstrip(), place.line)


def microseconds_of(text: str) -> int:
    """
    Parse an ISO 8601 time with a zone to microseconds since the epoch.

    >>> microseconds_of("2027-01-31T00:00:00Z")
    1801353600000000

    Raises:
        ValueError: the text is not a time, or has no zone; the message says what to write.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"must be a time such as 2027-01-31T00:00:00Z (ISO 8601), not {quoted(text)}"
        ) from None
    if time.tzinfo is None:
        raise ValueError(f"{quoted(text)} has no time zone; add 'Z' for UTC, or an offset such as '+01:00'")
    return (time - _EPOCH) // _MICROSECOND


def iso_time(time_us: int) -> str:
    """
    Format *time_us* (since the epoch) in ISO 8601, UTC; the inverse of `microseconds_of`.

    >>> iso_time(1801353600000000)
    '2027-01-31T00:00:00Z'
    """
    return (_EPOCH + time_us * _MICROSECOND).isoformat().replace("+00:00", "Z")


def integration_to_dict(record: Integration) -> dict[str, Any]:
    """*record* as plain data with the keys of the registry file, without default values."""
    plain = written(
        record, (key for key in INTEGRATION_KEYS if key == "scopes" or not has_default(record, key))
    )
    if not record.ip_allowlist:
        plain.pop("is_allowlist_enabled", None)
    plain["credentials"] = [credential_to_dict(credential) for credential in record.credentials]
    return plain


def credential_to_dict(credential: Credential) -> dict[str, str]:
    """*credential* as plain data with the keys of the registry file."""
    plain = {"id": credential.id, "digest": credential.digest}
    if credential.expires_at_us is not None:
        plain["expires_at"] = iso_time(credential.expires_at_us)
    return plain


def integration_from_dict(plain: Mapping[str, Any], catalogue: ScopeCatalogue) -> Integration:
    """
    The record that *plain* describes; the inverse of `integration_to_dict`.

    Raises:
        FileFaultsError: names all mistakes.
    """
    faults = FaultList("integration")
    record = RecordReader(catalogue, faults).integration(Place("", 1), node_of(plain))
    faults.raise_any()
    assert record is not None
    return record
