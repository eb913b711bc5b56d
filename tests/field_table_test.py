"""The table of fields in configs/README.md is what configs/schema/field_table.py makes of the schema, and every field says what it is.

Usage: field_table_test.py SOURCE_DIR
"""

import pathlib
import sys
import unittest

ROOT = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ".").resolve()
sys.path.insert(0, str(ROOT / "configs" / "schema"))
sys.dont_write_bytecode = True
import field_table  # noqa: E402

SCHEMA = (ROOT / "configs/schema/experiment.proto").read_text(encoding="utf-8")
SMALL = """
// A file's comment.
syntax = "proto2";

message Experiment {
  optional string name = 1;  // Of the run.
  // How it trains.
  optional Train train = 2;
  repeated Source rows = 3;
}
message Train {
  message Shape {
    enum Kind {
      FLAT = 0;   // a line
      ROUND = 1;
    }
  }
  // How far | how long.
  // HF: max_steps, num_steps. Megatron: train-iters.
  optional int64 max_steps = 1 [default = 8];
  optional Shape.Kind kind = 2 [default = ROUND];  // Its form.
  // Exactly one.
  oneof length {
    double epochs = 3;  // Passes. HF: num_train_epochs
    int64 rows = 4;     // Rows.
  }
}
message Source { repeated string path = 1; }
"""


class FieldTable(unittest.TestCase):
    def test_the_page_has_the_table_of_the_schema(self):
        page = (ROOT / "configs/README.md").read_text(encoding="utf-8")
        self.assertEqual(page, field_table.with_table(page, field_table.table(SCHEMA)),
                         "configs/README.md is behind the schema: run configs/schema/field_table.py --write")

    def test_every_field_says_what_it_is(self):
        silent = []
        for line in field_table.table(SCHEMA).splitlines():
            cells = [c.strip() for c in line.replace("\\|", "/").split("|")[1:-1]]
            if line.startswith("| `") and not cells[3] and not cells[4]:
                silent.append(cells[0])
        self.assertEqual(silent, [], "give these a comment in configs/schema/experiment.proto, or their name elsewhere (HF: name)")

    def test_what_is_made_of_a_small_schema(self):
        self.assertEqual(field_table.table(SMALL), """\
### The experiment

| field | type | default | meaning | elsewhere |
| --- | --- | --- | --- | --- |
| `name` | string |  | Of the run. |  |

### train

How it trains.

| field | type | default | meaning | elsewhere |
| --- | --- | --- | --- | --- |
| `train.max_steps` | int64 | `8` | How far \\| how long. | HF: max_steps, num_steps; Megatron: train-iters |
| `train.kind` | `FLAT` \\| `ROUND` | `ROUND` | Its form. `FLAT`: a line. |  |
| `train.epochs` | double |  | Passes. (one of `epochs`, `rows`: Exactly one) | HF: num_train_epochs |
| `train.rows` | int64 |  | Rows. (one of `epochs`, `rows`: Exactly one) |  |

### rows[]

| field | type | default | meaning | elsewhere |
| --- | --- | --- | --- | --- |
| `rows[].path` | string, repeated |  |  |  |
""")

    def test_what_is_not_understood_is_named_with_its_line(self):
        for text, words in ((SMALL.replace("optional string name", "required string name"), ":6: 'required'"),
                            (SMALL.replace("= 3;  // Passes", "3;  // Passes"), ":24: "), (SMALL + "message Half {", "too soon")):
            with self.assertRaises(ValueError) as raised:
                field_table.table(text)
            self.assertIn(words, str(raised.exception))

    def test_markers_stand_once_and_in_order(self):
        begin, end = field_table.BEGIN, field_table.END
        self.assertEqual(field_table.with_table("a %s old %s b" % (begin, end), "new\n"), "a %s\n\nnew\n\n%s b" % (begin, end))
        for page in ("", begin, end + begin, begin + begin + end):
            with self.assertRaises(ValueError):
                field_table.with_table(page, "new\n")


if __name__ == "__main__":
    unittest.main()
