"""
The declarative registry: a YAML file with a list `integrations:`, which must be valid as a whole.

    integrations:
      - id: acme-erp
        name: Acme ERP
        status: active            # or suspended
        contact: ops@acme.example # likewise owner and third_party_manager
        scopes: [orders:read, orders:write]
        rate_limit_rpm: 600       # 1 ... 10000, default 60
        burst: 100                # default: the limit
        on_store_error: local     # or deny, allow; default: that of the configuration
        shadow: [limit]           # counted, but refuse nothing: any of allowlist, scopes, limit
        ip_allowlist: [192.0.2.0/24]
        is_allowlist_enabled: true  # false: every address is allowed, the entries are kept
        credentials:
          - id: q2R8mW0bTz
            digest: sha256:...
            expires_at: 2027-01-31T00:00:00Z

Reading reports every mistake in the file at once. `dump_registry` writes a file that reads back to the same
records.
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
"""Twenty times the size of 10,000 integrations; a larger file is taken for a mistake."""

VALUES_MAX = 8_000_000
"""Maximum number of values in a file, including those repeated by aliases: 200,000 integrations of 40."""

MISTAKES_MAX = 10_000
"""Number of mistakes after which the rest of a file is not read."""

_PIECE_BYTES = 1 << 20


class FileRegistry(NamedTuple):
    """
    The content of a registry file.

    All `records` have generation 1, because a file does not number its changes. `warnings` are the first
    remarks on values that are valid but unusual.
    """

    records: tuple[Integration, ...]
    warnings: tuple[FileFault, ...] = ()


class Declared(NamedTuple):
    """The integrations that a registry file declares, with the keys it sets for each, and warnings."""

    declarations: tuple[Declaration, ...]
    warnings: tuple[FileFault, ...] = ()


class RegistryBytes(NamedTuple):
    """The bytes of a registry file, and their SHA-256 to detect changes."""

    content: bytes
    digest: bytes


def load_registry_bytes(path: Path, file: str) -> RegistryBytes:
    """
    Read the file at *path* of at most `REGISTRY_BYTES_MAX`; messages name it *file*.

    Raises:
        FileFaultsError: the file cannot be read, is not a regular file, or is too large.
    """
    faults = FaultList(file)
    content = b""
    try:
        content = read_regular_file(path, REGISTRY_BYTES_MAX)
    except NotRegularFileError:
        faults.is_unreadable = True  # a volume may be unmounted temporarily
        faults.add(None, "", "is not a regular file; name the YAML file with the integrations")
    except OSError as error:
        faults.add_unreadable(error)
    if len(content) > REGISTRY_BYTES_MAX:
        faults.add(
            None, "", f"is larger than {REGISTRY_BYTES_MAX >> 20} MiB; check that this is a registry file"
        )
    faults.raise_any()
    return RegistryBytes(content, hashlib.sha256(content).digest())


def parse_registry(
    content: bytes, file: str, catalogue: ScopeCatalogue, is_cancelled: Callable[[], bool] = lambda: False
) -> FileRegistry:
    """
    Parse the registry in *content* with the scopes of *catalogue*; messages name it *file*.

    Raises:
        FileFaultsError: there are mistakes; the first are reported, up to `MISTAKES_MAX` are counted.
        YamlCancelledError: *is_cancelled* returned True.
    """
    records, reader = _parse(content, file, catalogue, is_cancelled)
    return FileRegistry(tuple(records), tuple(reader.warnings.faults))


def load_declarations(path: Path, file: str, catalogue: ScopeCatalogue) -> Declared:
    """
    Read the registry at *path* as declarations of administrators; messages name it *file*.

    Raises:
        FileFaultsError: the file cannot be read or has mistakes.
    """
    return parse_declarations(load_registry_bytes(path, file).content, file, catalogue)


def parse_declarations(content: bytes, file: str, catalogue: ScopeCatalogue) -> Declared:
    """
    Parse the registry in *content* as declarations of administrators; see `parse_registry`.

    Raises:
        FileFaultsError: there are mistakes; the first are reported, up to `MISTAKES_MAX` are counted.
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
        # Item by item, so that a large or wrong file is never in memory as a tree.
        root = read_yaml(content, ItemStream("integrations", take, VALUES_MAX), is_cancelled)
        _check_root(root, reader)
    except YamlError as error:
        faults = FaultList(file)  # report only this mistake: those before may be consequences of it
        faults.add(error.line, "", error.problem)
    faults.raise_any()
    return records, reader


def _check_utf8(content: bytes) -> None:
    """Check for UTF-8, piece by piece: the whole text in memory may be four times as large as the file."""
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
    """Report mistakes outside the list of integrations."""
    if not isinstance(root, YamlMap):
        # An empty file is refused on purpose: another program may be about to write it.
        reader.wrong(
            Place("", root.line if root is not None else 1),
            "must contain the list 'integrations:'; write 'integrations: []' for none",
        )
        return
    fields = reader.fields(root, Place("", root.line), ("integrations",))
    if "integrations" not in fields:
        problem = "'integrations:' is missing; write 'integrations: []' for none"
        reader.missing(Place("", root.line), "integrations", problem)
    reader.items(fields, "integrations")


def dump_registry(records: Iterable[Integration]) -> str:
    """Write *records* as a registry file; reading it returns equal records, except fields not in a file."""
    plain = {"integrations": [integration_to_dict(record) for record in records]}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
