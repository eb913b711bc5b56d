"""Random kills: SIGKILL from outside, at a time that a seed decides, in every part of a run.

A plan is a list of kills, each with its place, rank, step and fraction of the time that the place takes. One run takes
several, so that two hundred need few runs; each is one line of the second table. Runs are on 2 ranks (tp 2, ep 2) and on 4
(tp 2, dp 2, ep 4) in turn.
"""

import os
import random
import re
import signal
import time

from rig import EVERY, Row, harness, heart

# Steps of four times the rows of the other cases, so that a kill aimed at a step hits near it on a quick machine too; more
# steps than the last target, so that it comes before the end.
TARGETS, STEPS = 24, 48
# Kills may follow each other without a checkpoint between them; the limit on that is crash_loop's to test.
EVAL_EVERY = 6  # steps: no save begins with an evaluation but that of step 30
FIELDS = {"train__max_steps": STEPS, "train__global_batch_size": 64, "recovery__max_restarts": 8,
          "train__eval_steps": EVAL_EVERY}


WHERE = ("in set-up", "before the first save", "in a save", "in an evaluation", "after a save")
SETUP_TAKES, EVAL_TAKES = 0.35, 0.08  # seconds, about


def layout(run):
    """(ranks, fields) of a run."""
    ranks = 2 if run % 2 == 0 else 4
    return ranks, dict(FIELDS, ep=ranks)


class Kill:
    def __init__(self, seed, number, run):
        self.seed, self.number, self.run, self.ranks = seed, number, run, layout(run)[0]
        self.where, self.rank, self.step, self.fraction = "", 0, 0, 0.0
        self.section, self.after_step = "", 0  # at death, as the supervisor says
        self.detected = self.recovered = self.resumed = None

    @property
    def lost(self):
        return max(0, self.after_step - self.resumed)


def plan(seed, run, first):
    """The kills of one run: before the first save, in a save, after one, in an evaluation, ever later in the run; and
    one in the set-up of some launch."""
    rng = random.Random("%d/%d" % (seed, run))
    kills = []

    def add(where, step):
        k = Kill(seed, first + len(kills), run)
        k.where, k.step, k.rank, k.fraction = where, step, rng.randrange(k.ranks), rng.random()
        kills.append(k)

    add("before the first save", rng.randrange(1, EVERY))
    add("in a save", 2 * EVERY)
    add("after a save", rng.randrange(2 * EVERY + 1, 3 * EVERY))
    add("in an evaluation", 3 * EVAL_EVERY)
    add("in a save", rng.choice((4, 5)) * EVERY)
    add("in set-up", 0)
    kills.insert(rng.randrange(len(kills)), kills.pop())
    for number, kill in enumerate(kills, first):
        kill.number = number
    return kills


def strike(rig, kill, launch, process):
    """Waits for the moment and kills; returns when."""
    run_dir = rig.path("kills-%d" % kill.run)
    if kill.where == "in a save":
        # From the moment that the directory of the save is there, over a step boundary or two.
        tmp = os.path.join(run_dir, "step-%d.tmp.%d" % (kill.step, launch))
        until = time.monotonic() + 60
        while not os.path.exists(tmp) and process.poll() is None and time.monotonic() < until:
            found = heart(run_dir, 0)
            if found is not None and found.launch == launch and found.step > kill.step:
                break  # too quick for us: the save is over, and the kill comes right after it
        time.sleep(0.06 * kill.fraction)
        found = heart(run_dir, kill.rank)
    elif kill.where in ("in set-up", "in an evaluation"):
        section, takes = ("setup", SETUP_TAKES) if kill.where == "in set-up" else ("eval", EVAL_TAKES)
        found = rig.wait_for_heart("kills-%d" % kill.run, 60, lambda h: h.launch == launch and (
            h.section == section and h.step >= kill.step or h.step > kill.step + EVAL_EVERY), (kill.rank,))
        time.sleep(takes * kill.fraction)
    else:
        found = rig.wait_for_heart("kills-%d" % kill.run, 60, lambda h: h.launch == launch and h.section == "step" and
                                   h.step >= kill.step - 1, (kill.rank,))
        time.sleep(0.06 * kill.fraction)  # a step takes about that long
        found = heart(run_dir, kill.rank) or found
    assert found is not None and found.launch == launch, "no sign of life of launch %d" % launch
    at = time.monotonic()
    os.kill(found.pid, signal.SIGKILL)
    # What it has hit: the section is in the heartbeat, which nobody writes any more; a save under way cannot end without that
    # rank, and leaves its directory.
    last, names = heart(run_dir, kill.rank), os.listdir(run_dir)
    section = last.section if last is not None and last.launch == launch else ""
    kill.where = ("in set-up" if section == "setup" else
                  "in an evaluation" if section == "eval" else
                  "in a save" if any(n.endswith(".tmp.%d" % launch) for n in names) else
                  "after a save" if any(re.fullmatch(r"step-\d+", n) for n in names) else "before the first save")
    return at


def aimed(where, run, number):
    """One kill at that moment, for when the seed has brought none."""
    kill = Kill(0, number, run)
    kill.where, kill.step, kill.rank, kill.fraction = where, {"in set-up": 0, "before the first save": 2, "in a save": 2 * EVERY,
                                                              "in an evaluation": EVAL_EVERY}.get(where, 2 * EVERY + 3), 0, 0.0
    return kill


def new_row(seed):
    return Row("rank SIGKILL at a random step, seeded", "`kill -9` from outside, seed %d, on 2 and on 4 ranks" % seed,
               "O1 O2 O4, restart < 15 s; in set-up, before the first save, in one, after one, in an evaluation")


def run_kills(rig, row, done, seed, count, log):
    """Fills the row and the list of kills: whole runs until there are `count`; from ten on at least one in each place."""
    expected, run = {}, 0
    for ranks, fields in (layout(0), layout(1)):
        plain = rig.finish(rig.start("kills-plain-%d" % ranks, ranks=ranks, **fields))
        assert plain.code == 0, str(plain)
        expected[ranks] = rig.weights("kills-plain-%d" % ranks, STEPS)
    while len(done) < count:
        one_run(rig, row, done, plan(seed, run, len(done))[:count - len(done)], expected, log)
        run += 1
    for where in WHERE:
        for run in range(run, run + (5 if count >= 10 else 0)):
            if not any(k.where == where for k in done):
                one_run(rig, row, done, [aimed(where, run, len(done))], expected, log)
        run += 1
        row.notes.append("%d %s" % (sum(k.where == where for k in done), where))
    missed = [where for where in WHERE if not any(k.where == where for k in done)]
    assert count < 10 or not missed, "no kill " + ", none ".join(missed)


def one_run(rig, row, done, kills, expected, log):
    run = kills[0].run
    name, begin, (ranks, fields) = "kills-%d" % run, 0, layout(run)
    out = rig.supervise(name, ranks=ranks, **fields)
    for launch, kill in enumerate(kills, 1):
        struck = strike(rig, kill, launch, out.process)
        kill.detected, kill.recovered, kill.resumed, after = rig.watch_recovery(out, name, struck, launch, begin, ranks=ranks)
        report = "\n".join(l for _, l in out.lines[after - 1:after + 12])
        kill.section, kill.after_step = at_death(report, kill)
        begin = after
        row.add(kill.detected, kill.recovered, kill.lost)
        done.append(kill)
        log("  kill %d: run %d of %d ranks, rank %d, %s, step %d: in section %s after step %d; detected %.1f s, recovered "
            "%.1f s, %d steps lost" % (kill.number, run, ranks, kill.rank, kill.where, kill.step, kill.section,
                                       kill.after_step, kill.detected, kill.recovered, kill.lost))
    code = out.finish()
    assert code == 0, out.text()[-4000:]
    assert rig.weights(name, STEPS) == expected[ranks], "run %d ends with other weights" % run
    harness.curve(rig.path(name))  # every step once
    rig.assert_nothing_left(name)


def at_death(report, kill):
    """(section, steps done) of the killed rank in the supervisor's report."""
    found = re.search(r"rank %d on \S+, pid \d+: last seen in section (\w+) after step (\d+)" % kill.rank, report)
    assert found, report
    return found.group(1), int(found.group(2))
