"""What a user can get wrong, on one rank and on four: one line that starts with `pesc: ` and says what and where, the
exit code of its kind, no rank left waiting, and nothing that was saved before is touched.
"""

import json
import os
import shutil
import signal

import harness
from harness import BASE, DATA, IO, USAGE

SECONDS = 20  # more is a hang


class BadInput(harness.EndToEnd):
    train_rows = 100
    # One of each kind of place that refuses; runtime/bad_input_test.cc has the others in one process.
    sample = ["test_missing_model", "test_truncated_weights", "test_experiment_that_is_a_fifo", "test_row_that_is_not_utf8",
              "test_unknown_field", "test_impossible_layouts", "test_run_directory_of_somebody_else",
              "test_run_of_another_configuration", "test_ranks_of_other_rows", "test_command_line"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # A run with a checkpoint, whose files every refused run leaves as they are.
        done = harness.pesc(4, "train", *cls.experiment("saved", tp=2, ep=4, train__max_steps=2, train__global_batch_size=8))
        assert done.code == 0, done
        cls.saved = cls.saved_files()
        assert any(path.startswith("step-2/") for path in cls.saved)

    @classmethod
    def saved_files(cls):
        """All of them: a start that is refused takes back its lock, its number and the signs of life of its ranks, too."""
        return harness.digests(cls.path("saved"))

    def refused(self, code, words, verb="train", ranks=(1, 4), config=harness.QUICKSTART, flags=(), **fields):
        """The saved run, continued with these fields changed, is refused on each number of ranks."""
        fields = {"train__max_steps": 4, "train__global_batch_size": 8, **fields}
        for n in ranks:
            with self.subTest(ranks=n):
                layout = {"parallel__tp": 1, "parallel__ep": 1} if n == 1 else {"parallel__tp": 2, "parallel__ep": 4}
                arguments = self.experiment("saved", config=config, **{**layout, **fields})
                result = harness.pesc(n if n > 1 else 0, verb, *arguments, *flags, seconds=SECONDS)
                self.assert_refused(result, code, *words)
                self.assertEqual(self.saved_files(), self.saved, "files of the saved run changed\n%s" % result)

    def copy_of_base(self, name):
        folder = self.path(name)
        shutil.copytree(BASE, folder)
        return folder

    def rewrite_config(self, name, **fields):
        folder = self.copy_of_base(name)
        path = os.path.join(folder, "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config.update(fields)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        return folder

    def rows(self, name, *lines):
        """The training rows with these bytes after the first one: the first of them is line 2."""
        with open(os.path.join(self.data, "train.jsonl"), "rb") as file:
            good = file.readlines()
        path = self.path(name)
        with open(path, "wb") as file:
            file.writelines([good[0], *[line + b"\n" for line in lines], *good[1:]])
        return path

    # The model's folder.

    def test_missing_model(self):
        self.refused(USAGE, ["model.path", "no-such-model"], model__path=self.path("no-such-model"))

    def test_folder_without_a_model(self):
        os.makedirs(self.path("empty-model"))
        self.refused(DATA, ["empty-model", "config.json"], model__path=self.path("empty-model"),
                     model__tokenizer=BASE)

    def test_missing_weights(self):
        folder = self.copy_of_base("no-weights")
        os.remove(os.path.join(folder, "model.safetensors"))
        self.refused(DATA, ["no-weights", "safetensors"], model__path=folder)

    def test_truncated_weights(self):
        for name, size in (("cut-data", -1000), ("cut-header", 100), ("cut-all", 0)):
            folder = self.copy_of_base(name)
            path = os.path.join(folder, "model.safetensors")
            os.truncate(path, size if size >= 0 else os.path.getsize(path) + size)
            self.refused(DATA, [name, "model.safetensors"], model__path=folder)

    def test_wrong_shape(self):
        folder = self.copy_of_base("wrong-shape")
        path = os.path.join(folder, "model.safetensors")
        header, data = harness.read_safetensors(path)
        name = "model.layers.2.mlp.up_proj.weight"
        header[name]["shape"] = header[name]["shape"][::-1]
        harness.write_safetensors(path, header, data)
        self.refused(DATA, ["model.safetensors", name, "352", "128"], model__path=folder)

    def test_missing_tensor(self):
        folder = self.copy_of_base("missing-tensor")
        path = os.path.join(folder, "model.safetensors")
        header, data = harness.read_safetensors(path)
        header["model.layers.3.other.weight"] = header.pop("model.layers.3.self_attn.k_proj.weight")
        harness.write_safetensors(path, header, data)
        self.refused(DATA, ["model.layers.3.self_attn.k_proj.weight"], model__path=folder)

    def test_unknown_architecture(self):
        self.refused(DATA, ["config.json", "GPTNeoXForCausalLM"], model__path=self.rewrite_config(
            "architecture", architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox"))

    def test_unsupported_rope(self):
        self.refused(DATA, ["config.json", "yarn"], model__path=self.rewrite_config(
            "rope", rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}))

    def test_damaged_config(self):
        folder = self.copy_of_base("damaged-config")
        os.truncate(os.path.join(folder, "config.json"), 50)
        self.refused(DATA, ["config.json"], model__path=folder)

    def test_files_of_the_folder_that_are_none(self):
        """A FIFO is not waited for, a link does not lead out of the folder."""
        secret = self.path("secret")
        with open(secret, "w", encoding="utf-8") as file:
            file.write("{}")
        for name in ("config.json", "model.safetensors.index.json", "model.safetensors"):
            for what, make, words in (("fifo", os.mkfifo, "FIFO"),
                                      ("link", lambda path: os.symlink("../secret", path), "symbolic link out of"),
                                      ("absolute", lambda path: os.symlink(secret, path), "symbolic link out of")):
                folder = self.copy_of_base("%s-%s" % (what, name))
                path = os.path.join(folder, name)
                # The weights in one file beside an index are another error.
                os.remove(os.path.join(folder, "model.safetensors") if name != "config.json" else path)
                make(path)
                self.refused(DATA, [name, words], ranks=(4,) if what == "fifo" else (1,), model__path=folder)

    def test_experiment_that_is_a_fifo(self):
        path = self.path("fifo.textproto")
        os.mkfifo(path)
        self.refused(USAGE, [path, "no regular file"], config=path)

    def test_vocabulary_that_differs(self):
        folder = self.copy_of_base("small-vocabulary")
        path = os.path.join(folder, "model.safetensors")
        header, data = harness.read_safetensors(path)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            begin = header[name]["data_offsets"][0]
            header[name].update(shape=[1000, 128], data_offsets=[begin, begin + 1000 * 128 * 4])
        # No holes between tensors: the format forbids them, and they are another error.
        packed = b""
        for name in header:
            begin, end = header[name]["data_offsets"]
            header[name]["data_offsets"] = [len(packed), len(packed) + end - begin]
            packed += data[begin:end]
        harness.write_safetensors(path, header, packed)
        config = os.path.join(folder, "config.json")
        with open(config, encoding="utf-8") as file:
            text = file.read()
        with open(config, "w", encoding="utf-8") as file:
            file.write(text.replace('"vocab_size": 1024', '"vocab_size": 1000'))
        self.refused(DATA, ["1024", "1000", "tokenizer"], model__path=folder)

    def test_damaged_tokenizer(self):
        folder = self.copy_of_base("damaged-tokenizer")
        os.truncate(os.path.join(folder, "tokenizer.model"), 5000)
        self.refused(DATA, ["tokenizer.model"], model__path=folder)

    def test_missing_tokenizer(self):
        folder = self.copy_of_base("no-tokenizer")
        os.remove(os.path.join(folder, "tokenizer.model"))
        self.refused(DATA, ["no-tokenizer", "tokenizer"], model__path=folder)

    # The rows.

    def bad_row(self, name, line, *words):
        path = self.rows(name, line)
        self.refused(DATA, [path + ":2", *words], **{"data.train[0].path": path})

    def test_row_that_is_no_json(self):
        self.bad_row("no-json.jsonl", b'{"instruction": "", "conversation": [{"input": "a", "output": ')

    def test_row_without_an_answer(self):
        self.bad_row("no-output.jsonl", b'{"instruction": "", "conversation": [{"input": "a"}]}', "output")

    def test_row_with_nul(self):
        self.bad_row("nul.jsonl", b'{"instruction": "", "conversation": [{"input": "a\\u0000b", "output": "c"}]}', "NUL")
        self.bad_row("raw-nul.jsonl", b'{"instruction": "", "conversation": [{"input": "a\0b", "output": "c"}]}')

    def test_row_that_is_not_utf8(self):
        self.bad_row("latin1.jsonl", b'{"instruction": "", "conversation": [{"input": "caf\xe9", "output": "c"}]}', "UTF-8")

    def test_bad_row_of_the_eval_data(self):
        path = self.rows("eval.jsonl", b"[1]")
        self.refused(DATA, [path + ":2"], verb="eval", **{"data.eval[0].path": path})

    def test_missing_and_empty_data(self):
        self.refused(USAGE, ["data.train[0].path", "no-such.jsonl"], **{"data.train[0].path": self.path("no-such.jsonl")})
        open(self.path("empty.jsonl"), "w").close()
        self.refused(DATA, ["empty.jsonl"], **{"data.train[0].path": self.path("empty.jsonl")})

    # The experiment.

    def test_unknown_field(self):
        with open(harness.QUICKSTART, encoding="utf-8") as file:
            lines = file.read().split("\n")
        at = next(i for i, line in enumerate(lines) if "global_batch" in line)
        lines[at] = lines[at].replace("global_batch", "global_bach")
        config = self.path("typo.textproto")
        with open(config, "w", encoding="utf-8") as file:
            file.write("\n".join(lines))
        self.refused(USAGE, ["%s:%d" % (config, at + 1), "global_bach", "global_batch"], config=config)

    def test_unknown_field_of_an_override(self):
        self.refused(USAGE, ["train.lerning_rate", "learning_rate"], train__lerning_rate="1")

    def test_wrong_type(self):
        self.refused(USAGE, ["train.global_batch_size=many", "integer"], train__global_batch_size="many")

    def test_missing_config(self):
        self.refused(USAGE, ["no-such.textproto"], config=self.path("no-such.textproto"))

    def test_impossible_layouts(self):
        self.refused(USAGE, ["parallel.tp", "3", "heads"], ranks=(3,), parallel__tp=3, parallel__ep=1)
        self.refused(USAGE, ["parallel.ep", "3", "experts"], ranks=(3,), parallel__tp=1, parallel__ep=3)
        self.refused(USAGE, ["parallel.tp", "4", "3"], ranks=(3,), parallel__tp=4, parallel__ep=1)
        self.refused(USAGE, ["parallel.ep", "8", "4"], ranks=(4,), parallel__tp=1, parallel__ep=8)
        self.refused(USAGE, ["parallel.tp"], ranks=(1,), parallel__tp=2, parallel__ep=1)
        self.refused(USAGE, ["train.gradient_accumulation_steps is 5", "global_batch_size = 8"],
                     train__gradient_accumulation_steps=5)

    def test_rows_longer_than_the_model(self):
        self.refused(USAGE, ["data.max_seq_length", "300", "256"], data__max_seq_length=300)

    # The run directory.

    def test_run_directory_that_is_a_file(self):
        path = self.path("a-file")
        with open(path, "w") as file:
            file.write("mine")
        self.refused(IO, ["a-file"], run_dir=path)
        self.refused(IO, ["a-file"], run_dir=os.path.join(path, "below"))
        with open(path) as file:
            self.assertEqual(file.read(), "mine")

    def test_run_directory_that_cannot_be_made(self):
        # Root too can make no folder there.
        self.refused(IO, ["/proc/no-such"], run_dir="/proc/no-such/run")

    def test_run_directory_without_room_for_heartbeats(self):
        """The supervisor would wait for them in vain."""
        folder = self.path("no-heartbeats")
        shutil.copytree(self.path("saved"), folder)
        # Without a checkpoint, with which the experiment would be compared first.
        for name in os.listdir(folder):
            if name.startswith("step-") or name == "heartbeats":
                shutil.rmtree(os.path.join(folder, name))
        with open(os.path.join(folder, "heartbeats"), "w") as file:
            file.write("mine")
        self.refused(IO, ["no-heartbeats/heartbeats"], run_dir=folder)
        again = harness.pesc(0, "launch", "-n", 2, "--", "train", *self.experiment(
            "no-heartbeats", tp=2, ep=2, train__max_steps=4, train__global_batch_size=8,
            recovery__max_restarts=0), seconds=SECONDS)
        self.assertEqual(again.code, IO, str(again))
        self.assertRegex(again.err, r"rank 0 on .* exit code 74: cannot create .*no-heartbeats/heartbeats")

    def test_launch_without_mpirun(self):
        result = harness.pesc(0, "launch", "-n", 2, "--", "train", *self.experiment("without-mpirun"),
                              prefix=("env", "PATH=" + self.path("no-programs")), seconds=SECONDS)
        self.assert_refused(result, USAGE, "mpirun is not in PATH")
        self.assertFalse(os.path.exists(self.path("without-mpirun")))

    def test_run_directory_of_somebody_else(self):
        folder = self.path("letters")
        os.makedirs(folder)
        with open(os.path.join(folder, "letter.txt"), "w") as file:
            file.write("dear")
        self.refused(USAGE, ["letters", "letter.txt"], run_dir=folder)
        self.assertEqual(os.listdir(folder), ["letter.txt"])

    def test_run_of_another_configuration(self):
        self.refused(USAGE, ["moe.num_experts_per_tok", "2", "3"], moe__num_experts_per_tok=3)
        self.refused(USAGE, ["train.learning_rate"], train__learning_rate=0.25)

    def test_run_of_other_rows(self):
        """The file stands where it stood, but what is trained on has changed."""
        path = os.path.join(self.data, "train.jsonl")
        with open(path, "rb") as file:
            good = file.read()
        lines = good.splitlines(keepends=True)
        changed = json.loads(lines[7])
        changed["conversation"][-1]["output"] += "!"
        # What is not trained on may change.
        tagged = dict(json.loads(lines[7]), dataset="another-tag")
        try:
            for rows, words in ((lines + lines[:1], "%d rows instead of %d" % (len(lines) + 1, len(lines))),
                                (lines[:-1], "%d rows instead of %d" % (len(lines) - 1, len(lines))),
                                (lines[1:] + lines[:1], "in another order"),
                                (lines[:7] + [json.dumps(changed).encode() + b"\n"] + lines[8:], "but others")):
                with open(path, "wb") as file:
                    file.writelines(rows)
                self.refused(USAGE, ["data.train[0].path", path, words, "step 2", "run_dir"], train__max_steps=2)
            with open(path, "wb") as file:
                file.writelines(lines[:7] + [b"\n", json.dumps(tagged).encode() + b"\n"] + lines[8:])
            shutil.copytree(self.path("saved"), self.path("tagged"))
            again = self.train(1, "tagged", train__max_steps=2, train__global_batch_size=8)
            self.assertIn("at step 2", again.err)
        finally:
            with open(path, "wb") as file:
                file.write(good)

    def test_ranks_of_other_rows(self):
        """Each host has a file of its own."""
        with open(os.path.join(self.data, "train.jsonl"), "rb") as file:
            lines = file.readlines()
        flags = self.experiment("never", tp=1, ep=1, model__path=BASE, **{"data.train[0].path": "rows.jsonl"})
        command = list(harness.MPIRUN)
        for host, rows in (("here", lines), ("there", lines[:-1])):
            os.makedirs(self.path(host))
            with open(self.path(host, "rows.jsonl"), "wb") as file:
                file.writelines(rows)
            command += ([":"] if host == "there" else []) + ["-np", "1", "-wdir", self.path(host), harness.PESC, "train", *flags]
        process = harness.subprocess.Popen(command, cwd=harness.SOURCE, env=harness.environment(), text=True,
                                           stdout=harness.subprocess.PIPE, stderr=harness.subprocess.PIPE, start_new_session=True)
        self.assert_refused(harness.finish(process, SECONDS), DATA, "rank 1", "rows.jsonl", "%d rows instead of %d" % (
            len(lines) - 1, len(lines)))

    def test_run_of_another_base(self):
        folder = self.copy_of_base("other-base")
        path = os.path.join(folder, "model.safetensors")
        header, data = harness.read_safetensors(path)
        data = bytearray(data)
        data[len(data) // 2] ^= 1
        harness.write_safetensors(path, header, bytes(data))
        self.refused(DATA, ["other-base"], model__path=folder)
        self.refused(DATA, ["other-base"], verb="eval", model__path=folder)

    def test_run_directory_in_use(self):
        other = harness.start(2, "train", *self.experiment("busy", train__max_steps=100000, train__global_batch_size=8,
                                                           train__logging_steps=1))
        try:
            for line in other.stderr:  # until it trains
                if line.startswith("step "):
                    break
            self.refused(USAGE, ["busy", "in use", "pid"], run_dir=self.path("busy"))
        finally:
            os.killpg(other.pid, signal.SIGKILL)
            other.communicate()

    def test_every_checkpoint_damaged(self):
        folder = self.path("damaged-run")
        shutil.copytree(self.path("saved"), folder)
        shard = os.path.join(folder, "step-2", "shard-00002.safetensors")
        with open(shard, "r+b") as file:
            file.seek(-20, os.SEEK_END)
            file.write(b"flip")
        before = harness.digests(os.path.join(folder, "step-2"))
        self.refused(DATA, ["damaged"], run_dir=folder)
        self.assertEqual(harness.digests(os.path.join(folder, "step-2")), before)

    def test_no_checkpoint_to_evaluate(self):
        for verb, flags in (("eval", ()), ("generate", ("--prompt", "Count."))):
            self.refused(DATA, ["no checkpoint"], verb=verb, flags=flags, run_dir=self.path("never"))
        self.assertFalse(os.path.exists(self.path("never")))

    # The command line.

    def refused_words(self, words, *arguments):
        for ranks in (0, 4):
            self.assert_refused(harness.pesc(ranks, *arguments, seconds=SECONDS), USAGE, *words)

    def test_command_line(self):
        config = ("--config", harness.QUICKSTART, *harness.sets(parallel__tp=1, parallel__ep=1))
        self.refused_words(["trian", "'train'"], "trian", *config)
        self.refused_words(["--promt", "--prompt"], "generate", *config, "--promt", "a")
        self.refused_words(["--config"], "train")
        self.refused_words(["usage"])
        self.refused_words(["--config", "needs a value"], "train", "--config")
        self.refused_words(["prompt"], "generate", *config)
        self.refused_words(["--out"], "export", *config)


if __name__ == "__main__":
    harness.main()
