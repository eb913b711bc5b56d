"""data.cache_dir: rows are tokenised once, a run from the cache is a run without, whoever dies or starts at the same time."""

import fcntl
import os
import random
import signal
import time

import harness
from harness import OK
from tiny import write_base

ROWS = 12000
EXACT = harness.CURVE + ("tokens", "supervised_tokens")


class TokenCache(harness.EndToEnd):
    @classmethod
    def setUpClass(cls):
        cls.folder = harness.tempfile.mkdtemp(prefix="pesc-token-cache-")
        cls.addClassCleanup(harness.shutil.rmtree, cls.folder, ignore_errors=True)
        write_base(cls.path("base"))
        draw = random.Random(3)
        words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(3000)]
        with open(cls.path("rows.jsonl"), "w", encoding="utf-8") as file:
            for i in range(ROWS):
                file.write('{"instruction": "%s", "output": "%s", "dataset": "%s"}\n' % (
                    " ".join(draw.choices(words, k=8)), " ".join(draw.choices(words, k=draw.randint(1, 60))), "ab"[i % 2]))

    def flags(self, run, cache, **fields):
        settings = {"run_dir": self.path(run), "model.path": self.path("base"), "data.cache_dir": self.path(cache) if cache else ""}
        settings.update({name.replace("__", "."): value for name, value in fields.items()})
        text = ('name: "cache" train { max_steps: 3 global_batch_size: 8 eval_steps: 2 max_eval_samples: 16 }'
                ' lora { r: 2 } moe { num_experts: 2 num_experts_per_tok: 1 adapter_dim: 4 } parallel { num_threads: 1 }'
                ' data { max_seq_length: 96 packing: BEST_FIT validation_fraction: 0.01 train { path: "%s" } }'
                % self.path("rows.jsonl"))
        config = self.path("e.textproto")
        with open(config, "w", encoding="utf-8") as file:
            file.write(text)
        flags = ["--config", config]
        for name, value in settings.items():
            flags += ["--set", "%s=%s" % (name, value)]
        return flags

    def start(self, run, cache, ranks=0, **fields):
        return harness.start(ranks, "train", *self.flags(run, cache, **fields))

    def outcome(self, run):
        """The numbers of a run, evaluations with them."""
        records = [r for r in harness.measured(self.path(run)) if r.get("kind") != "launch"]
        keep = lambda r: {k: v for k, v in r.items() if k in EXACT or "eval" in k and "seconds" not in k}
        return [keep(r) for r in records]

    def run_once(self, run, cache, ranks=0, **fields):
        result = harness.finish(self.start(run, cache, ranks, **fields), 120)
        self.assertEqual(result.code, OK, str(result))
        return result

    def reference(self):
        if not os.path.exists(self.path("plain")):
            result = self.run_once("plain", "")
            self.assertNotIn("token cache", result.err)
        return self.outcome("plain")

    def names(self, cache):
        return sorted(os.listdir(self.path(cache)))

    def wait_for_part(self, cache, process):
        """Until a writer has begun a file that is not whole."""
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            try:
                if any(".tmp." in n and os.path.getsize(self.path(cache, n)) > 0 for n in os.listdir(self.path(cache))):
                    return
            except FileNotFoundError:
                pass
            time.sleep(0.002)
        self.fail("nobody tokenises: %s" % harness.finish(process, 10))

    def test_a_run_from_the_cache_is_a_run_without(self):
        reference = self.reference()
        made = self.run_once("made", "once")
        self.assertEqual(made.err.count("is tokenised into"), 2)  # what is trained on, and what is evaluated
        self.assertEqual(self.outcome("made"), reference)
        before = {n: os.stat(self.path("once", n)).st_mtime_ns for n in self.names("once") if n.endswith(".tokens")}
        self.assertEqual(len(before), 2)
        read = self.run_once("read", "once")
        self.assertEqual((read.err.count("is tokenised into"), read.err.count("are read from")), (0, 2), str(read))
        self.assertEqual(self.outcome("read"), reference)
        # A run may begin without a cache and go on with one.
        self.run_once("half", "", train__max_steps=2)
        self.run_once("half", "once", train__max_steps=3)
        self.assertEqual(self.outcome("half")[-1], reference[-1])
        self.assertEqual({n: os.stat(self.path("once", n)).st_mtime_ns for n in before}, before)

    def test_ranks_and_starts_at_once_tokenise_once(self):
        processes = [self.start("first", "shared", ranks=2), self.start("second", "shared", ranks=2)]
        results = [harness.finish(process, 120) for process in processes]
        for result in results:
            self.assertEqual(result.code, OK, str(result))
        text = "".join(result.err for result in results)
        self.assertEqual(text.count("is tokenised into"), 2, text)
        self.assertIn("waiting for the process that tokenises", text)
        self.assertEqual(self.outcome("first"), self.outcome("second"))
        for one, plain in zip(self.outcome("first"), self.reference()):
            self.assertEqual(one.get("tokens"), plain.get("tokens"))

    def test_a_signal_ends_the_set_up(self):
        # For as long as another process has the cache's lock, the set-up does not end by itself.
        os.makedirs(self.path("held"))
        with open(self.path("held", "pesc.tokens.lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for run, ranks, number in (("one", 0, signal.SIGTERM), ("two", 2, signal.SIGUSR1)):
                process = self.start("stopped-" + run, "held", ranks=ranks)
                seen = ""
                while "waiting for the process that tokenises" not in seen:
                    line = process.stderr.readline()
                    self.assertTrue(line, seen)
                    seen += line
                process.send_signal(number)  # mpirun passes SIGUSR1 on
                result = harness.finish(process, 30)
                self.assertEqual(result.code, harness.PREEMPTED, seen + str(result))
                self.assertEqual(result.err.count("before the first step"), 1, str(result))
                self.assertFalse(os.path.exists(self.path("stopped-" + run)), "a start that did nothing leaves nothing")

    def test_after_a_kill_the_next_start_is_right(self):
        for together in (1, 2):
            cache = "killed-%d" % together
            processes = [self.start("%s-%d" % (cache, i), cache) for i in range(together)]
            self.wait_for_part(cache, processes[0])
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)
            for process in processes:
                process.communicate()
            self.assertTrue(any(".tmp." in n for n in self.names(cache)), self.names(cache))
            self.run_once("after-" + cache, cache)
            self.assertEqual(self.outcome("after-" + cache), self.reference())
            self.assertFalse([n for n in self.names(cache) if ".tmp." in n])

    def test_a_damaged_cache_is_made_anew(self):
        self.run_once("whole", "damaged")
        for name in self.names("damaged"):
            if name.endswith(".tokens"):
                os.truncate(self.path("damaged", name), os.path.getsize(self.path("damaged", name)) // 2)
        result = self.run_once("anew", "damaged")
        self.assertEqual(result.err.count("put aside and made anew"), 2, str(result))
        self.assertEqual(self.outcome("anew"), self.reference())


if __name__ == "__main__":
    harness.main()
