#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test.
#
#   tests/run.sh              everything; 30 to 40 minutes on two cores, cold
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
trap 'kill ${sudo_fresh:-} 2> /dev/null || true; [[ -z ${sanitizers:-} ]] || kill -- "-$sanitizers" 2> /dev/null || true' EXIT
if [[ $mode == all && $(id -u) != 0 ]]; then
  if ! { command -v sudo > /dev/null && sudo -v; }; then
    echo "tests/run.sh: some tests need root: run this as root or as a user who may sudo, or run tests/run.sh quick" >&2
    exit 64
  fi
  # What sudo remembers ends long before these tests begin. Where it remembers nothing it asks again, and says what for.
  while sleep 50 && sudo -n -v; do :; done < /dev/null > /dev/null 2>&1 &
  sudo_fresh=$!
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

release_tests() {  # FLAGS OF CTEST
  ctest --test-dir build/release --output-on-failure --no-tests=error "$@" | tee -a build/release/ctest.log
}
release_tests_as_root() {
  if [[ $(id -u) == 0 ]]; then
    release_tests "$@"
    return
  fi
  local code=0
  sudo -p "tests/run.sh: the tests of hosts, Slurm and a full disk need root; password of %p: " env "${run_as_root[@]}" \
    ctest --test-dir build/release --output-on-failure --no-tests=error "$@" | tee -a build/release/ctest.log || code=$?
  # After a failure too, or the next run could not write there.
  sudo -p "tests/run.sh: to give you build/release back; password of %p: " chown -R "$(id -u):$(id -g)" build/release
  return "$code"
}

say "tests"
rm -f build/release/ctest.log
release_tests -LE 'slow|long' -j "$jobs"
say "whole runs under mpirun"
if [[ $mode == quick ]]; then
  release_tests -L slow -j 2
  no_other_skips build/release
  exit 0
fi
# Those that wait for most of their time run beside what computes: Slurm beside the replay (or, where only sudo makes root,
# with the next), the hosts and the fault matrix, whose bounds are in seconds, beside what takes only what they leave: the
# sanitizers' builds and short tests.
beside_sanitizers='^(end_to_end\.hosts|faults\.matrix)$'
[[ $(id -u) == 0 ]] || beside_sanitizers=$needs_root
longest='^end_to_end\.(replay|slurm)$'
if [[ $(id -u) == 0 ]]; then release_tests -R "$longest" -j 2; else release_tests -R '^end_to_end\.replay$'; fi
release_tests -L 'slow|long' -E "$beside_sanitizers|$longest" -j 2

say "hosts and faults; beside them the sanitizers' and fuzzers' builds, and the short tests there"
lowest=(nice -n 19)
ionice -c 3 true 2> /dev/null && lowest+=(ionice -c 3)
# A session of its own: Linux shares the cores between sessions first, by the nice value of each.
setsid "${lowest[@]}" bash -c 'echo 19 2> /dev/null > /proc/self/autogroup || true; exec tests/sanitizers.sh short' \
  > build/sanitizers.log 2>&1 &
sanitizers=$!
release_tests_as_root -R "$beside_sanitizers"
no_other_skips build/release
say "the rest of these"
code=0
wait "$sanitizers" || code=$?
sanitizers=
if [[ $code != 0 ]]; then
  echo "tests/run.sh: tests/sanitizers.sh short ended with $code; the end of build/sanitizers.log:" >&2
  tail -n 200 build/sanitizers.log >&2
  exit 1
fi
grep -vE '^\[[0-9]+/[0-9]+\] ' build/sanitizers.log
say "the program under the sanitizers"
tests/sanitizers.sh program
no_other_skips build/asan-ubsan

say "fuzzing, 60 s each; 1 s and 512 MB an input"
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
