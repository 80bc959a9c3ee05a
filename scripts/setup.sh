#!/bin/sh
# Make .venv hold the project and what it needs. Does nothing, quickly, when that is already so.
#
# Usage: scripts/setup.sh runtime|dev|bench
#   runtime  what the sidecar needs
#   dev      also what tests, checks and the demo need (Envoy among it)
#   bench    also what the benchmarks compare with; needs a C compiler
# Needs Python 3.11 or newer with its venv module, and no root.
set -eu
cd "$(dirname "$0")/.."

PYTHON_MIN=3.11
is_new_enough="sys.exit(sys.version_info < (${PYTHON_MIN%.*}, ${PYTHON_MIN#*.}))"
venv=.venv
kind=${1:-runtime}
case $kind in
    runtime) lock=requirements.lock implied= ;;
    dev) lock=requirements-dev.lock implied=runtime ;;
    bench) lock=requirements-bench.lock implied='runtime dev' ;;
    *) echo "setup: unknown kind '$kind'; write runtime, dev or bench" >&2; exit 2 ;;
esac

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# Print the first interpreter that is new enough. Running it is the only proof: a name on the PATH may
# be a version manager's stand-in for an interpreter that is not there.
find_python() {
    for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if "$name" -c "import sys; $is_new_enough" 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "no Python $PYTHON_MIN or newer found (looked for ${PYTHON:-python3.13, python3.12, python3.11, python3})." \
        "Debian 12, Ubuntu 24.04 and newer:  apt-get install python3 python3-venv" \
        "Ubuntu 22.04:                       apt-get install python3.11 python3.11-venv" \
        "One in another place:               make setup PYTHON=/path/to/python3"
}

create_venv() {
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail \
        "Python $version at $python has no venv module, which is a package of its own on Debian and Ubuntu." \
        "Install it as root, then repeat:  apt-get install python$version-venv"
    echo "setup: Python $version at $python, into $venv"
    "$python" -m venv --clear "$venv"
}

# What an installation depends on: it is up to date when its stamp holds the same. The path counts,
# because the scripts in a .venv start with the path at which it was made.
fingerprint() {
    pwd
    "$venv/bin/python" -c 'import sys; print(sys.version)'
    cksum "$1" pyproject.toml scripts/setup.sh
}

"$venv/bin/python" -c "import pip, sys; $is_new_enough" 2>/dev/null || create_venv
[ -f "$venv/.setup-$kind" ] && [ "$(cat "$venv/.setup-$kind")" = "$(fingerprint "$lock")" ] && exit 0

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"
}
echo "setup: installing $(grep -c '==' "$lock") packages of $lock (once, well under a minute on most lines)"
pip install --quiet --require-hashes --requirement "$lock" ||
    fail "the packages of $lock could not be installed; the reason stands above. Repeat when it is mended."
pip install --quiet --no-deps --no-build-isolation --editable . ||
    fail "the project itself could not be installed; the reason stands above."
for done in $implied; do
    case $done in runtime) done_lock=requirements.lock ;; dev) done_lock=requirements-dev.lock ;; esac
    fingerprint "$done_lock" > "$venv/.setup-$done"
done
fingerprint "$lock" > "$venv/.setup-$kind"
echo "setup: ready; the command is $venv/bin/sidecar"
