#!/usr/bin/env bash
# Prints the python of a virtual environment that has these packages, of exactly these versions. It is made outside of
# the tree, once, in ${PESC_CACHE:-~/.cache/pesc}, and used again by every test that wants the same packages.
#
#   tests/venv.sh PACKAGE==VERSION ...
#
# Exit codes: 0 printed; 64 wrong use; 74 the packages could not be had.
set -euo pipefail
[[ $# -gt 0 ]] || { echo "usage: tests/venv.sh PACKAGE==VERSION ..." >&2; exit 64; }
for package in "$@"; do
  [[ $package == *==* ]] || { echo "venv.sh: $package has no ==VERSION" >&2; exit 64; }
done
cache=${PESC_CACHE:-$HOME/.cache/pesc}
mkdir -p "$cache"
name=venv-$(printf '%s\n' "$@" "$(python3 -V)" | sha256sum | cut -c1-16)
exec 9> "$cache/$name.lock"
flock 9
if [[ ! -x $cache/$name/bin/python ]]; then
  rm -rf "$cache/$name" "$cache/$name.new"
  python3 -m venv "$cache/$name.new" >&2
  "$cache/$name.new/bin/python" -m pip install -q --disable-pip-version-check "$@" >&2 ||
    { echo "venv.sh: pip could not install: $*" >&2; exit 74; }
  mv "$cache/$name.new" "$cache/$name"
fi
echo "$cache/$name/bin/python"
