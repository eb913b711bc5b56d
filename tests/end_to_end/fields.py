"""What the files every_field_*_test.py share. No accepted setting is without effect: every field of
configs/schema/experiment.proto and every flag of launcher/flags.cc, with each verb that reads it, has a case in one of them, which
shows that another value changes something beyond the resolved configuration: a number, a file, a line of output, a refusal. A field
that acts only in a fault is shown with its fault, one that acts only on a GPU by the plan for one. A new field, flag or reader of
a flag without a case fails (every_field_test.py); so does a case that names a field and does not try two values of it, or a flag
and does not use it.

The model is a random one of two layers; most cases are one short run compared with one that all of a file share.
"""

import json
import os
import re
import shutil
import tempfile
import unittest

import harness
from tiny import write_base, write_rows

CURVE = ("loss", "aux_loss", "grad_norm", "lr", "tokens", "supervised_tokens")
PLANNED = ("arenas", "phases", "step_seconds", "connection_bytes", "fits", "would_fit")  # the rest of a plan repeats the request
VERBS = ("train", "eval", "generate", "export", "bench", "plan")  # those that read an experiment
CASES = {}  # the tests, as Class.test, that show a field or a flag of a verb


def case(*names):
    """Says which fields ("train.max_steps") or flags of verbs ("eval --samples") the test shows."""
    def register(test):
        for name in names:
            CASES.setdefault(name, set()).add(test.__qualname__)
        return test
    return register


def schema_fields():
    """Every path to a value: "train.max_steps", "data.train[].weight"."""
    with open(os.path.join(harness.SOURCE, "configs", "schema", "experiment.proto"), encoding="utf-8") as file:
        text = re.sub(r"//[^\n]*", "", file.read())
    messages, stack = {}, []
    for opened, name, closed, label, kind, field in re.findall(
            r"\b(message|enum|oneof) (\w+) \{|(\})|(?:(optional|repeated) )?([\w.]+) (\w+) = \d+[^;]*;", text):
        if opened:
            stack.append((opened, name))
            if opened == "message":
                messages[name] = []
        elif closed:
            stack.pop()
        elif kind and stack[-1][0] != "enum":
            message = [n for what, n in stack if what == "message"][-1]
            messages[message].append((field, kind, label == "repeated"))
    found = []

    def walk(message, prefix):
        for field, kind, repeated in messages[message]:
            path = prefix + field + ("[]" if repeated and kind in messages else "")
            if kind in messages:
                walk(kind, path + ".")
            else:
                found.append(path)
    walk("Experiment", "")
    return found


def flags():
    """Every flag with every verb that reads it: "eval --samples"."""
    with open(os.path.join(harness.SOURCE, "launcher", "flags.cc"), encoding="utf-8") as file:
        return ["%s --%s" % (verb, name) for name, verbs in re.findall(r'\bFlag\{"(\w+)",\s*"([\w ]+)"', file.read())
                for verb in verbs.split()]


def values_in(path, text):
    """[(path, value)] of what --set gives a field: a value, or a message or list in protobuf's text format."""
    if text[:1] not in ("{", "["):
        return [(path, text)]
    tokens, found = re.findall(r'"(?:\\.|[^"\\])*"|[][{}]|[^][{}",:;\s]+', text), []

    def read(path):
        token = tokens.pop(0)
        if token == "[":
            while tokens[0] != "]":
                read(path)
            tokens.pop(0)
        elif token == "{":
            while tokens[0] != "}":
                read(path + "." + tokens.pop(0))
            tokens.pop(0)
        else:
            found.append((path, token))
    read(path)
    return found


def without_index(path):
    return re.sub(r"\[\d*\]", "", path)


def not_shown(names, commands):
    """Those of the fields and flags of verbs that the commands (lists of arguments) do not show: a field that has no two values in
    them, where that of the experiment's file is one, and a flag that none of them has."""
    fields, used = [], set()
    for arguments in commands:
        while arguments:
            verb, words = arguments[0], arguments[1:]
            arguments = words[words.index("--") + 1:] if "--" in words else []
            words = words[:words.index("--")] if "--" in words else words
            used |= {"%s --%s" % (verb, word.lstrip("-")) for word in words if word.startswith("-")}
            if verb in VERBS:
                given = {}
                for word, value in zip(words, words[1:]):
                    if word == "--set":
                        for path, one in values_in(*value.split("=", 1)):
                            given.setdefault(without_index(path), []).append(one)
                fields.append(given)
    varied = lambda name: len({tuple(given.get(without_index(name), ())) for given in fields}) > 1
    return [name for name in names if not (name in used if " --" in name else varied(name))]


EXPERIMENT = """
name: "fields"
run_dir: "%(folder)s/run"
model { path: "%(folder)s/base" }
train { mode: PESC max_steps: 3 global_batch_size: 4 learning_rate: 1e-2 }
lora { r: 4 lora_alpha: 4 lora_dropout: 0.1 }
moe { num_experts: 4 num_experts_per_tok: 2 adapter_dim: 4 adapter_dropout: 0.1 }
parallel { num_threads: 1 }
data { max_seq_length: 48 train { path: "%(folder)s/rows.jsonl" } eval {
       path: "%(folder)s/eval.jsonl" } eval { path: "%(folder)s/more.jsonl" } }
recovery { max_restarts: 0 longest_pause_s: 1 }
generate { max_new_tokens: 6 }
"""


class Fields(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="pesc-fields-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        write_base(cls.path("base"))
        write_base(cls.path("other"), seed=2)
        words = "one two three four five six seven eight".split()
        write_rows(cls.path("rows.jsonl"), [("say " + w, w + " and " + v, "a" if i % 2 else "b")
                                            for i, (w, v) in enumerate(zip(words, words[1:] + words[:1]))])
        write_rows(cls.path("eval.jsonl"), [("tell " + w, w, "h") for w in words[:6]])
        write_rows(cls.path("more.jsonl"), [("count to " + w, "no", "m") for w in words[:2]])
        cls.config = cls.path("e.textproto")
        with open(cls.config, "w", encoding="utf-8") as file:
            file.write(EXPERIMENT % {"folder": cls.folder})
        cls.numbered = 0
        cls.known = {}

    def setUp(self):
        harness.COMMANDS.clear()

    def tearDown(self):
        test = ".".join(self.id().split(".")[-2:])
        named = [name for name, tests in CASES.items() if test in tests]
        self.assertEqual(not_shown(named, harness.COMMANDS), [], "it names these, and tries no two values or uses no such flag")

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    @classmethod
    def sets(cls, settings):
        return [word for name, value in settings.items() for word in ("--set", "%s=%s" % (name, value))]

    @classmethod
    def call(cls, verb, settings, *words, **options):
        return harness.pesc(0, verb, "--config", cls.config, *cls.sets(settings), *words, seconds=60, **options)

    def train(self, settings, run=None, code=0, words=(), **options):
        """(result, records of metrics.jsonl, run directory)"""
        if run is None:
            type(self).numbered += 1
            run = self.path("run-%d" % self.numbered)
        result = self.call("train", {"run_dir": run, **settings}, *words, **options)
        self.assertEqual(result.code, code, str(result))
        path = os.path.join(run, "metrics.jsonl")
        return result, harness.read_jsonl(path) if os.path.exists(path) else [], run

    def trained(self, settings):
        """The same, once for each setting."""
        key = json.dumps(settings, sort_keys=True)
        if key not in self.known:
            self.known[key] = self.train(settings)
        else:
            harness.COMMANDS.append(["train", *self.sets({"run_dir": self.known[key][2], **settings})])
        return self.known[key]

    @staticmethod
    def curve(outcome):
        return [[r[k] for k in CURVE] for r in outcome[1] if "loss" in r]

    def plan(self, settings, *words):
        self.known["plans"] = self.known.get("plans", 0) + 1
        out = self.path("plan-%d.json" % self.known["plans"])
        result = self.call("plan", settings, "--out", out, *words)
        self.assertEqual(result.code, 0, str(result))
        with open(out, encoding="utf-8") as file:
            return json.load(file)

    @staticmethod
    def planned(plan):
        return {k: plan.get(k) for k in PLANNED}

    def evaluate(self, settings, *words):
        self.known["evals"] = self.known.get("evals", 0) + 1
        out = self.path("eval-%d.json" % self.known["evals"])
        result = self.call("eval", {"run_dir": self.trained({})[2], **settings}, "--out", out, *words)
        self.assertEqual(result.code, 0, str(result))
        with open(out, encoding="utf-8") as file:
            return result, json.load(file)

    def generate(self, settings, *words):
        result = self.call("generate", {"run_dir": self.trained({})[2], **settings}, *(words or ("--prompt", "say one")))
        self.assertEqual(result.code, 0, str(result))
        return result.out

    def value(self, value):
        return value.replace("FOLDER", self.folder) if isinstance(value, str) else value

    def assert_curves_change(self, table):
        """table: [(field, value, what both runs have in common)]"""
        for name, value, common in table:
            with self.subTest(field=name):
                changed = self.train({**common, name.replace("[]", "[0]"): self.value(value)})
                self.assertNotEqual(self.curve(self.trained(common)), self.curve(changed))
