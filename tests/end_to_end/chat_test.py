"""A model with a tokenizer.json and a chat template: what is learned of a row, training, evaluation and generation with that
template, and what is refused."""

import gzip
import json
import os
import re
import shutil

import harness
from harness import DATA, OK, USAGE
from tiny import CHATML, CHATML_TOKENS, chatml_ids, write_base, write_byte_tokenizer, write_chat_base

SYSTEM = {"role": "system", "content": "be brief"}
ROWS = [
    {"messages": [SYSTEM, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], "dataset": "a"},
    {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "1"}, {"from": "human", "value": "two"},
                       {"from": "gpt", "value": "2"}], "dataset": "b"},
    {"prompt": "na\u00efve", "completion": "\u65e5\u672c", "dataset": "a"},
    {"query": "q", "response": "r"},
    {"instruction": "add", "input": "1 2", "output": "3"},
    {"instruction": "system", "conversation": [{"input": "x", "output": "y", "weight": 0}, {"input": "z", "output": "w"}]},
    {"messages": [{"role": "user", "content": "say <|im_end|> now"}, {"role": "assistant", "content": "no"}]},
]
# What the template makes of them; what is learned stands between the bars.
TEXTS = [
    "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n|yo<|im_end|>|\n",
    "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n|1<|im_end|>|\n"
    "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n|2<|im_end|>|\n",
    "<|im_start|>user\nna\u00efve<|im_end|>\n<|im_start|>assistant\n|\u65e5\u672c<|im_end|>|\n",
    "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n|r<|im_end|>|\n",
    "<|im_start|>user\nadd\n1 2<|im_end|>\n<|im_start|>assistant\n|3<|im_end|>|\n",
    "<|im_start|>system\nsystem<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\ny<|im_end|>\n"
    "<|im_start|>user\nz<|im_end|>\n<|im_start|>assistant\n|w<|im_end|>|\n",
    "<|im_start|>user\nsay <|im_end|> now<|im_end|>\n<|im_start|>assistant\n|no<|im_end|>|\n",
]


def expected(text):
    """(text, ids, learned ranges). Bars are turned into control tokens' borders first: a bar is in no text itself."""
    parts, ids, learned = split_bars(text), [], []
    for i, part in enumerate(parts):
        begin = len(ids)
        # What a user writes holds no special token: there is one such row.
        if "say <|im_end|> now" in part:
            before, after = part.split("say <|im_end|> now")
            ids += chatml_ids(before) + list(b"say <|im_end|> now") + chatml_ids(after)
        else:
            ids += chatml_ids(part)
        if i % 2:
            learned.append([begin, len(ids)])
    return {"text": "".join(parts), "ids": ids, "learned": learned}


def split_bars(text):
    marked = text
    for token in CHATML_TOKENS:
        marked = marked.replace(token, token.replace("|", "\0"))
    return [part.replace("\0", "|") for part in marked.split("|")]


class Chat(harness.EndToEnd):
    @classmethod
    def setUpClass(cls):
        cls.folder = harness.tempfile.mkdtemp(prefix="pesc-end-to-end-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.base = os.path.join(cls.folder, "base")
        write_chat_base(cls.base)
        cls.rows = os.path.join(cls.folder, "rows.jsonl")
        cls.write(cls.rows, ROWS)

    @staticmethod
    def write(path, rows):
        with open(path, "w", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def tokenize(self, model, rows, *flags):
        path = self.path("lines.jsonl")
        self.write(path, rows)
        with open(path, encoding="utf-8") as file:
            return harness.pesc(0, "tokenize", "--model", model, *flags, stdin=file, seconds=60)

    def go(self, verb, run, *flags, ranks=0, base=None, rows=None, data=""):
        config = self.path(run + ".textproto")
        with open(config, "w", encoding="utf-8") as file:
            file.write('name: "chat" run_dir: "%s" model { path: "%s" } train { max_steps: 3 global_batch_size: 4 seed: 3 }'
                       ' lora { r: 2 lora_dropout: 0 } moe { num_experts: 2 num_experts_per_tok: 1 adapter_dim: 4 adapter_dropout: 0 }'
                       ' parallel { num_threads: 1 } generate { max_new_tokens: 4 }'
                       ' data { max_seq_length: 128 train { path: "%s" } eval { path: "%s" } %s }'
                       % (self.path(run), base or self.base, rows or self.rows, rows or self.rows, data))
        return harness.pesc(ranks, verb, "--config", config, *flags)

    def test_rows_are_learned_as_written_by_hand(self):
        result = self.tokenize(self.base, ROWS)
        self.assertEqual(result.code, OK, str(result))
        for row, line, text in zip(ROWS, result.out.splitlines(), TEXTS):
            self.assertEqual(json.loads(line), expected(text), row)
        self.assertEqual(len(result.out.splitlines()), len(TEXTS))
        shown = self.tokenize(self.base, ROWS[:1], "--show")
        self.assertIn("⟦<|im_start|>⟧assistant\n>>>yo⟦<|im_end|>⟧<<<\n", shown.out)

    def tokenize_bytes(self, data):
        with open(self.path("lines"), "wb") as file:
            file.write(data)
        with open(self.path("lines"), encoding="utf-8", errors="replace") as file:
            return harness.pesc(0, "tokenize", "--model", self.base, stdin=file, seconds=60)

    def test_lines_are_read_as_those_of_a_file_of_rows(self):
        row = json.dumps(ROWS[0]).encode() + b"\n"
        result = self.tokenize_bytes(b"\xef\xbb\xbf" + row + b"\n  \r\n" + row[:-2] + b', "inputs": "lost"}\n\n')
        self.assertEqual(result.code, OK, str(result))
        self.assertEqual([json.loads(line) for line in result.out.splitlines()], [expected(TEXTS[0])] * 2)
        self.assertRegex(result.err, r'fields that nothing reads: "inputs" \(1 row\)')
        for data, *words in (
                (gzip.compress(row), ":1: the input is compressed with gzip", "decompress it first"),
                (row.decode().encode("utf-16"), ":1: the input is text in UTF-16", "UTF-8"),
                (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", ":1: the input is a Git LFS pointer"),
                (b'"ab"\0more\n', ":1: holds a NUL byte (byte 5)"),
                (b'"ab" "cd"\n', ":1: is not valid JSON at byte ", "'\"cd\"' stands behind the string"),
                (row + b"'ab'\n", ":2: is not valid JSON at byte ", "double quotes"),
                (b'"\\ud800"\n', "a lone surrogate"), (b'"a\xff"\n', "is no UTF-8"), (b'"ab\n', "its closing quote is missing"),
                (b"ab\n", "it begins with 'ab'")):
            result = self.tokenize_bytes(data)
            self.assert_refused(result, DATA, "standard input:", *words)

    def test_train_evaluate_generate(self):
        result = self.go("train", "run", "--show_rows", "2")
        self.assertEqual(result.code, OK, str(result))
        self.assertIn("tokenizer.json", result.err)
        self.assertIn("chat_template.jinja", result.err)
        self.assertEqual(result.err.count("of them learned:"), 2)
        # Every row once in two steps of four, one of them twice: what is learned in an epoch is known.
        learned = sum(end - begin for text in TEXTS for begin, end in expected(text)["learned"])
        self.assertIn("%d tokens, %d of them learned" % (sum(len(expected(t)["ids"]) for t in TEXTS), learned), result.err)
        self.assertEqual(len(harness.curve(self.path("run"))), 3)

        out = self.path("eval.json")
        result = self.go("eval", "run", "--out", out, "--samples", "7")
        self.assertEqual(result.code, OK, str(result))
        with open(out, encoding="utf-8") as file:
            report = json.load(file)
        self.assertEqual(report["total"]["rows"], 7)
        self.assertEqual(report["total"]["supervised_tokens"], learned)
        self.assertEqual([s["expected"] for s in report["samples"]], ["yo", "2", "\u65e5\u672c", "r", "3", "w", "no"])

        result = self.go("generate", "run", "--prompt", "hi", "--system", "be brief")
        self.assertEqual(result.code, OK, str(result))
        # The rows of a file are asked with the same tokens as --prompt is.
        self.write(self.path("asked.jsonl"), [{"messages": [SYSTEM, {"role": "user", "content": "hi"}]},
                                              {"prompt": "hi", "system": "be brief"}])
        answers = self.go("generate", "run", "--prompts", self.path("asked.jsonl"))
        self.assertEqual(answers.code, OK, str(answers))
        found = [json.loads(line) for line in answers.out.splitlines()]
        self.assertEqual([f["output"] for f in found], [result.out[:-1]] * 2)
        self.assertEqual([f["input"] for f in found], ["hi"] * 2)

    def chat(self, lines, *flags, ranks=0, run="talk", tp=1, ep=1, data="", generate=""):
        """`pesc generate --base --chat` with these bytes or lines on standard input."""
        config = self.path("talk.textproto")
        with open(config, "w", encoding="utf-8") as file:
            file.write('name: "talk" run_dir: "%s" model { path: "%s" } train { max_steps: 1 } moe { num_experts: 2 num_experts_per_tok: 1'
                       ' adapter_dim: 4 } parallel { num_threads: 1 tp: %d ep: %d } generate { max_new_tokens: 6 %s } data { %s train { path: "%s" } }'
                       % (self.path(run), self.base, tp, ep, generate, data or "max_seq_length: 128", self.rows))
        path = self.path("talk.txt")
        with open(path, "wb") as file:
            file.write(lines if isinstance(lines, bytes) else "".join(line + "\n" for line in lines).encode())
        with open(path, "rb") as file:
            return harness.pesc(ranks, "generate", "--config", config, "--base", "--chat", *flags, stdin=file)

    def answers(self, conversations):
        """What `--prompts` answers to these lists of (role, text), which end with a question."""
        asked = self.path("conversations.jsonl")
        self.write(asked, [{"messages": [{"role": role, "content": text} for role, text in c]} for c in conversations])
        result = harness.pesc(0, "generate", "--config", self.path("talk.textproto"), "--base", "--prompts", asked)
        self.assertEqual(result.code, OK, str(result))
        return [json.loads(line)["output"] for line in result.out.splitlines()]

    def test_a_conversation_from_a_pipe(self):
        lines = ["hi", "", "and you?", "/reset", "na\u00efve", "/exit", "never asked"]
        result = self.chat(lines, "--system", "be brief")
        self.assertEqual(result.code, OK, str(result))
        self.assertNotIn("> ", result.out + result.err)  # prompts are for terminals
        # Every answer is that of a row with the conversation so far, and the next question is asked with it in place.
        system = [("system", "be brief")]
        one = self.answers([system + [("user", "hi")]])
        second = system + [("user", "hi"), ("assistant", one[0]), ("user", "and you?")]
        rest = self.answers([second, system + [("user", "na\u00efve")]])
        self.assertEqual(result.out, "".join(a + "\n" for a in one + rest))
        self.assertNotEqual(self.chat(lines).out, result.out)  # another system text
        # The end of the input ends it too, behind a last line without an end. The ranks of every layout get what rank 0 reads.
        for ranks, tp, ep in ((1, 1, 1), (2, 2, 1), (2, 1, 2), (4, 2, 2)):
            again = self.chat("hi\nand you?".encode(), "--system", "be brief", ranks=ranks, tp=tp, ep=ep)
            self.assertEqual(again.code, OK, str(again))
            # To mpirun a rank writes as to a terminal: control characters as \x1F.
            written = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda m: "".join("\\x%02X" % b for b in m[0].encode()),
                             one[0] + "\n" + rest[0] + "\n")
            self.assertEqual(again.out, written, "%d ranks, tp %d, ep %d" % (ranks, tp, ep))
        self.assertEqual(self.chat([]).out, "")
        # With a temperature every turn has draws of its own, and the same ones in every run.
        hot = self.chat(["hi", "/reset", "hi", "/reset", "hi"], generate="temperature: 3")
        self.assertEqual(len(set(hot.out.split("\n"))), 4, str(hot))  # three answers, and what is behind the last line's end
        self.assertEqual(self.chat(["hi", "/reset", "hi", "/reset", "hi"], generate="temperature: 3").out, hot.out)

    @harness.whole
    def test_a_conversation_that_becomes_too_long(self):
        # The model has 128 positions: of these six are for the answer.
        turn, question = "x" * 20, lambda c: [("user", c)]
        result = self.chat([turn] * 4)
        self.assertEqual(result.code, OK, str(result))
        self.assertIn("(the oldest turn is forgotten: with it the conversation would leave no room for an answer)", result.err)
        first = self.answers([question(turn)])[0]
        self.assertTrue(result.out.startswith(first + "\n"), str(result))
        # data.max_seq_length bounds it before the positions do.
        short = self.chat([turn] * 2, data="max_seq_length: 50")
        self.assertIn("the oldest turn is forgotten", short.err)
        self.assertEqual(short.out, (first + "\n") * 2)
        for lines, words in ((["hi", "y" * 200], ("standard input:2:", "more than 127")), ([b"\xff\n"], ("standard input:1:", "not valid UTF-8")),
                             ([b"hi\n\0\n"], ("standard input:2:", "NUL")), (["/restart"], ("standard input:1:", "'/restart'", "/reset"))):
            given = lines[0] if isinstance(lines[0], bytes) else lines
            for ranks in (0, 2):
                self.assert_refused(self.chat(given, ranks=ranks), DATA, *words)
        self.assertEqual(self.chat([" /restart"]).code, OK)
        for flags in (("--prompt", "x"), ("--prompts", self.rows)):
            self.assert_refused(self.chat([], *flags), USAGE, "exactly one of --prompt TEXT, --prompts FILE and --chat")

    def test_a_conversation_at_a_terminal(self):
        """Prompts are shown, mistakes are said, and the conversation goes on."""
        self.chat([])  # writes the experiment
        outer, inner = os.openpty()
        process = harness.start(0, "generate", "--config", self.path("talk.textproto"), "--base", "--chat", stdin=inner)
        os.close(inner)
        os.write(outer, b"/restart\nhi\n/reset\n\x04")
        result = harness.finish(process, 60)
        os.close(outer)
        self.assertEqual(result.code, OK, str(result))
        self.assertIn("there is no command '/restart'", result.err)
        self.assertIn("(the conversation is forgotten)", result.err)
        self.assertEqual(result.err.count("> "), 4, str(result))
        self.assertEqual(result.out, self.answers([[("user", "hi")]])[0] + "\n")

    def test_another_template_is_another_run(self):
        self.assertEqual(self.go("train", "same").code, OK)
        for verb in ("train", "eval"):
            self.assert_refused(self.go(verb, "same", data='chat_template: "published"'), USAGE, "another prompt encoded")
        copy = self.path("copy.jinja")
        with open(copy, "w", encoding="utf-8") as file:
            file.write(CHATML)
        # The same content from another place is the same run.
        result = self.go("eval", "same", data='chat_template: "%s"' % copy)
        self.assertEqual(result.code, OK, str(result))
        # Which answers are learned, and the date, matter to training alone.
        self.assert_refused(self.go("train", "same", data="train_on: LAST"), USAGE, "data.train_on: ALL -> LAST")
        result = self.go("eval", "same", data='train_on: LAST template_date: "2025-01-31"')
        self.assertEqual(result.code, OK, str(result))
        self.assertRegex(result.err, r"same\.textproto:1: data\.template_date has no effect: the chat template .*chat_template\.jinja "
                                     r"does not ask for the date")

    def test_a_folder_without_template_has_the_published_prompt(self):
        base = self.path("plain")
        write_chat_base(base, template=None)
        result = self.tokenize(base, ROWS[1:2])
        self.assertEqual(json.loads(result.out)["text"],
                         "### Human:\none\n### Assistant:\n1<|endoftext|>### Human:\ntwo\n### Assistant:\n2<|endoftext|>")
        result = self.go("train", "plain-run", base=base)
        self.assertEqual(result.code, OK, str(result))
        self.assertIn("the published prompt", result.err)
        tools = self.path("tools.jsonl")
        self.write(tools, [{"messages": ROWS[0]["messages"], "tools": [{"type": "function"}]}])
        self.assert_refused(self.go("train", "plain-tools", base=base, rows=tools), DATA, "tools.jsonl:1:", "tools")

    def test_tokenizer_json_goes_first(self):
        both = self.path("both")
        write_chat_base(both)
        shutil.copy(os.path.join(harness.BASE, "tokenizer.model"), both)
        self.assertEqual(json.loads(self.tokenize(both, ["ab"]).out), {"ids": [97, 98]})

    def test_what_cannot_be_learned_is_refused(self):
        unmarked = self.path("unmarked")
        write_chat_base(unmarked, template="{% for m in messages %}{{ m.content }}\n{% endfor %}")
        self.assert_refused(self.go("train", "unmarked-run", base=unmarked), DATA, "chat_template.jinja", "never learn to stop")
        # The built-in ChatML on a tokenizer without its tokens.
        other = self.path("other")
        write_base(other)
        self.assert_refused(self.go("train", "other-run", base=other, data='chat_template: "chatml"'), DATA, "never learn to stop")
        self.assert_refused(self.go("train", "unknown", data='chat_template: "chat"'), USAGE, "data.chat_template", "published")
        self.assert_refused(self.go("train", "nowhere", data='chat_template: "./none.jinja"'), USAGE, "data.chat_template")
        self.assert_refused(self.go("train", "undated", data='template_date: "31.1.2025"'), USAGE, "data.template_date")
        raises = self.path("raises")
        write_chat_base(raises, template="{% if messages|length > 4 %}{{ raise_exception('too long') }}{% endif %}" + CHATML)
        rows = self.path("long.jsonl")
        long = [{"role": role, "content": "x"} for role in ("user", "assistant")] * 3
        self.write(rows, ROWS[:4] + [{"messages": long}])
        self.assert_refused(self.go("train", "raised", base=raises, rows=rows), DATA, "long.jsonl:5:", "too long", "data.on_bad_row")
        result = self.go("train", "skipped", base=raises, rows=rows, data="on_bad_row: SKIP")
        self.assertEqual(result.code, OK, str(result))
        self.assertIn("1 malformed rows skipped", result.err)
        for verb, words in (("generate", ("--base", "--prompts", rows)), ("eval", ("--base",))):
            refused = self.go(verb, verb + "-raised", *words, base=raises, rows=rows)
            self.assert_refused(refused, DATA, "long.jsonl:5:", "too long", "data.on_bad_row: SKIP")
            skipped = self.go(verb, verb + "-skipped", *words, base=raises, rows=rows, data="on_bad_row: SKIP")
            self.assertEqual(skipped.code, OK, str(skipped))
            self.assertIn("long.jsonl:5:", skipped.err)
            if verb == "generate":
                self.assertEqual(len(skipped.out.splitlines()), 4, str(skipped))
        alone = self.path("alone.jsonl")
        self.write(alone, [{"messages": long}])
        self.assert_refused(self.go("generate", "alone", "--base", "--prompts", alone, base=raises, data="on_bad_row: SKIP"), DATA,
                            "no row is left to answer", "alone.jsonl:1:")
        nothing = self.path("nothing.jsonl")
        self.write(nothing, [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "train": False}]},
                             {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}, ROWS[0]])
        result = self.go("train", "dropped", rows=nothing)
        self.assertEqual(result.code, OK, str(result))
        self.assertIn("nothing.jsonl:1: none of its answers is to be learned", result.err)
        self.assertIn("nothing.jsonl:2: message 1 is an empty answer", result.err)

    def test_a_row_that_the_tokenizer_refuses_has_a_place(self):
        base = self.path("unknown")
        write_chat_base(base)
        path = os.path.join(base, "tokenizer.json")
        with open(path, encoding="utf-8") as file:
            tokenizer = json.load(file)
        vocab = tokenizer["model"]["vocab"]
        vocab["ZZ"] = vocab.pop("Z")
        tokenizer["model"]["unk_token"] = "<unk>"  # which is not in the vocabulary
        with open(path, "w", encoding="utf-8") as file:
            json.dump(tokenizer, file)
        bad = {"query": "Z", "response": "r"}
        rows = self.path("unknown.jsonl")
        self.write(rows, ROWS[:4] + [bad])
        for lines, place in ((["a", "Z"], 2), ([bad], 1)):
            self.assert_refused(self.tokenize(base, lines), DATA, "standard input:%d: " % place, "unknown token '<unk>'")
        for verb, words in (("train", ()), ("generate", ("--base", "--prompts", rows))):
            refused = self.go(verb, verb + "-unknown", *words, base=base, rows=rows)
            self.assert_refused(refused, DATA, "unknown.jsonl:5: ", "unknown token '<unk>'", "data.on_bad_row: SKIP")
            skipped = self.go(verb, verb + "-known", *words, base=base, rows=rows, data="on_bad_row: SKIP")
            self.assertEqual(skipped.code, OK, str(skipped))
            self.assertIn("unknown.jsonl:5: ", skipped.err)
        refused = self.go("generate", "prompt", "--base", "--prompt", "Z", base=base)
        self.assert_refused(refused, DATA, "--prompt: ", "unknown token '<unk>'")
        self.assertNotIn("SKIP", refused.err)

    def test_damaged_tokenizers(self):
        for name, change, what in (("cut", lambda text: text[:100], "tokenizer.json"),
                                   ("unigram", lambda text: text.replace('"BPE"', '"Unigram"'), "Unigram")):
            base = self.path(name)
            write_chat_base(base)
            path = os.path.join(base, "tokenizer.json")
            with open(path, encoding="utf-8") as file:
                text = file.read()
            with open(path, "w", encoding="utf-8") as file:
                file.write(change(text))
            self.assert_refused(self.go("train", name + "-run", base=base), DATA, "tokenizer.json", what)
        # More pieces than the embedding has rows.
        base = self.path("large")
        write_chat_base(base)
        write_byte_tokenizer(base, {**CHATML_TOKENS, **{"<|more %d|>" % i: i for i in range(259, 280)}})
        self.assert_refused(self.go("train", "large-run", base=base), DATA, "the tokenizer has 280 pieces")


if __name__ == "__main__":
    harness.main()
