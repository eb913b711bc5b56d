"""Every field and flag has a case: see fields.py."""

import unittest

import every_field_data_test
import every_field_training_test
import every_field_verbs_test
import harness
from fields import CASES, flags, not_shown, schema_fields

MODULES = (every_field_data_test, every_field_training_test, every_field_verbs_test)


class EveryField(unittest.TestCase):
    def test_every_field_and_flag_has_a_case(self):
        fields, every_flag = schema_fields(), flags()
        self.assertGreater(len(fields), 80, "the schema was not read")
        self.assertGreater(len(every_flag), 35, "the table of flags was not read")
        self.assertEqual(sorted(set(fields + every_flag) - set(CASES)), [], "these have no case")
        self.assertEqual(sorted(set(CASES) - set(fields + every_flag)), [], "these are no fields or flags")

    def test_every_case_runs(self):
        """As a test of one of the files, each of which is a test of ctest."""
        tests = {test.id().split(".", 1)[1] for module in MODULES
                 for suite in unittest.defaultTestLoader.loadTestsFromModule(module) for test in suite}
        self.assertEqual(sorted(set().union(*CASES.values()) - tests), [])

    def test_a_case_that_does_not_try_what_it_names(self):
        train = lambda *sets: ["train", "--config", "e"] + [w for s in sets for w in ("--set", s)]
        for field, commands, shown in (
                ("lora.r", [train("lora.r=2")], False),  # nothing else to compare it with
                ("lora.r", [train("lora.r=2"), train("lora.r=2", "train.seed=2")], False),
                ("lora.r", [train("lora.r=2"), train()], True),
                ("lora.r", [train("lora.r=2"), train("lora.r=4")], True),
                ("lora.r", [train("lora={r: 2}"), train("lora={ lora_alpha: 1 r: 4 }")], True),
                ("lora.r", [train("lora={ lora_alpha: 1 }"), train()], False),
                ("lora.r", [["launch", "-n", "1", "--", *train("lora.r=2")], train()], True),
                ("data.train[].path", [train("data.train[0].path=a"), train()], True),
                ("data.train[].columns.query", [train('data.train=[{path: "a: }", columns { query: "q" }}]'), train()], True),
                ("data.train[].columns.query", [train('data.train=[{path: "columns { query: }"}]'), train()], False),
                ("launch --n", [["launch", "-n", "1", "--", *train()]], True),
                ("train --config", [["launch", "-n", "1", "--", *train()]], True),
                ("launch --config", [["launch", "-n", "1", "--", *train()]], False),
                ("eval --samples", [["eval", "--base"], ["generate", "--samples", "2"]], False),
                ("eval --samples", [["eval", "--samples", "2"]], True)):
            with self.subTest(field=field, commands=commands):
                self.assertEqual(not_shown([field], commands), [] if shown else [field])


if __name__ == "__main__":
    harness.main()
