"""Credentials and webhook secrets of an integration: issue, rotate with an overlap, revoke, expire."""

from __future__ import annotations

import pytest

from sidecar.domain.effective import is_live
from sidecar.domain.integrations import CREDENTIALS_MAX, Integration
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.credentials import OVERLAP_MAX_US
from sidecar.domain.lifecycle.webhooks import live_secrets
from sidecar.domain.refusals import Code, RefusedError
from tests.administration import (
    ANN,
    DAY_US,
    HOUR_US,
    ID,
    NOW_US,
    SECOND_US,
    active,
    apply,
    create,
    credential,
    reissued,
    secret,
    suspended,
)


def issue(name: str, expires_at_us: int | None = None) -> c.IssueCredential:
    """Issue the credential *name*."""
    return c.IssueCredential(integration_id=ID, credential=credential(name, expires_at_us))


def rotate(old: str, new: str, overlap_us: int = HOUR_US) -> c.RotateCredential:
    """Rotate *old* to *new*."""
    return c.RotateCredential(
        integration_id=ID, credential_id=old, credential=credential(new), overlap_us=overlap_us
    )


def revoke(name: str) -> c.RevokeCredential:
    """Revoke the credential *name*."""
    return c.RevokeCredential(integration_id=ID, credential_id=name)


def expire(name: str, at_us: int | None) -> c.SetCredentialExpiry:
    """Let the credential *name* end at *at_us*."""
    return c.SetCredentialExpiry(integration_id=ID, credential_id=name, expires_at_us=at_us)


def refused(record: Integration, command: c.Command, now_us: int = NOW_US) -> Code:
    """The code with which *command* is refused."""
    with pytest.raises(RefusedError) as caught:
        apply(record, command, ANN, now_us)
    return caught.value.code


def ids(record: Integration) -> list[str]:
    """The credentials of *record*, in their order."""
    return [credential.id for credential in record.credentials]


def live(record: Integration, now_us: int) -> list[str]:
    """The credentials of *record* that work at *now_us*."""
    return [credential.id for credential in record.credentials if is_live(record, credential, now_us)]


def test_issue__several_work_side_by_side() -> None:
    """An integration may have several credentials; each says when it was issued, and claims its id."""
    outcome = apply(active(), issue("second", NOW_US + DAY_US))
    assert live(outcome.record, NOW_US) == ["old1", "second"]
    new = outcome.record.credentials[-1]
    assert (new.issued_at_us, new.issued_generation, new.expires_at_us) == (NOW_US, 2, NOW_US + DAY_US)
    assert outcome.claims == ("second",)


def test_issue__ends_at_its_expiry() -> None:
    """A credential works up to its expiry and not at it."""
    record = apply(active(), issue("brief", NOW_US + HOUR_US)).record
    assert "brief" in live(record, NOW_US + HOUR_US - 1)
    assert "brief" not in live(record, NOW_US + HOUR_US)


@pytest.mark.parametrize("at_us", [NOW_US, NOW_US - 1, 0, -1, 2**53])
def test_issue__expiry_must_be_ahead(at_us: int) -> None:
    """An expiry in the past, or beyond what Lua can count, is refused; to end one at once there is revoke."""
    assert refused(active(), issue("x", at_us)) is Code.INVALID_VALUE
    assert refused(active(), expire("old1", at_us)) is Code.INVALID_VALUE


@pytest.mark.parametrize(
    "new",
    [
        c.NewCredential("a_b", credential("x").digest),
        c.NewCredential("", credential("x").digest),
        c.NewCredential("x", "sha256:abc"),
        c.NewCredential("x", credential("x").digest.upper()),
    ],
)
def test_issue__ids_and_digests_that_no_key_has(new: c.NewCredential) -> None:
    """A malformed credential is refused, not stored."""
    assert refused(active(), c.IssueCredential(integration_id=ID, credential=new)) is Code.INVALID_VALUE


def test_issue__id_of_the_same_record_is_used() -> None:
    """An id occurs once in a record; the store holds the same for the whole registry."""
    assert refused(active(), issue("old1")) is Code.CREDENTIAL_ID_USED
    twice = create("other", credentials=(credential("x"), credential("x")))
    with pytest.raises(RefusedError) as caught:
        apply(None, twice)
    assert caught.value.code is Code.CREDENTIAL_ID_USED


def test_issue__ended_ones_make_room_and_live_ones_do_not() -> None:
    """A full record drops what has ended, the oldest first, and says so; live ones must be revoked."""
    record = active()
    for number in range(CREDENTIALS_MAX - 1):
        record = apply(record, issue(f"n{number}", NOW_US + HOUR_US)).record
    assert refused(record, issue("more")) is Code.TOO_MANY
    outcome = apply(record, issue("more"), ANN, NOW_US + HOUR_US)
    assert "n0" not in ids(outcome.record)
    assert {"old1", "n1", "more"} <= set(ids(outcome.record))
    assert [notice.code for notice in outcome.notices] == ["dropped_ended"]
    too_many = tuple(credential(f"c{number}") for number in range(CREDENTIALS_MAX + 1))
    with pytest.raises(RefusedError) as caught:
        apply(None, create("other", credentials=too_many))
    assert caught.value.code is Code.TOO_MANY


def test_rotate__both_work_during_the_overlap() -> None:
    """The old credential works until the overlap ends and names its successor."""
    record = apply(active(), rotate("old1", "new1")).record
    assert {"old1", "new1"} == set(live(record, NOW_US + HOUR_US - 1))
    assert live(record, NOW_US + HOUR_US) == ["new1"]
    assert [old.replaced_by for old in record.credentials if old.id == "old1"] == ["new1"]


def test_rotate__without_overlap_ends_the_old_one() -> None:
    """An overlap of 0 leaves only the new credential."""
    assert ids(apply(active(), rotate("old1", "new1", overlap_us=0)).record) == ["new1"]


def test_rotate__never_prolongs_the_old_one() -> None:
    """A credential that expires within the overlap still does."""
    record = active(credentials=(credential("old1", NOW_US + SECOND_US),))
    assert live(apply(record, rotate("old1", "new1")).record, NOW_US + SECOND_US) == ["new1"]


@pytest.mark.parametrize("overlap_us", [-1, OVERLAP_MAX_US + 1])
def test_rotate__overlap_is_bounded(overlap_us: int) -> None:
    """At most thirty days, and never negative."""
    assert refused(active(), rotate("old1", "new1", overlap_us)) is Code.INVALID_VALUE
    assert apply(active(), rotate("old1", "new1", OVERLAP_MAX_US)).is_change


def test_rotate__a_replaced_one_is_not_rotated_again() -> None:
    """Rotating the old one once more would leave two successors."""
    record = apply(active(), rotate("old1", "new1")).record
    assert refused(record, rotate("old1", "new2")) is Code.CREDENTIAL_REPLACED


def test_rotate__full_record_without_overlap_needs_no_room() -> None:
    """Replacing one of the last allowed credentials works when the old one ends at once."""
    record = active()
    for number in range(CREDENTIALS_MAX - 1):
        record = apply(record, issue(f"n{number}")).record
    assert refused(record, rotate("old1", "new1")) is Code.TOO_MANY
    assert apply(record, rotate("old1", "new1", overlap_us=0)).is_change


def test_revoke__at_once_and_for_ever() -> None:
    """A revoked credential leaves the record; when it was the last live one, a notice says so."""
    outcome = apply(active(), revoke("old1"))
    assert ids(outcome.record) == []
    assert [notice.code for notice in outcome.notices] == ["no_live_credential"]
    both = apply(active(), issue("second")).record
    assert apply(both, revoke("old1")).notices == ()


def test_revoke__unknown_names_the_known_ones() -> None:
    """A wrong id is answered with the right ones."""
    with pytest.raises(RefusedError) as caught:
        apply(active(), revoke("nosuch"))
    assert caught.value.code is Code.CREDENTIAL_UNKNOWN
    assert "old1" in caught.value.remedy


def test_set_expiry__of_a_live_one() -> None:
    """An expiry can be brought forward, put off and taken away."""
    record = apply(active(), expire("old1", NOW_US + HOUR_US)).record
    assert live(record, NOW_US + HOUR_US) == []
    assert live(apply(record, expire("old1", None)).record, NOW_US + DAY_US) == ["old1"]


def test_set_expiry__never_revives() -> None:
    """What has expired or was invalidated stays ended: a new credential is the way."""
    record = apply(active(), expire("old1", NOW_US + HOUR_US)).record
    assert refused(record, expire("old1", NOW_US + DAY_US), NOW_US + HOUR_US) is Code.CREDENTIAL_ENDED
    assert refused(suspended(), expire("old1", NOW_US + DAY_US)) is Code.CREDENTIAL_ENDED
    assert refused(reissued(), expire("old1", NOW_US + DAY_US)) is Code.CREDENTIAL_ENDED
    assert refused(reissued(), rotate("old1", "new2")) is Code.CREDENTIAL_ENDED


def test_set_expiry__of_a_replaced_one_stays_within_the_overlap_bound() -> None:
    """An overlap cannot be turned into a second lasting credential."""
    record = apply(active(), rotate("old1", "new1")).record
    assert refused(record, expire("old1", None)) is Code.CREDENTIAL_REPLACED
    assert refused(record, expire("old1", NOW_US + OVERLAP_MAX_US + 1)) is Code.CREDENTIAL_REPLACED
    assert apply(record, expire("old1", NOW_US + DAY_US)).is_change


def generated() -> Integration:
    """A record with the webhook secret 'first'."""
    return apply(active(), c.GenerateWebhookSecret(integration_id=ID, secret=secret("first"))).record


def turn(new: str, overlap_us: int) -> c.RotateWebhookSecret:
    """Rotate to the webhook secret *new*."""
    return c.RotateWebhookSecret(integration_id=ID, secret=secret(new), overlap_us=overlap_us)


def test_webhook_secret__record_never_holds_it() -> None:
    """The record names the secret; the sealed secret goes beside it, to be kept apart."""
    outcome = apply(active(), c.GenerateWebhookSecret(integration_id=ID, secret=secret("first")))
    assert outcome.sealed == (secret("first"),)
    assert secret("first").sealed not in repr(outcome)
    assert [live_secret.id for live_secret in live_secrets(outcome.record, NOW_US)] == ["first"]


def test_webhook_secret__one_at_a_time() -> None:
    """A second one comes by rotation, so that receivers are never surprised; and there must be a first."""
    again = c.GenerateWebhookSecret(integration_id=ID, secret=secret("second"))
    assert refused(generated(), again) is Code.SECRET_EXISTS
    assert refused(active(), turn("second", 0)) is Code.SECRET_UNKNOWN
    assert refused(generated(), turn("first", 0)) is Code.INVALID_VALUE


def test_webhook_secret__rotation_overlaps() -> None:
    """During the overlap both sign; a rotation within it ends the oldest and says so."""
    record = apply(generated(), turn("second", HOUR_US)).record
    assert [live_secret.id for live_secret in live_secrets(record, NOW_US)] == ["first", "second"]
    assert [live_secret.id for live_secret in live_secrets(record, NOW_US + HOUR_US)] == ["second"]
    outcome = apply(record, turn("third", HOUR_US))
    assert [live_secret.id for live_secret in live_secrets(outcome.record, NOW_US)] == ["second", "third"]
    assert [notice.code for notice in outcome.notices] == ["overlap_ended"]
    assert [
        webhook_secret.id for webhook_secret in apply(record, turn("third", 0)).record.webhook_secrets
    ] == ["third"]


@pytest.mark.parametrize(
    "bad",
    [
        c.SealedSecret("", "x"),
        c.SealedSecret("a_b", "x"),
        c.SealedSecret("a", ""),
        c.SealedSecret("a", "x" * 1025),
    ],
)
def test_webhook_secret__shape_is_bounded(bad: c.SealedSecret) -> None:
    """What is kept has a separate id and a bounded size."""
    assert refused(active(), c.GenerateWebhookSecret(integration_id=ID, secret=bad)) is Code.INVALID_VALUE
    with pytest.raises(RefusedError):
        apply(generated(), turn("second", -1))
