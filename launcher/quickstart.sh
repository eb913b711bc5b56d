#!/usr/bin/env bash
# From a fresh clone to a tuned sparse model and what it learned: installs what is missing, builds, makes the data,
# tunes the small base in configs/quickstart/base over four MPI ranks (dp 2, tp 2, ep 4), and prints eval loss and
# exact match before and after, sample answers, and which experts each domain used.
#
#   launcher/quickstart.sh               twelve minutes at most on two cores, packages and build included
#
# Run again, it goes on where it was; remove runs/quickstart to start anew. It does not go on with a run of another recipe
# (another version of configs/quickstart).
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
say() { printf '\n== %s (%d s)\n' "$*" "$((SECONDS - start))"; }

data=runs/quickstart
config=configs/quickstart/tune.textproto
recipe=$(cat "$config" configs/quickstart/*.py configs/quickstart/base/* | sha256sum)
if [[ -e $data/run && $(cat "$data/recipe" 2> /dev/null) != "$recipe" ]]; then
  echo "launcher/quickstart.sh: $data/run is of another version of configs/quickstart, or not of this script; to start anew: rm -r $data" >&2
  exit 64
fi

say "packages"
cluster/install-deps.sh

say "build"
configure=(cmake --preset release)
# A build folder that has the tests keeps them; a new one does without, since they need more packages.
[[ -f build/release/CMakeCache.txt ]] || configure+=(-DPESC_BUILD_TESTS=OFF)
"${configure[@]}" > /dev/null
cmake --build --preset release --target pesc

pesc=build/release/pesc
# Open MPI refuses to run as root, as one does in a container, unless told that this is meant. Four ranks may be more
# than there are cores. Everything stays on this machine's loopback.
[[ $(id -u) != 0 ]] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mpirun=(mpirun -np 4 --oversubscribe --mca btl self,vader --mca oob_tcp_if_include lo)

say "data"
mkdir -p "$data"
echo "$recipe" > "$data/recipe"
python3 configs/quickstart/generate.py --out "$data/data"
say "the base model, before tuning"
"${mpirun[@]}" "$pesc" eval --base --config "$config" --out "$data/before.json" > /dev/null
say "tuning over 4 ranks: dp 2, tp 2, ep 4; 8 experts, top-2"
tuning=$SECONDS
"${mpirun[@]}" "$pesc" train --config "$config"
tuning=$((SECONDS - tuning))
say "the tuned model"
"${mpirun[@]}" "$pesc" eval --config "$config" --samples 2 --out "$data/after.json" > /dev/null
python3 configs/quickstart/report.py "$data/before.json" "$data/after.json"
printf '\ntuning took %d s, everything %d s\n' "$tuning" "$((SECONDS - start))"
cat <<'TXT'

Ask it something yourself:
  build/release/pesc generate --config configs/quickstart/tune.textproto --set parallel.tp=1 --set parallel.ep=1 \
      --prompt "Mia has 10 shells and Ann has 5. How many more shells does Mia have?"
TXT
