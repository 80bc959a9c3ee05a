"""
Generate the Python code of our .proto files into the project, or check that it is what they say.

    python proto/generate.py            write sidecar/v1/
    python proto/generate.py --check    compare, byte for byte; exit 1 and name what differs

The messages (`*_pb2.py`) and client stubs (`*_pb2_grpc.py`) come from grpcio-tools, the types (`*.pyi`)
from mypy-protobuf; both are pinned in the lock files, because other versions write other bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import grpc_tools  # type: ignore[import-untyped]
from grpc_tools import protoc

PROTO_FOLDER = Path(__file__).resolve().parent
PROJECT = PROTO_FOLDER.parent
GENERATED_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


class GenerateError(Exception):
    """The compiler refused a .proto file; it has said why."""


def proto_paths() -> list[str]:
    """Our .proto files, as they import each other."""
    return sorted(path.relative_to(PROTO_FOLDER).as_posix() for path in PROTO_FOLDER.rglob("*.proto"))


def generate(target: Path) -> None:
    """
    Write the code of every .proto file below *target*.

    Raises:
        GenerateError: a file does not compile.
    """
    # The type plugins are commands; they stand beside the interpreter that runs this.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python")]
    outputs += [f"--{kind}_out=quiet:{target}" for kind in ("mypy", "mypy_grpc")]
    includes = [f"-I{PROTO_FOLDER}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    if protoc.main(["protoc", *includes, *outputs, *proto_paths()]) != 0:
        raise GenerateError("protoc failed")


def generated_files(root: Path) -> dict[str, bytes]:
    """The generated files below *root*, which may hold other files, by path."""
    folders = {Path(path).parent for path in proto_paths()}
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for folder in sorted(folders)
        for path in sorted((root / folder).glob("*"))
        if path.name.endswith(GENERATED_SUFFIXES)
    }


def differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """One line for each file that is missing, left over or not what the .proto files say."""
    return [
        f"{path}: {_difference(expected.get(path), found.get(path))}"
        for path in sorted(expected.keys() | found.keys())
        if expected.get(path) != found.get(path)
    ]


def _difference(expected: bytes | None, found: bytes | None) -> str:
    if found is None:
        return "is missing"
    return "belongs to no .proto file" if expected is None else "is not what proto/ says"


def check() -> list[str]:
    """Generate anew, elsewhere, and compare with what the project holds."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return differences(generated_files(Path(folder)), generated_files(PROJECT))


def main() -> int:
    """Run as a command; the exit code is 0 when all is well."""
    parser = argparse.ArgumentParser(description="Generate the code of proto/.")
    parser.add_argument(
        "--check", action="store_true", help="compare instead of writing; exit 1 if it differs"
    )
    if not parser.parse_args().check:
        generate(PROJECT)
        return 0
    faults = check()
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    if faults:
        sys.stderr.write("run 'make proto' and commit what it writes\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
