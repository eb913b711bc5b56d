"""Words and random draws shared by the plain text and the instruction tasks of the quick start.

Every draw goes through `Draw`, which uses nothing of `random` but `Random(seed).random()`: the one method whose
sequence Python promises to keep, so the same seed writes the same bytes on every Python from 3.9 on.
"""

import random

KINDS = {
    "animal": "cat dog horse cow bird fish sheep pig duck lion".split(),
    "fruit": "apple pear plum lemon grape peach mango melon".split(),
    "color": "red blue green white black yellow brown pink".split(),
    "vehicle": "car bus train ship bike truck".split(),
    "food": "bread cheese soup rice cake egg".split(),
    "tool": "hammer saw drill knife brush rake".split(),
}
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
THINGS = list(KIND_OF)

OPPOSITES = [
    tuple(pair.split("/"))
    for pair in (
        "hot/cold big/small fast/slow up/down old/new happy/sad light/dark high/low wet/dry open/shut "
        "hard/soft near/far rich/poor early/late full/empty strong/weak loud/quiet long/short"
    ).split()
]
OPPOSITE_OF = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
QUALITIES = list(OPPOSITE_OF)
WORDS = THINGS + QUALITIES

NAMES = "Tom Ann Ben Eva Sam Mia Leo Zoe".split()
GOODS = "apples pears eggs books coins cards shells stones".split()
HOLDERS = "boxes bags jars trays".split()

MAX_OPERAND = 20
MAX_NUMBER = 40

FUNCTIONS = "calc work solve apply make run find get".split()
VARIABLES = "a b c n m x y z".split()
# How an operation on two arguments is spoken of, and written.
OPERATIONS = [
    ("sum", "{0} + {1}"),
    ("difference", "{0} - {1}"),
    ("product", "{0} * {1}"),
    ("larger", "max({0}, {1})"),
    ("smaller", "min({0}, {1})"),
]


class Draw:
    """Random draws that are the same on every version of Python."""

    def __init__(self, seed):
        self._random = random.Random(seed).random

    def below(self, count):
        return int(self._random() * count)

    def between(self, low, high):
        """A whole number from low to high, both included."""
        return low + self.below(high - low + 1)

    def one(self, items):
        return items[self.below(len(items))]

    def some(self, items, count):
        """`count` different items, in random order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(count)]

    def shuffle(self, items):
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]


def operands(draw, sign):
    """Two operands of at most MAX_OPERAND for '+', '-' or '*', with a result from 0 to MAX_NUMBER."""
    if sign == "-":
        a = draw.between(1, MAX_OPERAND)
        return a, draw.between(0, a)
    if sign == "*":
        a = draw.between(2, 6)
        return a, draw.between(2, min(10, MAX_NUMBER // a))
    return draw.between(1, MAX_OPERAND), draw.between(1, MAX_OPERAND)


def value(a, sign, b):
    return {"+": a + b, "-": a - b, "*": a * b}[sign]
