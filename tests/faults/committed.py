"""Whether the table in the repository, tests/faults/MATRIX.md, is of the system as it is now.

Its lines must be those that the run beside it has measured: the same faults, caused and judged in the same words, and each
of them holds. The commit that it names must have been clean, an ancestor of HEAD, and no older than the last change of
the tests that make it (MADE_BY, MATRIX.md itself aside). Changes of the system since then are no failure, or every commit would
need a new table: the run itself has just shown that the lines still hold. They are counted and said. Without history (no git, a
shallow clone that does not reach so far) this is said in place of what cannot be checked.
"""

import os
import re
import subprocess

TABLE = "tests/faults/MATRIX.md"
MADE_BY = ("tests/faults", "tests/end_to_end/launch_test.py", "tests/end_to_end/launch_stops.py", "tests/end_to_end/hosts_test.py",
           "tests/end_to_end/slurm_test.py", "tests/end_to_end/bad_input_test.py", "tests/end_to_end/harness.py", "cluster/rigs",
           "cluster/slurm", ":!" + TABLE, ":!tests/faults/save_stall.py", ":!tests/faults/committed_test.py")
SYSTEM = ("configs/schema", "runtime", "launcher", "parallel", "ops", "model", "cluster", ":!*.md")


class Unclear(Exception):
    """Cannot be checked here; says why."""


def read(source):
    """(text, {fault: cells of its line}) of the table."""
    with open(os.path.join(source, TABLE), encoding="utf-8") as file:
        text = file.read()
    rows = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return text, {cells[0]: cells for cells in rows if len(cells) == 8 and cells[0] not in ("fault", "---")}


def wrong_lines(source, measured, cannot_be_tried):
    """What of the table is not as the lines just measured (tests/faults/rig.Row) say; those that did not hold are wrong enough
    without it. A fault of `cannot_be_tried` may stand there without having been tried."""
    try:
        _, told = read(source)
    except FileNotFoundError:
        return [TABLE + " does not exist"]
    wrong = []
    for row in measured:
        if row.fault not in told:
            wrong.append("%s has no line '%s'" % (TABLE, row.fault))
            continue
        _, how, tried, must_hold, *_, outcome = told[row.fault]
        for what, then, now in (("is caused", how, row.how), ("must hold", must_hold, row.oracles)):
            if then != now and row.outcome.startswith("holds") and not (row.fault in cannot_be_tried and what == "is caused"):
                wrong.append("%s says of '%s' that it %s: %s; the test now: %s" % (TABLE, row.fault, what, then, now))
        if row.fault not in cannot_be_tried and not (outcome.startswith("holds") and int(tried) > 0):
            wrong.append("%s says of '%s': %s" % (TABLE, row.fault, outcome[:100]))
    wrong += ["%s has a line '%s', which is not tried any more" % (TABLE, fault)
              for fault in told if fault not in {row.fault for row in measured}]
    return wrong


def git(source, *words):
    """(exit code, output)."""
    try:
        done = subprocess.run(["git", "-C", source, *words], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Unclear("there is no git here") from error
    return done.returncode, done.stdout.strip()


def commit_of(source):
    """The commit that the table names, as far as there is history. Raises Unclear."""
    text, _ = read(source)
    named = re.search(r"commit ([0-9a-f]{7,40})( with changes)?", text)
    if not named:
        raise AssertionError(TABLE + " names no commit")
    if named.group(2):
        raise AssertionError("%s was written from sources that were in no commit (%s)" % (TABLE, named.group(0)))
    code, top = git(source, "rev-parse", "--show-toplevel")
    if code != 0 or os.path.realpath(top) != os.path.realpath(source):
        raise Unclear("this is no clone of the repository")
    commit = named.group(1)
    if git(source, "cat-file", "-e", commit + "^{commit}")[0] != 0:
        if git(source, "rev-parse", "--is-shallow-repository")[1] == "true":
            raise Unclear("this clone is shallow and does not have commit " + commit)
        raise AssertionError("%s names commit %s, which is not in this repository" % (TABLE, commit))
    return commit


def wrong_age(source, log):
    """Whether the table is too old, or of another history; one line each. What cannot be checked is said to `log`."""
    try:
        commit = commit_of(source)
    except Unclear as why:
        log("%s: its age is not checked: %s" % (TABLE, why))
        return []
    except (AssertionError, FileNotFoundError) as error:
        return [str(error)]
    if git(source, "merge-base", "--is-ancestor", commit, "HEAD")[0] != 0:
        if git(source, "rev-parse", "--is-shallow-repository")[1] == "true":
            log("%s: its age is not checked: this clone is shallow" % TABLE)
            return []
        return ["%s names commit %s, which is no ancestor of HEAD" % (TABLE, commit)]

    def changed(*paths):
        return git(source, "diff", "--name-only", commit, "HEAD", "--", *paths)[1].split()

    tests, system = changed(*MADE_BY), changed(*SYSTEM)
    if system:
        log("%s is of commit %s; %d files of the system have changed since: %s" % (
            TABLE, commit, len(system), ", ".join(system[:5]) + (", ..." if len(system) > 5 else "")))
    if tests:
        return ["%s is of commit %s, and the tests that make it have changed since (%s): write it again with "
                "tests/faults/run.py --write %s" % (TABLE, commit, ", ".join(tests), TABLE)]
    return []
