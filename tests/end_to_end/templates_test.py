"""Chat templates against the original: what `apply_chat_template` of transformers writes for each of the 70 templates of the
llama-cpp-python sdist, with the same conversations.

Needs network: a virtual environment with the pinned packages, and the sdist, come from PyPI (PESC_TEMPLATES_VENV names one
that is there already). Run by `tests/run.sh full`; by hand:

    TEMPLATE_CHECK=build/release/tests/template_check python3 -B tests/end_to_end/templates_test.py
"""

import glob
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import unittest

from harness import SOURCE

PACKAGES = ["transformers==5.24.0", "jinja2==3.1.6", "numpy"]
SDIST = "llama-cpp-python==0.3.36"
TEMPLATES = "vendor/llama.cpp/models/templates"
CHECK = os.environ.get("TEMPLATE_CHECK", os.path.join(SOURCE, "build", "release", "tests", "template_check"))
DATE = "2025-01-31"
# No template is left out: none of the 70 needs a construct that we refuse.

REFERENCE = r'''
import datetime, json, sys
import transformers.utils.chat_template_utils as utils

class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 1, 31)

utils.datetime = Fixed
for line in sys.stdin:
    asked = json.loads(line)
    try:
        messages = utils._normalize_chat_messages(asked["messages"])
        text, _ = utils.render_jinja_template([messages], tools=asked["tools"], chat_template=asked["template"],
                                              add_generation_prompt=asked["add_generation_prompt"],
                                              **asked["tokens"], **asked["extra"])
        out = {"text": text[0]}
        if "generation %}" in asked["template"] or "generation -%}" in asked["template"]:
            _, spans = utils.render_jinja_template([messages], tools=asked["tools"], chat_template=asked["template"],
                                                   add_generation_prompt=asked["add_generation_prompt"],
                                                   return_assistant_tokens_mask=True, **asked["tokens"], **asked["extra"])
            out["marked"] = spans[0]
    except Exception as error:
        out = {"error": "%s: %s" % (type(error).__name__, error)}
    print(json.dumps(out), flush=True)
'''

# What both refuse: the original's error, as a regular expression; ours, with its groups; and how many of the conversations. The
# first line that fits counts.
REFUSALS = [
    (r"TemplateError: (.*)", "the template refuses the conversation: {}", 94),  # raise_exception
    (r"SecurityError: access to attribute '(\w+)' of 'list' object is unsafe\.",
     "'{}' would change a list, which the sandbox of chat templates forbids", 48),
    (r"TemplateRuntimeError: No filter named '(\w+)' found\.", "there is no filter '{}'", 18),
    (r"UndefinedError: '(\w+)' is undefined", "'{}' is undefined", 60),
    (r"UndefinedError: 'dict object' has no attribute '(\w+)'", "'{}' is undefined", 38),
    (r"UndefinedError: '(\w+) object' has no attribute '(\w+)'", "a {} has no method '{}'", 64),
    (r"TypeError: '(\w+)' object is not iterable", "a {} cannot be gone through", 102),
    (r'TypeError: can only concatenate str \(not "(\w+)"\) to str', "'+' is not there for a str and a {}", 56),
    (r"TypeError: Can only get item pairs from a mapping\.", "the filter 'items' takes a mapping, not a str", 30),
    (r"TypeError: Object of type generator is not JSON serializable", "a generator has no JSON form", 28),
    (r"TypeError: Object of type Undefined is not JSON serializable", "'content' is undefined", 4),
]

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "The city, as \"K\u00f6ln\" or \u6771\u4eac"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        "days": {"type": "array", "items": {"type": "integer"}, "description": "Days from today"},
        "where": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                  "required": ["lat"]},
        "near": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather in a city.\nIn two lines.",
                                      "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters":
                                      {"type": "object", "properties": {}}}},
]


SIMPLE_TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks", "parameters": {
    "type": "object", "properties": {"what": {"type": "string", "description": "What"}}, "required": ["what"],
    "additionalProperties": False}}}]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def call(name, arguments, number="call00001"):
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


ODD = "  \u00e9\u00df \U0001f600 \"q\" 'a' <b>&amp; \\n \t{{ x }} {% y %}\n\n<think>no</think> \u2028 end\u00a0 "


def conversations():
    """(name, messages, tools, further variables)"""
    turns = [user("What is 2 + 2?"), assistant("4."), user("And 3 + 3?"), assistant("6, of course.")]
    yield "one turn", turns[:2], None, {}
    yield "a question", turns[:1], None, {}
    yield "turns", turns, None, {}
    yield "turns and a question", turns[:3], None, {}
    yield "system", [system("Be brief.")] + turns, None, {}
    yield "odd texts", [system(ODD), user(ODD), assistant(ODD), user("\n" + ODD), assistant(ODD + "\n")], None, {}
    yield "empty texts", [system(""), user(""), assistant("")], None, {}
    yield "thoughts in the text", [user("Why?"), assistant("<think>\nHm.\n</think>\n\nSo."), user("And?"),
                                   assistant("<think>\nHm again.\n</think>\n\nThus.")], None, {}
    yield "thoughts", [user("Why?"), assistant("So.", reasoning_content="Hm."), user("And?"),
                       assistant("Thus.", reasoning_content="Hm \u00e4h.\n")], None, {}
    yield "thinking off", [user("Why?"), assistant("So."), user("And?")], None, {"enable_thinking": False}
    yield "thinking on", [user("Why?"), assistant("So."), user("And?")], None, {"enable_thinking": True, "thinking": True}
    yield "tools unused", [system("Be brief."), user("Hello"), assistant("Hello.")], TOOLS, {}
    for name, arguments in (("mapping", {"city": "K\u00f6ln", "days": [1, 2.5, None, True], "where": {"lat": 1e-7}}),
                            ("text", '{"city": "K\u00f6ln"}'), ("empty", {})):
        used = [user("Weather?"), assistant("", tool_calls=[call("weather", arguments)]),
                {"role": "tool", "name": "weather", "content": "{\"sky\": \"gr\u00fcn\"}", "tool_call_id": "call00001"},
                assistant("It is green."), user("Thanks."), assistant("You are welcome.")]
        yield "a call with arguments: " + name, used, TOOLS, {}
        yield "a call as the last: " + name, used[:2], TOOLS, {}
        yield "an answer to come: " + name, used[:3], TOOLS, {}
    twice = [system("Use tools."), user("Both."),
             assistant("I look.", reasoning_content="Two calls.",
                       tool_calls=[call("weather", {"city": "Bonn"}), call("now", {}, "call00002")]),
             {"role": "tool", "name": "weather", "content": "dry", "tool_call_id": "call00001"},
             {"role": "tool", "name": "now", "content": "noon", "tool_call_id": "call00002"}, assistant("Dry, noon.")]
    yield "two calls", twice, TOOLS, {}
    yield "a call without content", [user("Now?"), {"role": "assistant", "tool_calls": [call("now", {})]},
                                     {"role": "tool", "content": "noon", "tool_call_id": "call00001"},
                                     assistant("Noon.")], TOOLS, {}
    yield "simple tools", [user("Look."), assistant("", tool_calls=[call("look", {"what": "here"})]),
                           {"role": "tool", "name": "look", "content": "seen", "tool_call_id": "call00001"},
                           assistant("Seen.")], SIMPLE_TOOLS, {}
    yield "functions", turns, SIMPLE_TOOLS, {"functions": "[]", "datetime": "today", "builtin_tools": ["code", "search"]}
    parts = [{"type": "text", "text": "Look \u00e9"}, {"type": "text", "text": "here."}]
    yield "parts", [user(parts), assistant([{"type": "text", "text": "I do."}])], None, {}
    yield "two of the user", [user("One."), user("Two."), assistant("Both.")], None, {}
    yield "system in the middle", [user("One."), system("Stop."), assistant("Yes."), user("Two.")], None, {}
    yield "developer", [{"role": "developer", "content": "Be brief."}, user("One."), assistant("Yes.")], None, {}
    yield "mixed case", [system("ABC def"), user("\u0394\u03a3 \u03c3"), assistant("\u0130\u00df")], None, {}
    yield "many", [user("%d?" % (i // 2)) if i % 2 == 0 else assistant("%d!" % (i // 2)) for i in range(40)], None, {}


BONN = [user("Weather?"), assistant("", tool_calls=[call("weather", {"city": "Bonn"})]),
        {"role": "tool", "name": "weather", "content": "dry", "tool_call_id": "call00001"}, assistant("It is dry.")]
BRIEF = [system("Be brief."), user("One?"), assistant("1."), user("Two?"), assistant("2.")]
LLAMA = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
LLAMA_CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
                 "<|python_tag|>"]
LLAMA_SYSTEM = ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
                "Today Date: 26 Jul 2024\n\n")
LLAMA_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
LLAMA_ANSWER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
QWEN = {"eos_token": "<|im_end|>"}
QWEN_CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
QWEN_ANSWER = "<|im_end|>\n<|im_start|>assistant\n"
MISTRAL_CONTROL = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]",
                   "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[CALL_ID]", "[ARGS]", "[TOOL_CONTENT]"]
MARKED_CONTROL = ["<|im_start|>", "<|im_end|>", "</assistant>", "</system>", "</user>"]
T, D, L = "template", "data", "learned"

# Written by hand from the published formats: the whole text in pieces, and of each piece whether the template wrote it, it came
# from a message, or it is learned. (file, tokens, control tokens, messages, pieces)
SPANS = [
    ("meta-llama-Llama-3.1-8B-Instruct", LLAMA, LLAMA_CONTROL,
     [system("Be brief."), user("2 + 2?"), assistant(" 4 "), user("And 3?"), assistant("6.")],
     [(T, LLAMA_SYSTEM), (D, "Be brief."), (T, "<|eot_id|>" + LLAMA_USER), (D, "2 + 2?"), (T, LLAMA_ANSWER), (L, "4<|eot_id|>"),
      (T, LLAMA_USER), (D, "And 3?"), (T, LLAMA_ANSWER), (L, "6.<|eot_id|>")]),
    ("meta-llama-Llama-3.1-8B-Instruct", LLAMA, LLAMA_CONTROL, BONN,
     [(T, LLAMA_SYSTEM + "<|eot_id|>" + LLAMA_USER), (D, "Weather?"), (T, LLAMA_ANSWER),
      (L, '{"name": "weather", "parameters": {"city": "Bonn"}}<|eot_id|>'),
      (T, '<|start_header_id|>ipython<|end_header_id|>\n\n"'), (D, "dry"), (T, '"' + LLAMA_ANSWER), (L, "It is dry.<|eot_id|>")]),
    ("Qwen-Qwen3-0.6B", QWEN, QWEN_CONTROL,
     [user("Why?"), assistant("So.", reasoning_content="Hm."), user("And?"), assistant("Thus.", reasoning_content="Hm again.")],
     [(T, "<|im_start|>user\n"), (D, "Why?"), (T, QWEN_ANSWER), (L, "So.<|im_end|>"), (T, "\n<|im_start|>user\n"), (D, "And?"),
      (T, QWEN_ANSWER), (L, "<think>\nHm again.\n</think>\n\nThus.<|im_end|>"), (T, "\n")]),
    ("Qwen-Qwen3-0.6B", QWEN, QWEN_CONTROL, BONN,
     [(T, "<|im_start|>user\n"), (D, "Weather?"), (T, QWEN_ANSWER),
      (L, '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call><|im_end|>'),
      (T, "\n<|im_start|>user\n<tool_response>\n"), (D, "dry"), (T, "\n</tool_response>" + QWEN_ANSWER),
      (L, "<think>\n\n</think>\n\nIt is dry.<|im_end|>"), (T, "\n")]),
    ("Qwen-Qwen2.5-7B-Instruct", QWEN, QWEN_CONTROL, BRIEF,
     [(T, "<|im_start|>system\n"), (D, "Be brief."), (T, "<|im_end|>\n<|im_start|>user\n"), (D, "One?"), (T, QWEN_ANSWER),
      (L, "1.<|im_end|>"), (T, "\n<|im_start|>user\n"), (D, "Two?"), (T, QWEN_ANSWER), (L, "2.<|im_end|>"), (T, "\n")]),
    # This template writes the system's text before the last message only where that is the user's.
    ("mistralai-Mistral-Nemo-Instruct-2407", TOKENS, MISTRAL_CONTROL, BRIEF,
     [(T, "<s>[INST]"), (D, "One?"), (T, "[/INST]"), (L, "1.</s>"), (T, "[INST]"), (D, "Two?"), (T, "[/INST]"), (L, "2.</s>")]),
    ("mistralai-Mistral-Nemo-Instruct-2407", TOKENS, MISTRAL_CONTROL, BONN,
     [(T, "<s>[INST]"), (D, "Weather?"), (T, "[/INST]"),
      (L, '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bonn"}, "id": "call00001"}]</s>'),
      (T, '[TOOL_RESULTS]{"content": '), (D, "dry"), (T, ', "call_id": "'), (D, "call00001"), (T, '"}[/TOOL_RESULTS]'),
      (L, "It is dry.</s>")]),
    ("Mistral-Small-3.2-24B-Instruct-2506", TOKENS, MISTRAL_CONTROL, BRIEF,
     [(T, "<s>[SYSTEM_PROMPT]"), (D, "Be brief."), (T, "[/SYSTEM_PROMPT][INST]"), (D, "One?"), (T, "[/INST]"), (L, "1.</s>"),
      (T, "[INST]"), (D, "Two?"), (T, "[/INST]"), (L, "2.</s>")]),
    ("microsoft-Phi-3.5-mini-instruct", {"eos_token": "<|endoftext|>"}, ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
                                                                       "<|endoftext|>"], BRIEF,
     [(T, "<|system|>\n"), (D, "Be brief."), (T, "<|end|>\n<|user|>\n"), (D, "One?"), (T, "<|end|>\n<|assistant|>\n"),
      (L, "1.<|end|>"), (T, "\n<|user|>\n"), (D, "Two?"), (T, "<|end|>\n<|assistant|>\n"), (L, "2.<|end|>"),
      (T, "\n<|endoftext|>")]),
]


class Filter:
    """A program that answers each line with a line."""

    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def ask(self, asked):
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


def reason_of(name, theirs, ours):
    """The place in REFUSALS of what both say of the template `name`; None where ours is for another reason."""
    for place, (pattern, expected, _) in enumerate(REFUSALS):
        match = re.fullmatch(pattern, theirs["error"], re.DOTALL)
        if match:
            same = re.fullmatch(r"%s:\d+: %s" % (re.escape(name), re.escape(expected.format(*match.groups()))), ours["error"])
            return place if same else None
    return None


def fetch(folder):
    """The Python of a virtual environment with the packages, and the folder of templates."""
    venv = os.environ.get("PESC_TEMPLATES_VENV", os.path.join(folder, "venv"))
    python = os.path.join(venv, "bin", "python")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    subprocess.run([python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-python", SDIST, "-d", folder],
                   check=True)
    with tarfile.open(glob.glob(os.path.join(folder, "*.tar.gz"))[0]) as archive:
        archive.extractall(folder, [m for m in archive.getmembers() if "/%s/" % TEMPLATES in m.name])
    return python, glob.glob(os.path.join(folder, "*", TEMPLATES))[0]


class Templates(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="pesc-templates-")
        python, templates = fetch(cls.folder.name)
        cls.paths = sorted(glob.glob(os.path.join(templates, "*.jinja")))
        cls.reference = Filter(python, "-c", REFERENCE)
        cls.ours = Filter(CHECK)

    @classmethod
    def tearDownClass(cls):
        cls.reference.close()
        cls.ours.close()
        cls.folder.cleanup()

    def test_there_are_70(self):
        self.assertEqual(len(self.paths), 70)

    def test_text_is_that_of_apply_chat_template(self):
        same = 0
        refused = [0] * len(REFUSALS)
        wrong = []
        for path in self.paths:
            name = os.path.basename(path)
            with open(path, encoding="utf-8") as file:
                template = file.read()
            for title, messages, tools, extra in conversations():
                for prompt in (False, True):
                    asked = {"name": name, "template": template, "messages": messages, "tools": tools, "extra": extra,
                             "add_generation_prompt": prompt, "tokens": TOKENS, "control": list(TOKENS.values()), "date": DATE,
                             "text_only": True}
                    theirs, ours = self.reference.ask(asked), self.ours.ask(asked)
                    where = "%s, %s%s" % (name, title, ", with the prompt" if prompt else "")
                    reason = reason_of(name, theirs, ours) if "error" in theirs and "error" in ours else None
                    if reason is not None:
                        refused[reason] += 1
                    elif theirs.get("text") == ours.get("text") and "text" in ours:
                        same += 1
                    else:
                        wrong.append("%s\n  theirs: %r\n  ours:   %r" % (where, theirs, ours))
        print("%d texts are the same, %d conversations are refused by both, %d differ" % (same, sum(refused), len(wrong)))
        for count, (pattern, _, _) in zip(refused, REFUSALS):
            print("%5d  %s" % (count, pattern))
        self.assertEqual(wrong, [])
        self.assertEqual(refused, [known for _, _, known in REFUSALS])
        self.assertGreater(same, 2000)

    def template(self, name):
        path = next(p for p in self.paths if os.path.basename(p) == name + ".jinja")
        with open(path, encoding="utf-8") as file:
            return file.read()

    def test_spans_are_those_of_the_published_formats(self):
        for name, tokens, control, messages, pieces in SPANS:
            with self.subTest(name):
                ours = self.ours.ask({"name": name, "template": self.template(name), "messages": messages, "tools": None,
                                      "tokens": tokens, "control": control, "date": DATE, "require_spans": True})
                self.assertEqual(ours.get("text"), "".join(text for _, text in pieces), ours)
                text = ours["text"].encode()
                for kind, key in ((L, "learned"), (D, "data")):
                    expected, at = [], 0
                    for piece, of in pieces:
                        if piece == kind:
                            expected.append([at, at + len(of.encode())])
                        at += len(of.encode())
                    self.assertEqual(ours[key], expected, [text[b:e] for b, e in ours[key]])

    def test_spans_are_those_of_markers(self):
        found = 0
        for path in self.paths:
            with open(path, encoding="utf-8") as file:
                template = file.read()
            if not re.search(r"\{%-?\s*generation", template):
                continue
            for title, messages, tools, extra in conversations():
                asked = {"name": os.path.basename(path), "template": template, "messages": messages, "tools": tools, "extra": extra,
                         "add_generation_prompt": False, "tokens": TOKENS, "control": MARKED_CONTROL, "date": DATE}
                theirs, ours = self.reference.ask(asked), self.ours.ask(asked)
                if "error" in theirs and "error" in ours:
                    self.assertIsNotNone(reason_of(os.path.basename(path), theirs, ours), "\n%s\n%s" % (theirs, ours))
                    continue
                with self.subTest("%s, %s" % (os.path.basename(path), title)):
                    self.assertNotIn("error", ours)
                    text = ours["text"].encode()
                    self.assertEqual([text[b:e].decode() for b, e in ours["learned"]],
                                     [theirs["text"][b:e] for b, e in theirs["marked"]])
                    found += len(ours["learned"])
        print("%d marked spans are the same" % found)
        self.assertGreater(found, 100)


if __name__ == "__main__":
    unittest.main(verbosity=2)
