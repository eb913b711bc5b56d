"""Writes unicode_kinds.cc and unicode_cases.cc beside itself: what Python knows of characters, as ranges (standard
library only).

Usage: python3 runtime/chat/jinja/make_unicode_tables.py
"""

import pathlib
import sys
import unicodedata

CODES = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]


def ranges(holds):
    """[first, last] of all characters that it holds for; surrogates join what is around them."""
    out = []
    for code in CODES:
        if holds(chr(code)):
            if out and code in (out[-1][1] + 1, 0xE000 if out[-1][1] == 0xD7FF else -1):
                out[-1][1] = code
            else:
                out.append([code, code])
    return out


def mapped(change):
    """(first, last, step, delta) of the characters that become one other; the rest as (code, text)."""
    runs, special = [], []
    for code in CODES:
        text = change(chr(code))
        if text == chr(code):
            continue
        if len(text) > 1:
            special.append((code, text))
            continue
        delta = ord(text) - code
        if runs and runs[-1][3] == delta:
            first, last, step, _ = runs[-1]
            if code - last == step or (first == last and code - last <= 2):
                runs[-1] = (first, code, code - last, delta)
                continue
        runs.append((code, code, 1, delta))
    return runs, special


def table(kind, name, rows):
    cells = ["{%s}" % ", ".join(str(x) if isinstance(x, str) else hex(x) if x >= 0 else str(x) for x in row) for row in rows]
    lines, line = [], "   "
    for cell in cells:
        if len(line) + len(cell) + 2 > 110:
            lines.append(line)
            line = "   "
        line += " " + cell + ","
    return "const %s %s[] = {\n%s\n};\nconst size_t %sSize = sizeof(%s) / sizeof(%s[0]);\n" % (
        kind, name, "\n".join(lines + [line]), name, name, name)


def case_ignorable(c):
    # As CPython decides where a sigma is final.
    return unicodedata.category(c) in ("Mn", "Me", "Cf", "Lm", "Sk") or c in (
        "'.:\u00b7\u0387\u055f\u05f4\u2018\u2019\u2024\u2027\ufe13\ufe52\ufe55\uff07\uff0e\uff1a")


def write(name, tables):
    head = "// Made by runtime/chat/jinja/make_unicode_tables.py from Unicode %s. Do not edit.\n" % unicodedata.unidata_version
    head += '// clang-format off\n#include "runtime/chat/jinja/unicode_tables.h"\n\nnamespace pesc::jinja {\n\n'
    path = pathlib.Path(__file__).parent / name
    path.write_text(head + "".join(tables) + "\n}  // namespace pesc::jinja\n", encoding="utf-8")


def main():
    write("unicode_kinds.cc", [
        table("CodeRange", "kNotPrintable", ranges(lambda c: not c.isprintable())),
        table("CodeRange", "kCased", ranges(lambda c: c.isupper() or c.islower() or c.istitle())),
        table("CodeRange", "kCaseIgnorable", ranges(case_ignorable))])
    cases = []
    for name, change in (("Upper", str.upper), ("Lower", str.lower), ("Title", str.title)):
        runs, special = mapped(change)
        cases.append(table("CaseRange", "k" + name, runs))
        cases.append(table("CaseText", "k%sTexts" % name,
                           [(code, '"%s"' % "".join("\\%03o" % b for b in text.encode())) for code, text in special]))
    write("unicode_cases.cc", cases)


main()
