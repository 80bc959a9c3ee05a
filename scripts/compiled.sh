#!/bin/sh
# Build the compiled wheel into build/wheel and install it into .venv-compiled. Does nothing when that is up to date.
#
# The sources stay free of compiled modules, so an edit always takes effect in .venv. All other packages of
# .venv-compiled are those of .venv; loadtest, tests and deploy are those of the checkout. Needs `make setup-dev`, a C compiler and Python's headers.
set -eu
cd "$(dirname "$0")/.."

venv=.venv-compiled
python=.venv/bin/python
stamp=$venv/.compiled

fail() {
    printf 'compiled: %s\n' "$@" >&2
    exit 1
}

fingerprint() {
    pwd
    "$python" -c 'import sys; print(sys.version)'
    find sidecar -name '*.py' -o -name '*.lua' -o -name '*.yaml' | LC_ALL=C sort | xargs cksum
    cksum pyproject.toml setup.py scripts/compiled.sh requirements-dev.lock
}

sources=$(fingerprint)
[ -d build/wheel ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sources" ] && exit 0

"${CC:-cc}" --version > /dev/null 2>&1 || fail "no C compiler found (looked for ${CC:-cc})." \
    "Debian and Ubuntu:  apt-get install gcc python3-dev" \
    "The pure build needs none:  make setup"
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -f "$headers/Python.h" ] || fail "Python's headers are missing: there is no $headers/Python.h." \
    "Debian and Ubuntu:  apt-get install python3-dev"

echo "compiled: mypyc compiles the modules of the hot path (a minute or two)"
rm -rf build/lib* build/temp* build/bdist* build/wheel
SIDECAR_COMPILED=1 "$python" -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation \
    --wheel-dir build/wheel .
"$python" -m venv --clear --without-pip "$venv"
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
{ "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; pwd; } > "$site/checkout.pth"
"$python" -m pip --disable-pip-version-check --python "$venv/bin/python" install --quiet --no-deps \
    --force-reinstall build/wheel/*.whl
printf '%s\n' "$sources" > "$stamp"  # as they were before: an edit meanwhile is not in this build
echo "compiled: ready; the command is $venv/bin/sidecar"
