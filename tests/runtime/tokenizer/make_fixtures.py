#!/usr/bin/env python3
"""Writes fixtures.jsonl: small tokenizers of every supported kind and what the original library (PyPI's tokenizers
0.23.3) makes of texts with them. Line 1 has the models and texts, each other line a tokenizer with its answers.

    $(tests/venv.sh tokenizers==0.23.3) tests/runtime/tokenizer/make_fixtures.py [--check]
"""
import json
import os
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers, __version__

MARK = "\u2581"
CORPUS = ["Hello world, the quick brown fox jumps over 1234 lazy dogs. We're they'll I'd it's HELLO World\n",
          "    def f(x):\n\t\treturn x + 42\n\n", "na\u00efve caf\u00e9 \u00fcber stra\u00dfe \u65e5\u672c\u8a9e \u4e2d\u6587 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0645\u0631\u062d\u0628\u0627 \U0001f600 "] * 20
TEXTS = ["", " ", "a", "Hello world", "  Hello   world  ", "hello\n\n  \nWorld\r\n\t x", "We're THEY'LL i'd it's \u017f'\u017f 'S",
         "12345678 1 22 333 \u0661\u0662 \u00bd\u2460 \u3007", "cafe\u0301 caf\u00e9 \u1e9b\u0323 \u0344 \u1100\u1161\u11a8 \uac01 \u0061\u0323\u0307\u0345\u0f73",
         "\u65e5\u672c\u8a9e\u3002\u4e2d\u6587,\u0440\u0443\u0441!", "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea\ufe0f", "\u00a0\u2003\u3000x\u180e\u200b\u0085\u2028",
         "<a><b> <c>x <d>  y<e>z<a", "x<c>  <c>  y", "w<e>w <e> <e>, <E>", "<ab><abc><ab", "<a>\u3000<a>", "the-quick--brown-", "-", "--x--", "a.b,c!!d?(e)\u2014\u3001f$g+h",
         "\u0130I\u01c5\u1e9e\u03a3", "\u2581x \u2581\u2581y", "<0x41><0xE4>\u4e2d<s></s><unk>", "\x00\x01\x7f", "\u0378\ue000\U000e0001\U0010ffff",
         "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", "hello" * 30, "\u0344\u0344 \u0301x", "a\u0300\u0327\u0328b"]
R1 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
      r"|\s+(?!\S)|\s+")
R4 = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
      r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]
POSSESSIVE = r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,2}+| ?[^\s\p{L}\p{N}]++[\r\n]*|(?>\s*)[\r\n]|(?<=l)o|\D|\S{2,}?"
BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]


def trained(kind):
    t = Tokenizer(models.BPE())
    if kind == "byte":
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
        t.train_from_iterator(CORPUS, trainer)
    else:
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        names = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=names, show_progress=False)
        t.train_from_iterator(CORPUS, trainer)
    model = json.loads(t.to_str())["model"]
    return {"vocab": model["vocab"], "merges": model["merges"]}


def incomplete(model, drop):
    """Without the pieces that hold one of the characters, and the merges that need them."""
    keep = [t for t in model["vocab"] if not any(c in t for c in drop)]
    vocab = {t: i for i, t in enumerate(keep)}
    merges = [m for m in model["merges"] if m[0] in vocab and m[1] in vocab and m[0] + m[1] in vocab]
    return {"vocab": vocab, "merges": [" ".join(m) for m in merges]}


def byte_level(**more):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **more}


def sequence(of, *items):
    return {"type": "Sequence", of: list(items)}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def replace(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def metaspace(scheme, cut):
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": cut}


def template(begin, end=()):
    special = lambda n: {"SpecialToken": {"id": n, "type_id": 0}}
    a, b = ({"Sequence": {"id": s, "type_id": 0}} for s in "AB")
    return {"type": "TemplateProcessing", "single": [*map(special, begin), a, *map(special, end)], "pair": [a, b],
            "special_tokens": {n: {"id": n, "ids": [i + 1], "tokens": [n]} for i, n in enumerate([*begin, *end])}}


def token(content, **more):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False, **more}


def tokenizers():
    bl, plain = {"decoder": byte_level()}, byte_level(use_regex=False)
    cut = lambda *steps: {"model": "byte", "pre_tokenizer": sequence("pretokenizers", *steps), **bl}
    yield "gpt2", {"model": "byte", "pre_tokenizer": byte_level(), "post_processor": byte_level(), **bl}
    yield "prefix space", {"model": "byte", "pre_tokenizer": byte_level(add_prefix_space=True),
                           "post_processor": byte_level(add_prefix_space=True), **bl}
    yield "llama 3", {**cut(split(R1), plain), "flags": {"ignore_merges": True},
                      "post_processor": sequence("processors", byte_level(add_prefix_space=True), template(["<s>"]))}
    yield "template before trimming", {**cut(split(R1), plain), "post_processor": sequence("processors", template(["<s>"], ["</s>"]), byte_level())}
    yield "qwen 2", {**cut(split(R1.replace("{1,3}", "")), plain), "normalizer": {"type": "NFC"}, "post_processor": byte_level(trim_offsets=False)}
    yield "nfd", {**cut(split(R1), plain), "normalizer": {"type": "NFD"}}
    yield "deepseek", {**cut(*map(split, DEEPSEEK), plain), "normalizer": sequence("normalizers")}
    yield "tekken", cut(split(R4), plain)
    yield "possessive", cut(split(POSSESSIVE), plain)
    yield "empty matches", cut(split(r"(?=[A-Z])|(?<=o)"), plain)
    yield "digits", cut({"type": "Digits", "individual_digits": True}, byte_level())
    yield "runs of digits", cut({"type": "Digits", "individual_digits": False}, plain)
    yield "byte level before digits", cut(byte_level(), {"type": "Digits", "individual_digits": True})
    for behavior in BEHAVIORS:
        yield "punctuation " + behavior, cut({"type": "Punctuation", "behavior": behavior}, plain)
        for invert in (False, True):
            yield "split %s %s" % (behavior, invert), cut(split("-", behavior, invert, "String"), plain)
            yield "split words %s %s" % (behavior, invert), cut(split(r"\s+|[a-m]+", behavior, invert), plain)
    yield "missing bytes", {"model": "byte incomplete", "pre_tokenizer": byte_level(), "post_processor": byte_level(), **bl}
    yield "missing bytes unknown", {"model": "byte incomplete", "pre_tokenizer": byte_level(), "flags": {"unk_token": "a"}, **bl}
    spm = {"flags": {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}, "post_processor": template(["<s>"]),
           "decoder": sequence("decoders", replace(MARK, " "), {"type": "ByteFallback"}, {"type": "Fuse"},
                               {"type": "Strip", "content": " ", "start": 1, "stop": 0})}
    old = sequence("normalizers", {"type": "Prepend", "prepend": MARK}, replace(" ", MARK))
    yield "llama 2", {"model": "spm", "normalizer": old, **spm}
    yield "mistral", {"model": "spm", "pre_tokenizer": metaspace("first", False), **spm}
    for scheme in ("first", "always", "never"):
        yield "metaspace " + scheme, {**spm, "model": "spm", "pre_tokenizer": metaspace(scheme, True), "decoder": metaspace(scheme, True)}
    yield "gemma", {"model": "spm", "normalizer": replace(" ", MARK), "pre_tokenizer": split(" ", "MergedWithPrevious", kind="String"), **spm}
    for fuse in (False, True):
        for back in (False, True):
            yield "unknown %s %s" % (fuse, back), {"model": "spm incomplete", "normalizer": old, "flags": {
                "unk_token": "<unk>", "fuse_unk": fuse, "byte_fallback": back}, "decoder": {"type": "Fuse"}}
    yield "no decoder", {"model": "spm incomplete", "pre_tokenizer": metaspace("always", True)}
    yield "normalizers", {"model": "byte", "pre_tokenizer": byte_level(), **bl, "normalizer": sequence(
        "normalizers", {"type": "Strip", "strip_left": True, "strip_right": False}, {"type": "Lowercase"},
        replace(r"\s{2,}|[xy]", "<>", "Regex"), {"type": "NFD"}, {"type": "Strip", "strip_left": False, "strip_right": True})}
    odd = [token("<a>", special=True), token("<b>", lstrip=True), token("<c>", rstrip=True, special=True), token("<d>", lstrip=True, rstrip=True),
           token("<e>", single_word=True), token("<ab>"), token("<abc>", special=True), token("hello", normalized=True),
           token("World", normalized=True, lstrip=True), token(" x", normalized=True, special=True), token("  ")]
    yield "added tokens", {"model": "byte", "pre_tokenizer": byte_level(), "post_processor": byte_level(), "added": odd, **bl}
    yield "added tokens, lower case", {"model": "byte", "pre_tokenizer": byte_level(), "normalizer": {"type": "Lowercase"}, "added": odd, **bl}
    yield "added tokens, metaspace", {"model": "spm", "normalizer": old, "added": odd, **spm}
    yield "added tokens, first", {"model": "spm", "pre_tokenizer": metaspace("first", False), "added": odd, **spm}


def document(parts, all_models):
    model = all_models[parts["model"]]
    flags = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
             "byte_fallback": False, "ignore_merges": False, **parts.get("flags", {})}
    size = len(model["vocab"])
    added = []
    for t in parts.get("added", []):
        added.append({"id": model["vocab"].get(t["content"], size), **t})
        size += t["content"] not in model["vocab"]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            **{k: parts.get(k) for k in ("normalizer", "pre_tokenizer", "post_processor", "decoder")},
            "model": {"type": "BPE", **flags, **model}}


def answers(t):
    out = []
    for text in TEXTS:
        row = []
        for ordinary, special in ((False, True), (False, False), (True, False)):
            t.encode_special_tokens = ordinary
            e = t.encode(text, add_special_tokens=special)
            one = [e.ids, [x for o in e.offsets for x in o], t.decode(e.ids), t.decode(e.ids, skip_special_tokens=False)]
            row.append(one if one not in row else row.index(one))
        out.append(row)
    return out


def main():
    assert __version__ == "0.23.3", __version__
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures.jsonl")
    byte, spm = trained("byte"), trained("spm")
    all_models = {"byte": byte, "spm": spm, "byte incomplete": incomplete(byte, "eH\u00e6\u0120"),
                  "spm incomplete": incomplete(spm, ["e", "H", "<0xE6>", "\u00fc", "\u65e5"])}
    lines = [json.dumps({"models": all_models, "texts": TEXTS}, ensure_ascii=True, separators=(",", ":"))]
    for name, parts in tokenizers():
        t = Tokenizer.from_str(json.dumps(document(parts, all_models)))
        lines.append(json.dumps({"name": name, "parts": parts, "answers": answers(t)}, ensure_ascii=True, separators=(",", ":")))
    text = "\n".join(lines) + "\n"
    if "--check" in sys.argv:
        with open(path, encoding="utf-8") as file:
            sys.exit(0 if file.read() == text else "fixtures.jsonl is not what the library gives")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
