"""Instruction rows of the quick start: three domains, each a list of (weight, task).

A task takes a `Draw` and returns (input, output, core). `core` names what must not be shared between training and
eval rows beyond the row itself: a list of words, a problem's numbers in their setting, a whole program. Two rows
with equal cores are on the same side of the split.
"""

from lexicon import (FUNCTIONS, GOODS, HOLDERS, KIND_OF, KINDS, MAX_NUMBER, NAMES, OPERATIONS, OPPOSITE_OF, QUALITIES,
                     THINGS, VARIABLES, WORDS, operands, value)

# ---- text: general instructions about words ----


def words(draw, low=3, high=5):
    return draw.some(WORDS, draw.between(low, high))


def reverse(draw):
    w = words(draw)
    ask = draw.one(["Reverse the order of these words: {}", "Say these words backwards: {}"])
    return ask.format(" ".join(w)), " ".join(w[::-1]), " ".join(w)


def pick(draw):
    w = words(draw)
    place, word = draw.one([("first", w[0]), ("second", w[1]), ("last", w[-1])])
    ask = draw.one(["What is the {} word of: {}", "Give me the {} word in this list: {}"])
    return ask.format(place, " ".join(w)), word, " ".join(w)


def count(draw):
    w = words(draw, 2, 6)
    ask = draw.one(["How many words are there: {}", "Count these words: {}"])
    return ask.format(" ".join(w)), str(len(w)), " ".join(w)


def repeat(draw):
    w = words(draw)
    ask = draw.one(["Repeat these words: {}", "Say this again: {}"])
    return ask.format(" ".join(w)), " ".join(w), " ".join(w)


def after(draw):
    w = words(draw)
    at = draw.below(len(w) - 1)
    ask = draw.one(["Which word comes after {} in: {}", "Give me the word after {} in this list: {}"])
    return ask.format(w[at], " ".join(w)), w[at + 1], " ".join(w)


def find_kind(draw):
    kind = draw.one(list(KINDS))
    w = draw.some([x for x in WORDS if KIND_OF.get(x) != kind], draw.between(2, 4))
    word = draw.one(KINDS[kind])
    w.insert(draw.below(len(w) + 1), word)
    ask = draw.one(["Which of these is a kind of {}: {}", "Find the {} in: {}"])
    return ask.format(kind, " ".join(w)), word, " ".join(w)


def opposite(draw):
    word = draw.one(QUALITIES)
    ask = draw.one(["What is the opposite of {}?", "Give me the opposite of the word {}.", "Not {}, but what?"])
    return ask.format(word), OPPOSITE_OF[word], "opposite " + word


def kind_of(draw):
    word = draw.one(THINGS)
    ask = draw.one(["What kind of thing is {}?", "Name the group that {} belongs to.", "In which group is {}?"])
    return ask.format(word), KIND_OF[word], "kind " + word


def spell(draw):
    word = draw.one(WORDS)
    ask = draw.one(["Spell the word {}.", "How do you spell {}?", "Give me the letters of {}."])
    return ask.format(word), " ".join(word), "spell " + word


# ---- programs: writing and reading small Python ----


def write_function(draw):
    name = draw.one(FUNCTIONS)
    x, y = draw.some(VARIABLES, 2)
    said, code = draw.one(OPERATIONS)
    ask = draw.one(["Write a function {} that returns the {} of {} and {}.",
                    "Define {} so that it gives the {} of {} and {}."])
    program = "def %s(%s, %s): return %s" % (name, x, y, code.format(x, y))
    return ask.format(name, said, x, y), program, program


def write_step(draw):
    name, x = draw.one(FUNCTIONS), draw.one(VARIABLES)
    number = draw.between(2, 20)
    said, sign = draw.one([("adds {1} to {0}", "+"), ("takes {1} from {0}", "-"), ("multiplies {0} by {1}", "*")])
    ask = draw.one(["Write a function {} that {}.", "Define {}, which {}."])
    program = "def %s(%s): return %s %s %d" % (name, x, x, sign, number)
    return ask.format(name, said.format(x, number)), program, program


def write_loop(draw):
    x = draw.one(VARIABLES)
    low = draw.between(0, 15)
    high = draw.between(low + 2, 20)
    ask = draw.one(["Print the numbers from {} to {} with {}.", "Write a loop from {} to {} that prints {}."])
    program = "for %s in range(%d, %d): print(%s)" % (x, low, high + 1, x)
    return ask.format(low, high, x), program, program


def write_list(draw):
    x, w = draw.one(VARIABLES), draw.some(THINGS, 3)
    ask = draw.one(["Make a list {} of {}, {} and {}.", "Let {} be a list with {}, {} and {}."])
    program = "%s = ['%s', '%s', '%s']" % ((x,) + tuple(w))
    return ask.format(x, *w), program, program


def run_steps(draw):
    x, y = draw.some(VARIABLES, 2)
    sign = draw.one("+-*")
    a, b = operands(draw, sign)
    program = "%s = %d\n%s = %s %s %d\nprint(%s)" % (x, a, y, x, sign, b, y)
    return draw.one(["What does this print?\n", "Run this:\n"]) + program, str(value(a, sign, b)), program


def run_choice(draw):
    x, name = draw.one(VARIABLES), draw.one(["max", "min"])
    a, b = draw.some(range(0, 21), 2)
    program = "%s = %s(%d, %d)\nprint(%s)" % (x, name, a, b, x)
    return draw.one(["What does this print?\n", "Run this:\n"]) + program, str({"max": max, "min": min}[name](a, b)), program


def run_length(draw):
    x, w = draw.one(VARIABLES), draw.some(THINGS, draw.between(2, 5))
    program = "%s = [%s]\nprint(len(%s))" % (x, ", ".join("'%s'" % word for word in w), x)
    return draw.one(["What does this print?\n", "Run this:\n"]) + program, str(len(w)), program


# ---- arithmetic: word problems, answered with the working ----


def gain(draw):
    name, other = draw.some(NAMES, 2)
    goods = draw.one(GOODS)
    a, b = operands(draw, "+")
    ask = draw.one([
        "{name} has {a} {goods}. {other} gives {name} {b} more. How many {goods} does {name} have now?",
        "{name} buys {a} {goods} and then {b} more. How many {goods} is that?",
        "{name} has {a} {goods} and {other} has {b}. How many {goods} do they have together?",
    ])
    text = ask.format(name=name, other=other, goods=goods, a=a, b=b)
    return text, "%d + %d = %d" % (a, b, a + b), text


def loss(draw):
    name, other = draw.some(NAMES, 2)
    goods = draw.one(GOODS)
    a, b = operands(draw, "-")
    ask = draw.one([
        "{name} has {a} {goods} and gives {b} to {other}. How many {goods} are left?",
        "There are {a} {goods}. {name} takes {b} away. How many {goods} are left?",
        "{name} has {a} {goods} and {other} has {b}. How many more {goods} does {name} have?",
    ])
    text = ask.format(name=name, other=other, goods=goods, a=a, b=b)
    return text, "%d - %d = %d" % (a, b, a - b), text


def groups(draw):
    name, goods, holders = draw.one(NAMES), draw.one(GOODS), draw.one(HOLDERS)
    a, b = operands(draw, "*")
    ask = draw.one([
        "{name} has {a} {holders} with {b} {goods} in each. How many {goods} is that?",
        "There are {b} {goods} in each of {a} {holders}. How many {goods} are there?",
    ])
    text = ask.format(name=name, holders=holders, goods=goods, a=a, b=b)
    return text, "%d * %d = %d" % (a, b, a * b), text


def two_steps(draw):
    name, other = draw.some(NAMES, 2)
    goods = draw.one(GOODS)
    a, b = operands(draw, "+")
    c = draw.between(0, min(20, a + b))
    text = ("{name} has {a} {goods}, gets {b} more and gives {c} to {other}. How many {goods} are left?"
            .format(name=name, other=other, goods=goods, a=a, b=b, c=c))
    return text, "%d + %d = %d, %d - %d = %d" % (a, b, a + b, a + b, c, a + b - c), text


DOMAINS = {
    "text": [(4, reverse), (4, pick), (2, count), (1, repeat), (2, after), (3, find_kind), (2, opposite), (2, kind_of),
             (2, spell)],
    "programs": [(3, write_function), (2, write_step), (2, write_loop), (2, write_list), (4, run_steps),
                 (2, run_choice), (1, run_length)],
    "arithmetic": [(4, gain), (4, loss), (3, groups), (2, two_steps)],
}

if MAX_NUMBER < 40:
    raise ValueError("two_steps has sums of up to 40")
