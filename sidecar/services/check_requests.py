"""
Reads a CheckRequest of Envoy.

`access_request` takes the message of protobuf. protobuf makes an object of each nested message, so the
compiled build first tries `read_check`, which reads the few fields that a decision needs from the bytes. It
understands only the usual messages of Envoy. Everything else it leaves to protobuf: malformed bytes, unknown
fields, text outside ASCII, deep nesting, large messages. So protobuf alone decides what a valid message is.

Source: the wire format of protobuf, https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, final

from envoy.config.core.v3.base_pb2 import HeaderValue
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from sidecar.domain.policy import AccessRequest

DIALECT: Final = "ext_authz"
"""The name of this service in the decision log."""


def access_request(attributes: AttributeContext, reads_peer: bool = True) -> AccessRequest:
    """
    Convert Envoy's *attributes* to the policy's form; without the peer unless *reads_peer*.

    Envoy joins repeated headers with ',' in `headers`. With `encode_raw_headers` it sends `header_map`
    instead, with each header apart, so they are joined here.
    """
    http = attributes.request.http
    headers = http.headers
    if not headers and http.HasField("header_map"):
        headers = _joined(http.header_map.headers)
    peer = attributes.source.address.socket_address.address if reads_peer else ""
    extensions = attributes.context_extensions
    scope = extensions.get("scope") if extensions else None
    return AccessRequest(http.method, http.path, headers.get, peer, scope, None, None, DIALECT)


def _joined(headers: Iterable[HeaderValue]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for header in headers:
        name = header.key.lower()
        value = header.raw_value.decode("latin-1") if header.raw_value else header.value
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


# What to do with a field. The first is that of every field that is not in a shape.
_LEAVE_TO_PROTOBUF: Final = 0
_SKIP_NUMBER: Final = 1
_SKIP_TEXT: Final = 2
_ENTER: Final = 3
_METHOD: Final = 4
_PATH: Final = 5
_PEER: Final = 6
_HEADER: Final = 7
_EXTENSION: Final = 8

_NEEDED: Final = {
    ".attributes.request.http.method": _METHOD,
    ".attributes.request.http.path": _PATH,
    ".attributes.request.http.headers": _HEADER,
    ".attributes.source.address.socket_address.address": _PEER,
    ".attributes.context_extensions": _EXTENSION,
}

NESTING_MAX: Final = 4
"""Messages within a CheckRequest that contain each other; the address of a peer is the fourth."""

NUMBER_BYTES_MAX: Final = 10
_MAP_KEY: Final = 0x0A
_MAP_VALUE: Final = 0x12


@final
class Shape:
    """
    How to read one kind of message.

    `actions` has an action for each tag (number and wire type of a field) below 128, `parts` the shape of the
    message if it is entered, and otherwise this shape.
    """

    __slots__ = ("actions", "parts")

    def __init__(self, descriptor: Descriptor, path: str = "", nesting: int = 0) -> None:
        """Derive the shape from *descriptor*; *path* leads to this message."""
        actions = bytearray(128)
        self.parts: list[Shape] = [self] * 128
        for field in descriptor.fields:
            place = f"{path}.{field.name}"
            wire_type, action = _WIRE_TYPES.get(field.type, (0, _LEAVE_TO_PROTOBUF))
            action = _NEEDED.get(place, action)
            tag = field.number << 3 | wire_type
            if tag >= 128 or _may_clear_a_needed_field(field, path):
                continue
            if action == _ENTER:
                if nesting == NESTING_MAX:
                    continue
                assert field.message_type is not None
                self.parts[tag] = Shape(field.message_type, place, nesting + 1)
            actions[tag] = action
        self.actions = bytes(actions)


def _may_clear_a_needed_field(field: FieldDescriptor, path: str) -> bool:
    """Whether *field* shares a oneof with a needed field: setting one of them clears the others."""
    if field.containing_oneof is None:
        return False
    others = [f"{path}.{other.name}" for other in field.containing_oneof.fields if other.name != field.name]
    return any(needed.startswith(other) for needed in _NEEDED for other in others)


_WIRE_TYPES: Final = {
    FieldDescriptor.TYPE_STRING: (2, _SKIP_TEXT),
    FieldDescriptor.TYPE_MESSAGE: (2, _ENTER),
    FieldDescriptor.TYPE_INT64: (0, _SKIP_NUMBER),
    FieldDescriptor.TYPE_INT32: (0, _SKIP_NUMBER),
    FieldDescriptor.TYPE_UINT32: (0, _SKIP_NUMBER),
    FieldDescriptor.TYPE_ENUM: (0, _SKIP_NUMBER),
    FieldDescriptor.TYPE_BOOL: (0, _SKIP_NUMBER),
}
_SHAPE: Final = Shape(CheckRequest.DESCRIPTOR)


def read_check(message: bytes, reads_peer: bool = True) -> AccessRequest | None:
    """
    Return what `access_request` returns for the CheckRequest *message*; None = leave it to protobuf.

    Only a compiled function is faster than protobuf.
    """
    check = _Check(message)
    if not check.read(len(message), _SHAPE) or not check.is_ascii_before(len(message)):
        return None
    peer = check.peer if reads_peer else ""
    return AccessRequest(check.method, check.path, check.header, peer, check.scope, None, None, DIALECT)


@final
class _Check:
    """
    The needed fields of one message; a repeated field replaces what was read before.

    All text must be ASCII. It is checked in few large pieces, between lengths and numbers with other bytes:
    `_unchecked` is the start of the first text that is not checked yet, -1 = there is none. Headers are read
    when they are looked up, as most of them never are: `_headers` has their places.
    """

    __slots__ = ("_at", "_data", "_headers", "_text", "_unchecked", "method", "path", "peer", "scope")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._text = data.decode("latin-1")  # its slices are the texts of an ASCII message
        self._at = 0
        self._unchecked = -1
        self.method = ""
        self.path = ""
        self.peer = ""
        self.scope: str | None = None
        self._headers: list[int] = []

    def read(self, end: int, shape: Shape) -> bool:
        """Read a message up to *end*; False = leave it to protobuf."""
        data, actions = self._data, shape.actions
        while self._at < end:
            tag = data[self._at]
            action = actions[tag] if tag < 128 else _LEAVE_TO_PROTOBUF
            self._at += 1
            if action == _SKIP_NUMBER:
                if not self._skip_number(end):
                    return False
                continue
            stop = self._read_length(end)
            if action == _LEAVE_TO_PROTOBUF or stop < 0:
                return False
            if action == _ENTER:
                if not self.read(stop, shape.parts[tag]):
                    return False
            elif action >= _HEADER:
                if not self._read_entry(stop, action):
                    return False
            elif action == _SKIP_TEXT:
                self._skip_text(stop)
            else:
                self._keep(action, self._text[self._at : stop])
                self._skip_text(stop)
            self._at = stop
        return True

    def _keep(self, action: int, text: str) -> None:
        if action == _PATH:
            self.path = text
        elif action == _METHOD:
            self.method = text
        else:
            self.peer = text

    def _read_entry(self, end: int, action: int) -> bool:
        """Read an entry of a map, which must be a key and then a value."""
        data = self._data
        if self._at >= end or data[self._at] != _MAP_KEY:
            return False
        place = self._at = self._at + 1
        stop = self._read_length(end)
        if stop < 0 or stop >= end or data[stop] != _MAP_VALUE:
            return False
        start = self._at
        self._skip_text(stop)
        self._at += 1
        if self._read_length(end) != end:
            return False
        if action == _HEADER:
            self._headers.append(place)
        elif self._text[start:stop] == "scope":
            self.scope = self._text[self._at : end]
        self._skip_text(end)
        return True

    def header(self, name: str) -> str | None:
        """Return the value of header *name*, None = absent; of repeated ones the last."""
        end, size = len(self._data), len(name)
        for number in range(len(self._headers) - 1, -1, -1):
            self._at = self._headers[number]
            stop = self._read_length(end)
            if stop - self._at == size and self._text[self._at : stop] == name:
                self._at = stop + 1
                stop = self._read_length(end)
                return self._text[self._at : stop]
        return None

    def _skip_text(self, end: int) -> None:
        if self._unchecked < 0:
            self._unchecked = self._at
        self._at = end

    def _read_length(self, end: int) -> int:
        """Read a length of at most two bytes; return where its part ends, -1 = behind *end*, or longer."""
        data, at = self._data, self._at
        if at >= end:
            return -1
        length = data[at]
        at += 1
        if length >= 128:
            if at >= end or data[at] >= 128:
                return -1
            if not self.is_ascii_before(at - 1):
                return -1
            length += (data[at] - 1) * 128
            at += 1
        self._at = at
        return at + length if at + length <= end else -1

    def _skip_number(self, end: int) -> bool:
        """Skip a number of at most 64 bits; a negative one has ten bytes, of which the last is 1."""
        data, at = self._data, self._at
        last = at + NUMBER_BYTES_MAX - 1
        while at < end and at <= last:
            if data[at] < 128:
                self._at = at + 1
                return at < last or data[at] <= 1
            if not self.is_ascii_before(at):
                return False
            at += 1
        return False

    def is_ascii_before(self, at: int) -> bool:
        """Whether the unchecked text before *at* is ASCII."""
        start = self._unchecked
        self._unchecked = -1
        return start < 0 or self._data[start:at].isascii()
