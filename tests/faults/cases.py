"""The other lines of the matrix: what is tried here, and what a test elsewhere shows."""

import json
import os
import re
import shutil
import signal
import statistics
import time

import gpu
import hostile
import layouts
import rig as tools
import saves
from rig import EVERY, RANKS, STEPS, CannotRun, gtest, harness, heart, line

NEWEST = STEPS // EVERY * EVERY  # of the checkpoints that a copy of the plain run has left


ran = set()  # cases of launch_test.py


def half_done(rig, run, steps=None):
    """A copy of the plain run without its last checkpoint: the newest is of step 20, before it 15."""
    source = rig.path("kept")
    if not os.path.exists(source):
        rig.launch("kept", checkpoint__save_total_limit=10)
    shutil.copytree(source, rig.path(run))
    for name in os.listdir(rig.path(run)):
        if name.startswith("step-") and int(name[5:]) not in (steps or (NEWEST - EVERY, NEWEST)):
            shutil.rmtree(rig.path(run, name))
    return rig.path(run)


def of_launch_test(rig, row, *names, tries=None):
    """Cases of launch_test.py, here and now. Each takes its own run directories; every launch in them that failed is a
    measure, and what the case measured itself. Each measure, or a case without any, is one try unless `tries` says how often
    the fault of this line was caused."""
    for name in names:
        before = set(os.listdir(rig.folder))
        type(rig)(name).debug()
        ran.add(name)
        measures = [(m["detected"], m["recovered"], m["lost"]) for m in harness.MEASURES if m["test"] == name]
        for run in sorted(set(os.listdir(rig.folder)) - before):
            if os.path.exists(rig.path(run, "launches.jsonl")):
                measures += harness.failures(rig.path(run))
        for measure in measures:
            row.add(*measure, times=1 if tries is None else 0)
        if not measures and tries is None:
            row.add()
    row.tried += tries or 0
    row.how += " (launch_test.py: %s)" % ", ".join(names)


@line("hang", "SIGSTOP of a rank: at a step and in set-up from outside, in a checkpoint by itself",
      "O1 O4; noticed < 10 s, < 7 s with a limit of 5 s (set-up, checkpoint)")
def hang(rig, row, log):
    cases = (("step", 8, 10, {}, None), ("setup", 5, 7, {"recovery__setup_limit_s": 5}, None),
             ("checkpoint", 5, 7, {"recovery__checkpoint_limit_s": 5}, "step=5 rank=1 section=checkpoint action=stop"))
    for section, limit, bound, fields, fault in cases:
        run = "hang-" + section
        out = rig.supervise(run, fault, **fields)
        if fault:
            pid, step = rig.wait_until_stopped(run, 1), EVERY
            at = time.monotonic()
        else:
            found = rig.wait_for_heart(run, 60, lambda h: h.section == section and
                                       (section == "setup" or h.step >= EVERY + 2), (1,))
            pid, step, at = found.pid, found.step, time.monotonic()
            os.kill(pid, signal.SIGSTOP)
        detected, recovered, resumed, _ = rig.watch_recovery(out, run, at, 1, 0, bound=25)
        assert detected <= bound, "%s: noticed after %.1f s" % (section, detected)
        assert out.finish() == 0, out.text()
        assert re.search(r"launch 1 hangs: no progress in section %s after step \d+ for %d s; rank 1 \(pid %d\) is stopped" % (
            section, limit, pid), out.text()), out.text()
        first = harness.read_jsonl(rig.path(run, "launches.jsonl"))[0]
        assert first["exit_code"] == 76, first
        rig.assert_as_if_nothing_happened(run)
        rig.assert_nothing_left(run)
        row.add(detected, recovered, max(0, step - resumed))
    of_launch_test(rig, row, "test_without_a_supervisor_a_collective_ends_the_wait")


@line("rank dies at a chosen moment", "SIGKILL in set-up, before, in and after a save, in the last step; an exception",
      "O1 O3 O4, restart < 15 s")
def chosen_moments(rig, row, log):
    of_launch_test(rig, row, "test_a_killed_rank", "test_a_rank_that_throws_says_why")


@line("shard truncated, flipped bit, missing; manifest damaged", "each region of the newest checkpoint edited",
      "O1 O2 O3; previous taken and said so")
def damage(rig, row, log):
    def flip(path, offset):
        with open(path, "r+b") as file:
            file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 4]))

    shard = "shard-00001.safetensors"
    edits = [("header", shard, lambda p: flip(p, 40)), ("data", shard, lambda p: flip(p, -1000)),
             ("truncated", shard, lambda p: os.truncate(p, os.path.getsize(p) // 2)), ("missing", shard, os.remove),
             ("manifest", "manifest.pb", lambda p: flip(p, 200)), ("no-manifest", "manifest.pb", os.remove)]
    for what, name, edit in edits:
        run = "damage-" + what
        folder = half_done(rig, run)
        edit(os.path.join(folder, "step-%d" % NEWEST, name))
        selected = rig.selected(run)
        assert selected == NEWEST - EVERY, selected
        began = time.monotonic()
        result = rig.launch(run, **{"checkpoint__save_total_limit": 10})
        assert re.search("checkpoint passed over: .*step-%d.*%s" % (NEWEST, name), result.err), str(result)
        assert "at step %d" % selected in result.err, str(result)
        rig.assert_as_if_nothing_happened(run)
        row.add(recovered=time.monotonic() - began, lost=EVERY)
    passed = gtest("runtime_test", "DamageTest.*")
    row.notes.append("every byte of the manifest, every 61st of the shards: %d cases of damage_test.cc" % passed)


@line("leftover `.tmp` directories", "two and an `.old`, made before the launch; one has a good checkpoint's files", "O1 O2 O4")
def leftovers(rig, row, log):
    run = "leftovers"
    folder = half_done(rig, run)
    os.makedirs(os.path.join(folder, "step-3.tmp.1"))
    shutil.copytree(os.path.join(folder, "step-%d" % NEWEST), os.path.join(folder, "step-99.tmp.1"))
    os.rename(os.path.join(folder, "step-%d" % (NEWEST - EVERY)), os.path.join(folder, "step-98.old.1"))
    assert rig.selected(run) == NEWEST
    result = rig.launch(run, **{"checkpoint__save_total_limit": 10})
    assert "at step %d" % NEWEST in result.err, str(result)
    left = [n for n in os.listdir(folder) if "." in n and n.startswith("step-")]
    assert not left, left
    rig.assert_as_if_nothing_happened(run)
    row.add(lost=0)


@line("two supervisors on one run directory", "both started; a stale launch id tries to commit",
      "second ends < 2 s and names the holder")
def two_supervisors(rig, row, log):
    of_launch_test(rig, row, "test_a_second_supervisor")
    row.add(times=gtest("runtime_test", "CrashTest.AStaleLaunchCannotCommit") +
            gtest("runtime_test", "RunLockTest.TheSecondHolderIsRefusedAndNamesTheFirst:"
                  "RunLockTest.AnOlderLaunchSeesThatItIsOver"))
    row.how += "; crash_test.cc, run_lock_test.cc: one and two cases"


@line("mpirun killed; supervisor killed; mpirun told to end", "SIGKILL; SIGTERM to mpirun itself, which "
      "`pesc launch` shields it from (scancel sends it to all), then SIGINT", "O1 O2 O4")
def mpirun_ends(rig, row, log):
    of_launch_test(rig, row, "test_mpirun_killed", "test_supervisor_killed")
    run = "mpirun-told"
    # A rank that stands still keeps the run from ending before the signals.
    out = rig.supervise(run, fault="step=%d rank=1 action=stop" % (EVERY + 4), recovery__step_limit_s=100)
    found = rig.wait_for_heart(run, 60, lambda h: h.section == "step" and h.step >= EVERY + 3, (0,))
    (mpirun,) = [pid for pid, argv in tools.launch_test.processes(rig.path(run)).items() if argv[0] == b"mpirun"]
    os.kill(mpirun, signal.SIGTERM)
    time.sleep(1)
    assert mpirun in tools.launch_test.processes(rig.path(run)) and out.process.poll() is None, out.text()
    at = time.monotonic()
    os.kill(mpirun, signal.SIGINT)
    detected, recovered, resumed, _ = rig.watch_recovery(out, run, at, 1, 0)
    assert out.finish() == 0, out.text()
    rig.assert_as_if_nothing_happened(run)
    rig.assert_nothing_left(run)
    row.add(detected, recovered, max(0, found.step - resumed))


@line("preemption: SIGTERM to the supervisor", "while training", "O1 O4, committed < 30 s, exit 75")
def preemption(rig, row, log):
    run = "preempt-now"
    out = rig.supervise(run)
    rig.wait_for_heart(run, 60, lambda h: h.section == "step" and h.step >= EVERY + 2, (0,))
    at = time.monotonic()
    out.process.send_signal(signal.SIGTERM)
    assert out.finish() == harness.PREEMPTED, out.text()
    took = time.monotonic() - at
    assert took < 30 and not any(".tmp." in n for n in os.listdir(rig.path(run)))
    done, began = len(harness.curve(rig.path(run))), time.monotonic()
    assert rig.selected(run) == done < STEPS, done
    rig.launch(run)
    row.add(took, time.monotonic() - began, 0)
    rig.assert_as_if_nothing_happened(run)
    rig.assert_nothing_left(run)
    of_launch_test(rig, row, "test_preemption", "test_preemption_without_the_help_of_mpirun", "test_the_terminal_goes_away")


@line("told to stop, and it cannot save", "SIGTERM to the supervisor; then a rank throws in the save or is killed in it, a second "
      "SIGTERM comes, or a rank stands still until recovery.stop_limit_s is over",
      "O1 O2 O4, the code says so (70, 137, 130, 76) and is not 75")
def stopped_without_saving(rig, row, log):
    of_launch_test(rig, row, "test_the_save_fails_when_told_to_stop", "test_a_second_signal_ends_the_ranks",
                   "test_ranks_that_do_not_stop_are_ended")


@line("NaN or Inf in loss or gradient", "each of the four injected at (step, rank), once and again and again",
      "O1; no rank steps; retried once, then skipped or ended; a NaN is never saved")
def not_a_number(rig, row, log):
    of_launch_test(rig, row, "test_not_a_number_once", "test_not_a_number_again_is_skipped",
                   "test_not_a_number_again_ends_the_run")


@line("crash loop", "SIGKILL in every set-up; a damaged checkpoint of a high step is no progress, a new one of a lower is",
      "pauses of 1, 2, 4 s or as the limit says; gives up after so many restarts without a new checkpoint as allowed")
def crash_loop(rig, row, log):
    of_launch_test(rig, row, "test_a_crash_loop_ends", "test_pauses_have_a_limit", tries=2)
    progress_beside_damage(rig, row)


@line("what does not go away by itself", "a layout that the model does not have, too few slots in the hostfile, six mistakes on "
      "the command line", "O3 64, never started again")
def not_again(rig, row, log):
    of_launch_test(rig, row, "test_what_does_not_go_away_is_not_tried_again", "test_too_few_slots", "test_usage", tries=8)


@line("surroundings of a launch", "hostfiles that mpirun would misunderstand or refuse, variables of Slurm left over, a launch "
      "inside mpirun or a launch, copies of which MPI knows nothing, Open MPI 5 and another MPI, a TMPDIR that is not there",
      "O3 64 or 74, never started again; what can be understood trains; O4")
def surroundings(rig, row, log):
    of_launch_test(rig, row, "test_a_hostfile_is_understood_or_refused", "test_what_mpirun_refuses_is_not_repeated",
                   "test_variables_of_slurm_that_are_left_over", "test_a_launch_inside_mpirun_or_a_launch",
                   "test_copies_that_are_no_ranks", "test_another_mpi", "test_the_folder_for_session_files", tries=13)


@line("descriptors and cores of the start", "standard streams closed, the reader of a pipe gone after a line, a start on one core",
      "every step is made, no file of the run is written into; ranks stay on that core")
def descriptors(rig, row, log):
    of_launch_test(rig, row, "test_closed_descriptors_do_not_become_files", "test_a_reader_that_goes_away_costs_no_step", tries=3)
    if len(os.sched_getaffinity(0)) < 2:
        ran.add("test_ranks_stay_on_the_cores_of_the_start")  # this line says why it is not
        raise CannotRun("one core: a start on fewer is none")
    of_launch_test(rig, row, "test_ranks_stay_on_the_cores_of_the_start")


def progress_beside_damage(rig, row):
    """One restart without a new checkpoint is allowed; two launches die, after new ones below a damaged step 20."""
    run = "progress"
    fields = {"recovery__max_restarts": 1, "checkpoint__save_steps": 1, "checkpoint__async_save": "false",
              "recovery__step_limit_s": 60}
    folder = half_done(rig, run)
    shard = os.path.join(folder, "step-%d" % NEWEST, "shard-00000.safetensors")
    with open(shard, "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    out = rig.supervise(run, "step=17 rank=1 action=stop always, step=19 rank=1 action=stop always", **fields)

    def stopped(step, not_pid):
        return rig.wait_for_heart(run, 60, lambda h: h.step == step and h.pid != not_pid and tools.is_stopped(h.pid), (1,)).pid

    first = stopped(16, 0)
    os.kill(first, signal.SIGKILL)  # 16 is saved
    second = stopped(16, first)
    os.kill(second, signal.SIGCONT)
    os.kill(stopped(18, first), signal.SIGKILL)  # 18 is saved
    os.kill(stopped(18, second), signal.SIGCONT)
    assert out.finish() == 0, out.text()
    assert "giving up" not in out.text() and "checkpoint passed over" in out.text(), out.text()
    rig.assert_as_if_nothing_happened(run)
    failures = harness.failures(folder)
    assert len(failures) == 2, failures
    row.tried += 1
    for measure in failures:
        row.add(*measure, times=0)


GOODPUT_STEPS = 140
REAL_STEP, REAL_BETWEEN = 0.85, 30  # seconds: a step of the 7B shape on one H200 (the bar), and between two faults


def rows_of_a_step(rig):
    """So many that steps are long enough to hit on a quick machine, and far shorter than real ones on a busy one."""
    for rows in (64, 16):
        run = "goodput-%d" % rows
        rig.launch(run, train__max_steps=16, train__global_batch_size=rows)
        if statistics.median(r["seconds"] for r in harness.curve(rig.path(run))) < REAL_STEP / 3.5:
            break
    return rows


@line("a fault every 30 s of simulated time", "`kill -9` of a rank whenever a launch has trained for as many steps as one "
      "of 0.85 s each does in 30 s; only the steps are shorter, detection and restarts are real", "O1 O4, it finishes")
def faults_all_the_time(rig, row, log):
    rows = rows_of_a_step(rig)
    fields = {"train__max_steps": GOODPUT_STEPS, "checkpoint__save_steps": 8, "train__global_batch_size": rows}
    plain = rig.launch("goodput-plain", **fields)
    assert plain.code == 0
    expected = rig.weights("goodput-plain", GOODPUT_STEPS)
    step = statistics.median(r["seconds"] for r in harness.curve(rig.path("goodput-plain")))
    scale, between = REAL_STEP / step, round(REAL_BETWEEN / REAL_STEP)
    assert 1 <= scale <= 100, "a step of %.3f s stands for none of %.2f s" % (step, REAL_STEP)  # shorter, or it is not simulated
    out, begin, launch, waited, trained = rig.supervise("goodput", **fields), 0, 1, [], []
    run = rig.path("goodput")
    while True:
        first = rig.wait_for_heart("goodput", 60, lambda h: h.launch == launch and h.section != "setup", range(RANKS))
        trains_since = time.monotonic()
        if first.step + between > GOODPUT_STEPS - 5:
            break
        found = rig.wait_for_heart("goodput", 90, lambda h: h.launch == launch and h.step >= first.step + between,
                                   (launch % RANKS,))
        at = time.monotonic()
        os.kill(found.pid, signal.SIGKILL)
        waited.append(at - trains_since)
        trained.append(found.step - first.step)
        detected, recovered, resumed, begin = rig.watch_recovery(out, "goodput", at, launch, begin)
        row.add(detected, recovered, max(0, found.step - resumed))
        launch += 1
    assert out.finish() == 0, out.text()[-4000:]
    assert row.tried >= 3, "the run was over after %d faults" % row.tried
    # The time between two faults is counted in steps: what one takes in seconds depends on what runs beside it.
    assert all(between <= steps <= between + 5 for steps in trained), (between, trained)
    assert rig.weights("goodput", GOODPUT_STEPS) == expected
    rig.assert_nothing_left("goodput")
    last = harness.read_jsonl(os.path.join(run, "launches.jsonl"))[-1]
    assert last["restarts"] == row.tried == len(last["restart_seconds"]), last
    for told, seen in zip(last["restart_seconds"], row.recovered):
        assert abs(told - seen) < 1.5, "the supervisor says %.1f s, we saw %.1f s" % (told, seen)
    assert 0 < last["goodput"] < 1 and "goodput %.2f" % last["goodput"] in out.text(), last
    row.notes.append("time scale %.1f: a step of %.0f ms stands for one of 850 ms; %d steps between two faults took %s s; goodput "
                     "%.2f with %d restarts; restart seconds %s" % (
                         scale, 1e3 * step, between, ", ".join("%.1f" % s for s in waited), last["goodput"],
                         last["restarts"], ", ".join("%.1f" % s for s in last["restart_seconds"])))


@line("memory across a save", "peak of resident memory with and without saves, 100 MB of trained state",
      "grows by no more than the announced snapshot + 10 %")
def memory(rig, row, log):
    peak = {}
    for run, every in (("memory-none", 0), ("memory-saves", 2)):
        flags = rig.experiment(run, tp=1, ep=1, train__max_steps=8, train__global_batch_size=4,
                               moe__adapter_dim=1024, checkpoint__save_steps=every, recovery__setup_limit_s=100)
        peak[run] = peak_until_step(rig, run, flags, 8)
        folder = rig.path(run, "step-8")
    announced = sum(os.path.getsize(os.path.join(folder, n)) for n in os.listdir(folder))
    grown = peak["memory-saves"] - peak["memory-none"]
    assert announced > 90e6, announced
    assert grown < 1.1 * announced, "%.1f MB for a snapshot of %.1f MB" % (grown / 1e6, announced / 1e6)
    assert grown > 0.5 * announced, "%.1f MB: was the snapshot seen at all?" % (grown / 1e6)
    saved = [r["saved_step"] for r in harness.read_jsonl(rig.path("memory-saves", "metrics.jsonl")) if "saved_step" in r]
    row.add(times=sum(step < 8 for step in saved))  # the peak was looked for until the last step began
    row.notes.append("%.1f MB more for a snapshot of %.1f MB" % (grown / 1e6, announced / 1e6))


def peak_until_step(rig, run, flags, steps):
    """Largest resident memory in bytes of one rank until its last step begins; the last save comes after that."""
    process = harness.start(0, "train", *flags)
    largest = 0
    while process.poll() is None:
        found = heart(rig.path(run), 0)
        if found is not None and found.step >= steps:
            break
        try:
            with open("/proc/%d/status" % process.pid) as status:
                largest = max(largest, *(1024 * int(n) for n in re.findall(r"VmRSS:\s+(\d+)", status.read())))
        except (OSError, TypeError):
            pass
        time.sleep(0.002)
    result = harness.finish(process, 240)
    assert result.code == 0, str(result)
    return largest


def elsewhere(name, fault, how, test, oracles):
    """A line that another test of ctest shows: its outcome is what that test left in this build directory."""
    script = test.split(".")[1]

    @line(fault, "%s (%s_test.py, ctest %s)" % (how, script, test), oracles)
    def case(rig, row, log):
        try:
            with open(harness.result_file(script), encoding="utf-8") as file:
                outcome = json.load(file)
        except FileNotFoundError as error:
            raise CannotRun("%s has left no outcome in this build directory; run it first" % test) from error
        newer = os.path.getmtime(harness.result_file(script)) >= os.path.getmtime(harness.PESC)
        assert newer, "%s ran with an older pesc" % test
        assert outcome["passed"] and outcome["ran"] > 0 and not outcome["skipped"], "%s: %s" % (test, outcome)
        measures = [m for m in outcome["measures"] if m["fault"] == fault]
        assert measures, "%s has measured nothing of this fault" % test
        for m in measures:
            row.add(m["detected"], m["recovered"], m["lost"])
    case.__name__ = name
    return case


def under_slurm(name, fault, how, oracles):
    return elsewhere(name, fault, how + "; real slurmctld and slurmd", "end_to_end.slurm", oracles)


CASES = [
    saves.kill_at_every_call, saves.kill_one_of_two_ranks, chosen_moments, hang, saves.full_disk, saves.disk_errors,
    saves.lost_bytes, saves.read_errors, damage, leftovers, two_supervisors,
    elsewhere("cut_off", "node cut off", "network namespaces", "end_to_end.hosts", "O1 on the same layout, noticed < 10 s"),
    elsewhere("mpirun_of_two_hosts", "mpirun of two hosts killed", "SIGKILL", "end_to_end.hosts", "O1 O4 on both hosts"),
    elsewhere("failing_host", "a host on which ranks die in every launch", "SIGKILL of one rank, always", "end_to_end.hosts",
              "left out after 2 launches in a row"),
    mpirun_ends, preemption, stopped_without_saving,
    under_slurm("slurm_limit", "Slurm: time limit", "--time=1, --signal", "O1, one writer, 75, requeued"),
    under_slurm("slurm_preemption", "Slurm: preemption", "a job of an urgent partition", "O1, one writer, 75, started again"),
    under_slurm("slurm_scancel", "Slurm: scancel", "while training, and in a slow save",
                "O1 after the next sbatch, committed < 30 s, 75"),
    under_slurm("slurm_node", "Slurm: node death", "SIGKILL of all that runs on it: the node with the batch script, and another",
                "O1, one writer, requeued"),
    layouts.other_world_size, layouts.chain, not_a_number, hostile.hostile_rows, hostile.hostile_safetensors,
    hostile.hostile_folder, hostile.other_rows, crash_loop, not_again,
    surroundings, descriptors,
    faults_all_the_time, memory, gpu.gpu]
