#!/usr/bin/env bash
# Builds with the address and undefined-behaviour sanitizers, and the fuzzers, and runs the tests under the sanitizers.
#
#   tests/sanitizers.sh            all of it
#   tests/sanitizers.sh short      the builds and the short tests, which tests/run.sh runs beside the fault matrix
#   tests/sanitizers.sh program    the program itself, from arguments to files; it has bounds in seconds. After `short`
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:-all}
case $part in
  all | short | program) ;;
  *) echo "usage: tests/sanitizers.sh [short | program]" >&2; exit 64 ;;
esac
jobs=$(nproc)
[[ $(id -u) != 0 ]] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0" UBSAN_OPTIONS=print_stacktrace=1
tests() {  # FLAGS OF CTEST
  ctest --test-dir build/asan-ubsan --output-on-failure --no-tests=error -j "$jobs" "$@" | tee -a build/asan-ubsan/ctest.log
}

if [[ $part != program ]]; then
  cmake --preset asan-ubsan -DPESC_BUILD_TESTS=ON > /dev/null
  cmake --build --preset asan-ubsan -j "$jobs"
  cmake --preset fuzz > /dev/null
  cmake --build --preset fuzz -j "$jobs"
  rm -f build/asan-ubsan/ctest.log
  tests -LE 'long|slow'
fi
# Open MPI keeps memory to its end, so leaks are the business of the tests above.
[[ $part == short ]] || ASAN_OPTIONS=detect_leaks=0 tests -L program
