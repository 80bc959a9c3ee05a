#!/bin/sh
# Pin every dependency of pyproject.toml, with hashes, for Python 3.11 to 3.13 on any platform.
#
# Usage: scripts/lock.sh [uv options]   for example: scripts/lock.sh --upgrade
# Without --upgrade, versions that are already pinned stay. The pins carry no index address, so each
# machine installs from wherever its own pip is set up to look.
set -eu
cd "$(dirname "$0")/.."

UV_VERSION=0.13.9
python=.venv/bin/python
[ -x "$python" ] || { echo "lock: run 'make setup' first" >&2; exit 1; }

tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT INT TERM
"$python" -m venv "$tool/venv"
"$tool/venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"

# What builds the project is pinned too: pip then needs no second, unpinned download to install it.
"$python" - > "$tool/build.in" <<'PYTHON'
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
PYTHON

compile() {
    output=$1
    shift
    "$tool/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-config \
        --output-file "$output" pyproject.toml "$tool/build.in" "$@"
    echo "lock: $(grep -c '==' "$output") packages in $output"
}

compile requirements.lock "$@"
compile requirements-dev.lock --constraint requirements.lock --extra dev --extra traces "$@"
compile requirements-bench.lock --constraint requirements-dev.lock --extra dev --extra traces --extra bench "$@"
