#!/bin/sh
# Makes what a package holds beside the two programs, by the program itself: manual pages, completions, and an example of
# a systemd unit.
#   packaging/assets.sh [DIR [REPLCLUSTER]]     (target/package and the release build, unless given)
set -eu
cd "$(dirname "$0")/.."
out=${1:-target/package}
program=${2:-${CARGO_TARGET_DIR:-target}/release/replcluster}
rm -rf "$out/man" "$out/completions"
mkdir -p "$out/man" "$out/completions"
"$program" man --out "$out/man"
for shell in bash zsh fish; do
    "$program" completions "$shell" > "$out/completions/replcluster.$shell"
done
# The paths of the package in place of those of this directory. In two steps: a pipe would hide a failure of the first.
"$program" --config packaging/cluster.toml export systemd --user replcluster > "$out/exported" 2> "$out/exported.log" \
    || { cat "$out/exported.log" >&2; exit 1; }
sed \
    -e 's|^\(Exec[A-Za-z]*=-\{0,1\}\).* \([a-z]*\) --config .*|\1/usr/bin/replcluster \2 --config /etc/replcluster/cluster.toml|' \
    -e 's|^ProtectHome=.*|ProtectHome=yes|' -e 's|^PrivateTmp=.*|PrivateTmp=yes|' "$out/exported" > "$out/replcluster.service"
rm "$out/exported" "$out/exported.log"
grep -q '^ExecStart=/usr/bin/replcluster ' "$out/replcluster.service"
