"""Faults inside a save, by strace's fault injection on one rank and by a small real file system."""

import concurrent.futures
import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import time

from rig import EVERY, STEPS, CannotRun, harness, heart, line

CLONE_NEWNS = 0x20000
FULL_STEPS, BEFORE = 5, 3  # of the tiny run whose fourth save is killed
SYSCALLS = "write,fsync,rename,mkdir,unlink,rmdir"


def strace(paths, injections, out, *before):
    command = ["strace", "-f", "-ttt", "-y", "-o", out]
    for path in paths:
        command += ["-P", path]
    for injection in injections:
        command += ["-e", "inject=" + injection]
    return command + list(before)


def run_command(command, seconds=120):
    process = subprocess.Popen(command, cwd=harness.SOURCE, env=harness.environment(), text=True, errors="replace",
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                               start_new_session=True)
    return harness.finish(process, seconds)


# --- SIGKILL at every K-th call of a save


def tiny(rig, run, **fields):
    """One rank, every dense parameter of a very small Llama: a save of some forty calls, a run of half a second."""
    settings = {"train__mode": "FULL", "model__tokenizer": harness.BASE, "model__shape__vocab_size": 1024,
                "model__shape__hidden_size": 16, "model__shape__intermediate_size": 16, "model__shape__num_hidden_layers": 1, "model__shape__num_attention_heads": 2,
                "train__max_steps": FULL_STEPS, "train__global_batch_size": 8,
                "checkpoint__save_steps": 1, "checkpoint__save_total_limit": 2}
    settings.update(fields)
    return [harness.PESC, "train", *rig.experiment(run, **settings)]


def calls_of_the_save(trace, run_dir):
    """[(system call, path, number of that call on that path)] of the fourth save, in order."""
    counts, calls, began = {}, [], False
    with open(trace, errors="replace") as lines:
        for line in lines:
            found = re.match(r"(\d+) +\S+ (\w+)\((?:\d+<([^>]+)>|\"([^\"]+)\")", line)
            if not found:
                continue
            path = found.group(3) or found.group(4)
            name = path[len(run_dir) + 1:].split("/")[0] if path.startswith(run_dir + "/") else ""
            began = began or name.startswith("step-4.tmp")
            if name.startswith("step-5.tmp"):
                break
            of_the_directory = began and path == run_dir and found.group(2) == "fsync"
            if not of_the_directory and not re.match(r"step-(4\.tmp|1$|2$|2\.old)", name):
                continue
            key = found.group(1), found.group(2), path
            counts[key] = counts.get(key, 0) + 1
            call = found.group(2), os.path.relpath(path, run_dir), counts[key]
            if call not in calls:
                calls.append(call)
    return calls


@line("SIGKILL inside a save, at every K-th write, fsync, rename", "strace, before the call; one rank, every call "
      "of one save and its pruning", "O1 O2 at every K")
def kill_at_every_call(rig, row, log):
    began = rig.path("tiny-began.trace")
    straight = run_command(strace([], [], began, "-e", "trace=fsync,mkdir,rename") + tiny(rig, "tiny",
                                                                                          checkpoint__save_total_limit=10))
    assert straight.code == 0, str(straight)
    with open(began, errors="replace") as lines:  # the run directory itself stands before anything is committed in it
        calls = lines.read()
    made, synced = calls.index("mkdir(\"%s\"" % rig.path("tiny")), calls.index("<%s>)" % rig.folder)
    assert made < synced < calls.index("rename("), calls
    expected = rig.weights("tiny", FULL_STEPS)
    prepared = rig.path("tiny-3")
    shutil.copytree(rig.path("tiny"), prepared)
    for step in (1, 4, 5):
        shutil.rmtree(os.path.join(prepared, "step-%d" % step))
    counted = rig.path("tiny-count")
    shutil.copytree(prepared, counted)
    trace = rig.path("tiny.trace")
    result = run_command(strace([], [], trace, "-e", "trace=" + SYSCALLS) + tiny(rig, "tiny-count"))
    assert result.code == 0, str(result)
    calls = calls_of_the_save(trace, counted)
    kinds = [c[0] for c in calls]
    assert kinds.count("write") > 20 and "rename" in kinds and "fsync" in kinds and "unlink" in kinds, calls
    assert [c for c in calls if c[1] == "."] == [("fsync", ".", 1), ("fsync", ".", 2)], calls  # after commit, after pruning

    def one(k):
        syscall, path, number = calls[k]
        run = "tiny-kill-%d" % k
        shutil.copytree(prepared, rig.path(run))
        killed = run_command(strace([rig.path(run, path)], ["%s:signal=SIGKILL:when=%d" % (syscall, number)],
                                    rig.path("tiny-%d.trace" % k), "-e", "trace=" + syscall) + tiny(rig, run))
        assert killed.code in (137, -9), "%s: %s" % (calls[k], killed)
        committed = os.path.exists(rig.path(run, "step-4"))
        selected = rig.selected(run)
        assert selected == (4 if committed else BEFORE), (calls[k], selected)
        began = time.monotonic()
        resumed = run_command(tiny(rig, run))
        assert resumed.code == 0 and "resumed from %s at step %d" % (rig.path(run, "step-%d" % selected), selected) in \
            resumed.err, "%s: %s" % (calls[k], resumed)
        assert rig.weights(run, FULL_STEPS) == expected, calls[k]
        left = [n for n in os.listdir(rig.path(run)) if ".tmp." in n or ".old." in n]
        assert not left, (calls[k], left)
        shutil.rmtree(rig.path(run))
        return time.monotonic() - began, 4 - selected

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for seconds, lost in pool.map(one, range(len(calls))):
            row.add(recovered=seconds, lost=lost)
    row.notes.append("; ".join("%d %s" % (kinds.count(kind), kind) for kind in dict.fromkeys(kinds)))
    log("  calls of the save: " + row.notes[0])


@line("SIGKILL inside a save of two ranks", "strace on one of them: rank 1's shard, rank 0's manifest, syncs, rename",
      "O1 O2; the others end with it")
def kill_one_of_two_ranks(rig, row, log):
    step = 2 * EVERY
    tmp = "step-%d.tmp.1" % step
    cases = [(1, "write", 3, tmp + "/shard-00001.safetensors"), (1, "fsync", 1, tmp + "/shard-00001.safetensors"),
             (0, "write", 1, tmp + "/manifest.pb"), (0, "fsync", 1, tmp), (0, "rename", 1, tmp), (0, "rename", 1, "step-5")]
    for i, (rank, syscall, number, path) in enumerate(cases):
        run, last = "two-ranks-%d" % i, path == "step-5"
        at = 3 * EVERY if last else step  # the third save prunes the first checkpoint, after its own commit
        command = strace([rig.path(run, path)], ["%s:signal=SIGKILL:when=%d" % (syscall, number)],
                         rig.path("two-ranks-%d.trace" % i), "-e", "trace=" + syscall)
        killed = run_command(ranks_with(rig, run, rank, command))
        assert killed.code == 137, "%s: %s" % (cases[i], killed)
        selected = rig.selected(run)
        assert selected == (at if last else EVERY), (cases[i], selected)
        began = time.monotonic()
        again = run_command(ranks_with(rig, run, 0, []))
        assert again.code == 0 and "at step %d" % selected in again.err, "%s: %s" % (cases[i], again)
        row.add(recovered=time.monotonic() - began, lost=at - selected)
        rig.assert_as_if_nothing_happened(run)


# --- errors of the disk, on one of two ranks


def ranks_with(rig, run, rank, injected, fault=None, **fields):
    """`pesc train` on two ranks, with strace before one of them."""
    plain = [harness.PESC, "train", *rig.flags(run, fault, **fields)]
    command = list(harness.MPIRUN)
    for r in range(2):
        command += ([":"] if r else []) + ["-np", "1"] + (injected if r == rank else []) + plain
    return command


def injected_at(trace):
    """When the first fault was injected, in seconds since the epoch."""
    with open(trace, errors="replace") as lines:
        for line in lines:
            if "(INJECTED)" in line:
                return float(line.split()[1])
    raise AssertionError("nothing was injected: " + trace)


@line("I/O error while saving", "strace on one of two ranks: EIO and ENOSPC on write, EIO on fsync and rename",
      "O1 O2 O3, ends with 74 < 5 s")
def disk_errors(rig, row, log):
    tmp = "step-%d.tmp.1" % (2 * EVERY)
    cases = [(1, "write:error=EIO:when=3", tmp + "/shard-00001.safetensors", "Input/output error"),
             (1, "write:error=ENOSPC:when=1", tmp + "/shard-00001.safetensors", "No space left"),
             (0, "fsync:error=EIO:when=1", tmp + "/shard-00000.safetensors", "Input/output error"),
             (0, "fsync:error=EIO:when=1", tmp, "Input/output error"),
             (0, "write:error=ENOSPC:when=1", tmp + "/manifest.pb", "No space left"),
             (0, "rename:error=EIO:when=1", tmp, "Input/output error")]
    for i, (rank, injection, path, words) in enumerate(cases):
        run, trace = "eio-%d" % i, rig.path("eio-%d.trace" % i)
        go_on = i in (1, 4)
        command = strace([rig.path(run, path)], [injection], trace, "-e", "trace=" + injection.split(":")[0])
        result = run_command(ranks_with(rig, run, rank, command,
                                        **({"checkpoint__on_save_error": "CONTINUE"} if go_on else {})))
        ended = time.time()
        took = ended - injected_at(trace)
        assert "checkpoint of step %d not saved" % (2 * EVERY) in result.err and words in result.err, str(result)
        if go_on:
            assert result.code == 0 and "TRAINING GOES ON WITHOUT" in result.err, str(result)
            row.add()
        else:
            rig.assert_refused(result, harness.IO, path.split("/")[0], "rank %d" % rank)
            assert took < 5, "ended %.1f s after the error" % took
            assert rig.selected(run) == EVERY
            began = time.monotonic()
            again = run_command(ranks_with(rig, run, rank, []))
            assert again.code == 0 and "at step %d" % EVERY in again.err, str(again)
            row.add(detected=took, recovered=time.monotonic() - began, lost=EVERY)
        rig.assert_as_if_nothing_happened(run)
    row.notes.append("2 of %d with on_save_error: CONTINUE go on" % len(cases))


@line("short write whose rest is lost", "strace: a write to the shard claims 7 bytes and writes none, a kill later",
      "O1 O2")
def lost_bytes(rig, row, log):
    run = "short"
    shard = rig.path(run, "step-%d.tmp.1" % (2 * EVERY), "shard-00001.safetensors")
    command = strace([shard], ["write:retval=7:when=2"], rig.path("short.trace"), "-e", "trace=write")
    result = run_command(ranks_with(rig, run, 1, command, "step=%d rank=0 section=checkpoint action=kill" % (3 * EVERY)))
    assert result.code == 137, str(result)
    injected_at(rig.path("short.trace"))
    assert rig.selected(run) == EVERY
    began = time.monotonic()
    again = run_command(ranks_with(rig, run, 0, []))
    assert again.code == 0 and "checkpoint passed over" in again.err and "at step %d" % EVERY in again.err, str(again)
    row.add(recovered=time.monotonic() - began, lost=2 * EVERY)
    rig.assert_as_if_nothing_happened(run)


@line("I/O error while verifying", "strace: EIO on the reads of one rank", "O1 O2 O3; nothing passed over or renamed")
def read_errors(rig, row, log):
    run = "unreadable"
    shutil.copytree(rig.path("plain"), rig.path(run))
    shutil.rmtree(rig.path(run, "step-%d" % STEPS))
    newest = STEPS // EVERY * EVERY
    before = sorted(n for n in os.listdir(rig.path(run)) if n.startswith("step-"))
    for rank, name in ((1, "shard-00001.safetensors"), (0, "shard-00000.safetensors"), (0, "manifest.pb")):
        trace = rig.path("unreadable.trace")
        command = strace([rig.path(run, "step-%d" % newest, name)], ["pread64:error=EIO:when=1"], trace, "-e",
                         "trace=pread64")
        result = run_command(ranks_with(rig, run, rank, command))
        took = time.time() - injected_at(trace)
        rig.assert_refused(result, harness.IO, "step-%d" % newest, "Input/output error", "try again")
        assert took < 5 and sorted(n for n in os.listdir(rig.path(run)) if n.startswith("step-")) == before
        row.add(detected=took, lost=0)
    again = run_command(ranks_with(rig, run, 0, []))
    assert again.code == 0 and "at step %d" % newest in again.err, str(again)
    rig.assert_as_if_nothing_happened(run)


# --- a disk that is really full


def private_mounts():
    """From here on what this process mounts is its own and goes with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise CannotRun("unshare(CLONE_NEWNS): %s; run as root with CAP_SYS_ADMIN" % os.strerror(ctypes.get_errno()))
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRun("mount --make-rprivate /: " + done.stderr.strip())


@line("disk full", "run directory on a tmpfs with room for two and a half checkpoints beside a file that fills it",
      "O1 O2 O3, ends with 74 < 5 s")
def full_disk(rig, row, log):
    size = sum(os.path.getsize(os.path.join(rig.path("plain", "step-%d" % STEPS), n))
               for n in os.listdir(rig.path("plain", "step-%d" % STEPS)))
    for policy in ("STOP", "CONTINUE"):
        run = "full-" + policy.lower()
        os.makedirs(rig.path(run))
        options = "size=%dk" % (3.6 * size / 1024 + 256)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", rig.path(run)], capture_output=True,
                              text=True)
        if done.returncode != 0:
            raise CannotRun("mount -t tmpfs: " + done.stderr.strip())
        try:
            run_on_full_disk(rig, run, policy, size, row)
        finally:
            subprocess.run(["umount", "-l", rig.path(run)], check=False)


def fill(path):
    """Makes the file as large as its file system lets it be."""
    with open(path, "ab", buffering=0) as file:
        for block in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(block))
            except OSError as error:
                assert error.errno == errno.ENOSPC, error


def run_on_full_disk(rig, run, policy, size, row):
    open(os.path.join(rig.path(run), "pesc.lock"), "w").close()  # or it would be a stranger's directory
    filler = os.path.join(rig.path(run), "filler")
    with open(filler, "wb") as file:
        file.write(bytes(int(2.1 * size)))  # the second checkpoint does not fit
    # With CONTINUE it stays full for steps of which no record has room either, until a rank stands still.
    fault = "step=%d rank=1 action=stop" % (3 * EVERY + 3) if policy == "CONTINUE" else None
    out = rig.supervise(run, fault, checkpoint__on_save_error=policy, recovery__max_restarts=0, recovery__step_limit_s=60)
    failed, found, line = out.wait_for(r"checkpoint of step (\d+) not saved.*No space left", 60)
    assert int(found.group(1)) == 2 * EVERY, found.group(0)
    if policy == "CONTINUE":
        out.wait_for("TRAINING GOES ON WITHOUT", 5)
        fill(filler)
        out.wait_for(r"metrics\.jsonl cannot be written: No space left.*Training goes on", 10)
        stopped = rig.wait_until_stopped(run, 1)
        os.remove(filler)
        os.kill(stopped, signal.SIGCONT)
        assert out.finish() == 0, out.text()
        row.add()
    else:
        ended, _, _ = out.wait_for(r"pesc launch: launch 1 failed", 30, line)
        assert out.finish() == harness.IO, out.text()
        assert ended - failed < 5 and rig.selected(run) == EVERY
        os.remove(filler)
        began = time.monotonic()
        again = rig.launch(run)
        assert "at step %d" % EVERY in again.err, str(again)
        row.add(detected=ended - failed, recovered=time.monotonic() - began, lost=EVERY)
    rig.assert_as_if_nothing_happened(run)
    rig.assert_nothing_left(run)
