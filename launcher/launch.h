// pesc launch: the supervisor of a training job.
//
//   pesc launch -n N [--hostfile H] -- train --config E [--set ...]
//
// It holds the run directory's lock, starts mpirun, watches exit status and heartbeats, ends what hangs, says
// of each failure what is known, and starts again from the newest checkpoint: after 1 s, then with pauses
// that double up to recovery.longest_pause_s, until recovery.max_restarts failures have brought no new
// checkpoint. Bad usage (64) and bad data (65) are not tried again, nor a launch that mpirun refuses before
// any rank begins, nor a step that ends with the same internal error (70) or crash in two launches in a row,
// nor a start that MPI ends in the same way twice in a row before any rank's first heartbeat (64). SIGTERM,
// SIGINT, SIGHUP and SIGUSR1 make the ranks save; then it ends with 75: only when they said so, or when none
// were running. Otherwise with what ended them: an exit code, or 128 + a signal. A second signal, more than a
// second later, ends the ranks at once, and so does the end of recovery.stop_limit_s.
//
// Its own death loses nothing: mpirun is told (PR_SET_PDEATHSIG), ranks end when mpirun is gone, and the next
// `pesc launch` removes what is left over before it starts.
//
// With a hostfile every host is asked before the first launch and after each one (launch_hosts.h). Those that
// do not answer are left out where the others have slots for all ranks, or where recovery.smaller_layout lets
// it go on with fewer; otherwise it waits for them, recovery.host_wait_s at most. A host that answers, but on
// which all that died in two launches in a row without a new checkpoint has died, is left out in the same
// way, until `pesc launch` is started anew. Inside a Slurm allocation
// mpirun starts the ranks through Slurm; -n is by default the allocation's number of tasks.
#pragma once

namespace pesc {

// The whole program of the verb: prints its errors, returns the exit code.
int run_launch(int argc, char** argv);

}  // namespace pesc
