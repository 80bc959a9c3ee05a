#!/bin/sh
# Install the programs that the tests run and pip cannot install.
#
# As root, with apt-get, it installs what is missing; otherwise it prints the command to run as root.
set -eu

# program:Debian and Ubuntu package
NEEDED='caddy:caddy curl:curl h2load:nghttp2-client haproxy:haproxy nginx:nginx openssl:openssl prometheus:prometheus redis-server:redis-server'

missing=
for pair in $NEEDED; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0

install="apt-get install --yes --no-install-recommends$missing"
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    printf '%s\n' "The tests need programs that are not installed. As root, on Debian or Ubuntu:" "" \
        "    apt-get update && $install" "" \
        "Elsewhere, install what brings the commands:$(for pair in $NEEDED; do printf ' %s' "${pair%%:*}"; done)" >&2
    exit 1
fi
echo "Installing for the tests:$missing"
log=$(mktemp)
# The tests start these programs themselves: keep apt from starting them as services, too.
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ] || [ ! -w "${policy%/*}" ]; then
    policy=$log
else
    printf '%s\n' '#!/bin/sh' 'exit 101' >"$policy"
    chmod 755 "$policy"
fi
trap 'rm -f "$log" "$policy"' EXIT INT TERM
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # one word a package
{ apt-get update && $install; } </dev/null >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
