"""Help, completion, colours and the doctor of the real program: every verb of `pesc help` has a page with examples, a real bash
completes what the program takes, terminals alone get colours, and `pesc doctor` says what is missing where something is.
"""

import json
import os
import pty
import re
import select
import subprocess
import tempfile
import time
import unittest

import harness
from harness import OK, USAGE

SECONDS = 120  # the doctor waits for MPI for 20 s at most; more is a hang


def verbs():
    """Those that `pesc help` lists."""
    said = harness.pesc(0, "help", seconds=SECONDS)
    assert said.code == OK, str(said)
    listed = re.search(r"^verbs\n((?:  .*\n)+)", said.out, re.M).group(1)
    return re.findall(r"^  (\w+) ", listed, re.M)


def on_terminal(command, **variables):
    """Exit code and what `command` writes to the terminal that its output and error output are."""
    env = harness.environment()
    env.pop("NO_COLOR", None)
    env.update(TERM="xterm", **variables)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # EIO: the last writer has closed it
            break
        if not chunk:
            break
        text += chunk
    os.close(ours)
    return process.wait(SECONDS), text.decode()


class Help(unittest.TestCase):
    def test_every_verb_has_a_page(self):
        names = verbs()
        self.assertGreaterEqual(len(names), 12)
        with open(os.path.join(harness.SOURCE, "launcher", "README.md"), encoding="utf-8") as file:
            page = file.read()
        for verb in names:
            with self.subTest(verb):
                said = harness.pesc(0, verb, "--help", seconds=SECONDS)
                self.assertEqual((said.code, said.err), (OK, ""), str(said))
                self.assertIn("usage\n  pesc " + verb, said.out)
                examples = re.search(r"^examples\n((?:  .*\n)+)", said.out, re.M).group(1)
                self.assertGreaterEqual(len(re.findall(r"\bpesc %s\b" % verb, examples)), 2, "two or three examples")
                self.assertRegex(said.out, r"\nexit codes\n  0 +done\n  (1 .*\n  )?64 ")
                self.assertEqual(said.out, harness.pesc(0, "help", verb, seconds=SECONDS).out)
                self.assertTrue("`pesc %s" % verb in page, "launcher/README.md does not name the verb")

    def test_under_mpirun_one_rank_speaks(self):
        said = harness.pesc(4, "eval", "--help", seconds=SECONDS)
        self.assertEqual(said.code, OK, str(said))
        self.assertEqual(said.out.count("exit codes"), 1, str(said))

    def test_mistakes_are_short_and_point_to_the_page(self):
        for words in (["eval", "--sample", "3"], ["eval"], ["launch", "-n", "2"], ["tokenize"]):
            said = harness.pesc(0, *words, seconds=SECONDS)
            self.assertEqual(said.code, USAGE, str(said))
            self.assertIn("see `pesc %s --help`" % words[0], said.err)
            self.assertLess(said.err.count("\n"), 4, str(said))

    def test_colours_on_terminals_only(self):
        command = [harness.PESC, "help", "eval"]
        for variables, coloured in (({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "0"}, False), ({"TERM": "dumb"}, False)):
            code, text = on_terminal(["env", *("%s=%s" % v for v in variables.items()), *command])
            self.assertEqual(code, OK, text)
            self.assertEqual("\033[1mflags\033[0m" in text, coloured, (variables, text))
            self.assertEqual("\033" in text, coloured, (variables, text))
        self.assertNotIn("\033", harness.pesc(0, *command[1:], seconds=SECONDS).out)
        code, text = on_terminal([harness.PESC, "evall"])
        self.assertEqual(code, USAGE, text)
        self.assertIn("\033[31mpesc: \033[0munknown verb 'evall'", text)


class Completion(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        said = harness.pesc(0, "completion", "bash", seconds=SECONDS)
        assert said.code == OK and said.err == "", str(said)
        cls.script = said.out

    def offered(self, *words, breaks=" \t\n\"'><=;|&(:"):
        """What the function offers for the last of the words, in a folder with a file, a folder and a name with a space."""
        program = ('set -u; source /dev/stdin; mkdir "$1"; cd "$1"; mkdir runs; touch my.textproto "a b.textproto"; shift\n'
                   'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}\n'
                   '_pesc pesc "${COMP_WORDS[-1]}" ""; printf "%s\\n" "${COMPREPLY[@]}"')
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(["bash", "--norc", "--noprofile", "-c", "COMP_WORDBREAKS=$1; shift\n" + program, "bash", breaks,
                                   os.path.join(folder, "here"), *words],
                                  input=self.script, capture_output=True, text=True, timeout=SECONDS)
        self.assertEqual(done.stderr, "", words)
        return sorted(line for line in done.stdout.split("\n") if line)

    def test_verbs_and_their_flags(self):
        names = verbs()
        self.assertEqual(self.offered("pesc", ""), sorted(["--help"] + names))
        self.assertEqual(self.offered("pesc", "ex"), ["export"])
        self.assertEqual(self.offered("pesc", "help", ""), sorted(names))
        self.assertEqual(self.offered("pesc", "completion", ""), ["bash"])
        for verb in names:
            page = harness.pesc(0, verb, "--help", seconds=SECONDS).out
            flags = re.findall(r"^  (--?\w+)", re.search(r"^flags\n((?:  .*\n)+)", page, re.M).group(1), re.M) if "\nflags\n" in page else []
            self.assertEqual(self.offered("pesc", verb, "-"), sorted(flags + ["--help"] + (["--"] if verb == "launch" else [])), verb)

    def test_launch_goes_on_with_train(self):
        self.assertEqual(self.offered("pesc", "launch", "--h"), ["--help", "--hostfile"])
        self.assertEqual(self.offered("pesc", "launch", "-n", "2", "--", ""), ["train"])
        self.assertEqual(self.offered("pesc", "launch", "-n", "2", "--", "train", "--sh"), ["--show_rows"])

    def test_values(self):
        self.assertEqual(self.offered("pesc", "export", "--format", ""), ["CAMELIDAE", "HF", "PEFT"])
        self.assertEqual(self.offered("pesc", "export", "--format", "=", "P"), ["PEFT"])
        self.assertEqual(self.offered("pesc", "plan", "--gpu", "H"), ["H100-80", "H200-141"])
        self.assertEqual(self.offered("pesc", "eval", "--config", ""), ["a b.textproto", "my.textproto", "runs"])
        self.assertEqual(self.offered("pesc", "eval", "--config", "=", "m"), ["my.textproto"])
        self.assertEqual(self.offered("pesc", "eval", "--checkpoint", ""), ["best", "runs"])
        self.assertEqual(self.offered("pesc", "eval", "--samples", ""), [], "a number")
        self.assertEqual(self.offered("pesc", "generate", "--prompt", ""), [])
        self.assertEqual(self.offered("pesc", "eval", "--config", "x", "--ba"), ["--base"], "behind a flag with its value")

    def test_fields(self):
        top = self.offered("pesc", "train", "--set", "")
        self.assertLessEqual({"run_dir=", "train.", "data.", "model."}, set(top))
        self.assertEqual(self.offered("pesc", "train", "--set", "train.warm"), ["train.warmup_ratio=", "train.warmup_steps="])
        self.assertEqual(self.offered("pesc", "train", "--set", "data.train[0].p"), ["data.train[0].path="])
        self.assertEqual(self.offered("pesc", "train", "--set", "data.train[12].p"), ["data.train[12].path="])
        self.assertEqual(self.offered("pesc", "train", "--set", "nothing."), [])
        mode = ["FULL", "LORA", "PESC"]
        self.assertEqual(self.offered("pesc", "train", "--set", "train.mode", "="), mode)
        self.assertEqual(self.offered("pesc", "train", "--set", "train.mode", "=", "L"), ["LORA"])
        self.assertEqual(self.offered("pesc", "train", "--set", "=", "train.mode", "=", "L"), ["LORA"])
        self.assertEqual(self.offered("pesc", "train", "--set", "=", "train.mod"), ["train.mode="])
        self.assertEqual(self.offered("pesc", "train", "--set", "model.follow_links", "=", "t"), ["true"])
        self.assertEqual(self.offered("pesc", "train", "--set", "model.path", "=", "r"), ["runs"], "a file or folder")

    def test_where_an_equals_sign_parts_no_words(self):
        self.assertEqual(self.offered("pesc", "train", "--set", "train.mode=L", breaks=" \t\n"), ["train.mode=LORA"])
        self.assertEqual(self.offered("pesc", "train", "--set=train.mode=L", breaks=" \t\n"), ["--set=train.mode=LORA"])
        self.assertEqual(self.offered("pesc", "export", "--format=P", breaks=" \t\n"), ["--format=PEFT"])

    def test_typed_in_a_shell(self):
        """An interactive bash on a terminal: the keys of a person, and the line that comes of them."""
        ours, theirs = pty.openpty()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "script")
            with open(path, "w", encoding="utf-8") as file:
                file.write(self.script)
            shell = subprocess.Popen(["bash", "--norc", "--noprofile", "-i"], stdin=theirs, stdout=theirs, stderr=theirs,
                                     start_new_session=True, env=dict(os.environ, TERM="dumb", PS1="", HISTFILE="/dev/null"))
            os.close(theirs)
            os.write(ours, ("source %s; pesc() { printf '<%%s>' \"$@\"; echo; }\n" % path).encode())
            # Tabs finish the verb, the flag, the field up to its value, and the value.
            os.write(ours, b"pesc ex\t--se\ttrain.mod\tL\t --form\tPE\t\n")
            expected, text, end = "<export><--set><train.mode=LORA><--format><PEFT>", "", time.monotonic() + SECONDS
            while expected not in text and time.monotonic() < end:
                if select.select([ours], [], [], 1)[0]:
                    text += os.read(ours, 65536).decode(errors="replace")
            shell.kill()
            shell.wait()
            os.close(ours)
        self.assertIn(expected, text)


class Doctor(unittest.TestCase):
    def doctor(self, *flags, code=OK, prefix=()):
        said = harness.pesc(0, "doctor", *flags, seconds=SECONDS, prefix=prefix)
        self.assertEqual(said.code, code, str(said))
        return said

    def json(self, *flags, **options):
        return json.loads(self.doctor("--json", *flags, **options).out)

    def assert_only_missing(self, found, able, words):
        """The abilities that are there, and words of what the first other one lacks."""
        can = {key for key, a in found["abilities"].items() if a["can"]}
        self.assertEqual({a for a in ("cpu_training", "cpu_ranks") if a in can}, able, json.dumps(found, indent=1))
        lacks = [lack for a in found["abilities"].values() for lack in a["missing"]]
        for lack in lacks:
            self.assertTrue(lack["what"] and lack["way_out"], lack)
        for word in words:
            self.assertTrue(any(word in lack["what"] + lack["way_out"] for lack in lacks), (word, lacks))

    def test_this_machine(self):
        """The one that the tests run on trains, so the doctor has to say so."""
        with tempfile.TemporaryDirectory() as folder:
            found = self.json("--dir", folder)
            self.assertEqual(os.listdir(folder), [])
            self.assertEqual(found["folder"]["path"]["path"], folder)
        self.assert_only_missing(found, {"cpu_training", "cpu_ranks"}, [])
        self.assertTrue(found["mpi"]["library"]["version"].startswith("Open MPI 4."))
        self.assertEqual(found["machine"]["cores"]["online"], os.cpu_count())
        self.assertEqual(found["machine"]["cores"]["usable"], len(os.sched_getaffinity(0)))
        self.assertGreater(found["machine"]["memory"]["bytes"], 2 ** 29)
        self.assertEqual(found["folder"]["locks"], {"flock": True, "fcntl": True})
        said = self.doctor()
        self.assertIn("what can run here\n  yes  training on the CPU, one rank\n", said.out)
        self.assertNotIn("\033", said.out)

    def test_without_gpus(self):
        found = self.json(prefix=("env", "CUDA_VISIBLE_DEVICES="))
        self.assertFalse(found["abilities"]["gpu_training"]["can"])
        self.assert_only_missing(found, {"cpu_training", "cpu_ranks"}, [])

    def test_limits(self):
        few = ("bash", "-c", 'ulimit -n 128; ulimit -l 64; exec "$0" "$@"')
        found = self.json(prefix=few)
        self.assertEqual(found["machine"]["open_files"], 128)
        self.assertEqual(found["machine"]["locked_memory"], 64 * 1024)
        self.assert_only_missing(found, {"cpu_training"}, ["128 open files", "ulimit -n"])

    def test_without_mpirun(self):
        """Open MPI finds nothing in such a PATH either, so that not even one rank starts."""
        found = self.json(code=1, prefix=("env", "PATH=/nowhere/at/all"))
        self.assert_only_missing(found, set(), ["mpirun is not in PATH", "cluster/install-deps.sh", "sinfo is not in PATH"])

    def test_where_nothing_can_run(self):
        with tempfile.TemporaryDirectory() as folder:
            found = self.json(code=1, prefix=("env", "TMPDIR=%s/none" % folder))
            self.assertEqual(os.listdir(folder), [], "Open MPI would make the folder")
        self.assert_only_missing(found, set(), ["none cannot be used", "TMPDIR"])

    def test_a_folder_that_cannot_be_used(self):
        found = self.json("--dir", "/dev/null")
        self.assertIn("no folder", found["folder"]["path"]["trouble"])

    def test_where_mpi_does_not_start(self):
        found = self.json(code=1, prefix=("env", "OMPI_MCA_pml=none-such"))
        self.assert_only_missing(found, set(), ["MPI does not start", "cluster/install-deps.sh"])

    def test_usage(self):
        said = harness.pesc(2, "doctor", seconds=SECONDS)
        self.assertEqual(said.code, USAGE, str(said))
        self.assertEqual(len(said.complaints), 1, str(said))
        self.assertIn("without mpirun", said.err)
        self.assertEqual(harness.pesc(0, "doctor", "--samples", "1", seconds=SECONDS).code, USAGE)


if __name__ == "__main__":
    harness.main()
