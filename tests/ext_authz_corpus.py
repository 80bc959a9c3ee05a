"""
A fixed corpus of Checks and the answers of this interpreter's build to them.

`python -m tests.ext_authz_corpus` prints the build, then the answers, one a line in hex. Only the clock and
the random part of decision ids are replaced, so two builds that decide alike print the same lines.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from sidecar.domain.answers import AnswerStyle
from sidecar.domain.api_keys import checksum, credential_id_of, digest_of
from sidecar.domain.integrations import Credential, Status
from sidecar.observe.build import BUILD
from sidecar.rpc.statuses import RpcError
from tests.building import SECOND_US, FakeCall, ManualClock, make_check, make_ext_authz, make_integration

PROCESS_ID_LENGTH = 10
"""Length of the random part of a decision id."""
METHODS = ("GET", "POST", "PUT", "", "get")
PATHS = (
    "/v1/orders/42", "/v1/orders/42?expand=lines", "/v1/orders", "/v1/status", "/v1/finance/a/b", "/v2/none",
    "/V1/Orders/42", "/v1/orders/", "/v1//orders/42", "/v1/orders/../finance/a", "/v1/%6frders/42",
    "/v1/orders/%2e%2e/status", "/v1/orders/a%2fb", "/v1/orders/%00", "/v1/orders/%", "/v1/orders/42;a=b",
    "/v1/orders/ä", "/v1/orders/a b", "*", "", "/", "https://api.example.com/v1/orders/42",
    "/v1/" + "a" * 9_000,
)  # fmt: skip
PEERS = ("198.51.100.7", "2001:db8::7", "::ffff:198.51.100.7", "203.0.113.9", "", "nonsense")
SCOPES = ("", "orders:read", "orders:write", "none", "orders", "Orders:read")


def _key(credential_id: str) -> str:
    body = f"sck_{credential_id}_{'s' * 32}"
    return body + checksum(body)


ACTIVE, LISTED, EXPIRED, SUSPENDED, SPENT, UNKNOWN = KEYS = tuple(_key(letter * 12) for letter in "ABCDEF")
PRESENTED = (*KEYS, ACTIVE[:-1], ACTIVE.swapcase(), f" {ACTIVE}", "junk", "", f"{ACTIVE},{LISTED}", None)
"""What comes as an API key; None = no header."""


def checks() -> Iterator[bytes]:
    """The messages, in the order in which they are sent."""
    for key, method, path in itertools.product(PRESENTED[:4], METHODS, PATHS):
        yield make_check(key, method=method, path=path)
    for presented, peer, scope in itertools.product(PRESENTED, PEERS, SCOPES):
        yield make_check(presented, peer=peer, scope=scope)
    for presented in PRESENTED:
        text = presented or ""
        yield make_check(headers={"authorization": f"Bearer {text}"})
        yield make_check(ACTIVE, headers={"authorization": text, "x-forwarded-for": text})
        yield make_check(raw_headers=[("x-api-key", text.encode()), ("x-api-key", b"\xff")])
        yield make_check(raw_headers=[("x-api-key", text.encode())])
    message = make_check(ACTIVE, scope="orders:read")
    yield from (message[:size] for size in range(len(message)))


def answers() -> Iterator[bytes]:
    """The answers of a fresh service to `checks`, one second after each hundred; an error as its text."""
    clock = ManualClock()
    active, listed, expired, suspended, spent, _ = (
        Credential(credential_id_of(key), digest_of(key), 1 if key == EXPIRED else None) for key in KEYS
    )
    service = make_ext_authz(
        make_integration(id="active", scopes=("orders:read", "orders:write"), credentials=(active, expired)),
        make_integration(id="listed", allowlist=("198.51.100.0/24", "2001:db8::/32"), credentials=(listed,)),
        make_integration(id="suspended", status=Status.SUSPENDED, credentials=(suspended,)),
        make_integration(id="spent", rate_limit_rpm=1, burst=1, credentials=(spent,)),
        style=AnswerStyle(),
        clock=clock,
    )
    process_id = b""
    for number, message in enumerate(checks()):
        clock.advance(us=SECOND_US if number % 100 == 0 else 0)
        try:
            answer = service.check(message, FakeCall())
        except RpcError as error:
            yield str(error).encode()
            continue
        assert answer is not None
        if not process_id:
            decision_id = CheckResponse.FromString(answer).dynamic_metadata.fields["decision_id"].string_value
            process_id = decision_id[:PROCESS_ID_LENGTH].encode()
        yield answer.replace(process_id, b"0" * PROCESS_ID_LENGTH)


if __name__ == "__main__":
    print(BUILD)
    for answer in answers():
        print(answer.hex())
