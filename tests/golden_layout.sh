#!/bin/sh
# golden_layout.sh GOLDEN_CHECK CASES "FLAGS" MPIRUN...: every case of the folder CASES on one layout.
set -eu
program=$1 cases=$2 flags=$3
shift 3
flags=$(echo "$flags" | tr ';' ' ')
for case in "$cases"/*/; do
  # shellcheck disable=SC2086  # the flags are words
  "$@" "$program" "$case" $flags
done
