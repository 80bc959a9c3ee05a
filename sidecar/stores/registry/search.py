"""What a search looks through, the same in every store."""

from __future__ import annotations

from sidecar.domain.integrations import Integration


def search_text(record: Integration) -> str:
    """The searchable fields of *record*, without case, one a line."""
    parts = [record.id, record.name, record.contact, record.owner, record.third_party_manager]
    return "\n".join([*parts, *(credential.id for credential in record.credentials)]).casefold()
