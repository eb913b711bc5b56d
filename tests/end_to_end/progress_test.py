"""The progress line is written over in place where it ends on a terminal, also through mpirun's pipe, and is whole lines
without control characters everywhere else.
"""

import os
import pty
import subprocess

import harness

STEPS, EVERY = 12, 5
LIVE = "\r\033[K"


class Progress(harness.EndToEnd):
    train_rows = 100

    def arguments(self, run):
        return ["train", *self.experiment(run, train__max_steps=STEPS, train__global_batch_size=8,
                                          train__logging_steps=EVERY)]

    def on_terminal(self, command):
        """What `command` writes to the terminal that its error output is."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(command, cwd=harness.SOURCE, env=harness.environment(), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=theirs)
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
        self.assertEqual(process.wait(60), 0, text.decode(errors="replace"))
        return text.decode().replace("\r\n", "\n")  # which the terminal makes of a newline

    def check_live(self, text):
        for step in range(1, STEPS + 1):
            self.assertIn("%sstep %d/%d  loss " % (LIVE, step, STEPS), text)
        self.assertEqual(text.count("left\n"), 1, "only the last line ends:\n" + text)

    def check_plain(self, text):
        self.assertNotIn("\r", text)
        self.assertNotIn("\033", text)
        steps = [step for step in range(1, STEPS + 1) if "step %d/%d  loss " % (step, STEPS) in text]
        self.assertEqual(steps, [1, 5, 10, 12])

    def test_on_a_terminal(self):
        self.check_live(self.on_terminal(harness.command(0, *self.arguments("alone"))))
        self.check_live(self.on_terminal(harness.command(2, *self.arguments("ranks"))))

    def test_evaluation_has_bars_on_a_terminal_alone(self):
        self.train(0, "evaluated", train__max_steps=1, train__global_batch_size=8)
        evaluation = ["eval", *self.experiment("evaluated", train__max_steps=1, train__global_batch_size=8)]
        self.assertRegex(self.on_terminal(harness.command(2, *evaluation)), "\033.*(answering|evaluating)")
        in_log = harness.pesc(2, *evaluation)
        self.assertEqual(in_log.code, harness.OK, str(in_log))
        self.assertNotIn("\033", in_log.err)
        self.assertNotIn("\r", in_log.err)

    def test_in_a_log(self):
        self.check_plain(self.train(2, "log", train__max_steps=STEPS, train__global_batch_size=8,
                                    train__logging_steps=EVERY).err)
        # The terminal is there, but the lines go to files and get marks on their way.
        for run, flags in (("tagged", ["--tag-output"]), ("files", ["--output-filename", self.path("output")])):
            command = harness.command(2, *self.arguments(run))
            command[len(harness.MPIRUN):len(harness.MPIRUN)] = flags
            self.check_plain(self.on_terminal(command))
        # A shell in between keeps the log of its own.
        log = self.path("shell.log")
        shell = ["sh", "-c", 'exec 2>"$0"; "$@"', log]
        command = harness.command(2, *self.arguments("shell"))
        at = command.index(harness.PESC)
        self.on_terminal(command[:at] + shell + command[at:])
        with open(log, encoding="utf-8") as file:
            self.check_plain(file.read())


if __name__ == "__main__":
    harness.main()
