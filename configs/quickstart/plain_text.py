"""The text that the base of the quick start is pretrained on: plain statements, stories and programs.

It states facts (sums, opposites, kinds, spellings), shows lists in several orders and small programs with what they
print. It holds no question, no instruction, no prompt template and no eval item: a sentence whose core (see
tasks.py) is that of an eval row is drawn again.
"""

from lexicon import (FUNCTIONS, GOODS, HOLDERS, KIND_OF, NAMES, OPERATIONS, OPPOSITE_OF, QUALITIES, THINGS,
                     VARIABLES, WORDS, operands, value)

# A sentence returns (text, core): core is None where nothing of it could be an eval row's.


def about_a_list(draw):
    """A list and what is true of it, so that every random word is looked back at several times."""
    w = draw.some(WORDS, draw.between(3, 5))
    if draw.below(2):
        one_of_a_kind(draw, w)
    at = draw.below(len(w) - 1)
    facts = [
        draw.one(["The first word is {first}.", "It starts with {first}.", "{first} is the first word."]),
        draw.one(["The second word is {second}.", "{second} is the second word.", "{second} stands second."]),
        draw.one(["The last word is {last}.", "It ends with {last}.", "{last} is the last word."]),
        draw.one(["There are {count} words.", "It has {count} words.", "That makes {count} words."]),
        draw.one(["Backwards it says: {back}.", "In reverse order: {back}.", "From the end to the start: {back}."]),
        draw.one(["Backwards it says: {back}.", "The words in reverse order are: {back}."]),
        draw.one(["Once more: {list}.", "{name} says it again: {list}."]),
        draw.one(["After {this} comes {next}.", "The word after {this} is {next}."]),
        draw.one(["{next} comes after {this}.", "The word after {this} is {next}."]),
    ]
    facts += ["The %s in it is %s." % (KIND_OF[x], x) for x in w if single(x, w)][:2]
    draw.shuffle(facts)
    form = draw.one(["The list: {list}.", "{name} says these words: {list}.", "Here is a list: {list}."])
    text = " ".join([form] + facts[:draw.between(4, 6)])
    return text.format(list=" ".join(w), back=" ".join(w[::-1]), first=w[0], second=w[1], last=w[-1], count=len(w),
                       this=w[at], next=w[at + 1], name=draw.one(NAMES)), " ".join(w)


def single(word, words):
    """Whether `word` is the only one of its kind among `words`."""
    return word in KIND_OF and sum(KIND_OF.get(x) == KIND_OF[word] for x in words) == 1


def one_of_a_kind(draw, words):
    """Puts qualities in the place of all but one of the words."""
    keep = draw.below(len(words))
    others = draw.some(QUALITIES, len(words))
    words[:] = [draw.one(THINGS) if i == keep else others[i] for i in range(len(words))]


def opposites(draw):
    word = draw.one(QUALITIES)
    form = draw.one(["The opposite of {0} is {1}.", "What is not {0} is {1}.", "{0} and {1} are opposite words.",
                     "It is {0}, not {1}.", "{0} is the opposite of {1}."])
    return form.format(word, OPPOSITE_OF[word]), None


def kinds(draw):
    word = draw.one(THINGS)
    form = draw.one(["The word {0} names a kind of {1}.", "{0} is in the group {1}.", "Every {0} is a kind of {1}.",
                     "{0} belongs to the group {1}.", "A thing like {0} is a {1}."])
    return form.format(word, KIND_OF[word]), None


def spellings(draw):
    word = draw.one(WORDS)
    form = draw.one(["{0} is spelled {1}.", "The letters of {0} are {1}.", "{1} are the letters of {0}.",
                     "The word {0} has the letters {1}."])
    return form.format(word, " ".join(word)), None


def sums(draw):
    """Up to three equations in a row, as in a table of sums."""
    lines = []
    for _ in range(draw.between(2, 3)):
        sign = draw.one("++--*")
        a, b = operands(draw, sign)
        lines.append("%d %s %d = %d" % (a, sign, b, value(a, sign, b)))
    return ", ".join(lines) + ".", None


def long_difference(draw):
    a = draw.between(1, 40)
    b = draw.between(0, min(20, a))
    return "%d - %d = %d." % (a, b, a - b), None


def stories(draw):
    name, other = draw.some(NAMES, 2)
    goods, holders = draw.one(GOODS), draw.one(HOLDERS)
    sign = draw.one("+-*")
    a, b = operands(draw, sign)
    form = draw.one({
        "+": ["{name} had {a} {goods} and got {b} more from {other}, so {a} + {b} = {c} {goods} in all.",
              "{name} found {a} {goods}, {other} found {b} {goods}, and together it was {a} + {b} = {c}.",
              "With {a} {goods} in one hand and {b} more in the other, {name} had {a} + {b} = {c}."],
        "-": ["{name} had {a} {goods}, gave {b} away to {other} and kept {a} - {b} = {c}.",
              "Of {a} {goods} {name} took {b} and left {a} - {b} = {c} for {other}.",
              "{a} {goods} for {name} and {b} for {other} make {a} - {b} = {c} more for {name}."],
        "*": ["{name} filled {a} {holders}, each with {b} {goods}, which took {a} * {b} = {c} {goods}.",
              "{a} {holders} of {b} {goods} each hold {a} * {b} = {c} {goods}, says {name}."],
    }[sign])
    return form.format(name=name, other=other, goods=goods, holders=holders, a=a, b=b, c=value(a, sign, b)), None


def long_stories(draw):
    name, other = draw.some(NAMES, 2)
    a, b = operands(draw, "+")
    c = draw.between(0, min(20, a + b))
    form = ("{name} had {a} {goods}, found {b} more and lost {c}: {a} + {b} = {s}, {s} - {c} = {d}.")
    return form.format(name=name, goods=draw.one(GOODS), a=a, b=b, c=c, s=a + b, d=a + b - c), None


def functions(draw):
    name = draw.one(FUNCTIONS)
    x, y = draw.some(VARIABLES, 2)
    said, code = draw.one(OPERATIONS)
    program = "def %s(%s, %s): return %s" % (name, x, y, code.format(x, y))
    form = draw.one(["{0}  # the {1} of {2} and {3}", "# {4} returns the {1} of {2} and {3}\n{0}"])
    return form.format(program, said, x, y, name), program


def step_functions(draw):
    name, x, number = draw.one(FUNCTIONS), draw.one(VARIABLES), draw.between(2, 20)
    said, sign = draw.one([("adds {1} to {0}", "+"), ("takes {1} from {0}", "-"), ("multiplies {0} by {1}", "*")])
    program = "def %s(%s): return %s %s %d" % (name, x, x, sign, number)
    form = draw.one(["{0}  # {1}", "# {2} {1}\n{0}"])
    return form.format(program, said.format(x, number), name), program


def loops(draw):
    x, low = draw.one(VARIABLES), draw.between(0, 15)
    high = draw.between(low + 2, 20)
    program = "for %s in range(%d, %d): print(%s)" % (x, low, high + 1, x)
    form = draw.one(["{0}  # {1} goes from {2} to {3}", "# the numbers from {2} to {3} in {1}\n{0}"])
    return form.format(program, x, low, high), program


def lists(draw):
    x, w = draw.one(VARIABLES), draw.some(THINGS, 3)
    program = "%s = ['%s', '%s', '%s']" % ((x,) + tuple(w))
    form = draw.one(["{0}  # {1} holds {2}, {3} and {4}", "# a list {1} of {2}, {3} and {4}\n{0}"])
    return form.format(program, x, *w), program


def steps(draw):
    x, y = draw.some(VARIABLES, 2)
    sign = draw.one("+-*")
    a, b = operands(draw, sign)
    program = "%s = %d\n%s = %s %s %d\nprint(%s)" % (x, a, y, x, sign, b, y)
    return program + "\n# prints %d" % value(a, sign, b), program


def choices(draw):
    x, name = draw.one(VARIABLES), draw.one(["max", "min"])
    a, b = draw.some(range(0, 21), 2)
    program = "%s = %s(%d, %d)\nprint(%s)" % (x, name, a, b, x)
    return program + "\n# prints %d" % {"max": max, "min": min}[name](a, b), program


def lengths(draw):
    x, w = draw.one(VARIABLES), draw.some(THINGS, draw.between(2, 5))
    program = "%s = [%s]\nprint(len(%s))" % (x, ", ".join("'%s'" % word for word in w), x)
    return program + "\n# prints %d" % len(w), program


SUMS = [(3, sums), (1, long_difference), (5, stories), (2, long_stories)]
CODE = [(3, functions), (2, step_functions), (2, loops), (2, lists), (4, steps), (3, choices), (1, lengths)]
FACTS = [(2, opposites), (2, kinds), (3, spellings)]

# (share, sentences, what joins them, least characters of a document)
TOPICS = [(7, [(1, about_a_list)], " ", 100), (3, FACTS, " ", 200), (5, SUMS, " ", 200), (6, CODE, "\n", 150)]


def documents(draw, characters, weighted, eval_rows):
    """Yields documents of one topic each until `characters` have been written."""
    topics = [(topic[0], topic) for topic in TOPICS]
    written = 0
    while written < characters:
        _, forms, joint, least = weighted(draw, topics)
        text = ""
        while len(text) < least:
            sentence, core = weighted(draw, forms)(draw)
            if core in eval_rows:
                continue
            text += (joint if text else "") + sentence
        written += len(text)
        yield text
