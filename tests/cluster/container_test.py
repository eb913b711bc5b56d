"""cluster/container: the steps of the Dockerfile and of the Apptainer definition, run in a folder that debootstrap makes, where neither
Docker nor Apptainer is needed: the copies, the one command, the test; then two ranks of the image's pesc train the quick start. Of the
CUDA image, whose base is NVIDIA's, all that comes before nvcc. Needs root, debootstrap and the network; skips, which ctest shows, where
one of these is missing, and says which. Python's standard library only.

Usage: container_test.py SOURCE_DIR
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ".").resolve()
CONTAINER = SOURCE / "cluster" / "container"
NOT_TESTED = 77  # ctest says Skipped
CERTIFICATES = "/etc/certificates-of-the-host.crt"
MIRRORS = {"debian": ("http://deb.debian.org/debian", "main"), "ubuntu": ("http://archive.ubuntu.com/ubuntu", "main,universe")}


def dockerfile():
    """(arguments with their defaults, [(source, destination)], [command])"""
    text = re.sub(r"\\\n", " ", (CONTAINER / "Dockerfile").read_text(encoding="utf-8"))
    arguments, copies, commands = {}, [], []
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif word == "COPY":
            *sources, to = rest.split()
            copies += [(s, to + s if to.endswith("/") else to) for s in sources]
        elif word == "RUN":
            commands.append(re.sub(r"\$\{(\w+)\}", r"{\1}", rest))
    return arguments, copies, commands


def definition():
    """The same of pesc.def, and the commands of its %test."""
    sections, name = {"": []}, ""
    for line in (CONTAINER / "pesc.def").read_text(encoding="utf-8").splitlines():
        if line.startswith("%"):
            name = line.strip()[1:]
            sections[name] = []
        elif line.strip() and not line.startswith("#"):
            sections[name].append(line.strip())
    commands = [re.sub(r"\{\{ (\w+) \}\}", r"{\1}", line) for line in sections["post"]]
    return (dict(line.split("=", 1) for line in sections["arguments"]), [tuple(line.split()) for line in sections["files"]], commands,
            sections["test"])


class Definitions(unittest.TestCase):
    def test_both_do_the_same(self):
        self.assertEqual(dockerfile(), definition()[:3])
        self.assertEqual(len(dockerfile()[2]), 1)

    def test_what_is_copied_is_there_and_not_ignored(self):
        ignored = (CONTAINER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
        for source, to in dockerfile()[1]:
            self.assertTrue((SOURCE / source).exists(), source)
            self.assertEqual(to, "/opt/pesc/" + source)
            self.assertIn("!" + source, ignored)

    def test_the_package_list_is_that_of_install_deps(self):
        needs = re.search(r"^needs='([^']*)'", (SOURCE / "cluster/install-deps.sh").read_text(encoding="utf-8"), re.MULTILINE).group(1)
        self.assertGreater(len(needs.split()), 10)
        self.assertIn("cluster/install-deps.sh", (CONTAINER / "build.sh").read_text(encoding="utf-8"))
        for name in ("Dockerfile", "pesc.def", "build.sh"):
            words = re.findall(r"[\w.+-]+", re.sub(r"^ *#.*$", "", (CONTAINER / name).read_text(encoding="utf-8"), flags=re.MULTILINE))
            for package in set(re.split(r"[\s|]+", needs)) - {"cmake", "ccache", "python3"}:
                self.assertNotIn(package, words, name)

    def test_wrong_use(self):
        for arguments in ([], ["gpu"]):
            done = subprocess.run([str(CONTAINER / "build.sh"), *arguments], stderr=subprocess.PIPE, text=True)
            self.assertEqual(done.returncode, 64)
            self.assertIn("build.sh cuda [-D...]", done.stderr)


def why_not():
    """What is missing to make the folder; empty: nothing."""
    if os.geteuid() != 0:
        return "not root"
    if shutil.which("debootstrap") is None:
        return "no debootstrap (cluster/install-deps.sh --tests installs it)"
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], stderr=subprocess.DEVNULL).returncode != 0:
        return "no namespaces may be made here"
    return ""


class Steps(unittest.TestCase):
    """In the order of their names: each goes on in the folder of those before."""

    @classmethod
    def setUpClass(cls):
        why = why_not()
        if why:
            raise unittest.SkipTest(why)
        release = dict(line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().replace('"', "").splitlines() if "=" in line)
        mirror, components = MIRRORS[release["ID"]]
        cls.root = pathlib.Path(tempfile.mkdtemp(prefix="pesc-container-", dir="/var/tmp"))
        cls.addClassCleanup(shutil.rmtree, cls.root)
        made = subprocess.run(["debootstrap", "--variant=minbase", "--components=" + components, release["VERSION_CODENAME"], str(cls.root),
                               mirror], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode != 0:
            if re.search(r"Failed getting release file|Couldn't download|resolve|Invalid Release", made.stdout):
                raise unittest.SkipTest("no network: " + made.stdout.strip().splitlines()[-1])
            raise AssertionError("debootstrap: " + made.stdout)
        shutil.copy("/etc/resolv.conf", cls.root / "etc/resolv.conf")
        # Where the machine's way to the network has a certificate of its own, so has the folder's.
        certificates = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
        if os.path.isfile(certificates):
            shutil.copy(certificates, cls.root / CERTIFICATES.lstrip("/"))
        files = subprocess.run(["git", "-C", str(SOURCE), "ls-files", "-z"], stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
        cls.arguments, copies, cls.commands = dockerfile()
        for source, to in copies:
            for name in files:
                if name == source or name.startswith(source + "/"):
                    target = cls.root / (to + name[len(source):]).lstrip("/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(SOURCE / name, target)

    def inside(self, command, seconds=2400, **arguments):
        """(exit code, output) of a shell command in the folder, with namespaces of its own: nothing stays mounted or running."""
        mounts = ("mount -t proc proc {0}/proc && mount --rbind /sys {0}/sys && mount --rbind /dev {0}/dev && "
                  "exec chroot {0} /usr/bin/env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "
                  "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 {1} sh -e -c \"$1\"").format(
                      self.root, "PIP_CERT=" + CERTIFICATES if (self.root / CERTIFICATES.lstrip("/")).exists() else "")
        command = command.format(**{**self.arguments, **arguments}) if arguments or "{" in command else command
        done = subprocess.run(["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "sh", "-c", mounts, "sh",
                               command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds,
                              stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout

    def good(self, command, **arguments):
        code, said = self.inside(command, **arguments)
        self.assertEqual(code, 0, said[-4000:])
        return said

    def test_1_docker_steps(self):
        for command in self.commands:
            self.good(command)
        self.assertEqual(list((self.root / "var/lib/apt/lists").glob("*Packages*")), [])

    def test_2_apptainer_steps(self):
        _, _, commands, tests = definition()
        for command in commands + tests:
            self.good(command)

    def test_3_ranks_train(self):
        self.good("mkdir -p /srv && cd /opt/pesc && python3 configs/quickstart/generate.py --out runs/quickstart/data")
        self.good("cd /opt/pesc && mpirun -np 2 --oversubscribe --mca btl self,vader --mca oob_tcp_if_include lo pesc train "
                  "--config configs/quickstart/tune.textproto --set train.max_steps=30 --set parallel.tp=2 --set parallel.ep=2 "
                  "--set run_dir=/srv/run")
        lines = [json.loads(line) for line in (self.root / "srv/run/metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        self.assertEqual(len(losses), 30)
        self.assertLess(losses[-1], losses[0])
        self.good("pesc plan --config /opt/pesc/configs/experiments/camelidae-8x7b.textproto --shape llama-2-7b --ranks 8")

    def test_4_cuda_steps_up_to_nvcc(self):
        for command in self.commands:
            code, said = self.inside(command, DEVICE="cuda")
            self.assertNotEqual(code, 0)
            self.assertIn("missing: nvcc", said)
            self.assertIn("PESC_CUDA=ON, but there is no nvcc", " ".join(said.split()))
        self.assertTrue((self.root / "opt/cudnn-frontend/include/cudnn_frontend.h").is_file())


if __name__ == "__main__":
    result = unittest.main(argv=sys.argv[:1], exit=False, verbosity=2).result
    if result.wasSuccessful() and result.skipped:
        for _, why in result.skipped:
            print("container_test.py: not tested: " + why)
        sys.exit(NOT_TESTED)
    sys.exit(0 if result.wasSuccessful() else 1)
