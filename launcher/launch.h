// pesc launch: the supervisor of a training job.
//
//   pesc launch -n N [--hostfile H] -- train --config E [--set ...]
//
// It holds the run directory's lock, starts mpirun, watches its exit status and the ranks' heartbeats, kills
// a job that hangs, reports every failure, and restarts from the newest checkpoint. The first restart is
// after 1 s; the pauses then double up to recovery.longest_pause_s. It gives up after recovery.max_restarts
// failures without a new checkpoint. It does not restart after bad usage (64) or bad data (65), after a
// launch that mpirun refused before any rank began, when the same step ends with the same internal error (70)
// or crash in two launches in a row, or when MPI ends two starts in a row in the same way before any rank's
// first heartbeat (64). launcher/README.md has the table of faults.
//
// SIGTERM, SIGINT, SIGHUP and SIGUSR1 make the ranks save. The exit code is then 75 if the ranks reported
// that they saved, or if no ranks were running; otherwise it is that of the job: an exit code, or 128 + a
// signal. A second signal, more than a second later, ends the ranks at once, and so does the end of
// recovery.stop_limit_s.
//
// When the supervisor itself dies, mpirun gets a signal (PR_SET_PDEATHSIG), the ranks end when mpirun is
// gone, and the next `pesc launch` removes what is left over before it starts.
//
// With a hostfile, every host is asked before the first launch and after each one (launch_hosts.h). A host
// that does not answer is left out if the others have slots for all ranks, or if recovery.smaller_layout
// allows fewer ranks; otherwise the supervisor waits for it, at most recovery.host_wait_s. A host that
// answers is left out in the same way, until `pesc launch` is started again, when in two launches in a row
// without a new checkpoint all ranks that died were on it. Inside a Slurm allocation mpirun starts the ranks
// through Slurm; -n defaults to the allocation's number of tasks.
#pragma once

namespace pesc {

// The whole program of the verb: prints its errors, returns the exit code.
int run_launch(int argc, char** argv);

}  // namespace pesc
