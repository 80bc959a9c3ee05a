#!/bin/sh
# Build grpcurl into .venv for the tests of server reflection, where Go is installed.
#
# It is an extra: without Go, or where Go's modules cannot be fetched, these tests use grpcio's client alone.
set -eu
cd "$(dirname "$0")/.."

GRPCURL=github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4
BUILD_TIMEOUT_S=600

[ ! -x .venv/bin/grpcurl ] && command -v go >/dev/null 2>&1 || exit 0
echo "Building grpcurl for the tests (once, a few minutes)"
GOBIN=$PWD/.venv/bin timeout "$BUILD_TIMEOUT_S" go install "$GRPCURL" >/dev/null 2>&1 ||
    echo "grpcurl could not be built; the tests of server reflection use grpcio's client alone" >&2
