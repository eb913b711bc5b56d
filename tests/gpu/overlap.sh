#!/usr/bin/env bash
# What of the collectives a step waits for, with and without a stream of their own and two chunks of tokens:
# `pesc bench` four times, and a table of the medians of a step, of rank 0's exposed communication, and of its
# device memory beside the arenas, most of which is NCCL's.
#
#   tests/gpu/overlap.sh PESC RANKS [bench flags...]
#   tests/gpu/overlap.sh build/gpu/pesc 2 --config configs/experiments/bench-7b.textproto --set parallel.ep=2
#
# PESC is the program. MPIRUN may name another mpirun with its flags. Reports go to $OUT where it is set, else
# to build/overlap.
set -euo pipefail
[[ $# -ge 2 ]] || { sed -n '2,/^set/p' "$0" | sed '$d;s/^# \{0,1\}//' >&2; exit 64; }
program=$1 ranks=$2
shift 2
reports=${OUT:-build/overlap}
mkdir -p "$reports"
[[ $(id -u) != 0 ]] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
read -ra launch <<< "${MPIRUN:-mpirun --oversubscribe}"
for overlap in false true; do
  for chunks in 1 2; do
    name=overlap-$overlap-chunks-$chunks
    "${launch[@]}" -np "$ranks" "$program" bench "$@" --set parallel.overlap_comm=$overlap \
      --set parallel.dispatch_chunks=$chunks --out "$reports/$name.json" > "$reports/$name.log" 2>&1 ||
      { tail -20 "$reports/$name.log" >&2; exit 1; }
  done
done
python3 - "$reports" << 'TABLE'
import json, sys
print("%-10s %8s %12s %26s %12s %24s" % ("overlap", "chunks", "ms a step", "exposed communication, ms", "its share",
                                         "beside the arenas, GiB"))
for overlap in ("false", "true"):
    for chunks in (1, 2):
        with open("%s/overlap-%s-chunks-%d.json" % (sys.argv[1], overlap, chunks), encoding="utf-8") as file:
            j = json.load(file)
        phases = j["phase_seconds_rank0"]
        exposed = phases["exposed communication"]
        beside = j["device_bytes_taken"] - j["arena_bytes_rank0"]
        print("%-10s %8d %12.2f %26.2f %12.3f %24.2f" % (overlap, chunks, 1e3 * j["step_seconds_median"], 1e3 * exposed,
                                                      exposed / sum(phases.values()), beside / 2**30))
TABLE
