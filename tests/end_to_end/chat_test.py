"""A model with a tokenizer.json and a chat template: what is learned of a row, training, evaluation and generation with that
template, and what is refused."""

import json
import os
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
        self.assertIn("<|im_start|>assistant\n>>>yo<|im_end|><<<\n", shown.out)

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
        self.assertRegex(result.err, r"same\.textproto:1:\d+: data\.template_date has no effect: the chat template .*chat_template\.jinja "
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
        nothing = self.path("nothing.jsonl")
        self.write(nothing, [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "train": False}]},
                             {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}, ROWS[0]])
        result = self.go("train", "dropped", rows=nothing)
        self.assertEqual(result.code, OK, str(result))
        self.assertIn("nothing.jsonl:1: none of its answers is to be learned", result.err)
        self.assertIn("nothing.jsonl:2: message 1 is an empty answer", result.err)

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
