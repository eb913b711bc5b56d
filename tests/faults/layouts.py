"""A run that goes on with other ranks in other splits than those that saved it."""

import os
import shutil
import signal
import time

from rig import gtest, harness, heart, is_stopped, line

FIELDS = dict(train__max_steps=20, train__global_batch_size=16, checkpoint__save_steps=10, train__logging_steps=1)


def train(rig, run, ranks, tp, ep, **fields):
    result = harness.pesc(ranks, "train", *rig.experiment(run, tp=tp, ep=ep, **{**FIELDS, **fields}))
    assert result.code == 0, str(result)
    return result


def straight_run(rig):
    """20 steps on 4 ranks (tp 2, dp 2, ep 4), of which step 10 and 20 are saved."""
    if not os.path.exists(rig.path("world-4")):
        train(rig, "world-4", 4, 2, 4)
    return harness.curve(rig.path("world-4"))


def assert_loaded_alike(rig, source, step, ranks, tp, ep):
    """A run whose every batch is left out saves what it has loaded: the same tensors, whatever ranks loaded them."""
    run = "again-%s-%d" % (source, ranks)
    shutil.copytree(rig.path(source), rig.path(run))
    if os.path.exists(rig.path(run, "step-20")):
        shutil.rmtree(rig.path(run, "step-20"))
    again = train(rig, run, ranks, tp, ep, train__on_nonfinite="SKIP", debug__fault="[rank=0 action=nan always]")
    assert "left out" in again.err and "at step %d" % step in again.err, str(again)
    result = harness.pesc(0, "inspect", "--checkpoint", rig.path(run, "step-20"), "--against",
                          rig.path(source, "step-%d" % step))
    assert result.code == 0 and result.out.rstrip().endswith("EQUAL"), str(result)


@line("other world size", "saved on 4 ranks (tp 2, dp 2, ep 4), resumed on 1, 2 and 8 ranks in other splits",
      "tensors equal bit for bit; loss within 1e-4, aux loss and gradient norm within 1e-2")
def other_world_size(rig, row, log):
    expected = straight_run(rig)
    for ranks, tp, ep in ((1, 1, 1), (2, 1, 2), (2, 2, 1), (8, 4, 8), (8, 2, 2)):
        run = "world-%d-%d-%d" % (ranks, tp, ep)
        shutil.copytree(rig.path("world-4"), rig.path(run))
        shutil.rmtree(rig.path(run, "step-20"))
        began = time.monotonic()
        assert "at step 10" in train(rig, run, ranks, tp, ep).err
        row.add(recovered=time.monotonic() - began, lost=0)
        got = harness.curve(rig.path(run))
        rig.assert_curves_agree(expected, got, 1e-4, run, ["loss"])
        rig.assert_curves_agree(expected, got, 1e-2, run, ["aux_loss", "grad_norm"])
        assert [r["loss"] for r in got[10:]] != [r["loss"] for r in expected[10:]], "nothing was computed again"
    for ranks, tp, ep in ((1, 1, 1), (2, 1, 2), (8, 4, 8)):
        assert_loaded_alike(rig, "world-4", 10, ranks, tp, ep)
        row.add()
    passed = gtest("runtime_test", "ReshardTest.*")
    row.notes.append("loaded and saved again on 1, 2 and 8 ranks: `pesc inspect --against` says EQUAL; %d cases of "
                     "reshard_test.cc" % passed)


def stop_after(rig, run, ranks, tp, ep, last):
    """Trains until a rank stands still in the step before that one, and tells mpirun then to save and stop: the ranks agree on
    it at the beginning of the next step, which is the last."""
    fault = "[step=%d rank=0 action=stop always]" % (last - 1)
    process = harness.start(ranks, "train", *rig.experiment(run, tp=tp, ep=ep, debug__fault=fault, **FIELDS))
    until, found = time.monotonic() + 60, None
    while found is None and time.monotonic() < until:
        found = heart(rig.path(run), 0)
        if found is not None and not (found.step == last - 2 and is_stopped(found.pid)):
            found = None
        time.sleep(0.005)
    assert found is not None, str(harness.finish(process, 1))
    time.sleep(0.3)
    process.send_signal(signal.SIGUSR1)  # mpirun passes it on
    time.sleep(0.3)
    os.kill(found.pid, signal.SIGCONT)
    result = harness.finish(process, 60)
    assert result.code == harness.PREEMPTED, str(result)
    assert os.path.isdir(rig.path(run, "step-%d" % last)), os.listdir(rig.path(run))
    return result


@line("other world size, three times in one run", "2 -> 1 -> 4 ranks, stopped by SIGUSR1 after steps 7 and 14",
      "tensors equal bit for bit after each change; loss within 1e-4, aux loss and gradient norm within 1e-2 of 4 ranks")
def chain(rig, row, log):
    legs = [(2, 2, 2, 7), (1, 1, 1, 14), (4, 2, 4, 20)]
    done = 0
    for ranks, tp, ep, last in legs:
        if done > 0:
            assert_loaded_alike(rig, "chain", done, ranks, tp, ep)
        began = time.monotonic()
        if last < 20:
            result = stop_after(rig, "chain", ranks, tp, ep, last)
        else:
            result = train(rig, "chain", ranks, tp, ep)
        if done > 0:
            assert "at step %d" % done in result.err, str(result)
            row.add(recovered=time.monotonic() - began, lost=0)
        done = last
    expected, got = straight_run(rig), harness.curve(rig.path("chain"))
    rig.assert_curves_agree(expected, got, 1e-4, "chain", ["loss"])
    rig.assert_curves_agree(expected, got, 1e-2, "chain", ["aux_loss", "grad_norm"])
    layouts = [(r["launch"], r["step"], r["ranks"]) for r in harness.starts(rig.path("chain"))]
    assert layouts == [(1, 0, 2), (2, 7, 1), (3, 14, 4)], layouts
