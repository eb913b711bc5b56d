#!/usr/bin/env bash
# Builds with the address and undefined-behaviour sanitizers, and the fuzzers, and runs tests under them.
#
#   tests/sanitizers.sh PART...
#
#   corpora    builds the fuzzers, which have both sanitizers, and runs every input of their corpora once: the readers of safetensors,
#              rows, tokenizer.json and chat templates
#   serial     builds and runs the tests of one process of runtime and launcher, and a golden layout
#   program    builds the rest: the other tests of one process, the program itself, from arguments to files, and all ranks; it has
#              bounds in seconds
#   fuzz       what corpora does, then 60 s of new inputs for each fuzzer
#
# An input of a fuzzer may take 5 s of the clock and 512 MB: four fuzzers share the cores, and a tokenizer.json of three kilobytes takes
# half a second of a core under the sanitizers.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=$(nproc)
[[ $(id -u) != 0 ]] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0" UBSAN_OPTIONS=print_stacktrace=1
tests() {  # FLAGS OF CTEST
  ctest --test-dir build/asan-ubsan --timeout 3600 --output-on-failure --no-tests=error -j "$jobs" "$@" | tee -a build/asan-ubsan/ctest.log
}
# Nothing here needs a GPU.
no_skips() {
  if grep -E '\*\*\*(Skipped|Not Run)' build/asan-ubsan/ctest.log; then
    echo "tests/sanitizers.sh: tests were skipped" >&2
    exit 1
  fi
}
build() {  # TARGET...
  cmake --preset asan-ubsan -DPESC_BUILD_TESTS=ON -DPESC_UNITY_BUILD=ON > /dev/null
  cmake --build --preset asan-ubsan -j "$jobs" --target "$@"
}
fuzz() {  # SECONDS; 0: the corpora only
  cmake --preset fuzz > /dev/null
  cmake --build --preset fuzz -j "$jobs"
  local pids=() target pid
  for target in build/fuzz/tests/fuzz/fuzz_*; do
    [[ -x $target && -f $target ]] || continue
    local name=${target##*/}
    local how=(-rss_limit_mb=512 -artifact_prefix="build/fuzz/$name-" -verbosity=0 -timeout=5)
    if [[ $1 == 0 ]]; then
      how+=(-runs=0 "tests/fuzz/corpus/$name")
    else
      mkdir -p "build/fuzz/found/$name"
      how+=(-max_total_time="$1" -max_len=4096 -dict="tests/fuzz/${name#fuzz_}.dict" "build/fuzz/found/$name" "tests/fuzz/corpus/$name")
    fi
    "$target" "${how[@]}" 2> "build/fuzz/$name.log" &
    pids+=($!)
  done
  [[ ${#pids[@]} -gt 0 ]] || { echo "tests/sanitizers.sh: no fuzzer is built" >&2; exit 1; }
  for pid in "${pids[@]}"; do wait "$pid" || { cat build/fuzz/*.log >&2; exit 1; }; done
  echo "${#pids[@]} fuzzers: no input fails"
}

[[ $# -gt 0 ]] || { sed -n '2,/^set/p' "$0" | sed '$d;s/^# \{0,1\}//' >&2; exit 64; }
for part in "$@"; do
  case $part in
    corpora) fuzz 0 ;;
    serial)
      build runtime_test launcher_test fuzz_corpora golden_check
      rm -f build/asan-ubsan/ctest.log
      tests -L '^unit$' -R '^(runtime|launcher)\.'
      tests -R '^golden\.np4_tp2_ep4$'
      no_skips
      ;;
    program)
      build all
      tests -L '^unit$' -E '^(runtime|launcher)\.'
      # Open MPI keeps memory to its end, so leaks are the business of the tests of one process.
      ASAN_OPTIONS=detect_leaks=0 tests -L '^program$'
      tests -R '^((ops|parallel|model|runtime)\.np[0-9]|golden\.(np|refusals)|end_to_end\.quickstart_data)' -E '^golden\.np4_tp2_ep4$'
      no_skips
      ;;
    fuzz) fuzz 0; fuzz 60 ;;
    *) echo "tests/sanitizers.sh: no part '$part'" >&2; exit 64 ;;
  esac
done
