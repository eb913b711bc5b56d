"""The tokens of chats: `pesc tokenize` gives the ids of `apply_chat_template(tokenize=True)` of transformers, for real vocabularies
(vocabularies.py) with a published template of their family (from the llama-cpp-python sdist). templates_test.py compares the texts.

Needs the network for its first run, and a Python with transformers: the program PESC_TRANSFORMERS_PYTHON, or the virtual environment
that transformers_venv.sh makes beside this file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest

import harness
import vocabularies
from templates_test import TEMPLATES, assistant, conversations, user
from tokenizers_test import REQUIREMENTS
from transformers_test import python_with_transformers

# Vocabulary: (template, bos, eos), the two tokens by their names in the vocabulary.
PAIRS = {
    "llama-3": ("meta-llama-Llama-3.1-8B-Instruct", "<|begin_of_text|>", "<|eot_id|>"),
    "qwen2": ("Qwen-Qwen2.5-7B-Instruct", None, "<|im_end|>"),
    "command-r": ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "mistral-nemo": ("mistralai-Mistral-Nemo-Instruct-2407", "<s>", "</s>"),
    "deepseek-v4": ("deepseek-ai-DeepSeek-V4", "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
}
FEWEST, FEWEST_WITH_TOOLS = 10, 3  # conversations of each
# Conversations, by their names, that pesc alone refuses, for every vocabulary: they are no training rows.
NO_ROWS = {"empty texts": "message 2 is an empty answer; there is nothing to learn from it"}
# Vocabulary: those whose messages hold one of its special tokens.
WITH_SPECIAL = {"deepseek-v4": ["odd texts", "thoughts in the text"]}  # <think>
# Vocabulary: those that the template refuses, and what it says. templates_test.py compares that with what pesc says.
TURNS = "After the optional system message, conversation roles must alternate user/assistant/user/assistant/..."
FROM_JSON = "No filter named 'from_json' found."
REFUSED = {"mistral-nemo": {"two of the user": TURNS, "developer": TURNS},
           "llama-3": {"two calls": "This model only supports single tool-calls at once!"},
           "deepseek-v4": {"a call with arguments: text": FROM_JSON, "a call as the last: text": FROM_JSON}}
MORE = [
    [user("\u00bfQu\u00e9 es 12345 + 678?"), assistant("13023.")],
    [user("\u65e5\u672c\u306e\u9996\u90fd\u306f?"), assistant("\u6771\u4eac\u3067\u3059\u3002"), user("\U0001f41d\u200d\U0001f3fd?"), assistant(" e\u0301 \u00e9 ")],
    [user("def add(a, b):\n\treturn a  +   b\n\n\n"), assistant("```python\nadd(1, 2)\n```\n")],
    [user("It's   HERE's\r\n\u2003  "), assistant("<b>&amp;</b> 'll 've")],
]


class TemplateTokens(unittest.TestCase):
    """One test for each of PAIRS, added below."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="pesc-template-tokens-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        with tarfile.open(vocabularies.fetched("llama-cpp-python")) as archive:
            cls.templates = {os.path.basename(m.name): archive.extractfile(m).read().decode() for m in archive if "/%s/" % TEMPLATES in m.name}

    def model(self, name):
        """A folder with the vocabulary and the template."""
        tests = os.path.join(harness.SOURCE, "tests")
        python = subprocess.run([os.path.join(tests, "venv.sh"), *REQUIREMENTS], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        made = subprocess.run([python, "-B", "-c", "import sys, vocabularies; print(vocabularies.folder_of(sys.argv[1]))", name],
                              stdout=subprocess.PIPE, text=True, check=True, cwd=os.path.join(tests, "end_to_end"))
        template, bos, eos = PAIRS[name]
        folder = os.path.join(self.folder, name)
        shutil.copytree(made.stdout.strip(), folder)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "clean_up_tokenization_spaces": False,
                  "chat_template": self.templates[template + ".jinja"]}
        if bos:
            config["bos_token"] = bos
        with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
        return folder

    def ours(self, folder, asked):
        """What pesc makes of the chats, and what it says of each that it refuses, by name; those are taken out of `asked`."""
        refusals = {}
        rows = os.path.join(self.folder, "rows.jsonl")
        while True:
            with open(rows, "w", encoding="utf-8") as file:
                file.write("".join(json.dumps({"messages": chat, **({"tools": tools} if tools else {})}) + "\n" for _, chat, tools, _ in asked))
            with open(rows, encoding="utf-8") as file:
                result = harness.pesc(0, "tokenize", "--model", folder, stdin=file)
            refused = re.search(r"standard input:(\d+): (.*)", result.message)
            if result.code != harness.DATA or not refused:
                self.assertEqual(result.code, harness.OK, str(result))
                return [json.loads(line) for line in result.out.split("\n") if line], refusals
            refusals[asked.pop(int(refused.group(1)) - 1)[0]] = refused.group(2)

    def one(self, name):
        import jinja2
        from transformers import PreTrainedTokenizerFast
        folder = self.model(name)
        reference = PreTrainedTokenizerFast.from_pretrained(folder)
        special = [token for token in reference.get_added_vocab() if token.strip()]
        chats = [(title, messages, tools) for title, messages, tools, extra in conversations()
                 if not extra and messages[-1]["role"] == "assistant"
                 and all(isinstance(message.get("content", ""), str) for message in messages)]
        chats += [("more %d" % number, chat, None) for number, chat in enumerate(MORE)]
        # In a message special tokens are plain text for pesc, which is safer, and the real tokens for transformers.
        with_special = [title for title, chat, _ in chats if any(token in json.dumps(chat, ensure_ascii=False) for token in special)]
        self.assertEqual(with_special, WITH_SPECIAL.get(name, []))
        chats = [chat for chat in chats if chat[0] not in with_special]
        asked, refused = [], {}
        for title, chat, tools in chats:
            try:
                theirs = reference.apply_chat_template(chat, tools=tools, tokenize=True)
            except (jinja2.TemplateError, TypeError) as error:
                refused[title] = str(error)
                continue
            asked.append((title, chat, tools, list(theirs["input_ids"] if hasattr(theirs, "keys") else theirs)))
        self.assertEqual(refused, REFUSED.get(name, {}))
        answers, refusals = self.ours(folder, asked)
        self.assertEqual(refusals, NO_ROWS)
        self.assertEqual(len(answers), len(asked))
        for (_, chat, tools, theirs), ours in zip(asked, answers):
            self.assertEqual(ours["text"], reference.apply_chat_template(chat, tools=tools, tokenize=False))
            self.assertEqual(ours["ids"], theirs, chat)
        # The template's own tokens are in the vocabulary: otherwise a chat would be plain text.
        self.assertTrue(set(theirs) & {reference.convert_tokens_to_ids(token) for token in special})
        with_tools = sum(tools is not None for _, _, tools, _ in asked)
        print("%s: %d chats, %d of them with tools, %d tokens are the same; the template refuses %d, and %d are no rows" %
              (name, len(asked), with_tools, sum(len(theirs) for *_, theirs in asked), len(refused), len(refusals)), flush=True)
        self.assertGreaterEqual(len(asked), FEWEST)
        self.assertGreaterEqual(with_tools, FEWEST_WITH_TOOLS)


def test_of(name):
    return lambda self: self.one(name)


for _name in PAIRS:
    setattr(TemplateTokens, "test_" + _name.replace("-", "_"), test_of(_name))

if __name__ == "__main__":
    try:
        import transformers  # noqa: F401
    except ImportError:
        python = python_with_transformers()
        os.execv(python, [python, "-B", *sys.argv])
    harness.main()
