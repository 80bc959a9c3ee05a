"""What docs/reference/configuration.md must say of each setting, worked out from the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sidecar.domain.routes import RoutePattern
from sidecar.process.config_source import dotted, variable
from sidecar.process.settings import CredentialSettings, ListenItem, Settings
from sidecar.transports.server import Endpoint


class Row(NamedTuple):
    """One row of a table of settings; `variable` is '' for keys of list items, which have none."""

    key: str
    variable: str
    default: str
    values: str


def rows(
    model: type[BaseModel] = Settings, path: tuple[str, ...] = (), *, in_list: bool = False
) -> list[Row]:
    """A row for each key: of sections, and of the items of lists ('routes[].path')."""
    found = []
    for name, info in model.model_fields.items():
        here = (*path, name)
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found += rows(section, here, in_list=in_list)
            continue
        key = dotted(here)
        found.append(Row(key, "" if in_list else variable(here), _default(info), _values(info)))
        item = _item_model(info.annotation)
        if item is not None:
            found += rows(item, (f"{key}[]",) if item_is_listed(info.annotation) else here, in_list=True)
    return found


def item_is_listed(annotation: Any) -> bool:
    """Whether the section in *annotation* is the item of a list, and not just optional."""
    return any(get_origin(part) is tuple for part in _walk(annotation))


def _walk(annotation: Any) -> list[Any]:
    found = [annotation]
    for part in get_args(annotation):
        found += _walk(part)
    return found


def _item_model(annotation: Any) -> type[BaseModel] | None:
    for part in _walk(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    return shown(info.default)


def shown(value: Any) -> str:
    """A value as the configuration file writes it; '-' = none, or empty."""
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    if isinstance(value, ListenItem):
        return str(value.address)
    if isinstance(value, CredentialSettings):
        return f"{value.header}: {value.scheme}" if value.scheme else f"header: {value.header}"
    return str(value) or "-"


def _values(info: FieldInfo) -> str:
    bounds = {type(part): part for part in info.metadata}
    for part in _walk(info.annotation):
        if get_origin(part) is Annotated:
            for mark in get_args(part)[1:]:
                marks = mark.metadata if isinstance(mark, FieldInfo) else [mark]
                bounds |= {type(mark): mark for mark in marks}
    kinds = _walk(info.annotation)
    literal = next((part for part in kinds if get_origin(part) is Literal), None)
    words = "" if literal is None else ", ".join(map(str, get_args(literal)))
    if literal is not None and Le not in bounds:
        return words
    if bool in kinds:
        return "true, false"
    if Le in bounds:
        low = f"{bounds[Ge].ge:.10g}" if Ge in bounds else f"above {bounds[Gt].gt:g}"
        numbers = f"{low} ... {bounds[Le].le:.10g}"
        return f"{numbers}, {words}" if words else numbers
    if _item_model(info.annotation) is not None and not item_is_listed(info.annotation):
        return "mapping"
    if any(get_origin(part) is tuple for part in kinds):
        return "list, at least one" if MinLen in bounds else "list"
    if Endpoint in kinds:
        return "address"
    return "path pattern" if RoutePattern in kinds else "text"
