#!/usr/bin/env python3
"""Speed of runtime/tokenizer beside the original library (PyPI's tokenizers 0.23.3), in one run on one core.

    tests/bench/tokenizer_bench.py BUILD/tests/tokenizer_check [NAME...]     names of tests/end_to_end/vocabularies.py

Texts are the lines of published sources and translations (packages of PyPI), at least 50 MB of which no line comes
twice; ours starts with an empty cache (32 MB at most). The original is given a part of them, by each of its calls, on one
thread. Both are timed by the processor time that they take, so that a busy machine does not matter much. Bars: for
llama-3 20 MB/s and six times the original's fastest call; for gemma-4 half a second by the clock to open (a vocabulary
of 262,144). Exits with 1 where one is missed.
"""
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "end_to_end"))
SUFFIXES = (".po", ".py", ".txt", ".md", ".html", ".js", ".c", ".cc", ".cpp", ".h", ".hpp", ".cu", ".cuh", ".jinja", ".inp", ".metal",
            ".svelte", ".ts", ".json", ".sh", ".yml", ".comp", ".cmake", ".m", ".css")
PART = 10_000_000


def lines():
    import vocabularies
    found = set()
    with zipfile.ZipFile(vocabularies.fetched("django")) as archive:
        for name in archive.namelist():
            if name.endswith(SUFFIXES):
                found.update(archive.read(name).decode("utf8", "ignore").split("\n"))
    with tarfile.open(vocabularies.fetched("llama-cpp-python")) as archive:
        for entry in archive:
            if entry.isfile() and entry.name.endswith(SUFFIXES) and entry.size < 5_000_000:
                found.update(archive.extractfile(entry).read().decode("utf8", "ignore").split("\n"))
    kept = sorted(line for line in found if line.strip() and "\r" not in line and len(line) < 5000)
    rng = random.Random(6)
    rng.shuffle(kept)
    size = sum(len(line.encode()) + 1 for line in kept)
    # Two neighbours are one more line that comes once.
    more = [a + " " + b for a, b in zip(kept[::2], kept[1::2])]
    for line in more:
        if size >= 52_000_000:
            break
        kept.append(line)
        size += len(line.encode()) + 1
    rng.shuffle(kept)
    assert len(kept) == len(set(kept)) and size >= 50_000_000, size
    return kept


def ours(check, folder, path):
    best = None
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([check, folder, "--time", path], check=True, stdout=subprocess.PIPE)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = json.loads(done.stdout)
        answer["rss_mb"] = after.ru_maxrss / 1024
        if best is None or answer["cpu_s"] < best["cpu_s"]:
            best = answer
    return best


def theirs(folder, texts):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    part, size = [], 0
    for text in texts:
        part.append(text)
        size += len(text.encode())
        if size >= PART:
            break
    long = ["".join(part[i:i + 200]) for i in range(0, len(part), 200)]
    rates = {}
    for name, call in (("encode_batch_fast", lambda t: tokenizer.encode_batch_fast(t, add_special_tokens=False)),
                       ("encode_batch", lambda t: tokenizer.encode_batch(t, add_special_tokens=False)),
                       ("encode", lambda t: [tokenizer.encode(x, add_special_tokens=False) for x in t])):
        for kind, given in (("lines", part), ("200 lines", long)):
            start = time.process_time()
            call(given)
            rates["%s of %s" % (name, kind)] = size / 1e6 / (time.process_time() - start)
    return rates


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    try:
        import gguf  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError:
        python = subprocess.run([os.path.join(HERE, "..", "venv.sh"), "tokenizers==0.23.3", "gguf==0.19.0"], check=True,
                                stdout=subprocess.PIPE, encoding="utf-8").stdout.strip()
        os.execv(python, [python, "-B", *sys.argv])
    import vocabularies
    check, names = sys.argv[1], sys.argv[2:] or ["llama-3", "gemma-4"]
    texts = lines()
    missed = False
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write("\n".join(texts))
        file.flush()
        texts = [text + "\n" for text in texts]
        for name in names:
            folder = vocabularies.folder_of(name)
            mine = ours(check, folder, file.name)
            rate = mine["bytes"] / 1e6 / mine["cpu_s"]
            others = theirs(folder, texts)
            fastest = max(others, key=others.get)
            print("%s: %.1f MB/s (%.0f MB in %d lines, %.2f bytes a token), the original %.2f MB/s (%s): %.1f times; opened in "
                  "%.2f s (%.2f s of it processor time), %.0f MB of memory" % (
                      name, rate, mine["bytes"] / 1e6, len(texts), mine["bytes"] / mine["tokens"], others[fastest], fastest,
                      rate / others[fastest], mine["open_s"], mine["open_cpu_s"], mine["rss_mb"]), flush=True)
            print("   the original: " + ", ".join("%s %.2f" % pair for pair in others.items()), flush=True)
            if name == "llama-3" and (rate < 20 or rate < 6 * others[fastest]):
                missed = True
            if name == "gemma-4" and mine["open_s"] > 0.5:
                missed = True
    sys.exit("a bar is missed" if missed else 0)


if __name__ == "__main__":
    main()
