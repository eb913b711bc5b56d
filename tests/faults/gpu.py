"""A rank on a GPU dies, hangs, is told to stop: two ranks that share one, under `pesc launch`.

    tests/faults/run.py --only gpu      # with PESC=$PWD/build/gpu/pesc; tests/gpu/device.sh builds it and runs this; a minute

share_gpu lets two ranks use one GPU (NCCL then goes over sockets); without gemm_autotune every run takes the same kernels,
so that runs repeat bit for bit.
"""

import os
import shutil
import signal
import subprocess
import time

from rig import EVERY, STEPS, CannotRun, harness, launch_test, line

FIELDS = {"parallel__device": "CUDA", "debug__share_gpu": "true", "parallel__gemm_autotune": "false"}


def memory_in_use():
    """MiB of each GPU."""
    result = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], check=True, text=True,
                            capture_output=True)
    return [int(n) for n in result.stdout.split()]


@line("rank on a GPU killed, stopped, told to stop", "two ranks on one GPU over NCCL: SIGKILL, SIGSTOP in a step, SIGTERM to "
      "the supervisor", "O1 O4; hang noticed < 10 s; exit 75; nothing left in the GPU's memory")
def gpu(rig, row, log):
    if shutil.which("nvidia-smi") is None:
        raise CannotRun("no GPU on this machine (nvidia-smi is not there)")
    before, began = memory_in_use(), time.monotonic()

    def passed(what):
        log("  gpu: %s after %.1f s" % (what, time.monotonic() - began))

    def stopped(run, out):
        try:
            return rig.wait_until_stopped(run, 1)
        except AssertionError as error:
            raise AssertionError("%s\n%s" % (error, out.text()[-4000:])) from error

    plain = rig.finish(rig.start("gpu-plain", **FIELDS))
    if "built without CUDA" in plain.err:
        raise CannotRun("%s was built without CUDA" % harness.PESC)
    assert plain.code == 0, str(plain)
    passed("the run without faults")
    expected = rig.weights("gpu-plain")

    def assert_as_ever(run):
        assert rig.weights(run) == expected, run
        harness.curve(rig.path(run))  # every step once
        rig.assert_nothing_left(run)

    for what, number, bound in (("kill", signal.SIGKILL, 5), ("hang", signal.SIGSTOP, 10)):
        run = "gpu-" + what
        # The rank stands still in step 12, behind the save of step 10, until the fault comes from outside.
        out = rig.supervise(run, "step=%d rank=1 action=stop" % (2 * EVERY + 2), **FIELDS)
        pid = stopped(run, out)
        at = time.monotonic()
        os.kill(pid, number)
        detected, recovered, resumed, _ = rig.watch_recovery(out, run, at, 1, 0, bound=40)
        assert detected <= bound, "%s: noticed after %.1f s" % (what, detected)
        assert out.finish() == 0, out.text()
        assert_as_ever(run)
        passed(what)
        row.add(detected, recovered, max(0, 2 * EVERY + 1 - resumed))  # told to end, the ranks may still save

    run = "gpu-preempt"
    out = rig.supervise(run, "step=%d rank=1 action=stop" % (2 * EVERY + 2), **FIELDS)
    pid = stopped(run, out)
    at = time.monotonic()
    masks = "; ".join("%s: %s" % (who, ", ".join("%s %s" % (name, launch_test.status(of, name)) for name in (
        "Threads", "SigBlk", "SigIgn", "SigCgt"))) for who, of in (("this test", os.getpid()), ("supervisor", out.process.pid),
                                                                  ("rank", pid)))
    log("  signals: " + masks)
    out.process.send_signal(signal.SIGTERM)
    # It goes on when the signal waits for it: steps are so quick that a rank told later would come to the end first.
    told = rig.is_told(pid)
    rig.go_on(pid)
    code = out.finish()
    assert told, "no SIGUSR1 has come to the rank within 5 s; exit %d; %s\n%s" % (code, masks, out.text())
    assert code == harness.PREEMPTED, "told, but exit %d; %s\n%s" % (code, masks, out.text())
    took, restarted = time.monotonic() - at, time.monotonic()
    assert took < 30 and rig.selected(run) in (2 * EVERY + 2, 2 * EVERY + 3), "%.1f s, step %d" % (took, rig.selected(run))
    rig.launch(run, **FIELDS)
    assert_as_ever(run)
    row.add(took, time.monotonic() - restarted, 0)
    passed("preempted and gone on")
    until = time.monotonic() + 5
    while any(now > then + 50 for now, then in zip(memory_in_use(), before)):
        assert time.monotonic() < until, "GPU memory in use before: %s, after: %s MiB" % (before, memory_in_use())
        time.sleep(0.2)
