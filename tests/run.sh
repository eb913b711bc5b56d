#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test.
#
#   tests/run.sh              everything; about forty minutes on two cores, cold
#   tests/run.sh quick        without sanitizers, fuzzing and the long runs: what one runs while working
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-all}
case $mode in
  all | quick) ;;
  *) echo "usage: tests/run.sh [quick]" >&2; exit 64 ;;
esac
start=$SECONDS
say() { printf '\n== %s (%d s)\n' "$*" "$((SECONDS - start))"; }
[[ $(id -u) != 0 ]] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
jobs=$(nproc)

say "packages"
cluster/install-deps.sh --tests

say "build"
cmake --preset release -DPESC_BUILD_TESTS=ON > /dev/null
cmake --build --preset release -j "$jobs"

say "format"
format=$(command -v clang-format-14 || command -v clang-format)
git ls-files '*.cc' '*.h' '*.cu' '*.cuh' | xargs -r "$format" --dry-run -Werror

say "tests"
ctest --test-dir build/release --output-on-failure --no-tests=error -LE 'slow|long' -j "$jobs" | tee build/release/ctest.log
say "whole runs under mpirun"
slow=slow
[[ $mode == quick ]] || slow='slow|long'
ctest --test-dir build/release --output-on-failure --no-tests=error -L "$slow" -j 2 | tee -a build/release/ctest.log
# A test may be skipped only for want of a GPU (label gpu).
if grep -E '\*\*\*(Skipped|Not Run)' build/release/ctest.log | grep -vi gpu; then
  echo "tests/run.sh: a test was skipped for another reason than a missing GPU" >&2
  exit 1
fi
if [[ $mode == quick ]]; then exit 0; fi

say "address and undefined-behaviour sanitizers"
cmake --preset asan-ubsan -DPESC_BUILD_TESTS=ON > /dev/null
cmake --build --preset asan-ubsan -j "$jobs"
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0" UBSAN_OPTIONS=print_stacktrace=1
ctest --test-dir build/asan-ubsan --output-on-failure --no-tests=error -LE 'long|slow' -j "$jobs"
# The program itself. Open MPI keeps memory to its end, so leaks are the business of the tests above.
ASAN_OPTIONS=detect_leaks=0 ctest --test-dir build/asan-ubsan --output-on-failure --no-tests=error -L program -j "$jobs"
unset LSAN_OPTIONS UBSAN_OPTIONS

say "fuzzing, 60 s each; 1 s and 512 MB an input"
cmake --preset fuzz > /dev/null
cmake --build --preset fuzz -j "$jobs"
pids=()
for target in fuzz_safetensors fuzz_json_rows; do
  mkdir -p "build/fuzz/found/$target"
  build/fuzz/tests/fuzz/$target -max_total_time=60 -timeout=1 -rss_limit_mb=512 -max_len=4096 -dict="tests/fuzz/${target#fuzz_}.dict" \
    -artifact_prefix="build/fuzz/$target-" -verbosity=0 "build/fuzz/found/$target" "tests/fuzz/corpus/$target" \
    2> "build/fuzz/$target.log" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || { cat build/fuzz/*.log >&2; exit 1; }; done
say "all passed"
