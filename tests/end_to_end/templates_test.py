"""Chat templates against the original: what `apply_chat_template` of transformers writes for each of the 70 templates of the
llama-cpp-python sdist, with the same conversations.

Needs network: a virtual environment with the pinned packages, and the sdist, come from PyPI (PESC_TEMPLATES_VENV names one
that is there already). Run by `tests/run.sh full`; by hand:

    TEMPLATE_CHECK=build/release/tests/template_check python3 tests/end_to_end/templates_test.py
"""

import glob
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest

from harness import NOT_TESTED, SOURCE

PACKAGES = ["transformers==5.24.0", "jinja2==3.1.6", "numpy"]
SDIST = "llama-cpp-python==0.3.36"
TEMPLATES = "vendor/llama.cpp/models/templates"
CHECK = os.environ.get("TEMPLATE_CHECK", os.path.join(SOURCE, "build", "release", "tests", "template_check"))
DATE = "2025-01-31"
# What these templates need and we refuse, by name. Nothing else may be refused.
REFUSED = {}

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
    parts = [{"type": "text", "text": "Look \u00e9"}, {"type": "text", "text": "here."}]
    yield "parts", [user(parts), assistant([{"type": "text", "text": "I do."}])], None, {}
    yield "two of the user", [user("One."), user("Two."), assistant("Both.")], None, {}
    yield "system in the middle", [user("One."), system("Stop."), assistant("Yes."), user("Two.")], None, {}
    yield "developer", [{"role": "developer", "content": "Be brief."}, user("One."), assistant("Yes.")], None, {}
    yield "mixed case", [system("ABC def"), user("\u0394\u03a3 \u03c3"), assistant("\u0130\u00df")], None, {}
    yield "many", [user("%d?" % (i // 2)) if i % 2 == 0 else assistant("%d!" % (i // 2)) for i in range(40)], None, {}


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
        same = both_refuse = 0
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
                    if "error" in theirs and "error" in ours:
                        both_refuse += 1
                    elif theirs.get("text") == ours.get("text") and "text" in ours:
                        same += 1
                    else:
                        wrong.append("%s\n  theirs: %r\n  ours:   %r" % (where, theirs, ours))
        print("%d texts are the same, %d conversations are refused by both, %d differ" % (same, both_refuse, len(wrong)))
        self.assertEqual(wrong, [])
        self.assertGreater(same, 2000)


if __name__ == "__main__":
    if not os.path.exists(CHECK):
        print("%s is not built" % CHECK)
        sys.exit(NOT_TESTED)
    unittest.main(verbosity=2)
