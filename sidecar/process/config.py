"""Finds, reads and checks the configuration of one sidecar, and reports all mistakes at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sidecar.process.config_source import ConfigTree, KeyPath, add_environment, read_config_file
from sidecar.process.settings import EMBEDDED_STORE, SQLITE_REGISTRY, Settings
from sidecar.sources.file_faults import FaultList, FileFault, meant_key, quoted, unknown_key
from sidecar.stores.redis.urls import StoreUrl, parse_store_url
from sidecar.transports.server import TlsFiles

DEFAULT_FILE = "sidecar.yaml"


@dataclass(frozen=True, slots=True)
class Config:
    """
    Settings, and where they came from.

    Paths in the settings are relative to `directory`: that of the configuration file, or the working
    directory without a file. `takes_over` = this process may listen on the addresses of a running process,
    which it replaces (`serve --take-over`).
    """

    settings: Settings
    directory: Path
    tree: ConfigTree
    takes_over: bool = False

    def path(self, text: str) -> Path:
        """The file that a setting names."""
        return self.directory / text

    def fault(self, path: KeyPath, problem: str) -> FileFault:
        """A mistake at key *path*, with its file and line or its environment variable."""
        return self.tree.fault(path, problem)

    @property
    def shared_store(self) -> StoreUrl | None:
        """The URL of the shared store, with absolute paths; None = the store is embedded."""
        text = self.settings.store
        return None if text == EMBEDDED_STORE else parse_store_url(text).with_files_in(self.directory)

    @property
    def registry_path(self) -> Path | None:
        """The YAML file that is the registry; None = the registry is not a YAML file."""
        named = self.settings.registry
        return None if named is None or named.startswith(SQLITE_REGISTRY) else self.path(named)

    @property
    def registry_database(self) -> Path | None:
        """The SQLite file that is the registry; None = the registry is not a SQLite file."""
        named = self.settings.registry
        if named is None or not named.startswith(SQLITE_REGISTRY):
            return None
        return self.path(named.removeprefix(SQLITE_REGISTRY).strip())

    @property
    def webhook_key_path(self) -> Path | None:
        """The configured file of keys that encrypt webhook secrets; None = not configured."""
        named = self.settings.webhook_secret_key_file
        return None if named is None else self.path(named)

    @property
    def has_control_plane(self) -> bool:
        """Whether administrators can change the registry through the admin API."""
        is_in_store = self.shared_store is not None and self.settings.registry is None
        return is_in_store or self.registry_database is not None

    @property
    def serves_admin_api(self) -> bool:
        """Whether administrators can change the registry, and `listen.admin` has an address."""
        return self.has_control_plane and bool(self.settings.listen.admin)

    def tls_files(self, kind: str, index: int) -> TlsFiles | None:
        """The TLS files of listener number *index* of `listen.<kind>`."""
        tls = getattr(self.settings.listen, kind)[index].tls
        if tls is None:
            return None
        authority = None if tls.client_ca is None else self.path(tls.client_ca)
        return TlsFiles(self.path(tls.cert), self.path(tls.key), authority, kind)


def load_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """
    Read the configuration.

    Args:
        path: the file; None = `sidecar.yaml` in the working directory if it exists, else defaults.
        environ: the environment; None = that of this process.

    Raises:
        FileFaultsError: it holds mistakes; all of them are counted, the first ones described.
    """
    environ = os.environ if environ is None else environ
    if path is None and Path(DEFAULT_FILE).exists():
        path = Path(DEFAULT_FILE)
    file = "the environment" if path is None else str(path)
    faults = FaultList(file)
    tree = ConfigTree(file) if path is None else read_config_file(path, file, faults)
    add_environment(tree, environ, Settings, faults)
    settings = Settings()
    try:
        settings = Settings.model_validate(tree.values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        mistyped = {_intended_key(detail) for detail in details if detail["type"] == "extra_forbidden"}
        for detail in details:
            if detail["loc"] not in mistyped and not _is_consequence(detail):
                faults.put(_fault(detail, tree))
    faults.raise_any()
    return Config(settings, (path or Path(DEFAULT_FILE)).parent, tree)


def _intended_key(detail: ErrorDetails) -> KeyPath:
    """The valid key that an unknown key probably means: its absence is no second mistake."""
    path = detail["loc"]
    section = _section(path[:-1])
    return (*path[:-1], meant_key(str(path[-1]), section.model_fields if section else ()) or "")


def _is_consequence(detail: ErrorDetails) -> bool:
    """Whether a list is too short only because its items hold mistakes."""
    return detail["type"] == "too_short" and bool(detail["input"])


def _fault(detail: ErrorDetails, tree: ConfigTree) -> FileFault:
    path: KeyPath = detail["loc"]
    kind = detail["type"]
    if kind == "extra_forbidden":
        section = _section(path[:-1])
        return tree.fault(path, unknown_key(str(path[-1]), section.model_fields if section else ()))
    problem = _PROBLEMS.get(kind, _other_problem)(detail)
    if kind != "missing":
        # A short form, such as the text of a listener, has no keys: name the key that was written.
        while path and path not in tree.origins:
            path = path[:-1]
    return tree.fault(path, problem)


def _section(path: KeyPath) -> type[BaseModel] | None:
    """The model of the mapping at *path*."""
    model: type[BaseModel] = Settings
    for part in path:
        if part not in model.model_fields:  # the number of an item, or the name of one
            continue
        inner = _model_in(model.model_fields[part].annotation)
        if inner is None:
            return None
        model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section in a field's type: the type itself, the items of its list, or the part that is not None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None


def _other_problem(detail: ErrorDetails) -> str:
    return f"{detail['msg']}, not {quoted(detail['input'])}"


def _rule_problem(detail: ErrorDetails) -> str:
    return str(detail["ctx"]["error"])


_PROBLEMS: Mapping[str, Callable[[ErrorDetails], str]] = {
    "missing": lambda detail: "is missing; add it",
    "value_error": _rule_problem,
    "literal_error": lambda detail: f"must be {detail['ctx']['expected']}, not {quoted(detail['input'])}",
    "int_type": lambda detail: f"must be a whole number, not {quoted(detail['input'])}",
    "float_type": lambda detail: f"must be a number, not {quoted(detail['input'])}",
    "bool_type": lambda detail: f"must be true or false, not {quoted(detail['input'])}",
    "string_type": lambda detail: f"must be text, not {quoted(detail['input'])}; put it in quotes",
    "tuple_type": lambda detail: f"must be a list, one item a line after '- ', not {quoted(detail['input'])}",
    "model_type": lambda detail: f"must be a mapping of keys and values, not {quoted(detail['input'])}",
    "too_short": lambda detail: "must have at least one item; leave the key out for the default",
    "greater_than": lambda detail: f"must be more than {detail['ctx']['gt']:g}, not {detail['input']}",
    "greater_than_equal": lambda detail: f"must be at least {detail['ctx']['ge']:g}, not {detail['input']}",
    "less_than_equal": lambda detail: f"must be at most {detail['ctx']['le']:g}, not {detail['input']}",
}
