#!/usr/bin/env python3
"""The table of all fields of an experiment, as Markdown, from the comments and defaults of experiment.proto. Python's standard library
alone; protoc is not needed.

    configs/schema/field_table.py               prints the table
    configs/schema/field_table.py --write       puts it between the two markers of configs/README.md

A comment stands above its field, or behind it on the same line. The names that other programs have for a field end its comment:
"HF: num_experts_per_tok. Megatron: moe-router-topk." They go into a column of their own. tests/field_table_test.py holds
configs/README.md to what is printed here.
"""

import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
PROTO = FOLDER / "experiment.proto"
PAGE = FOLDER.parent / "README.md"
BEGIN = "<!-- fields: begin; written by configs/schema/field_table.py --write -->"
END = "<!-- fields: end -->"

TOKEN = re.compile(r'(?P<space>[ \t\r\n]+)|//(?P<comment>[^\n]*)|(?P<string>"(?:\\.|[^"\\\n])*")|(?P<word>[^\s{}\[\]=;,<>"/]+)|(?P<mark>[{}\[\]=;,<>])')
# "HF: a, b." and the like, wherever it stands in a comment.
ELSEWHERE = re.compile(r"\b(HF|Hugging Face|PEFT|TRL|Megatron): ((?:(?!\.\s|\.$|;).)+)[.;]?\s*")


class Node:
    """A message, enum, oneof, field or value of an enum, with its comment."""

    def __init__(self, kind, name, comment):
        self.kind, self.name, self.comment = kind, name, comment
        self.children, self.type, self.default, self.repeated = [], None, None, False

    def child(self, name, kinds):
        return next((c for c in self.children if c.name == name and c.kind in kinds), None)


class Parser:
    """Of as much of proto2 as the schema uses. What it does not know is an error with its line."""

    def __init__(self, text, where):
        self.where = where
        self.tokens, at = [], 0
        while at < len(text):
            match = TOKEN.match(text, at)
            if match is None:
                raise ValueError("%s:%d: '%s' is not understood" % (where, text.count("\n", 0, at) + 1, text[at:at + 20]))
            if match.lastgroup != "space":
                self.tokens.append((match.lastgroup, match.group(match.lastgroup), text.count("\n", 0, at) + 1))
            at = match.end()
        self.at = 0

    def fail(self, what):
        line = self.tokens[min(self.at, len(self.tokens) - 1)][2]
        raise ValueError("%s:%d: %s" % (self.where, line, what))

    def comments(self):
        """The comment block that ends where we stand: a line of code or an empty line ends one that stands above."""
        lines, last = [], None
        while self.at < len(self.tokens) and self.tokens[self.at][0] == "comment":
            _, text, line = self.tokens[self.at]
            if last is not None and line != last + 1:
                lines = []
            lines.append(text.strip())
            last = line
            self.at += 1
        if last is not None and self.at < len(self.tokens) and self.tokens[self.at][2] != last + 1:
            lines = []  # it is the file's, or that of nothing
        return " ".join(lines)

    def take(self, expected=None):
        if self.at >= len(self.tokens):
            self.fail("the file ends too soon")
        kind, text, _ = self.tokens[self.at]
        if kind == "comment":
            self.fail("a comment inside of a declaration")
        if expected is not None and text != expected:
            self.fail("'%s' where '%s' should be" % (text, expected))
        self.at += 1
        return text

    def behind(self, node):
        """What stands behind a declaration on its line, and on lines of comment that go on there, further in."""
        line = self.tokens[self.at - 1][2]
        if self.at < len(self.tokens) and self.tokens[self.at][0] == "comment" and self.tokens[self.at][2] == line:
            node.comment = (node.comment + " " + self.tokens[self.at][1].strip()).strip()
            self.at += 1

    def body(self, parent):
        """Declarations up to the closing brace, or to the end of the file."""
        while True:
            comment = self.comments()
            if self.at == len(self.tokens) or self.tokens[self.at][1] == "}":
                return
            word = self.take()
            if word in ("syntax", "package", "option", "reserved", "import"):
                while self.take() != ";":
                    pass
                continue
            if word in ("message", "enum", "oneof"):
                node = Node(word, self.take(), comment)
                self.take("{")
                self.behind(node)
                self.body(node)
                self.take("}")
            else:
                node = self.declaration(parent, word, comment)
            parent.children.append(node)

    def declaration(self, parent, word, comment):
        """A field, or a value of an enum: its first word is taken."""
        node = Node("value" if parent.kind == "enum" else "field", word, comment)
        if node.kind == "field":
            if word in ("optional", "repeated"):
                node.repeated = word == "repeated"
                word = self.take()
            elif parent.kind != "oneof":
                self.fail("'%s' is neither optional nor repeated" % word)
            node.type = word.lstrip(".")
            node.name = self.take()
        self.take("=")
        self.take()
        if self.tokens[self.at][1] == "[":
            self.options(node)
        self.take(";")
        self.behind(node)
        return node

    def options(self, node):
        self.take("[")
        while True:
            name = self.take()
            self.take("=")
            value = self.take()
            if name == "default":
                node.default = value
            if self.take() == "]":
                return


def parse(text, where="experiment.proto"):
    root = Node("file", "", "")
    Parser(text, where).body(root)
    return root


def find_type(scopes, name):
    """The message or enum that `name` means inside of `scopes`, the outermost first; None: a built-in type."""
    parts = name.split(".")
    for scope in reversed(scopes):
        found = scope
        for part in parts:
            found = found and found.child(part, ("message", "enum"))
        if found:
            return found
    return None


def split_comment(comment):
    """(meaning, names elsewhere)"""
    elsewhere = ["%s: %s" % (who.replace("Hugging Face", "HF"), names.strip()) for who, names in ELSEWHERE.findall(comment)]
    return ELSEWHERE.sub("", comment).strip(), "; ".join(elsewhere)


def cell(text):
    return text.replace("|", "\\|").replace("*", "\\*")


def row(path, field, kind, choice):
    meaning, elsewhere = split_comment(field.comment)
    if choice is not None:
        others = [c.name for c in choice.children]
        alone = "one of %s" % ", ".join("`%s`" % o for o in others)
        meaning = "%s (%s%s)" % (meaning, alone, ": " + choice.comment.rstrip(".") if choice.comment else "")
    if kind is not None:
        values = [(v.name, split_comment(v.comment)[0]) for v in kind.children]
        shown = " \\| ".join("`%s`" % name for name, _ in values)
        said = " ".join("`%s`: %s." % (name, text.rstrip(".")) for name, text in values if text)
        meaning = (meaning + " " + said).strip()
    else:
        shown = field.type
    if field.repeated:
        shown += ", repeated"
    default = "" if field.default is None else "`%s`" % field.default.strip('"') if field.default != '""' else "empty"
    return "| `%s` | %s | %s | %s | %s |" % (path, shown, default, cell(meaning), cell(elsewhere))


def section(path, message, scopes, out):
    """The table of one message, then those of the messages in it."""
    scopes = scopes + [message]
    rows, inner = [], []
    for child in message.children:
        for field in child.children if child.kind == "oneof" else [child]:
            if field.kind != "field":
                continue
            kind = find_type(scopes, field.type)
            name = "%s%s%s" % (path + "." if path else "", field.name, "[]" if field.repeated and kind and kind.kind == "message" else "")
            if kind is not None and kind.kind == "message":
                inner.append((name, kind, field))
            else:
                rows.append(row(name, field, kind, child if child.kind == "oneof" else None))
    if rows:
        out += ["### %s" % (path or "The experiment"), ""]
        if path and message.comment:
            out += [message.comment, ""]
        out += ["| field | type | default | meaning | elsewhere |", "| --- | --- | --- | --- | --- |", *rows, ""]
    for name, kind, field in inner:
        if field.comment and not kind.comment:
            kind.comment = field.comment
        section(name, kind, scopes, out)


def table(text):
    """The whole table. Raises ValueError, with the line, where the text is not understood."""
    root = parse(text)
    experiment = root.child("Experiment", ("message",))
    if experiment is None:
        raise ValueError("experiment.proto has no message Experiment")
    out = []
    section("", experiment, [root], out)
    return "\n".join(out).rstrip() + "\n"


def with_table(page, text):
    """`page` with the table between its markers."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError("configs/README.md must have these two lines once each, in this order:\n%s\n%s" % (BEGIN, END))
    return page[:page.index(BEGIN) + len(BEGIN)] + "\n\n" + text + "\n" + page[page.index(END):]


def main(arguments):
    if arguments not in ([], ["--write"]):
        print(__doc__, file=sys.stderr)
        return 64
    text = table(PROTO.read_text(encoding="utf-8"))
    if not arguments:
        print(text, end="")
        return 0
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
