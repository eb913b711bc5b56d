#!/usr/bin/env python3
"""Runs `pesc bench` on one GPU and `pesc plan` of the same flags: what was planned is what was taken.

    tests/gpu/bench_against_plan.py PESC FLAGS...
    tests/gpu/bench_against_plan.py build/gpu/pesc --config configs/experiments/bench-7b.textproto --set model.shape.num_hidden_layers=2

Every arena has the planned size, and the device gave as much in all as planned, within 3 %; both name the same phases, and
exactly those that have work in the plan took time. A step took as long as planned, within 15 %, on an H200, which the plan's
rates are of; elsewhere that is printed alone. Both give the frozen linears the same bytes a weight. While the weights were made
the host held a few tensors, not the model: at most HOST_GIB. --steps 5 goes to the bench. Reports go to $OUT where it is set,
else to build/gpu. Exit code 0: all agree; 1: not.
"""

import json
import os
import subprocess
import sys

# Of the host: the CUDA context, pinned memory and what loading passes on. The weights of a large model have a multiple of it.
HOST_GIB = 6
# The plan tells apart what travels, the bench measures it as one.
LINKS = {"tensor-parallel gathers", "token exchange", "weight exchange", "gradient reduction"}


def report(verb, program, flags, folder):
    path = os.path.join(folder, "bench-against-plan-%s.json" % verb)
    with open(path[:-len("json")] + "log", "w", encoding="utf-8") as log:
        code = subprocess.run([program, verb, *flags, "--out", path], stdout=log, stderr=subprocess.STDOUT, timeout=300).returncode
    if code != 0:
        with open(log.name, encoding="utf-8") as log:
            sys.exit("bench_against_plan.py: pesc %s ended with %d\n%s" % (verb, code, log.read()[-4000:]))
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    program, flags = sys.argv[1], sys.argv[2:]
    folder = os.environ.get("OUT", os.path.join("build", "gpu"))
    os.makedirs(folder, exist_ok=True)
    plan = report("plan", program, flags, folder)
    bench = report("bench", program, [*flags, "--steps", "5"], folder)

    wrong = []
    print("%-24s %16s %16s" % ("arena, bytes", "planned", "taken"))
    planned, taken = plan["arenas"], bench["arenas_rank0"]
    for name in sorted(set(planned) | set(taken)):
        print("  %-22s %16s %16s" % (name, planned.get(name, "-"), taken.get(name, "-")))
        if planned.get(name) != taken.get(name):
            wrong.append("arena '%s': %s bytes planned, %s taken" % (name, planned.get(name), taken.get(name)))
    if plan["device_bytes"] != bench["arena_bytes_rank0"] or not planned:
        wrong.append("%d bytes planned, %d taken" % (plan["device_bytes"], bench["arena_bytes_rank0"]))

    whole = plan["device_bytes"] + plan["overhead_bytes"] + plan["connection_bytes"]
    print("  %-22s %16d %16d" % ("all of the device", whole, bench["device_bytes_taken"]))
    if bench["device_bytes_planned"] != whole:
        wrong.append("%d bytes of the device planned, the bench says %d" % (whole, bench["device_bytes_planned"]))
    if abs(bench["device_bytes_taken"] / whole - 1) > 0.03:
        wrong.append("%d bytes of the device planned, %d taken" % (whole, bench["device_bytes_taken"]))

    if abs(bench["frozen_bytes_per_weight"] - plan["frozen_bytes_per_weight"]) > 1e-9:
        wrong.append("%g bytes a weight planned, %g taken" % (plan["frozen_bytes_per_weight"], bench["frozen_bytes_per_weight"]))
    host = bench["load_host_peak_bytes_rank0"] / 2**30
    print("frozen linears in %s, %.3f bytes a weight; weights there after %.1f s, %.2f GiB of the host taken at most until then" %
          (bench["frozen_dtype"], bench["frozen_bytes_per_weight"], bench["load_seconds"], host))
    if host > HOST_GIB:
        wrong.append("%.2f GiB of the host taken while the weights were made" % host)

    work = {p["name"]: p["seconds"] for p in plan["phases"] if p["name"] not in LINKS}
    work["exposed communication"] = sum(p["seconds"] for p in plan["phases"] if p["name"] in LINKS)
    phases = bench["phase_seconds_rank0"]
    print("%-24s %16s %16s" % ("phase, ms", "planned", "measured"))
    for name in sorted(set(work) | set(phases)):
        print("  %-22s %16.3f %16.3f" % (name, 1e3 * work.get(name, 0), 1e3 * phases.get(name, 0)))
        if name not in work or name not in phases:
            wrong.append("phase '%s' is not in %s" % (name, "the bench" if name in work else "the plan"))
        elif (work[name] > 0) != (phases[name] > 0):
            wrong.append("phase '%s': %.3g s planned, %.3g s measured" % (name, work[name], phases[name]))
    with_events = sum(phases.values())
    print("a step: %.2f ms planned, %.2f measured, %.2f with timing events" %
          (1e3 * plan["step_seconds"], 1e3 * bench["step_seconds_median"], 1e3 * with_events))

    print("GEMMs: %.1f TFLOP/s in %s%s; %.3f of the speed of light planned, %.3f measured" % (
        bench["gemm_flops_per_second"] / 1e12, bench["compute_dtype"],
        ", %.1f in FP8" % (bench["fp8_gemm_flops_per_second"] / 1e12) if "fp8_gemm_flops_per_second" in bench else "",
        plan["sol_fraction"], bench["sol_fraction_median"]))

    if "H200" in bench["device"] and abs(bench["step_seconds_median"] / plan["step_seconds"] - 1) > 0.15:
        wrong.append("a step of %.1f ms planned, %.1f measured" % (1e3 * plan["step_seconds"], 1e3 * bench["step_seconds_median"]))

    for line in wrong:
        print("bench_against_plan.py: " + line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
