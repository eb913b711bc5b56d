#!/usr/bin/env python3
"""Writes unicode_tables.cc: what the original library (PyPI's tokenizers 0.23.3) takes characters for.

The library mixes several versions of Unicode. Its regular expressions use one, Digits and Lowercase another, NFC
and NFD a third. So nothing here is taken from Unicode's own files: every table is the library's answer for each of
the 1,112,064 characters.

    unicode_tables.py           writes unicode_tables.cc beside this file
    unicode_tables.py --check   exits with 1 where that file differs from what would be written
"""
import os
import sys
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

VERSION = "0.23.3"
CATEGORIES = ("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn").split()
CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
ALL = "".join(map(chr, CODES))
HANGUL = range(0xAC00, 0xD7A4)


def runs_of(pre_tokenizer):
    """[(first, last)] of the characters that are left of ALL when all others are removed."""
    out = []
    for piece, (begin, end) in pre_tokenizer.pre_tokenize_str(ALL):
        assert len(piece) == end - begin
        for c in CODES[begin:end]:
            if out and out[-1][1] == c - 1:
                out[-1][1] = c
            else:
                out.append([c, c])
    return out


def runs_of_set(codes):
    out = []
    for c in sorted(codes):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def matched(pattern):
    return runs_of(pre_tokenizers.Split(Regex(pattern), "removed", invert=True))


def set_of(is_in):
    """Characters that a pre-tokenizer takes for delimiters: each is a piece of its own between letters a."""
    text = "a".join(map(chr, CODES))
    return {ord(piece) for piece, _ in is_in.pre_tokenize_str("a" + text + "a") if len(piece) == 1 and piece != "a"}


def categories():
    category = {}
    for number, name in enumerate(CATEGORIES):
        for first, last in matched(r"\p{%s}+" % name):
            for c in range(first, last + 1):
                assert c not in category, hex(c)
                category[c] = number
    cn = CATEGORIES.index("Cn")
    out, at = [], 0
    while at < 0x110000:
        end = at
        while end < 0x110000 and category.get(end, cn) == category.get(at, cn):
            end += 1
        out += [end - at, category.get(at, cn)]
        at = end
    return out


def words():
    """\\w of single_word: the added token is found behind a character that is none."""
    t = Tokenizer(models.BPE())
    t.add_tokens([AddedToken("<tok>", single_word=True, normalized=False)])
    text = "".join(chr(c) + "<tok> " for c in CODES)
    found = {begin // 7 for begin, _ in t.encode(text).offsets}
    return {c for i, c in enumerate(CODES) if i not in found}


def stripped():
    """\\s of lstrip and rstrip: the added token has the white space behind it."""
    t = Tokenizer(models.BPE())
    t.add_tokens([AddedToken("<tok>", rstrip=True, normalized=False)])
    text = "".join("<tok>" + chr(c) + "x" for c in CODES)
    return {CODES[begin // 7] for begin, end in t.encode(text).offsets if end - begin == 6}


def one_by_one(normalizer):
    return {c: s for c in CODES if (s := normalizer.normalize_str(chr(c))) != chr(c)}


def combining_classes(nfd):
    """From how a character is ordered beside one of each class."""
    lowest, highest = "\u0334", "\u0345"  # classes 1 and 240
    of_class = {1: lowest, 240: highest}
    for c in CODES:
        k = unicodedata.combining(chr(c))
        known = nfd.normalize_str("a" + highest + chr(c)) == "a" + chr(c) + highest  # to the library too
        if k and k not in of_class and known:
            of_class[k] = chr(c)
    ladder = sorted(of_class)
    single = one_by_one(nfd)
    candidates = [c for c in CODES if c not in single and c not in HANGUL and
                  (nfd.normalize_str("a" + highest + chr(c))[1] == chr(c) or
                   nfd.normalize_str("a" + chr(c) + lowest)[1] == lowest)]
    out = {}
    for c in candidates:
        behind = [k for k in ladder if nfd.normalize_str("a" + of_class[k] + chr(c))[1] == chr(c) and chr(c) != of_class[k]]
        before = [k for k in ladder if nfd.normalize_str("a" + chr(c) + of_class[k])[1] == of_class[k] and chr(c) != of_class[k]]
        equal = [k for k in ladder if k not in behind and k not in before]
        assert len(equal) == 1, (hex(c), behind, before, equal)
        out[c] = equal[0]
    return out


def decompositions(nfd, nfc):
    """{character: (full decomposition, whether it is composed again)}"""
    out = {}
    for c, d in one_by_one(nfd).items():
        if c in HANGUL:
            assert nfc.normalize_str(d) == chr(c)
            continue
        out[c] = (d, len(d) > 1 and nfc.normalize_str(d) == chr(c))
    return out


def varint(number):
    """Five bits a character, the lowest first; the sixth says that more follow."""
    text = ""
    while True:
        low, number = number & 31, number >> 5
        code = 35 + (low | (32 if number else 0))
        code += code >= 63  # no ? (trigraphs), no backslash; 34 is the quotation mark
        text += chr(code + (code >= 92))
        if not number:
            return text


def zigzag(number):
    return number * 2 if number >= 0 else -number * 2 - 1


def pack_set(runs):
    at, out = 0, []
    for first, last in runs:
        out += [first - at, last - first]
        at = last + 1
    return out


def build():
    nfd, nfc = normalizers.NFD(), normalizers.NFC()
    tables = {"kCategories": categories()}
    tables["kRegexSpace"] = pack_set(matched(r"\s+"))
    tables["kSpace"] = pack_set(runs_of_set(c for c, s in one_by_one(normalizers.Strip()).items() if not s))
    tables["kTokenSpace"] = pack_set(runs_of_set(stripped()))
    tables["kWord"] = pack_set(runs_of_set(words()))
    tables["kNumeric"] = pack_set(runs_of_set(set_of(pre_tokenizers.Digits(individual_digits=True))))
    tables["kPunctuation"] = pack_set(runs_of_set(set_of(pre_tokenizers.Punctuation("isolated"))))
    lower, at = [], 0
    for c, s in sorted(one_by_one(normalizers.Lowercase()).items()):
        lower += [c - at, len(s) - 1] + [zigzag(ord(x) - c) for x in s]
        at = c
    tables["kLowercase"] = lower
    classes, at = [], 0
    by_class = combining_classes(nfd)
    for first, last in runs_of_set(by_class):
        c = first
        while c <= last:
            end = c
            while end < last and by_class[end + 1] == by_class[c]:
                end += 1
            classes += [c - at, end - c, by_class[c]]
            at = end + 1
            c = end + 1
    tables["kCombiningClasses"] = classes
    decomposed, at = [], 0
    for c, (d, again) in sorted(decompositions(nfd, nfc).items()):
        decomposed += [c - at, (len(d) - 1) * 2 + again, ord(d[0])] + [zigzag(ord(x) - 0x300) for x in d[1:]]
        at = c
    tables["kDecompositions"] = decomposed
    return tables


def source(tables):
    lines = ["// Written by unicode_tables.py from PyPI's tokenizers %s; do not edit." % VERSION,
             '#include "runtime/tokenizer/unicode_tables.h"', "", "namespace pesc::unicode_tables {", "",
             "// clang-format off"]
    for name, numbers in tables.items():
        text = "".join(map(varint, numbers))
        lines.append("extern const std::string_view %s =" % name)
        lines += ['    "%s"' % text[i:i + 160] for i in range(0, len(text), 160)]
        lines[-1] += ";"
        lines.append("")
    lines += ["// clang-format on", "", "}  // namespace pesc::unicode_tables", ""]
    return "\n".join(lines)


def main():
    if tokenizers.__version__ != VERSION:
        sys.exit("unicode_tables.py: needs tokenizers==%s, found %s" % (VERSION, tokenizers.__version__))
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "unicode_tables.cc")
    text = source(build())
    if "--check" in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            if file.read() != text:
                sys.exit("unicode_tables.py: %s is not what tokenizers %s gives" % (path, VERSION))
        print("unicode_tables.cc: %d characters in %d tables, as tokenizers %s has them" %
              (len(CODES), 10, VERSION))
        return
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
