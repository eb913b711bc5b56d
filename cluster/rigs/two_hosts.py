#!/usr/bin/env python3
"""Several "hosts" on one machine, for trying what several hosts do: two by default, as root, with nothing but Linux.

A host is a set of namespaces: its own network, host name, processes, /tmp and /dev/shm; other folders are shared, as by a
cluster's file system, and so is this repository where it lies below /tmp. Hosts are joined by a switch (a bridge in a namespace of its own). `cut` takes a host off the
switch: nobody is told, its packets just vanish, as with a dead cable behind a switch.

    cluster/rigs/two_hosts.py up /var/tmp/rig           # stays in front; Ctrl-C takes everything down
    cluster/rigs/two_hosts.py run /var/tmp/rig left -- COMMAND...
    cluster/rigs/two_hosts.py cut /var/tmp/rig right
    cluster/rigs/two_hosts.py heal /var/tmp/rig right

Process 1 of each host also stands in for sshd: RIG/agent goes before a host's name and a command, over the hosts'
network, like ssh. Train over the hosts from one of them with

    two_hosts.py run RIG left -- env OMPI_MCA_plm_rsh_agent=RIG/agent pesc launch -n 4 --hostfile RIG/hostfile -- train ...
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

PORT = 2222
REMOTE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C"}
NAMESPACES = ["--net", "--uts", "--ipc", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]
CONNECT_SECONDS = 3  # ssh's ConnectTimeout

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

FORKING = threading.Lock()  # a shell is known before it is buried


def below_tmp(path):
    return os.path.realpath(path).startswith("/tmp/")


class Hosts:
    """The rig in `folder`, which must not be under /tmp: the hosts have their own there, in which only the folders `keep`
    can be seen."""

    def __init__(self, folder, names=("left", "right"), slots=2, keep=(REPOSITORY,)):
        self.folder, self.names, self.slots = os.path.abspath(folder), list(names), slots
        if below_tmp(self.folder):
            raise OSError("%s: a rig cannot lie below /tmp, which every host has for itself; take /var/tmp" % self.folder)
        self.keep = sorted({os.path.realpath(path) for path in keep if below_tmp(path)})
        self.processes, self.pids = {}, {}

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    @property
    def agent(self):
        return self.path("agent")

    @property
    def hostfile(self):
        return self.path("hostfile")

    def up(self):
        os.makedirs(self.folder, exist_ok=True)
        self._write("hosts", "127.0.0.1 localhost\n" + "".join(
            "10.77.0.%d %s\n" % (i + 1, name) for i, name in enumerate(self.names)))
        self._write("hostfile", "".join("%s slots=%d\n" % (name, self.slots) for name in self.names))
        self._write("agent", '#!/bin/sh\nexec %s %s agent "$@"\n' % (sys.executable, os.path.abspath(__file__)), 0o755)
        try:
            self._start("switch", ["unshare", "--net", "--fork", "--kill-child", "sleep", "infinity"])
            self._inside("switch", "ip link add br0 type bridge && ip link set br0 up")
            for i, name in enumerate(self.names):
                self._add_host(i, name)
        except BaseException:
            self.down()
            raise
        self._write("pids", json.dumps(self.pids))
        return self

    @classmethod
    def found(cls, folder):
        """One that `up` holds in another process."""
        rig = cls(folder)
        with open(rig.path("pids"), encoding="utf-8") as file:
            rig.pids = json.load(file)
        return rig

    def down(self):
        """Ends every process of every host (the kernel does, when process 1 of a namespace ends)."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        until = time.monotonic() + 10
        for pid in self.pids.values():  # unshare --kill-child has ended them; wait until they are gone
            while os.path.exists("/proc/%d/ns/net" % pid) and time.monotonic() < until:
                time.sleep(0.01)
        self.processes, self.pids = {}, {}

    def __enter__(self):
        return self.up()

    def __exit__(self, *_):
        self.down()
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, name, *words):
        """argv that runs `words` on a host, from outside."""
        return ["nsenter", "--target", str(self.pids[name]), "--net", "--uts", "--ipc", "--pid", "--mount",
                "--wd=" + os.getcwd(), *words]

    def cut(self, name):
        self._inside("switch", "ip link set port-%s nomaster" % self._short(name))

    def heal(self, name):
        self._inside("switch", "ip link set port-%s master br0" % self._short(name))

    def processes_of(self, name):
        """{pid outside: argv} of what runs on a host, its process 1 and us aside."""
        space, found = os.readlink("/proc/%d/ns/pid" % self.pids[name]), {}
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and int(entry) != self.pids[name] and os.readlink("/proc/%s/ns/pid" % entry) == space:
                    with open("/proc/%s/cmdline" % entry, "rb") as file:
                        words = file.read().decode(errors="replace").split("\0")
                    if words != [""]:  # a zombie
                        found[int(entry)] = words
            except OSError:
                continue
        return found

    def files_of(self, name):
        """What lies in a host's /tmp and /dev/shm."""
        kept = {path.split("/")[2] for path in self.keep}  # where those are mounted
        return [os.path.join(where, entry) for where in ("tmp", "shm")
                for entry in sorted(os.listdir(self.path(name, where))) if where == "shm" or entry not in kept]

    def _write(self, name, text, mode=0o644):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.path(name), mode)

    @staticmethod
    def _short(name):
        return name[:9]  # a network interface has at most 15 letters

    def _start(self, name, words):
        # With us, whatever we die of, the hosts go and all that runs on them.
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *words], stdin=subprocess.DEVNULL, start_new_session=True,
                                   preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, set()))
        self.processes[name] = process
        until = time.monotonic() + 10
        while time.monotonic() < until and process.poll() is None:
            with open("/proc/%d/task/%d/children" % (process.pid, process.pid), encoding="ascii") as children:
                pids = children.read().split()
            if pids:
                self.pids[name] = int(pids[0])
                return
            time.sleep(0.01)
        raise OSError("no namespaces of our own here (%s); they need root and a kernel that lets a container make them"
                      % " ".join(words))

    def _inside(self, name, script):
        subprocess.run(["nsenter", "--target", str(self.pids[name]), "--net", "sh", "-c", script], check=True)

    def _add_host(self, i, name):
        for where in ("tmp", "shm"):
            os.makedirs(self.path(name, where), exist_ok=True)
            os.chmod(self.path(name, where), 0o1777)
        self._start(name, ["unshare", *NAMESPACES, sys.executable, os.path.abspath(__file__), "host", self.folder, name,
                           *self.keep])
        inner, port = "eth-" + self._short(name), "port-" + self._short(name)
        self._inside("switch", "ip link add %s type veth peer name %s netns %d && ip link set %s master br0 up"
                     % (port, inner, self.pids[name], port))
        self._inside(name, "ip link set lo up && ip addr add 10.77.0.%d/24 dev %s && ip link set %s up"
                     % (i + 1, inner, inner))
        until = time.monotonic() + 10
        while not os.path.exists(self.path(name, "up")):
            if time.monotonic() > until:
                raise OSError("host %s does not come up" % name)
            time.sleep(0.01)


# --- inside a host

def mount(what, where):
    subprocess.run(["mount", "--bind", what, where], check=True)


def be_host(folder, name, *keep):
    """Process 1 of a host: its files, its name, its sshd; and it buries orphans."""
    socket.sethostname(name)
    staged = [os.path.join(folder, name, "keep-%d" % i) for i in range(len(keep))]
    for path, stage in zip(keep, staged):  # out of the way while /tmp is covered
        os.makedirs(stage, exist_ok=True)
        mount(path, stage)
    for what, where in (("hosts", "/etc/hosts"), (name + "/tmp", "/tmp"), (name + "/shm", "/dev/shm")):
        mount(os.path.join(folder, what), where)
    for path, stage in zip(keep, staged):
        os.makedirs(path, exist_ok=True)
        mount(stage, path)
        subprocess.run(["umount", "--lazy", stage], check=True)
    server = socket.create_server(("0.0.0.0", PORT))
    server.settimeout(0.05)
    open(os.path.join(folder, name, "up"), "w").close()
    sessions = {}  # pid of the shell: its connection
    while True:
        try:
            connection, _ = server.accept()
            threading.Thread(target=start_session, args=(connection, sessions), daemon=True).start()
        except TimeoutError:
            pass
        while bury(sessions):
            pass


def start_session(connection, sessions):
    connection.settimeout(10)
    words = b""
    while not words.endswith(b"\0"):
        piece = connection.recv(65536)
        if not piece:
            return
        words += piece
    connection.settimeout(None)
    with FORKING:
        pid = os.fork()
        if pid > 0:
            sessions[pid] = connection
            return
    null = os.open("/dev/null", os.O_RDONLY)
    for target, source in ((0, null), (1, connection.fileno()), (2, connection.fileno())):
        os.dup2(source, target)
    os.closerange(3, 256)
    os.setsid()
    os.chdir("/")
    # All hosts have this machine's processor, and must take the same kernels for it.
    processor = {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")}
    os.execve("/bin/sh", ["sh", "-c", words[:-1].decode()], {**REMOTE_ENVIRONMENT, **processor})


def bury(sessions):
    with FORKING:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return False
        connection = sessions.pop(pid, None)
    if connection is not None:
        try:
            connection.sendall(b"\0%d" % os.waitstatus_to_exitcode(status))
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        connection.close()
    return True


def be_agent(host, words):
    """ssh HOST WORDS..."""
    try:
        connection = socket.create_connection((host, PORT), timeout=CONNECT_SECONDS)
    except OSError as error:
        print("agent: connect to host %s: %s" % (host, error), file=sys.stderr)
        return 255
    connection.settimeout(None)
    connection.sendall(" ".join(words).encode() + b"\0")
    text = b""
    while piece := connection.recv(65536):
        text += piece
    text, _, code = text.rpartition(b"\0")
    sys.stdout.buffer.write(text)
    return int(code or 255) & 255


def main(words):
    verb, rest = words[0] if words else "", words[1:]
    if verb == "host":
        be_host(*rest)
    elif verb == "agent":
        return be_agent(rest[0], rest[1:])
    elif verb == "up" and rest:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        with Hosts(rest[0]) as rig:
            print("hosts %s are up; agent %s, hostfile %s" % (", ".join(rig.names), rig.agent, rig.hostfile), flush=True)
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    elif verb in ("cut", "heal") and len(rest) == 2:
        getattr(Hosts.found(rest[0]), verb)(rest[1])
    elif verb == "run" and len(rest) > 3 and rest[2] == "--":
        return subprocess.run(Hosts.found(rest[0]).command(rest[1], *rest[3:]), check=False).returncode
    else:
        print(__doc__, file=sys.stderr)
        return 64
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
