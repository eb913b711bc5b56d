"""committed.py against repositories made for it."""

import os
import shutil
import subprocess
import tempfile
import unittest

import committed

LINE = "| %s | by hand | %d | O1 | 1.0 | 2.0 | 3 | %s |\n"


class Row:
    def __init__(self, fault, how="by hand", oracles="O1"):
        self.fault, self.how, self.oracles, self.outcome = fault, how, oracles, "holds"


class Committed(unittest.TestCase):
    def setUp(self):
        self.source = tempfile.mkdtemp(prefix="pesc-committed-")
        self.addCleanup(shutil.rmtree, self.source)
        self.said = []

    def git(self, *words, source=None):
        return subprocess.run(["git", "-C", source or self.source, "-c", "user.name=t", "-c", "user.email=t@t", "-c",
                               "protocol.file.allow=always", *words], check=True, capture_output=True, text=True).stdout.strip()

    def write(self, path, text):
        path = os.path.join(self.source, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def commit(self, path, text):
        """Its short name, after writing and committing that file."""
        if not os.path.exists(os.path.join(self.source, ".git")):
            self.git("init", "-q")
        self.write(path, text)
        self.git("add", "-A")
        self.git("commit", "-qm", path)
        return self.git("rev-parse", "--short", "HEAD")

    def table(self, commit, *lines):
        return self.commit(committed.TABLE, "commit %s, 2 cores\n\n| fault | how | tried | must hold | d | r | l | outcome |\n"
                           "| --- | --- | --- | --- | --- | --- | --- | --- |\n" % commit + "".join(lines))

    def age(self, source=None):
        self.said = []
        return committed.wrong_age(source or self.source, self.said.append)

    def assert_one(self, wrong, *words):
        self.assertEqual(len(wrong), 1, wrong)
        for word in words:
            self.assertIn(word, wrong[0])

    def test_lines(self):
        first = self.commit("README.md", "a")
        self.table(first, LINE % ("kill", 3, "holds; as ever"), LINE % ("gpu", 0, "NOT RUN HERE: no GPU"))
        rows = [Row("kill"), Row("gpu")]
        check = lambda rows: committed.wrong_lines(self.source, rows, {"gpu"})  # noqa: E731
        self.assertEqual(check(rows), [])
        self.assert_one(check(rows + [Row("hang")]), "no line 'hang'")
        self.assert_one(check(rows[1:]), "'kill'", "not tried any more")
        self.assert_one(check([Row("kill", how="by foot"), rows[1]]), "by hand", "by foot")
        self.assert_one(check([Row("kill", oracles="O1 O2"), rows[1]]), "O1 O2")
        self.assert_one(committed.wrong_lines(self.source, rows, set()), "'gpu'", "NOT RUN")
        for line in (LINE % ("kill", 3, "FAILED: late"), LINE % ("kill", 0, "holds")):
            self.table(first, line, LINE % ("gpu", 0, "NOT RUN HERE"))
            self.assert_one(check(rows), "says of 'kill'")
        os.remove(os.path.join(self.source, committed.TABLE))
        self.assert_one(check(rows), "does not exist")

    def test_age(self):
        self.commit("tests/faults/run.py", "1")
        first = self.commit("runtime/a.cc", "1")
        self.table(first)
        self.assertEqual((self.age(), self.said), ([], []))
        self.commit("README.md", "more")
        self.commit("tests/faults/save_stall.py", "another test's")
        self.assertEqual((self.age(), self.said), ([], []))
        self.commit("runtime/a.cc", "2")
        self.assertEqual(self.age(), [])
        self.assertIn("1 files of the system have changed since: runtime/a.cc", self.said[0])
        for path in ("tests/faults/run.py", "tests/end_to_end/hosts_test.py"):
            with self.subTest(path):
                now = self.commit(path, "2")
                self.assert_one(self.age(), first, path, "write it again")
                self.table(now)
                first = now
                self.assertEqual(self.age(), [])

    def test_commits_that_are_none_of_ours(self):
        first = self.commit("runtime/a.cc", "1")
        self.table("0123456789")
        self.assert_one(self.age(), "0123456789", "not in this repository")
        self.table(first + " with changes")
        self.assert_one(self.age(), "in no commit")
        self.commit(committed.TABLE, "of nothing\n")
        self.assert_one(self.age(), "names no commit")
        self.git("checkout", "-q", "-b", "aside", first)
        aside = self.commit("runtime/b.cc", "1")
        self.git("checkout", "-q", "-")
        self.table(aside)
        self.assert_one(self.age(), aside, "no ancestor")

    def test_without_history_it_says_so(self):
        first = self.commit("tests/faults/run.py", "1")
        self.table(first)
        self.commit("tests/faults/run.py", "2")
        self.assertNotEqual(self.age(), [])
        shallow = self.source + "-shallow"
        self.addCleanup(shutil.rmtree, shallow)
        self.git("clone", "-q", "--depth=1", "file://" + self.source, shallow)
        self.assertEqual(self.age(shallow), [])
        self.assertIn("shallow", self.said[0])
        shutil.rmtree(os.path.join(shallow, ".git"))
        self.assertEqual(self.age(shallow), [])
        self.assertIn("no clone", self.said[0])


if __name__ == "__main__":
    unittest.main(verbosity=2)
