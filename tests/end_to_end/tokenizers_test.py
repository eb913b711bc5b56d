"""runtime/tokenizer against the original library (PyPI's tokenizers 0.23.3) on real vocabularies: ids, ranges and
decoded texts of 3 million characters a tokenizer (many scripts, code, emoji, numbers, runs of white space) and of
100,000 random strings of all of Unicode with special and added tokens inside.

Needs the network for its first run (tests/venv.sh, vocabularies.py). TOKENIZER_CHECK names the program
tests/tokenizer_check; `tokenizers_test.py [NAME...]` compares these tokenizers alone.
"""
import glob
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
REQUIREMENTS = ["tokenizers==0.23.3", "gguf==0.19.0"]
CHECK = os.environ.get("TOKENIZER_CHECK", "")
CHARACTERS = int(os.environ.get("TOKENIZER_CHARACTERS", 3_000_000))
STRINGS = int(os.environ.get("TOKENIZER_STRINGS", 100_000))
NAMES = ["llama-3", "qwen2", "gpt-2", "starcoder", "command-r", "deepseek-v4", "smollm2", "mistral-resaved",
         "llama-2-old", "mistral-nemo", "qwen3.5", "gemma-4"]
SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u180e\u2003\u2028\u2029\u200b\u202f\u3000\ufeff"
BLOCKS = [(0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF),
          (0xE00, 0xEFF), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x2BFF), (0x3040, 0x30FF), (0x4E00, 0x9FFF),
          (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE00, 0xFFFF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x2FFFF)]


def real_texts(wanted):
    """Published translations in a hundred languages, sources, numbers and white space, in documents of many sizes."""
    import vocabularies
    parts = []
    with zipfile.ZipFile(vocabularies.fetched("django")) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith("django.po"):
                text = archive.read(name).decode("utf8")
                parts.append("\n".join(line for line in text.split("\n") if not line.startswith("#"))[:40_000])
    code = []
    for path in sorted(glob.glob(os.path.join(os.path.dirname(os.__file__), "*.py"))):
        with open(path, encoding="utf-8", errors="ignore") as file:
            code.append(file.read()[:20_000])
    rng = random.Random(1)
    rng.shuffle(parts)
    rng.shuffle(code)
    out, size = [], 0
    while size < wanted:
        kind = rng.random()
        length = int(rng.choice((40, 400, 4000, 40_000)) * (0.5 + rng.random()))
        if kind < 0.6:
            text = rng.choice(parts)
        elif kind < 0.85:
            text = rng.choice(code)
        elif kind < 0.92:
            text = "".join(rng.choice("0123456789.,:-/ ()%eE+\u0660\u0665\u0967\u2155\u2460\u4e09") for _ in range(length))
        elif kind < 0.96:
            text = "".join(rng.choice(SPACES) * rng.choice((1, 1, 2, 3, 17)) + rng.choice(("", "a", "\u4e2d", "1", "!")) for _ in range(length // 3))
        else:
            text = "".join(chr(rng.randrange(0x1F300, 0x1FAFF)) + rng.choice(("", "\u200d", "\ufe0f", "\U0001f3fd", " ")) for _ in range(length // 2))
        begin = rng.randrange(max(1, len(text) - length))
        out.append(text[begin:begin + length])
        size += len(out[-1])
    return out


def random_strings(count, tokens, seed):
    rng = random.Random(seed)
    scalars = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]

    def character():
        kind = rng.random()
        if kind < 0.25:
            return chr(rng.choice(scalars))
        if kind < 0.4:
            return rng.choice(SPACES)
        if kind < 0.5:
            return rng.choice("'sStTreveml\u017f\u212a0159\u0660.,!")
        if kind < 0.6:
            return chr(rng.randrange(0x300, 0x370))
        return chr(rng.randint(*rng.choice(BLOCKS)))

    out = []
    for _ in range(count):
        text = ""
        while len(text) < 200 and rng.random() > 0.03:
            kind = rng.random()
            if kind < 0.06 and tokens:
                text += rng.choice(tokens)
            elif kind < 0.08 and tokens:
                token = rng.choice(tokens)
                text += token[:rng.randrange(len(token) + 1)]
            elif kind < 0.12:
                text += character() * rng.randrange(1, 20)
            else:
                text += character()
        out.append(text)
    return out


class Tokenizers(unittest.TestCase):
    """One test for each of NAMES, added below."""

    def compare(self, reference, folder, texts, added, special):
        reference.encode_special_tokens = added == "ordinary"
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as requests:
            for text in texts:
                requests.write(json.dumps({"text": text, "added": added, "special": special}, ensure_ascii=False) + "\n")
            requests.flush()
            with open(requests.name, encoding="utf-8") as lines:
                ours = subprocess.Popen([CHECK, folder], stdin=lines, stdout=subprocess.PIPE, encoding="utf-8")
                tokens = 0
                for begin in range(0, len(texts), 1000):
                    batch = texts[begin:begin + 1000]
                    encodings = reference.encode_batch(batch, add_special_tokens=special)
                    ids = [e.ids for e in encodings]
                    plain = reference.decode_batch(ids, skip_special_tokens=True)
                    whole = reference.decode_batch(ids, skip_special_tokens=False)
                    for text, encoding, without, everything in zip(batch, encodings, plain, whole):
                        answer = json.loads(ours.stdout.readline())
                        expected = {"ids": encoding.ids, "offsets": [list(o) for o in encoding.offsets],
                                    "text": without, "all": everything}
                        if answer != expected:
                            ours.kill()
                            self.fail("%s, added %s, special %s, %r:\n%s" % (
                                folder, added, special, text if len(text) < 300 else text[:300] + "...",
                                difference(answer, expected)))
                        tokens += len(encoding.ids)
                self.assertEqual(ours.stdout.read(), "")
                ours.stdout.close()
                self.assertEqual(ours.wait(), 0)
        return tokens

    def one(self, name):
        import tokenizers
        import vocabularies
        folder = vocabularies.folder_of(name)
        reference = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        reference.no_truncation()
        reference.no_padding()
        contents = [t.content for t in reference.get_added_tokens_decoder().values()]
        tokens = contents if len(contents) < 200 else random.Random(2).sample(contents, 200)
        texts = real_texts(CHARACTERS)
        strings = random_strings(STRINGS, tokens, name) + ["", " ", "\n", *tokens]
        half = len(strings) // 2
        counted = self.compare(reference, folder, texts, "all", False)
        of_strings = self.compare(reference, folder, strings[:half], "all", True)
        of_strings += self.compare(reference, folder, strings[half:], "ordinary", False)
        self.compare(reference, folder, strings[half:half + half // 10], "all", False)
        print("%s: %d texts of %d characters, %d tokens; %d random strings of %d characters, %d tokens: ids, ranges and "
              "decoded texts are equal" % (name, len(texts), sum(map(len, texts)), counted, len(strings),
                                           sum(map(len, strings)), of_strings), flush=True)


    def test_tekken_json(self):
        """Mistral's own file gives what the tokenizer.json made of it gives."""
        import tokenizers
        import vocabularies
        folder = vocabularies.folder_of("mistral-nemo")
        reference = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        strings = random_strings(STRINGS // 10, ["<s>", "</s>", "[INST]", "[/INST]", "<SPECIAL_77>"], "tekken")
        with tempfile.TemporaryDirectory() as own:
            with open(os.path.join(own, "tekken.json"), "wb") as file:
                file.write(vocabularies.member("mistral-common", "tekken_240718.json"))
            self.compare(reference, own, strings + real_texts(CHARACTERS // 10), "all", True)

    def exact(self, folder):
        """The tokenizer.json that an export makes of a tokenizer.model gives sentencepiece's ids in the original library."""
        import tokenizers
        made = subprocess.run([CHECK, folder, "--exact"], stdout=subprocess.PIPE, check=True).stdout
        reference = tokenizers.Tokenizer.from_str(made.decode())
        rng = random.Random(4)
        ends = ("x", "\n", "\t", "a b", "<s>", "<s>  y", "word", "</s> .", "")
        texts = real_texts(CHARACTERS // 4) + random_strings(STRINGS // 4, ["<s>", "</s>", "<unk>"], "exact")
        texts += [" " * rng.randrange(60) + rng.choice(ends) + " " * rng.randrange(60) + rng.choice(ends) for _ in range(STRINGS // 4)]
        for added in ("all", "ordinary"):
            reference.encode_special_tokens = added == "ordinary"
            requests = "".join(json.dumps({"text": t, "added": added, "special": added == "all"}) + "\n" for t in texts)
            ours = subprocess.run([CHECK, folder], input=requests, stdout=subprocess.PIPE, encoding="utf-8", check=True)
            answers = [json.loads(line) for line in ours.stdout.split("\n") if line]
            self.assertEqual(len(answers), len(texts))
            for text, answer in zip(texts, answers):
                ids = reference.encode(text, add_special_tokens=added == "all").ids
                self.assertEqual((answer["ids"], answer["text"]), (ids, reference.decode(ids)), repr(text[:300]))

    def test_exact_quick_start(self):
        self.exact(os.path.join(HERE, "..", "..", "configs", "quickstart", "base"))

    def test_exact_mistral(self):
        import vocabularies
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "tokenizer.model"), "wb") as file:
                file.write(vocabularies.member("mistral-common", "tokenizer.model.v1"))
            self.exact(folder)


def difference(answer, expected):
    if "error" in answer:
        return answer["error"]
    for key, theirs in expected.items():
        mine = answer[key]
        if mine != theirs:
            at = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), min(len(mine), len(theirs)))
            return "%s differ at %d: ours %r, the library's %r" % (key, at, mine[max(0, at - 2):at + 4], theirs[max(0, at - 2):at + 4])
    return "?"


class Tables(unittest.TestCase):
    def test_the_unicode_tables_are_the_librarys(self):
        script = os.path.join(HERE, "..", "..", "runtime", "tokenizer", "unicode_tables.py")
        subprocess.run([sys.executable, script, "--check"], check=True)

    def test_the_fixtures_are_the_librarys(self):
        script = os.path.join(HERE, "..", "runtime", "tokenizer", "make_fixtures.py")
        subprocess.run([sys.executable, script, "--check"], check=True)


for _name in NAMES:
    setattr(Tokenizers, "test_" + _name.replace("-", "_").replace(".", "_"), lambda self, name=_name: self.one(name))


def main():
    try:
        import gguf  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError:
        made = subprocess.run([os.path.join(HERE, "..", "venv.sh"), *REQUIREMENTS], stdout=subprocess.PIPE, encoding="utf-8")
        if made.returncode:
            print("skipped: the original library cannot be had from PyPI")
            sys.exit(77)
        os.execv(made.stdout.strip(), [made.stdout.strip(), "-B", *sys.argv])
    names = ["Tokenizers.test_" + n.replace("-", "_").replace(".", "_") for n in sys.argv[1:]]
    unittest.main(argv=[sys.argv[0], "-v", *names])


if __name__ == "__main__":
    main()
