"""What every case of the matrix uses: runs under `pesc launch`, the oracles, and a watch that times what happens.

The quick start's small model on two ranks, 24 steps of 16 rows, a checkpoint every five; launch_test.py has the rest.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "end_to_end"))
import harness  # noqa: E402
import launch_test  # noqa: E402
from launch_test import EVERY, RANKS, STEPS  # noqa: E402,F401

SECTIONS = ("setup", "step", "checkpoint", "eval")


class CannotRun(Exception):
    """This line of the matrix cannot be tried on this machine; says why."""


class Row:
    """One line of the table."""

    def __init__(self, fault, how, oracles):
        self.fault, self.how, self.oracles = fault, how, oracles
        self.tried = 0
        self.detected, self.recovered, self.lost = [], [], []
        self.outcome, self.notes = "", []

    def add(self, detected=None, recovered=None, lost=None, times=1):
        self.tried += times
        for kept, value in ((self.detected, detected), (self.recovered, recovered), (self.lost, lost)):
            if value is not None:
                kept.append(value)


def line(fault, how, oracles):
    """A case of the matrix: case(rig, log) fills and returns its line, which stands before it runs, so that one that fails
    or cannot run has its name too."""
    def of(function):
        def case(rig, log):
            case.row = Row(fault, how, oracles)
            function(rig, case.row, log)
            return case.row
        case.__name__ = function.__name__
        case.row = Row(fault, how, oracles)
        return case
    return of


class Heart:
    """A rank's last sign of life."""

    def __init__(self, run_dir, rank):
        with open(os.path.join(run_dir, "heartbeats", "rank-%d" % rank)) as file:
            text = file.read()
        numbers = dict(re.findall(r"(\w+) (\d+)", text))
        self.launch, self.pid = int(numbers["launch"]), int(numbers["pid"])
        self.section, self.step = SECTIONS[int(numbers["section"])], int(numbers["step"])


def heart(run_dir, rank):
    """None while there is none, or it is being written."""
    try:
        return Heart(run_dir, rank)
    except (OSError, KeyError, ValueError, IndexError):
        return None


def is_stopped(pid):
    try:
        with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


class Output(threading.Thread):
    """Reads a supervisor's messages with the time of each line."""

    def __init__(self, process):
        super().__init__(daemon=True)
        self.process, self.lines = process, []
        self.start()

    def run(self):
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    def text(self):
        return "".join(line + "\n" for _, line in list(self.lines))

    def wait_for(self, pattern, seconds, begin=0):
        """(time, match, number of the line after it) of the first line from `begin` on; the process may end meanwhile."""
        end = time.monotonic() + seconds
        while True:
            over = not self.is_alive()
            for i, (at, line) in enumerate(list(self.lines)[begin:], begin):
                found = re.search(pattern, line)
                if found:
                    return at, found, i + 1
            if over or time.monotonic() > end:
                raise AssertionError("no '%s' within %d s:\n%s" % (pattern, seconds, self.text()[-4000:]))
            time.sleep(0.005)

    def finish(self, seconds=180):
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("no end within %d s:\n%s" % (seconds, self.text()[-4000:]))
        self.join(10)
        self.process.stdout.close()
        return self.process.returncode


class Rig(launch_test.Launch):
    """Not a test: the oracles and runs of launch_test.py for whoever asks. O1 assert_as_if_nothing_happened(), O4
    assert_nothing_left()."""

    def runTest(self):
        pass

    def supervise(self, run, fault=None, **fields):
        return Output(self.start(run, fault, **fields))

    def wait_for_heart(self, run, seconds, wanted, ranks=(0,)):
        """Until a rank's sign of life is as wanted; returns it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for rank in ranks:
                found = heart(self.path(run), rank)
                if found is not None and wanted(found):
                    return found
            time.sleep(0.001)
        raise AssertionError("%s: not seen within %d s" % (run, seconds))

    def selected(self, run):
        """The step that `pesc inspect`, which reads every byte, says a restart resumes from; 0: a fresh start. (O2)"""
        result = harness.pesc(0, "inspect", "--checkpoint", self.path(run), seconds=60)
        found = re.search(r"^a restart resumes from step-(\d+)$", result.out, re.MULTILINE)
        if found:
            return int(found.group(1))
        assert "holds no checkpoint" in result.err or "nothing to resume from" in result.out, str(result)
        return 0

    def watch_recovery(self, out, run, fault_at, launch, begin, bound=15, ranks=RANKS):
        """After a fault at fault_at in launch `launch`: (detected, recovered, step resumed from, next line). Checks O2
        and the bound on the restart. While we look at what it will choose from, the supervisor stands still in its pause."""
        detected_at, _, begin = out.wait_for(r"pesc launch: launch \d+ (hangs|failed)", 60, begin)
        _, _, begin = out.wait_for(r"pesc launch: launch \d+ failed", 60, begin - 1)
        out.wait_for(r"starting again in", 10, begin)
        out.process.send_signal(signal.SIGSTOP)
        try:
            expected = self.selected(run)
        finally:
            out.process.send_signal(signal.SIGCONT)
        found = self.wait_for_heart(run, 90, lambda h: h.launch > launch and h.section != "setup", range(ranks))
        recovered = time.monotonic() - fault_at
        # Rank 0 says from where before it says on what; the lines that the report repeats begin with a bar.
        _, _, end = out.wait_for(r"^\d+ ranks: dp", 10, begin)
        resumed = re.findall(r"^I\d.*resumed from \S+ at step (\d+)", "\n".join(l for _, l in out.lines[begin:end]),
                             re.MULTILINE)
        got = int(resumed[0]) if resumed else 0
        assert got == expected, "resumed from %d, inspect says %d\n%s" % (got, expected, out.text()[-3000:])
        assert found.launch == launch + 1, "launch %d after %d" % (found.launch, launch)
        assert recovered <= bound, "restarted after %.1f s" % recovered
        return detected_at - fault_at, recovered, got, begin


def gtest(binary, pattern, ranks=0, seconds_each=None, memory=None):
    """Runs those cases of a built test program; returns how many passed. With `seconds_each` none may take longer; with
    `memory` (bytes) the program may have no more address space than that."""
    path = os.path.join(os.path.dirname(harness.PESC), "tests", binary)
    if not os.path.exists(path):
        raise AssertionError("the test program %s does not exist" % path)
    command = (harness.MPIRUN + ["-np", str(ranks)] if ranks else []) + [path, "--gtest_filter=" + pattern]
    environment = harness.environment()
    if memory:
        environment["OPENBLAS_NUM_THREADS"] = "1"  # each of its threads reserves memory of its own
        command = ["prlimit", "--as=%d" % memory] + command
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, timeout=300)
    passed = re.search(r"\[  PASSED  \] (\d+) test", result.stdout)
    if result.returncode != 0 or not passed or int(passed.group(1)) == 0:
        raise AssertionError("%s %s\n%s%s" % (binary, pattern, result.stdout[-3000:], result.stderr[-1000:]))
    for name, took in re.findall(r"\[       OK \] (\S+) \((\d+) ms\)", result.stdout):
        assert seconds_each is None or int(took) <= 1000 * seconds_each, "%s took %s ms" % (name, took)
    return int(passed.group(1))
