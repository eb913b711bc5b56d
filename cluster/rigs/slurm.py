#!/usr/bin/env python3
"""A real Slurm on one machine, as root: munged, slurmctld on host head, and a slurmd on each of n1, n2, ..., the hosts of
two_hosts.py. Needs Debian's slurmctld, slurmd, slurm-client and munge; no systemd, no cgroups.

    cluster/rigs/slurm.py /var/tmp/rig           # stays in front; Ctrl-C takes everything down
    SLURM_CONF=/var/tmp/rig/slurm.conf ...       # sbatch, squeue, ... on host head: two_hosts.py run /var/tmp/rig head -- ...
"""

import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from two_hosts import REPOSITORY, Hosts  # noqa: E402

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun")

# Small timers; nothing that wants cgroups. cred_expire: a job waits that long (120 s by default) before it is started again.
CONF = """
ClusterName=pesc
SlurmctldHost=head
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=30
TCPTimeout=2
MessageTimeout=10
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={nodes} CPUs=2 State=UNKNOWN
PartitionName=all Nodes={nodes} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes={nodes} MaxTime=INFINITE State=UP PriorityTier=10
"""


class Slurm(Hosts):
    def __init__(self, folder, nodes=2, keep=(REPOSITORY,)):
        self.nodes = ["n%d" % (i + 1) for i in range(nodes)]
        super().__init__(folder, names=["head"] + self.nodes, keep=keep)
        self.daemons = []

    @property
    def conf(self):
        return self.path("slurm.conf")

    def up(self):
        missing = [name for name in NEEDED if subprocess.run(["sh", "-c", "command -v " + name], check=False,
                                                             stdout=subprocess.DEVNULL).returncode]
        if missing:
            raise OSError("%s missing; cluster/install-deps.sh --tests installs them" % ", ".join(missing))
        super().up()
        try:
            os.makedirs(self.path("state"), exist_ok=True)
            self._write("slurm.conf", CONF.format(folder=self.folder, nodes=",".join(self.nodes)))
            with open(self.path("munge.key"), "wb") as key:
                os.fchmod(key.fileno(), 0o600)
                key.write(os.urandom(128))
            where = [word for what in ("socket", "pid-file", "log-file", "seed-file", "key-file")
                     for word in ("--" + what, self.path("munge." + what.partition("-")[0]))]
            self._daemon("head", ["munged", "--foreground", "--force", *where])
            self._wait("munged", lambda: os.path.exists(self.path("munge.socket")))
            self._daemon("head", ["slurmctld", "-D", "-f", self.conf])
            for node in self.nodes:
                self._daemon(node, ["slurmd", "-D", "-N", node, "-f", self.conf])
            self._wait("nodes", lambda: self.client("sinfo", "-h", "-o", "%T %D").stdout.split() ==
                       ["idle", str(len(self.nodes))])
        except BaseException:
            self.down()
            raise
        return self

    def client(self, *words, check=False):
        """sbatch, squeue, scancel, ... on host head."""
        return subprocess.run(self.command("head", "env", "SLURM_CONF=" + self.conf, *words), check=check, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)

    def kill_node(self, node):
        """Its slurmd and all that runs there, at once, as with a power failure."""
        os.kill(self.pids[node], signal.SIGKILL)

    def _daemon(self, host, words):
        with open(self.path(words[0] + "-" + host + ".out"), "wb") as out:
            self.daemons.append(subprocess.Popen(self.command(host, "env", "SLURM_CONF=" + self.conf, *words),
                                                 stdin=subprocess.DEVNULL, stdout=out, stderr=out))

    def _wait(self, what, ready, seconds=30):
        until = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > until:
                raise OSError("Slurm's %s do not come up; see %s" % (what, self.folder))
            time.sleep(0.1)

    def down(self):
        super().down()  # the daemons go with their hosts
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
        self.daemons = []


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with Slurm(sys.argv[1]) as slurm:
        print("Slurm is up: SLURM_CONF=%s, nodes %s" % (slurm.conf, ", ".join(slurm.nodes)), flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
