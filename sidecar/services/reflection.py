"""
gRPC server reflection, `grpc.reflection.v1` and `v1alpha`, for tools such as grpcurl.

It describes the services of this server and the files that they import, from the generated modules; other
descriptors of the process are not published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor
from google.protobuf.message import DecodeError

from sidecar.rpc.calls import Call, ExchangeMethod, Method
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.v1 import reflection_pb2 as pb

SERVICE = "grpc.reflection.v1.ServerReflection"
PATHS = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")
)
"""Both versions have the same messages. v1alpha is not listed, because its clients know its path."""

Answer = Callable[[pb.ServerReflectionRequest, pb.ServerReflectionResponse], None]


class ReflectionService:
    """Describes the services of a server."""

    def __init__(self, methods: Iterable[Method]) -> None:
        """
        Describe the services of *methods*, and this one.

        Raises:
            KeyError: no generated module of a service is loaded.
        """
        self._pool = descriptor_pool.Default()
        self._services = sorted({SERVICE, *(method.path.split("/")[1] for method in methods)})
        self._files: dict[str, FileDescriptor] = {}
        for service in self._services:
            self._add(self._pool.FindServiceByName(service).file)
        self._answers: dict[str, Answer] = {
            "file_by_filename": self._file_by_name,
            "file_containing_symbol": self._file_of_symbol,
            "file_containing_extension": self._file_of_extension,
            "all_extension_numbers_of_type": self._extension_numbers,
            "list_services": self._list_services,
        }

    def methods(self) -> tuple[ExchangeMethod, ...]:
        """The methods to bind to a transport."""
        return tuple(ExchangeMethod(path, self.answer) for path in PATHS)

    def answer(self, message: bytes, call: Call) -> bytes:
        """
        Answer one request of a stream; for an unknown name the answer is an error response.

        Raises:
            RpcError: INTERNAL, the message is not a ServerReflectionRequest.
        """
        try:
            request = pb.ServerReflectionRequest.FromString(message)
        except DecodeError:
            raise RpcError(StatusCode.INTERNAL, "the message is not a ServerReflectionRequest") from None
        response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        error = response.error_response
        if kind is None:
            error.error_code, error.error_message = (
                StatusCode.INVALID_ARGUMENT,
                "the request has no message_request",
            )
        else:
            try:
                self._answers[kind](request, response)
            except KeyError:
                error.error_code, error.error_message = StatusCode.NOT_FOUND, f"{kind}: not found"
        return response.SerializeToString()

    def _add(self, file: FileDescriptor) -> None:
        if file.name not in self._files:
            self._files[file.name] = file
            for imported in file.dependencies:
                self._add(imported)

    def _file_with(self, extension: FieldDescriptor) -> FileDescriptor:
        return self._pool.FindFileContainingSymbol(extension.full_name)

    def _put(self, file: FileDescriptor, response: pb.ServerReflectionResponse) -> None:
        """Answer with *file* and all its direct and indirect imports."""
        pending, found = [self._files[file.name]], dict[str, bytes]()
        while pending:
            current = pending.pop()
            if current.name not in found:
                found[current.name] = current.serialized_pb
                pending += current.dependencies
        response.file_descriptor_response.file_descriptor_proto.extend(found.values())

    def _file_by_name(
        self, request: pb.ServerReflectionRequest, response: pb.ServerReflectionResponse
    ) -> None:
        self._put(self._files[request.file_by_filename], response)

    def _file_of_symbol(
        self, request: pb.ServerReflectionRequest, response: pb.ServerReflectionResponse
    ) -> None:
        symbol = request.file_containing_symbol
        try:
            file = self._pool.FindFileContainingSymbol(symbol)
        except KeyError:  # the pool looks methods up separately
            file = self._pool.FindMethodByName(symbol).containing_service.file
        self._put(file, response)

    def _file_of_extension(
        self, request: pb.ServerReflectionRequest, response: pb.ServerReflectionResponse
    ) -> None:
        asked = request.file_containing_extension
        extended = self._pool.FindMessageTypeByName(asked.containing_type)
        self._put(
            self._file_with(self._pool.FindExtensionByNumber(extended, asked.extension_number)), response
        )

    def _extension_numbers(
        self, request: pb.ServerReflectionRequest, response: pb.ServerReflectionResponse
    ) -> None:
        extended = self._pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
        self._files[extended.file.name]  # KeyError: not a file of this server's services
        response.all_extension_numbers_response.base_type_name = extended.full_name
        response.all_extension_numbers_response.extension_number.extend(
            extension.number
            for extension in self._pool.FindAllExtensions(extended)
            if self._file_with(extension).name in self._files
        )

    def _list_services(
        self, request: pb.ServerReflectionRequest, response: pb.ServerReflectionResponse
    ) -> None:
        response.list_services_response.service.extend(
            pb.ServiceResponse(name=name) for name in self._services
        )
