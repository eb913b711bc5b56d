"""Random kills: SIGKILL from outside, at a time that a seed decides, in every part of a run.

A plan is a list of targets: (rank, step, fraction of a step) or (rank, step, "save"). One run takes several kills, so that
two hundred need few runs; each is one line of the second table.
"""

import os
import random
import re
import signal
import time

from rig import EVERY, RANKS, Row, heart

# Steps of four times the rows of the other cases, so that a kill aimed at a step hits near it on a quick machine too; more
# steps than the last target, so that it comes before the end.
TARGETS, STEPS = 24, 48
# Kills may follow each other without a checkpoint between them; the limit on that is crash_loop's to test.
FIELDS = {"train__steps": STEPS, "train__global_batch": 64, "train__micro_batch": 64, "recovery__max_restarts": 8}


class Kill:
    def __init__(self, seed, number, run):
        self.seed, self.number, self.run = seed, number, run
        self.where, self.rank, self.step, self.fraction = "", 0, 0, 0.0
        self.section, self.after_step = "", 0  # at death, as the supervisor says
        self.detected = self.recovered = self.resumed = None

    @property
    def lost(self):
        return max(0, self.after_step - self.resumed)


def plan(seed, run, first):
    """The kills of one run: before the first save, in a save, after one, in turn, ever later in the run."""
    rng = random.Random("%d/%d" % (seed, run))
    kills = []

    def add(where, step):
        k = Kill(seed, first + len(kills), run)
        k.where, k.step, k.rank, k.fraction = where, step, rng.randrange(RANKS), rng.random()
        kills.append(k)

    add("before the first save", rng.randrange(1, EVERY))
    add("in a save", 2 * EVERY)
    add("after a save", rng.randrange(2 * EVERY + 1, 3 * EVERY))
    add("in a save", 3 * EVERY)
    add("after a save", rng.randrange(3 * EVERY + 1, TARGETS))
    return kills


def strike(rig, kill, launch, process):
    """Waits for the moment and kills; returns when."""
    run_dir = rig.path("kills-%d" % kill.run)
    if kill.where == "in a save":
        # From the moment that the directory of the save is there, over two step boundaries.
        tmp = os.path.join(run_dir, "step-%d.tmp.%d" % (kill.step, launch))
        until = time.monotonic() + 60
        while not os.path.exists(tmp) and process.poll() is None and time.monotonic() < until:
            found = heart(run_dir, 0)
            if found is not None and found.launch == launch and found.step > kill.step:
                break  # too quick for us: the save is over, and the kill comes right after it
        time.sleep(0.12 * kill.fraction)
        found = heart(run_dir, kill.rank)
    else:
        found = rig.wait_for_heart("kills-%d" % kill.run, 60, lambda h: h.launch == launch and h.section == "step" and
                                   h.step >= kill.step - 1, (kill.rank,))
        time.sleep(0.06 * kill.fraction)  # a step takes about that long
        found = heart(run_dir, kill.rank) or found
    assert found is not None and found.launch == launch, "no sign of life of launch %d" % launch
    names = os.listdir(run_dir)  # what it really hits
    kill.where = ("in a save" if any(".tmp." in n for n in names) else
                  "after a save" if any(n.startswith("step-") for n in names) else "before the first save")
    at = time.monotonic()
    os.kill(found.pid, signal.SIGKILL)
    return at


def run_kills(rig, seed, count, log):
    """(row of the matrix, all kills): whole runs until there are `count` kills."""
    row = Row("rank SIGKILL at a random step, seeded", "`kill -9` from outside, seed %d" % seed, "O1 O2 O4, restart < 15 s")
    plain = rig.launch("kills-plain", **FIELDS)
    assert plain.code == 0, str(plain)
    expected = rig.weights("kills-plain", STEPS)
    done, run = [], 0
    while len(done) < count:
        kills = plan(seed, run, len(done))[:count - len(done)]
        name = "kills-%d" % run
        out = rig.supervise(name, **FIELDS)
        line = 0
        for launch, kill in enumerate(kills, 1):
            struck = strike(rig, kill, launch, out.process)
            kill.detected, kill.recovered, kill.resumed, line_after = rig.watch_recovery(out, name, struck, launch, line)
            report = "\n".join(l for _, l in out.lines[line_after - 1:line_after + 12])
            kill.section, kill.after_step = at_death(report, kill)
            line = line_after
            row.add(kill.detected, kill.recovered, kill.lost)
            done.append(kill)
            log("  kill %d: run %d, rank %d, %s, step %d: in section %s after step %d; detected %.1f s, recovered %.1f s, "
                "%d steps lost" % (kill.number, run, kill.rank, kill.where, kill.step, kill.section, kill.after_step,
                                   kill.detected, kill.recovered, kill.lost))
        code = out.finish()
        assert code == 0, out.text()[-4000:]
        assert rig.weights(name, STEPS) == expected, "run %d ends with other weights" % run
        rig.assert_nothing_left(name)
        run += 1
    for where in ("before the first save", "in a save", "after a save"):
        row.notes.append("%d %s" % (sum(k.where == where for k in done), where))
    return row, done


def at_death(report, kill):
    """(section, steps done) of the killed rank in the supervisor's report."""
    found = re.search(r"rank %d on \S+, pid \d+: last seen in section (\w+) after step (\d+)" % kill.rank, report)
    assert found, report
    return found.group(1), int(found.group(2))
