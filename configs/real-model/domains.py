"""The four domains of the second quick start. A domain is a list of (weight, task); a task is called with a Draw or an index.

arithmetic, words and logic are tasks of reasoning-gym (Apache-2.0), with answers that it has verified, in sizes that a model of
135 million parameters can learn in minutes; their modules need nothing but Python's standard library. code is the first quick start's: its generator writes small Python programs, and
runs them to have the answer.
"""

import importlib
import os
import sys

import wheels

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "quickstart"))
from lexicon import Draw  # noqa: E402
from tasks import DOMAINS as QUICKSTART  # noqa: E402

# domain: [(weight, module of reasoning-gym, settings)]
GYM = {
    "arithmetic": [
        (3, "arithmetic.chain_sum", dict(min_terms=2, max_terms=3, min_digits=1, max_digits=2)),
        (1, "arithmetic.products", dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2)),
        (2, "arithmetic.basic_arithmetic", dict(min_terms=2, max_terms=3, min_digits=1, max_digits=1, operators=["+", "-", "*"])),
    ],
    "words": [
        (3, "algorithmic.word_sequence_reversal", dict(min_words=3, max_words=5)),
        (1, "algorithmic.spell_backward", dict(min_word_len=3, max_word_len=4)),
        (2, "algorithmic.letter_counting", dict(min_words=3, max_words=5)),
    ],
    "logic": [
        (2, "graphs.family_relationships", dict(min_family_size=3, max_family_size=5)),
        (2, "logic.aiw", dict(max_entities=6, task_type_weights=[0.5, 0.5, 0.0])),
        (2, "logic.syllogisms", dict()),
    ],
}
NAMES = ["arithmetic", "code", "words", "logic"]
SYSTEM_TEXT = "Reply with the answer alone."
ENDLESS = 10**9  # reasoning-gym wants to know how many items there are; an item is made when it is asked for


def gym_tasks(assets):
    """{domain: [(weight, dataset maker)]}; a maker takes a seed and gives a dataset whose items are made by index."""
    path = wheels.wheel("reasoning-gym", assets)
    sys.path.insert(0, path)
    folders = {module.split(".")[0] for tasks in GYM.values() for _, module, _ in tasks}
    wheels.packages_of(path, "reasoning_gym", "reasoning_gym.coaching", *("reasoning_gym." + folder for folder in sorted(folders)))
    for part in ("attributes", "base_curriculum"):  # what the tasks take from the package itself
        found = vars(importlib.import_module("reasoning_gym.coaching." + part))
        vars(sys.modules["reasoning_gym.coaching"]).update({name: value for name, value in found.items() if not name.startswith("_")})
    factory = importlib.import_module("reasoning_gym.factory")

    def maker(module, settings):
        dataset, config = factory.DATASETS[importlib.import_module("reasoning_gym." + module).DATASET_NAME]
        return lambda seed: dataset(config(seed=seed, size=ENDLESS, **settings))

    return {domain: [(weight, maker(module, settings)) for weight, module, settings in tasks] for domain, tasks in GYM.items()}


def questions(domain, seed, tasks):
    """Endless (question, answer, core) of a domain; two with equal cores are one item."""
    draw = Draw("%s %s" % (domain, seed))
    if domain == "code":
        total = sum(weight for weight, _ in QUICKSTART["programs"])
        while True:
            yield chosen(QUICKSTART["programs"], draw.below(total))(draw)
    made = [(weight, maker(draw.below(2**31))) for weight, maker in tasks[domain]]
    total = sum(weight for weight, _ in made)
    for index in range(ENDLESS):
        item = chosen(made, draw.below(total))[index]
        question, answer = item["question"].strip(), str(item["answer"]).strip()
        yield question, answer, question


def chosen(weighted, ticket):
    for weight, choice in weighted:
        if ticket < weight:
            return choice
        ticket -= weight
    raise ValueError("a ticket beyond the weights")
