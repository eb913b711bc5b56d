"""tests/goldens/make_goldens.py makes the numbers of every reference case once more, with torch and transformers.

Needs a Python with them: the program PESC_TRANSFORMERS_PYTHON, or the virtual environment of transformers_venv.sh beside this file.
"""

import glob
import os
import subprocess
import unittest

import harness
from transformers_test import python_with_transformers

GOLDENS = os.path.join(harness.SOURCE, "tests", "goldens")
QUANTITIES = ("dense.", "pesc.", "grad.", "curve.", "final.")


class Goldens(unittest.TestCase):
    def test_every_case_comes_out_again(self):
        cases = [os.path.basename(os.path.dirname(path)) for path in glob.glob(os.path.join(GOLDENS, "*", "case.json"))]
        self.assertGreaterEqual(len(cases), 6)
        done = subprocess.run([python_with_transformers(), "-B", os.path.join(GOLDENS, "make_goldens.py"), "check"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr[-4000:])
        compared = [tuple(line.split()[:2]) for line in done.stdout.splitlines() if " worst " in line]
        self.assertEqual(sorted(compared), sorted((case, quantity) for case in cases for quantity in QUANTITIES))


if __name__ == "__main__":
    harness.main()
