"""
The declarative registry: a YAML file with a list `integrations:`, read whole or not at all.

    integrations:
      - id: acme-erp
        name: Acme ERP
        status: active            # or suspended
        contact: ops@acme.example # whom to ask; likewise owner and third_party_manager
        scopes: [orders:read, orders:write]
        rate_limit_rpm: 600       # 1 ... 10000, default 60
        burst: 100                # default: the limit
        on_store_error: local     # or deny, allow; default: that of the configuration
        ip_allowlist: [192.0.2.0/24]
        is_allowlist_enabled: true  # false: the entries are kept, and every address is let in
        credentials:
          - id: q2R8mW0bTz
            digest: sha256:...
            expires_at: 2027-01-31T00:00:00Z

Reading collects every mistake of the file, so that one pass mends them all. `dump_registry` writes
a file that reads back to the same records.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import yaml

from sidecar.domain.declared import Declaration
from sidecar.domain.integrations import Integration
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.observe.file_reading import NotRegularFileError, read_regular_file
from sidecar.sources.file_faults import FaultList, FileFault
from sidecar.sources.node_fields import Place
from sidecar.sources.yaml_nodes import ItemStream, YamlError, YamlMap, YamlNode, read_yaml
from sidecar.stores.registry.file.registry_records import RecordReader, integration_to_dict

REGISTRY_BYTES_MAX = 64 << 20
"""Twenty times the size of 10,000 integrations; more is not a registry but a mistake."""

VALUES_MAX = 8_000_000
"""Values of a whole file, with those that aliases repeat: 200,000 integrations of 40."""

MISTAKES_MAX = 10_000
"""Mistakes after which the rest of a file is not read."""

_PIECE_BYTES = 1 << 20


class FileRegistry(NamedTuple):
    """
    What a registry file says.

    `records` all have generation 1: a file does not number its changes. `warnings` are remarks on what
    is valid but odd; the first few of them.
    """

    records: tuple[Integration, ...]
    warnings: tuple[FileFault, ...] = ()


class Declared(NamedTuple):
    """What a registry file declares: its integrations with the keys that it writes, and remarks."""

    declarations: tuple[Declaration, ...]
    warnings: tuple[FileFault, ...] = ()


class RegistryBytes(NamedTuple):
    """The content of a registry file, and its SHA-256, which tells whether anything changed."""

    content: bytes
    digest: bytes


def load_registry(path: Path, file: str, catalogue: ScopeCatalogue) -> FileRegistry:
    """
    Read the registry at *path*, which messages call *file*.

    Raises:
        FileFaultsError: it cannot be read or holds mistakes.
    """
    return parse_registry(load_registry_bytes(path, file).content, file, catalogue)


def load_registry_bytes(path: Path, file: str) -> RegistryBytes:
    """
    Read the file at *path*, which messages call *file*; at most `REGISTRY_BYTES_MAX`.

    Raises:
        FileFaultsError: it cannot be read, is no regular file or too large.
    """
    faults = FaultList(file)
    content = b""
    try:
        content = read_regular_file(path, REGISTRY_BYTES_MAX)
    except NotRegularFileError:
        faults.is_unreadable = True  # a mount may be away for a moment
        faults.add(None, "", "is not a regular file; name the YAML file that holds the integrations")
    except OSError as error:
        faults.add_unreadable(error)
    if len(content) > REGISTRY_BYTES_MAX:
        faults.add(None, "", f"is larger than {REGISTRY_BYTES_MAX >> 20} MiB; is it the right file?")
    faults.raise_any()
    return RegistryBytes(content, hashlib.sha256(content).digest())


def parse_registry(
    content: bytes, file: str, catalogue: ScopeCatalogue, is_cancelled: Callable[[], bool] = lambda: False
) -> FileRegistry:
    """
    Read the registry in *content*; *file* is its name in messages, scopes are those of *catalogue*.

    Raises:
        FileFaultsError: it holds mistakes; the first ones are told, and counted up to `MISTAKES_MAX`.
        YamlCancelledError: *is_cancelled* said so.
    """
    records, reader = _parse(content, file, catalogue, is_cancelled)
    return FileRegistry(tuple(records), tuple(reader.warnings.faults))


def load_declarations(path: Path, file: str, catalogue: ScopeCatalogue) -> Declared:
    """
    Read the registry at *path*, which messages call *file*, as what administrators declare.

    Raises:
        FileFaultsError: it cannot be read or holds mistakes.
    """
    return parse_declarations(load_registry_bytes(path, file).content, file, catalogue)


def parse_declarations(content: bytes, file: str, catalogue: ScopeCatalogue) -> Declared:
    """
    Read the registry in *content* as what administrators declare; see `parse_registry`.

    Raises:
        FileFaultsError: it holds mistakes; the first ones are told, all are counted.
    """
    records, reader = _parse(content, file, catalogue)
    declarations = tuple(Declaration(record, reader.keys[record.id]) for record in records)
    return Declared(declarations, tuple(reader.warnings.faults))


def _parse(
    content: bytes, file: str, catalogue: ScopeCatalogue, is_cancelled: Callable[[], bool] = lambda: False
) -> tuple[list[Integration], RecordReader]:
    faults = FaultList(file)
    reader = RecordReader(catalogue, faults)
    records: list[Integration] = []

    def take(number: int, node: YamlNode) -> None:
        record = reader.integration(Place(f"integrations[{number}]", node.line), node)
        if record is not None:
            records.append(record)
        if len(faults) >= MISTAKES_MAX:
            faults.is_cut = True
            raise faults.error()

    try:
        _check_utf8(content)
        # Item by item, so that neither a large file nor a wrong one is in memory as a tree.
        root = read_yaml(content, ItemStream("integrations", take, VALUES_MAX), is_cancelled)
        _check_root(root, reader)
    except YamlError as error:
        faults = FaultList(file)  # alone: what was made of the lines before may be a consequence
        faults.add(error.line, "", error.problem)
    faults.raise_any()
    return records, reader


def _check_utf8(content: bytes) -> None:
    """Refuse what is not UTF-8; piece by piece, because the text as a whole may take four times the bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(content)
    for begin in range(0, len(content) + 1, _PIECE_BYTES):
        piece = view[begin : begin + _PIECE_BYTES]
        try:
            decoder.decode(piece, final=begin + _PIECE_BYTES > len(content))
        except UnicodeDecodeError as error:
            end = begin + error.start
            raise YamlError(
                content.count(b"\n", 0, max(end, 0)) + 1, "is not UTF-8 text; save it as UTF-8"
            ) from None


def _check_root(root: YamlNode | None, reader: RecordReader) -> None:
    """Note what is wrong around the integrations."""
    if not isinstance(root, YamlMap):
        # An empty file is refused on purpose: it is what a writer that has only just begun leaves.
        reader.wrong(
            Place("", root.line if root is not None else 1),
            "must hold the list 'integrations:'; write 'integrations: []' for none",
        )
        return
    fields = reader.fields(root, Place("", root.line), ("integrations",))
    if "integrations" not in fields:
        problem = "'integrations:' is missing; write 'integrations: []' for none"
        reader.missing(Place("", root.line), "integrations", problem)
    reader.items(fields, "integrations")


def dump_registry(records: Iterable[Integration]) -> str:
    """The registry file of *records*; reading it gives equal records, but for what a file does not hold."""
    plain = {"integrations": [integration_to_dict(record) for record in records]}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
