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
run_as_root=(OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
[[ $(id -u) != 0 ]] || export "${run_as_root[@]}"
jobs=$(nproc)

# These make hosts, a Slurm cluster and a full disk in namespaces of their own.
needs_root='^(end_to_end\.(hosts|slurm)|faults\.matrix)$'
if [[ $mode == all && $(id -u) != 0 ]] && ! { command -v sudo > /dev/null && sudo -v; }; then
  echo "tests/run.sh: some tests need root: run this as root or as a user who may sudo, or run tests/run.sh quick" >&2
  exit 64
fi

# A test may be skipped only for want of a GPU: it has the label gpu, and there is none.
no_other_skips() {  # BUILD_DIRECTORY, which has the ctest.log
  local skipped
  skipped=$(sed -nE 's/.*Test +#[0-9]+: ([^ ]+) .*\*\*\*(Skipped|Not Run).*/\1/p' "$1/ctest.log" | sort -u)
  if [[ ! -e /dev/nvidiactl ]]; then
    skipped=$(comm -23 <(echo "$skipped") \
      <(ctest --test-dir "$1" -N -L '^gpu$' | sed -nE 's/^ *Test +#[0-9]+: (.*)$/\1/p' | sort -u))
  fi
  [[ -n $skipped ]] || return 0
  echo "tests/run.sh: skipped for another reason than a missing GPU: ${skipped//$'\n'/ }" >&2
  exit 1
}

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
whole_runs=(ctest --test-dir build/release --output-on-failure --no-tests=error -L "$slow" -j 2)
if [[ $(id -u) == 0 || $mode == quick ]]; then
  "${whole_runs[@]}" | tee -a build/release/ctest.log
else
  "${whole_runs[@]}" -E "$needs_root" | tee -a build/release/ctest.log
  sudo env "${run_as_root[@]}" "${whole_runs[@]}" -R "$needs_root" | tee -a build/release/ctest.log
  sudo chown -R "$(id -u):$(id -g)" build/release
fi
no_other_skips build/release
if [[ $mode == quick ]]; then exit 0; fi

say "address and undefined-behaviour sanitizers"
cmake --preset asan-ubsan -DPESC_BUILD_TESTS=ON > /dev/null
cmake --build --preset asan-ubsan -j "$jobs"
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0" UBSAN_OPTIONS=print_stacktrace=1
ctest --test-dir build/asan-ubsan --output-on-failure --no-tests=error -LE 'long|slow' -j "$jobs" |
  tee build/asan-ubsan/ctest.log
# The program itself. Open MPI keeps memory to its end, so leaks are the business of the tests above.
ASAN_OPTIONS=detect_leaks=0 ctest --test-dir build/asan-ubsan --output-on-failure --no-tests=error -L program -j "$jobs" |
  tee -a build/asan-ubsan/ctest.log
no_other_skips build/asan-ubsan
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
