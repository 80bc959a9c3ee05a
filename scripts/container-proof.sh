#!/bin/sh
# Build the image of deploy/container with buildah and run it, where no container registry can be reached.
#
# The base python:3.11-slim-bookworm is made here from Debian bookworm, whose Python is 3.11, too; it also holds the
# wheels of requirements.lock, so that the build needs no network. Everything is below build/container.
# Needs root and the packages buildah, crun and mmdebstrap.
set -eu
cd "$(dirname "$0")/.."

folder=$PWD/build/container
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
image() { buildah --root "$folder/storage" --runroot "$folder/run" "$@"; }

for program in buildah crun mmdebstrap; do
    command -v "$program" > /dev/null || { echo "container-proof: apt-get install $program" >&2; exit 1; }
done
mkdir -p "$folder"
[ -f "$folder/base.tar" ] || mmdebstrap --quiet --variant=minbase \
    --include=python3,python3-venv,python3-pip bookworm "$folder/base.tar"
.venv/bin/python -m pip --disable-pip-version-check download --quiet --only-binary :all: --python-version 3.11 \
    --require-hashes --requirement requirements.lock --dest "$folder/wheels"
.venv/bin/python -m pip --disable-pip-version-check download --quiet --dest "$folder/wheels" setuptools

base=$(image from scratch)
image add --quiet "$base" "$folder/base.tar" / > /dev/null
image copy --quiet "$base" "$folder/wheels" /wheels > /dev/null
image run "$base" -- sh -c 'ln -sf python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED'
image config --env PIP_NO_INDEX=1 --env PIP_FIND_LINKS=/wheels --env PATH=/usr/bin:/bin:/usr/sbin:/sbin "$base"
image commit --quiet "$base" docker.io/library/python:3.11-slim-bookworm > /dev/null
image rm "$base" > /dev/null
image build --quiet --pull-never --format docker --ignorefile .containerignore \
    --file deploy/container/Containerfile --tag sidecar:proof . > /dev/null

made=$(image from --pull-never localhost/sidecar:proof)
trap 'image rm "$made" > /dev/null' EXIT
image run "$made" -- python -c '
import importlib.util, os
assert os.getuid() == 65532, os.getuid()
found = [name for name in ("pip", "setuptools", "loadtest", "tests") if importlib.util.find_spec(name)]
assert not found, found
'
# Serve with the metrics listener of the health check, then run the health check itself.
image run "$made" -- sh -c '
SIDECAR_LISTEN__METRICS=127.0.0.1:9194 sidecar serve --demo --demo-directory /tmp/demo > /tmp/log 2>&1 &
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    sleep 1
    python -c "import urllib.request as u; u.urlopen(\"http://127.0.0.1:9194/healthz\", timeout=2)" && break
done 2> /dev/null
python -c "import urllib.request as u; u.urlopen(\"http://127.0.0.1:9194/healthz\", timeout=2)" || { cat /tmp/log; exit 1; }
kill $!; wait $!
'
echo "container-proof: the image was built, runs as user 65532 without pip, and its health check succeeds"
