"""The other lines of the matrix: what is tried here, and what a test elsewhere shows."""

import json
import os
import re
import shutil
import signal
import time

import rig as tools
import saves
from rig import EVERY, RANKS, STEPS, CannotRun, Row, gtest, harness, heart

NEWEST = STEPS // EVERY * EVERY  # of the checkpoints that a copy of the plain run has left


ran = set()  # cases of launch_test.py


def half_done(rig, run, steps=None):
    """A copy of the plain run without its last checkpoint: the newest is of step 20, before it 15."""
    source = rig.path("kept")
    if not os.path.exists(source):
        rig.launch("kept", checkpoint__keep=10)
    shutil.copytree(source, rig.path(run))
    for name in os.listdir(rig.path(run)):
        if name.startswith("step-") and int(name[5:]) not in (steps or (NEWEST - EVERY, NEWEST)):
            shutil.rmtree(rig.path(run, name))
    return rig.path(run)


def of_launch_test(rig, row, *names):
    """Cases of launch_test.py, here and now; each takes its own run directories, whose restarts are the measure."""
    for name in names:
        before = set(os.listdir(rig.folder))
        type(rig)(name).debug()
        ran.add(name)
        for run in set(os.listdir(rig.folder)) - before:
            path = rig.path(run, "metrics.jsonl")
            last = harness.read_jsonl(path)[-1] if os.path.exists(path) else {}
            row.recovered += last.get("restart_seconds", [])
            row.tried += 1
    row.how += " (launch_test.py: %s)" % ", ".join(names)
    return row


def hang(rig, log):
    row = Row("hang", "SIGSTOP of a rank from outside, at a step and in set-up", "O1 O4, noticed after 10 s (5 s set in "
              "set-up); reported once mpirun has ended, 2 s later")
    for run, section, fields in (("hang-step", "step", {}), ("hang-setup", "setup", {"recovery__setup_limit_s": 5})):
        out = rig.supervise(run, **fields)
        found = rig.wait_for_heart(run, 60, lambda h: h.section == section and
                                   (section == "setup" or h.step >= EVERY + 2), (1,))
        at = time.monotonic()
        os.kill(found.pid, signal.SIGSTOP)
        detected, recovered, resumed, _ = rig.watch_recovery(out, run, at, 1, 0, bound=25)
        assert detected < (5 if section == "setup" else 10) + 4, detected
        assert out.finish() == 0, out.text()
        limit = 5 if section == "setup" else 10
        assert re.search(r"no progress in section %s after step \d+ for %d s; rank 1 \(pid %d\) is stopped" % (
            section, limit, found.pid), out.text()), out.text()
        first = harness.read_jsonl(rig.path(run, "launches.jsonl"))[0]
        assert first["exit_code"] == 76, first
        rig.assert_as_if_nothing_happened(run)
        rig.assert_nothing_left(run)
        row.add(detected, recovered, max(0, found.step - resumed))
    return of_launch_test(rig, row, "test_without_a_supervisor_a_collective_ends_the_wait")


def chosen_moments(rig, log):
    row = Row("rank dies at a chosen moment", "SIGKILL in set-up, before, in and after a save, in the last step; an exception",
              "O1 O3 O4, restart < 15 s")
    of_launch_test(rig, row, "test_a_killed_rank", "test_a_rank_that_throws_says_why")
    return row


def damage(rig, log):
    row = Row("shard truncated, flipped bit, missing; manifest damaged", "each region of the newest checkpoint edited",
              "O1 O2 O3; previous taken and said so")

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
        result = rig.launch(run, **{"checkpoint__keep": 10})
        assert re.search("checkpoint passed over: .*step-%d.*%s" % (NEWEST, name), result.err), str(result)
        assert "at step %d" % selected in result.err, str(result)
        rig.assert_as_if_nothing_happened(run)
        row.add(recovered=time.monotonic() - began, lost=EVERY)
    passed = gtest("runtime_checkpoint_damage_test", "*")
    row.notes.append("every byte of the manifest, every 61st of the shards: %d cases of damage_test.cc" % passed)
    return row


def leftovers(rig, log):
    row = Row("leftover `.tmp` directories", "made before the launch, one with a good checkpoint's files", "O1 O2 O4")
    run = "leftovers"
    folder = half_done(rig, run)
    os.makedirs(os.path.join(folder, "step-3.tmp.1"))
    shutil.copytree(os.path.join(folder, "step-%d" % NEWEST), os.path.join(folder, "step-99.tmp.1"))
    os.rename(os.path.join(folder, "step-%d" % (NEWEST - EVERY)), os.path.join(folder, "step-98.old.1"))
    assert rig.selected(run) == NEWEST
    result = rig.launch(run, **{"checkpoint__keep": 10})
    assert "at step %d" % NEWEST in result.err, str(result)
    left = [n for n in os.listdir(folder) if "." in n and n.startswith("step-")]
    assert not left, left
    rig.assert_as_if_nothing_happened(run)
    row.add(lost=0, times=3)
    return row


def two_supervisors(rig, log):
    row = Row("two supervisors on one run directory", "both started; a stale generation tries to commit",
              "second ends < 2 s and names the holder")
    of_launch_test(rig, row, "test_a_second_supervisor")
    row.add(times=gtest("runtime_checkpoint_crash_test", "CrashTest.AStaleLaunchCannotCommit") +
            gtest("runtime_checkpoint_run_lock_test", "*"))
    row.how += "; crash_test.cc, run_lock_test.cc"
    return row


def mpirun_ends(rig, log):
    row = Row("mpirun killed; supervisor killed; mpirun told to end", "SIGKILL; SIGTERM to mpirun itself, which "
              "`pesc launch` shields it from (scancel sends it to all), then SIGINT", "O1 O2 O4")
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
    return row


def preemption(rig, log):
    row = Row("preemption: SIGTERM to the supervisor", "while training", "O1 O4, committed < 30 s, exit 75")
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
    return of_launch_test(rig, row, "test_preemption", "test_the_save_fails_when_told_to_stop")


def other_world_size(rig, log):
    row = Row("other world size", "saved on 4 ranks (tp 2, dp 2, ep 4), resumed on 1, 2 and 8 ranks in other splits",
              "tensors equal bit for bit; loss within 1e-4, balance and gradient norm within 1e-2")
    fields = dict(train__steps=20, train__global_batch=16, train__micro_batch=16, checkpoint__every_steps=10,
                  train__log_every=1)

    def train(run, ranks, tp, ep):
        result = harness.pesc(ranks, "train", *rig.experiment(run, tp=tp, ep=ep, **fields))
        assert result.code == 0, str(result)
        return result

    train("world-4", 4, 2, 4)
    expected = harness.curve(rig.path("world-4"))
    for ranks, tp, ep in ((1, 1, 1), (2, 1, 2), (2, 2, 1), (8, 4, 8), (8, 2, 2)):
        run = "world-%d-%d-%d" % (ranks, tp, ep)
        shutil.copytree(rig.path("world-4"), rig.path(run))
        shutil.rmtree(rig.path(run, "step-20"))
        began = time.monotonic()
        assert "at step 10" in train(run, ranks, tp, ep).err
        row.add(recovered=time.monotonic() - began, lost=0)
        got = harness.curve(rig.path(run))
        rig.assert_curves_agree(expected, got, 1e-4, run, ["loss"])
        rig.assert_curves_agree(expected, got, 1e-2, run, ["balance", "grad_norm"])
        assert [r["loss"] for r in got[10:]] != [r["loss"] for r in expected[10:]], "nothing was computed again"
    # A run whose every batch is left out saves what it has loaded: the same tensors, whatever ranks loaded them.
    fields.update(train__on_nonfinite="SKIP", train__steps=20)
    for ranks, tp, ep in ((1, 1, 1), (2, 1, 2), (8, 4, 8)):
        run = "again-%d" % ranks
        shutil.copytree(rig.path("world-4"), rig.path(run))
        shutil.rmtree(rig.path(run, "step-20"))
        fields["debug__fault"] = "[rank=0 action=nan always]"
        assert "left out" in train(run, ranks, tp, ep).err
        result = harness.pesc(0, "inspect", "--checkpoint", rig.path(run, "step-20"), "--against",
                              rig.path("world-4", "step-10"))
        assert result.code == 0 and result.out.rstrip().endswith("EQUAL"), str(result)
        row.add()
    passed = gtest("runtime_checkpoint_reshard_test", "ReshardTest.*")
    row.notes.append("loaded and saved again on 1, 2 and 8 ranks: `pesc inspect --against` says EQUAL; %d cases of "
                     "reshard_test.cc" % passed)
    return row


def not_a_number(rig, log):
    row = Row("NaN or Inf in loss or gradient", "injected at (step, rank)", "O1; no rank steps; retried once, then skipped "
              "or ended; a NaN is never saved")
    return of_launch_test(rig, row, "test_not_a_number_once", "test_not_a_number_again_is_skipped",
                          "test_not_a_number_again_ends_the_run")


def crash_loop(rig, log):
    row = Row("crash loop", "SIGKILL in every set-up", "pauses of 1, 2, 4 s, gives up after 3 restarts")
    return of_launch_test(rig, row, "test_a_crash_loop_ends", "test_what_does_not_go_away_is_not_tried_again",
                          "test_too_few_slots", "test_usage")


def faults_all_the_time(rig, log):
    """Goodput with a kill every few seconds. Four times the rows, so that steps are long enough on a quick machine too."""
    row = Row("a fault every 30 s of simulated time", "`kill -9` of a rank 1.5 s after each restart, short steps",
              "O1 O4, it finishes")
    fields = {"train__steps": 120, "checkpoint__every_steps": 8, "train__global_batch": 64, "train__micro_batch": 64}
    plain = rig.launch("goodput-plain", **fields)
    assert plain.code == 0
    expected = rig.weights("goodput-plain", 120)
    out, line, launch = rig.supervise("goodput", **fields), 0, 1
    run = rig.path("goodput")
    found = rig.wait_for_heart("goodput", 60, lambda h: h.section != "setup")
    while True:
        until = time.monotonic() + 1.5
        while time.monotonic() < until and out.process.poll() is None:
            time.sleep(0.01)
        found = heart(run, launch % RANKS)
        if out.process.poll() is not None or found is None or found.launch != launch or found.step >= 115:
            break
        at = time.monotonic()
        os.kill(found.pid, signal.SIGKILL)
        detected, recovered, resumed, line = rig.watch_recovery(out, "goodput", at, launch, line)
        row.add(detected, recovered, max(0, found.step - resumed))
        launch += 1
    assert out.finish() == 0, out.text()[-4000:]
    assert row.tried >= 3, "the run was over after %d faults" % row.tried
    assert rig.weights("goodput", 120) == expected
    rig.assert_nothing_left("goodput")
    last = harness.read_jsonl(os.path.join(run, "metrics.jsonl"))[-1]
    assert last["restarts"] == row.tried == len(last["restart_seconds"]), last
    assert 0 < last["goodput"] < 1 and "goodput %.2f" % last["goodput"] in out.text(), last
    row.notes.append("goodput %.2f with %d restarts; restart seconds %s" % (
        last["goodput"], last["restarts"], ", ".join("%.1f" % s for s in last["restart_seconds"])))
    return row


def memory(rig, log):
    """Resident memory across saves, on a checkpoint large enough to see."""
    row = Row("memory across a save", "peak of resident memory with and without saves, 100 MB of trained state",
              "grows by no more than the announced snapshot + 10 %")
    peak = {}
    for run, every in (("memory-none", 0), ("memory-saves", 2)):
        flags = rig.experiment(run, tp=1, ep=1, train__steps=8, train__global_batch=4, train__micro_batch=4,
                               moe__adapter_dim=1024, checkpoint__every_steps=every, recovery__setup_limit_s=100)
        peak[run] = peak_until_step(rig, run, flags, 8)
        folder = rig.path(run, "step-8")
    announced = sum(os.path.getsize(os.path.join(folder, n)) for n in os.listdir(folder))
    grown = peak["memory-saves"] - peak["memory-none"]
    assert announced > 90e6, announced
    assert grown < 1.1 * announced, "%.1f MB for a snapshot of %.1f MB" % (grown / 1e6, announced / 1e6)
    assert grown > 0.5 * announced, "%.1f MB: was the snapshot seen at all?" % (grown / 1e6)
    row.add(times=3)
    row.notes.append("%.1f MB more for a snapshot of %.1f MB" % (grown / 1e6, announced / 1e6))
    return row


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


def hostile_rows(rig, log):
    row = Row("poisoned data line (bad UTF-8, bad JSON, NUL, 100 MB line)", "written into the training rows",
              "O3 with file and line, or skipped on every rank alike")
    with open(os.path.join(rig.data, "train.jsonl"), "rb") as file:
        good = file.readlines()
    bad = {"utf8": b'{"corpus": "caf\xe9"}', "json": b'{"corpus": "a', "nul": b'{"corpus": "a\\u0000b"}',
           "large": b'{"corpus": "' + b"x" * 100_000_000 + b'"}'}
    for name, line in bad.items():
        path = rig.path("bad-%s.jsonl" % name)
        with open(path, "wb") as file:
            file.writelines([good[0], line + b"\n", *good[1:]])
        fields = {"data.train[0].path": path, "train__steps": 3}
        began = time.monotonic()
        result = harness.pesc(RANKS, "train", *rig.flags("bad-" + name, **fields))
        rig.assert_refused(result, harness.DATA, path + ":2")
        row.add(detected=time.monotonic() - began)
        # Left out: the same rows as without the line, on both ranks, so the same weights.
        result = harness.pesc(RANKS, "train", *rig.flags("skip-" + name, data__on_bad_row="SKIP", **fields))
        assert result.code == 0, str(result)
        weights = rig.weights("skip-" + name, 3)
        assert len(weights) == RANKS and weights == rig.weights("skip-utf8", 3)
        row.add()
        os.remove(path)
    return row


def hostile_safetensors(rig, log):
    row = Row("hostile safetensors (header length 0, 2^63, beyond the file; overlap, gap, overflow, duplicate key)",
              "safetensors_test.cc; fuzz_safetensors (libFuzzer, ASan) in tests/run.sh", "O3 in 1 s, bounded memory")
    began = time.monotonic()
    row.add(times=gtest("runtime_hf_safetensors_test", "*") + gtest("runtime_checkpoint_manifest_test", "*"))
    took = time.monotonic() - began
    row.notes.append("both programs in %.1f s" % took)
    assert os.path.exists(os.path.join(harness.SOURCE, "tests", "fuzz", "fuzz_safetensors.cc"))
    return row


def hostile_folder(rig, log):
    row = Row("hostile config, tokenizer, index (`../`, absolute path, symlink out of the folder, FIFO)",
              "hf_folder_test.cc, config_json_test.cc, tokenizer_test.cc, filesystem_test.cc, bad_input_test.py",
              "O3, refused before it is opened")
    row.add(times=gtest("runtime_hf_hf_folder_test", "HfFolder.RefusesHostileIndexes:HfFolder.LinksOfTheHubCacheAreFollowed")
            + gtest("runtime_hf_config_json_test", "ConfigJson.RefusesBrokenText:ConfigJson.RefusalsNameFileAndKey")
            + gtest("runtime_data_tokenizer_test", "SentencePiece.OtherFilesAreRefused:SentencePiece.EveryTruncation*")
            + gtest("runtime_filesystem_filesystem_test", "PosixTest.LinksAndFifosAreNotOpened"))
    return row


def elsewhere(fault, how, test, oracles):
    """A line that another test of ctest shows: its outcome is what that test left in this build directory."""
    def case(rig, log):
        name = test.split(".")[1]
        row = Row(fault, "%s (%s_test.py, ctest %s)" % (how, name, test), oracles)
        try:
            with open(harness.result_file(name), encoding="utf-8") as file:
                outcome = json.load(file)
        except FileNotFoundError as error:
            raise CannotRun("%s has left no outcome in this build directory; run it first" % test) from error
        assert os.path.getmtime(harness.result_file(name)) >= os.path.getmtime(harness.PESC), "%s ran with an older pesc" % test
        assert outcome["passed"] and outcome["ran"] > 0 and not outcome["skipped"], "%s: %s" % (test, outcome)
        row.add(times=outcome["ran"])
        return row
    case.__name__ = test.split(".")[1]
    case.row = Row(fault, "%s (ctest %s)" % (how, test), oracles)
    return case


def gpu(rig, log):
    if shutil.which("nvidia-smi") is None:
        raise CannotRun("no GPU on this machine (nvidia-smi is not there)")
    raise CannotRun("no test of a lost GPU or a hung NCCL call has been written")


gpu.row = Row("GPU lost, NCCL call hangs", "", "O1 O3 O4")
CASES = [saves.kill_at_every_call, chosen_moments, hang, saves.full_disk, saves.disk_errors, saves.lost_bytes,
         saves.read_errors, damage, leftovers, two_supervisors,
         elsewhere("node cut off", "network namespaces", "end_to_end.hosts", "O1, noticed < 10 s"), mpirun_ends, preemption,
         elsewhere("Slurm: time limit, requeue, scancel, node death", "real slurmctld and slurmd", "end_to_end.slurm",
                   "O1, one writer"), other_world_size, not_a_number, hostile_rows,
         hostile_safetensors, hostile_folder, crash_loop, faults_all_the_time, memory, gpu]
