"""A changed registry is in force at the next request, and a bad one never is."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator

import pytest

from deploy.demo.sidecar import Owner, write_registry
from tests.e2e.stack import Stack, StackKind
from tests.waiting import eventually


@pytest.fixture(scope="module")
def own_stack() -> Iterator[Stack]:
    """A stack whose registry tests may change, each the records of a separate owner."""
    stack = Stack(StackKind(unix=True))
    yield stack
    stack.close()


def reloads(stack: Stack, result: str) -> float:
    """How many reloads have ended so."""
    return stack.sidecar.metric(f'sidecar_registry_reloads_total{{result="{result}"}}')


def reload(stack: Stack, result: str) -> None:
    """Ask for a reload and wait until it has ended, as *result*."""
    before = reloads(stack, result)
    stack.sidecar.signal(signal.SIGHUP)
    eventually(lambda: reloads(stack, result) > before, what=f"a reload that ends as {result}")


def allowed_again(stack: Stack, owner: Owner) -> None:
    """Write what *owner* is now, reload, and see a request of it pass."""
    write_registry(stack.registry, stack.people.registered)
    reload(stack, "ok")
    assert stack.get("/v1/inventory/42", owner).status == 200


def test_reload__a_suspension_holds_from_the_next_request_on(own_stack: Stack) -> None:
    """Suspend, reload: the next request is refused, with a token left or not; and back again."""
    owner = own_stack.people.limited()
    assert own_stack.get("/v1/inventory/42", owner).status == 200
    owner.fields["status"] = "suspended"
    write_registry(own_stack.registry, own_stack.people.registered)
    reload(own_stack, "ok")
    refused = own_stack.get("/v1/inventory/42", owner)
    assert (refused.status, refused.json()["reason"]) == (403, "integration_suspended")
    del owner.fields["status"]
    allowed_again(own_stack, owner)


def test_reload__needs_no_signal(own_stack: Stack) -> None:
    """A changed file is found without a signal, a moment later."""
    owner, before = own_stack.people.limited(), reloads(own_stack, "ok")
    owner.fields["scopes"] = ["orders:read"]
    write_registry(own_stack.registry, own_stack.people.registered)
    eventually(lambda: reloads(own_stack, "ok") > before, what="the change is seen")
    refused = own_stack.get("/v1/inventory/42", owner)
    assert (refused.status, refused.json()["reason"]) == (403, "scope_missing")


def test_reload__a_suspension_written_while_no_descriptor_was_free(own_stack: Stack) -> None:
    """A suspension that could not be read is in force once descriptors are back, without a change."""
    owner, reader, sidecar = own_stack.people.limited(), own_stack.people.reader, own_stack.sidecar
    assert own_stack.get("/v1/inventory/42", owner).status == 200
    limits = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    owner.fields["status"] = "suspended"
    write_registry(own_stack.registry, own_stack.people.registered)
    eventually(lambda: "file cannot be read" in sidecar.printed(), what="the begin of the episode is logged")
    # Only over a connection that is there already: a thread of Envoy without one gets none now.
    eventually(lambda: own_stack.get("/v1/inventory/42", reader).status == 200, what="decisions go on")
    resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, limits)
    eventually(
        lambda: own_stack.get("/v1/inventory/42", owner).status == 403, what="the suspension is in force"
    )
    assert sidecar.printed().count("file cannot be read") == 1
    assert sidecar.printed().count("file can be read again") == 1


def test_reload__a_removed_key_is_unknown(own_stack: Stack) -> None:
    """A credential that was removed is no key any more, its neighbors do not notice, and it may come back."""
    owner, financier = own_stack.people.limited(), own_stack.people.financier
    write_registry(own_stack.registry, [known for known in own_stack.people.registered if known is not owner])
    reload(own_stack, "ok")
    refused = own_stack.get("/v1/inventory/42", owner)
    assert (refused.status, refused.json()["reason"]) == (403, "unknown_credential")
    assert own_stack.get("/v1/finance/1", financier).status == 200
    allowed_again(own_stack, owner)


def test_reload__a_bad_registry_changes_nothing(own_stack: Stack) -> None:
    """The former registry stays in force, each mistake is counted, and the corrected file is taken up."""
    for text in ("integrations: [{id: reader}", "integrations: [{id: 7}]", "nonsense: 1", "\0"):
        own_stack.registry.write_text(text)
        reload(own_stack, "failed")
        assert own_stack.get("/v1/inventory/42", own_stack.people.reader).status == 200
    owner = own_stack.people.limited()
    owner.fields["name"] = "Mended"
    allowed_again(own_stack, owner)


def test_reload__keeps_the_buckets(own_stack: Stack) -> None:
    """What was used before a reload stays used after it."""
    owner = own_stack.people.limited()
    before = own_stack.get("/v1/inventory/42", owner)
    owner.fields["scopes"] = ["inventory:read"]
    write_registry(own_stack.registry, own_stack.people.registered)
    reload(own_stack, "ok")
    after = own_stack.get("/v1/inventory/42", owner)
    assert [answer.one("x-ratelimit-remaining") for answer in (before, after)] == ["2", "1"]
