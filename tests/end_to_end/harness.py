"""Runs the real `pesc` under the real mpirun, for the tests beside this file.

The environment says with what: PESC (the program), PESC_SOURCE (the repository), PESC_MPIRUN (mpirun and its flags).
CMakeLists.txt sets them; a test run by hand finds build/release. Every run has a time limit, after which it is a hang
and the test fails; nothing else depends on time.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

SOURCE = os.environ.get("PESC_SOURCE", os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
PESC = os.environ.get("PESC", os.path.join(SOURCE, "build", "release", "pesc"))
MPIRUN = shlex.split(os.environ.get(
    "PESC_MPIRUN", "mpirun --oversubscribe --bind-to none --mca btl self,vader --mca oob_tcp_if_include lo"))
BASE = os.path.join(SOURCE, "configs", "quickstart", "base")
QUICKSTART = os.path.join(SOURCE, "configs", "quickstart", "tune.textproto")

OK, USAGE, DATA, IO, PREEMPTED = 0, 64, 65, 74, 75
NOT_TESTED = 77  # ctest says Skipped, which tests/run.sh takes only for want of a GPU, or outside of Debian of a browser
CURVE = ("loss", "aux_loss", "grad_norm")
# The default run of tests/run.sh: a script may name the cases of its sample in its test class (sample = [...]) and shorten others.
SAMPLE = bool(os.environ.get("PESC_SAMPLE"))


def whole(case):
    """Of a case that the sample leaves out: it is not there, so that ctest does not say Skipped."""
    return None if SAMPLE else case


COMMANDS = []  # the arguments of each command that was made


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def complaints(self):
        """The lines with which pesc itself says why it ended."""
        return [line for line in self.err.splitlines() if line.startswith("pesc: ")]

    @property
    def message(self):
        """From the first such line on: a message may have more, such as a list of fields or the usage."""
        at = self.err.find("pesc: ")
        return self.err[at:] if at >= 0 else ""

    def __str__(self):
        return "exit %s\n--- stdout\n%s--- stderr\n%s" % (self.code, self.out[-4000:], self.err[-4000:])


def command(ranks, *arguments):
    """argv of `pesc arguments` on so many ranks; 0 ranks: without mpirun."""
    launch = MPIRUN + ["-np", str(ranks)] if ranks else []
    COMMANDS.append([str(a) for a in arguments])
    return launch + [PESC] + COMMANDS[-1]


def environment():
    env = dict(os.environ)
    env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return env


def start(ranks, *arguments, prefix=(), cwd=SOURCE, stdin=subprocess.DEVNULL):
    """A session of its own, so that a hang can be ended with its children. With `prefix` before the whole command."""
    return subprocess.Popen(list(prefix) + command(ranks, *arguments), cwd=cwd, env=environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=stdin,
                            errors="replace", start_new_session=True)


def finish(process, seconds):
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # mpirun ends its ranks
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        raise AssertionError("no end within %d s: %s" % (seconds, " ".join(process.args)))
    return Result(process.returncode, out, err)


def pesc(ranks, *arguments, seconds=240, **options):
    return finish(start(ranks, *arguments, **options), seconds)


def rank_pids(mpirun):
    """The ranks that this mpirun has started on this machine."""
    with open("/proc/%d/task/%d/children" % (mpirun.pid, mpirun.pid)) as children:
        return [int(pid) for pid in children.read().split()]


def wait_for_step(process, run_dir, step, seconds=120):
    """Until metrics.jsonl tells of this step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        running = process.poll() is None
        try:
            done = max((r["step"] for r in measured(run_dir) if "loss" in r), default=0)
        except (FileNotFoundError, json.JSONDecodeError):  # not there yet, or a line half written
            done = 0
        if done >= step:
            return
        if not running:
            raise AssertionError("no step %d: %s" % (step, finish(process, 1)))
        time.sleep(0.02)
    raise AssertionError("no step %d after %d s" % (step, seconds))


def sets(**fields):
    """--set flags; `__` in a name stands for a dot: sets(train__max_steps=20)."""
    flags = []
    for name, value in fields.items():
        flags += ["--set", "%s=%s" % (name.replace("__", "."), value)]
    return flags


def generate_data(folder, *flags, train=5000, eval_rows=100, seed=1):
    subprocess.run([sys.executable, os.path.join(SOURCE, "configs", "quickstart", "generate.py"), "--out", folder,
                    "--train", str(train), "--eval", str(eval_rows), "--seed", str(seed), *flags],
                   check=True, stderr=subprocess.DEVNULL)


def read_jsonl(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def measured(run_dir):
    """The records of metrics.jsonl that count: a launch that goes on from a step puts aside what earlier ones have measured
    beyond it, and stands there with them."""
    counted = []
    for r in read_jsonl(os.path.join(run_dir, "metrics.jsonl")):
        if r.get("kind") == "launch":
            counted = [c for c in counted if c["step"] <= r["step"]]
        counted.append(r)
    return counted


def starts(run_dir):
    """The records with which launches begin, of all of them."""
    return [r for r in read_jsonl(os.path.join(run_dir, "metrics.jsonl")) if r.get("kind") == "launch"]


def curve(run_dir):
    """The records of the steps that count, in order."""
    steps = [r for r in measured(run_dir) if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, len(steps) + 1)), "steps missing or twice in " + run_dir
    return steps


def failures(run_dir):
    """[(detected after s, recovered after s, lost steps)] of the launches of a run that failed, by what the supervisors wrote
    down. The time counts from the last sign of progress; recovered: at the first step of a later launch, None without one."""
    launches, found = read_jsonl(os.path.join(run_dir, "launches.jsonl")), []
    began = [l["ended_unix"] - l["seconds"] for l in launches]
    for i, l in enumerate(launches):
        if l["exit_code"] in (OK, PREEMPTED):
            continue
        fault = began[i] + l["last_progress_after_seconds"]
        steps = [began[j] + launches[j]["first_step_after_seconds"] for j in range(i + 1, len(launches))
                 if launches[j]["first_step_after_seconds"] >= 0]
        found.append((l["noticed_after_seconds"] - l["last_progress_after_seconds"], steps[0] - fault if steps else None,
                      max(0, l["last_step"] - max(0, l["newest_checkpoint"]))))
    return found


def largest_difference(expected, got, fields=CURVE):
    """{field: (largest relative error, its step)} between two curves of the same length."""
    assert len(expected) == len(got), "%d steps against %d" % (len(expected), len(got))
    worst = {}
    for field in fields:
        errors = [(abs(g[field] - e[field]) / (abs(e[field]) or 1e-7), e["step"]) for e, g in zip(expected, got)]
        assert all(error == error for error, _ in errors), "not a number in " + field
        worst[field] = max(errors)
    return worst


def digests(folder):
    """{path inside: SHA-256} of every file below a folder."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = hashlib.sha256(file.read()).hexdigest()
    return found


def read_safetensors(path):
    """(header without metadata, bytes of the data)."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        return header, file.read()


def write_safetensors(path, header, data):
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


class EndToEnd(unittest.TestCase):
    """One temporary folder per class with the quick start's data in data/."""

    train_rows = 5000  # per domain
    sample = ()  # names of the cases that SAMPLE runs; all without any

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="pesc-end-to-end-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.data = os.path.join(cls.folder, "data")
        generate_data(cls.data, train=cls.train_rows)

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    @classmethod
    def experiment(cls, run, tp=1, ep=1, config=QUICKSTART, **fields):
        """Flags for the quick start's experiment on this class's data, one thread per rank."""
        domains = [os.path.join(cls.data, "eval-%s.jsonl" % d) for d in ("text", "programs", "arithmetic")]
        settings = {"run_dir": cls.path(run), "data.train[0].path": os.path.join(cls.data, "train.jsonl"),
                    "parallel.tp": tp, "parallel.ep": ep, "parallel.num_threads": 1}
        settings.update({"data.eval[%d].path" % i: path for i, path in enumerate(domains)})
        settings.update({name.replace("__", "."): value for name, value in fields.items()})
        flags = ["--config", config]
        for name, value in settings.items():
            flags += ["--set", "%s=%s" % (name, value)]
        return flags

    def train(self, ranks, run, seconds=240, code=OK, **options):
        result = pesc(ranks, "train", *self.experiment(run, **options), seconds=seconds)
        self.assertEqual(result.code, code, str(result))
        return result

    def assert_curves_agree(self, expected, got, bound, what, fields=CURVE):
        worst = largest_difference(expected, got, fields)
        print("%-34s %s" % (what, "  ".join("%s %.1e (step %d)" % (f, e, s) for f, (e, s) in worst.items())),
              flush=True)
        for field, (error, step) in worst.items():
            self.assertLessEqual(error, bound, "%s: %s of step %d" % (what, field, step))

    def measure(self, fault, detected=None, recovered=None, lost=None):
        """One try of a fault, for its line of the matrix."""
        MEASURES.append({"test": self.id().rpartition(".")[2], "fault": fault, "detected": detected,
                         "recovered": recovered, "lost": lost})

    def measure_launches(self, fault, run):
        """The same of every launch of a run that failed."""
        for detected, recovered, lost in failures(self.path(run)):
            self.measure(fault, detected, recovered, lost)

    def assert_refused(self, result, code, *words):
        """One clear error, from one rank, with the exit code of its kind."""
        self.assertEqual(result.code, code, str(result))
        self.assertEqual(len(result.complaints), 1, str(result))
        for word in words:
            self.assertIn(word, result.message, str(result))


def ordinary_signals():
    """What a shell has this process ignore (SIGINT of a job in the background) or has blocked, all that is started here would
    inherit. SIGHUP stays as it is: under nohup it is ignored on purpose."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


MEASURES = []


def result_file(name):
    """Where main() of NAME_test.py leaves its outcome, for the fault matrix: {"ran": 4, "passed": true, "skipped": 0,
    "measures": [{"test", "fault", "detected", "recovered", "lost"}]}."""
    return os.path.join(os.path.dirname(PESC), "results", name + ".json")


def main():
    """Runs the tests of the script."""
    ordinary_signals()
    os.chdir(SOURCE)  # paths in experiments are relative
    path = result_file(os.path.basename(sys.argv[0]).replace("_test.py", ""))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):
        os.remove(path)
    whole = len(sys.argv) == 1 and not SAMPLE
    if SAMPLE and len(sys.argv) == 1:
        for name, case in vars(sys.modules["__main__"]).items():
            if isinstance(case, type) and issubclass(case, EndToEnd):
                sys.argv += ["%s.%s" % (name, test) for test in case.sample]
    outcome = unittest.main(verbosity=2, exit=False).result
    # Where a whole script skips itself (setUpModule), no test ran and nothing failed.
    passed = outcome.wasSuccessful() and (outcome.testsRun > 0 or bool(outcome.skipped))
    if whole:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"ran": outcome.testsRun, "passed": passed, "skipped": len(outcome.skipped), "measures": MEASURES}, file,
                      indent=1)
    sys.exit(NOT_TESTED if passed and outcome.skipped else not passed)
