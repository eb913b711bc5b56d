"""What must not compile does not, and its twin in the right order does: see tests/model/wrong_order/*.cc.

With RIGHT_ORDER a file compiles without a word. Without, the compiler gives an error for each line that says
`// refused`, and for no other line of the file.

Usage: wrong_order.py SOURCE_DIR COMPILER [OPTION...]
"""

import pathlib
import re
import subprocess
import sys
import unittest

SOURCE = pathlib.Path(sys.argv[1]).resolve()
COMPILER = sys.argv[2:]
FILES = sorted((SOURCE / "tests/model/wrong_order").glob("*.cc"))


def compile_file(path, *options):
    """The exit code, and the numbers of the file's lines that have errors."""
    done = subprocess.run([*COMPILER, "-std=c++20", "-fsyntax-only", f"-I{SOURCE}", *options, str(path)], capture_output=True,
                          text=True)
    errors = re.findall(r"^(.+?):(\d+):(?:\d+:)? (?:fatal )?error:", done.stderr, re.M)
    own = {int(line) for file, line in errors if pathlib.Path(file).resolve() == path}
    return done.returncode, own, [e for e in errors if pathlib.Path(e[0]).resolve() != path], done.stderr


class WrongOrder(unittest.TestCase):
    def test_the_right_order_compiles(self):
        self.assertTrue(FILES)
        for path in FILES:
            code, _, _, said = compile_file(path, "-DRIGHT_ORDER", "-Wall", "-Wextra", "-Werror")
            self.assertEqual((code, said), (0, ""), path.name)

    def test_every_wrong_order_is_refused(self):
        for path in FILES:
            lines = path.read_text(encoding="utf-8").split("\n")
            refused = {i for i, line in enumerate(lines, 1) if line.endswith("// refused")}
            self.assertGreater(len(refused), 5, path.name)
            code, own, others, said = compile_file(path)
            self.assertNotEqual(code, 0, path.name)
            self.assertEqual(others, [], said)
            self.assertEqual(sorted(own), sorted(refused), said)


if __name__ == "__main__":
    del sys.argv[1:]
    unittest.main()
