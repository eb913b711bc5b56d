"""The pages lead to what is there: every relative link of a page, and every path of a file in back-quotes, names a file or folder of
the tree; a link's #anchor names a heading. Every top folder has a page, and README.md leads to each. Comments of the sources that
name a page (model/README.md) name one that is there. Python's standard library only.

In back-quotes a path has a slash and an ending, `model/decoder.cc`, or ends with a slash, `model/`. One that begins with a top
folder is of the tree; another is of the page's own folder. Paths that a run makes are named otherwise: `step-N/`, `build/...`. X stands
for any name: `ops/X.cc`.

Usage: links_test.py SOURCE_DIR
"""

import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ".").resolve()
FOLDERS = ["configs", "runtime", "launcher", "cluster", "parallel", "model", "ops", "tests"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
QUOTED = re.compile(r"`([^`\n]+)`")
# A path, perhaps with words behind it: `tests/run.sh quick`. {h,cc} stands for each of these endings.
PATH = re.compile(r"^(?:\./)?((?:[A-Za-z0-9_.-]+/)+(?:[A-Za-z0-9_.-]*\.(?:\{[a-z,]+\}|[a-z]+)|))(?=[\s:#]|$)")
FENCE = re.compile(r"^(```|    ).*$", re.MULTILINE)
PAGE_IN_CODE = re.compile(r"\b((?:[a-z_]+/)*README\.md)\b")
SOURCES = (".h", ".cc", ".cu", ".cuh", ".py", ".sh", ".proto", ".textproto", ".txt", ".cmake", ".sbatch", ".def")


def tracked():
    """The files that are committed or may be; what git ignores is not of the tree."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def pages():
    return [path for path in tracked() if path.suffix == ".md"]


def anchors(text):
    """As GitHub makes them of headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        heading = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", heading).replace(" ", "-"))
    return found


def expanded(path):
    """a.{h,cc} -> a.h, a.cc"""
    braces = re.search(r"\{([a-z,]+)\}", path)
    return [path] if braces is None else [path.replace(braces.group(), e) for e in braces.group(1).split(",")]


def wrong_links(page, text):
    wrong = []
    for match in LINK.finditer(FENCE.sub("", text)):
        target = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists():
            wrong.append("%s links to %s, which is not there" % (page.relative_to(ROOT), target))
        elif anchor and to.suffix == ".md" and anchor not in anchors(to.read_text(encoding="utf-8")):
            wrong.append("%s links to %s, which has no such heading" % (page.relative_to(ROOT), target))
    return wrong


def wrong_paths(page, text):
    wrong = []
    for quoted in QUOTED.findall(text):
        match = PATH.match(quoted)
        if match is None:
            continue
        for path in expanded(match.group(1)):
            top = path.split("/")[0]
            if re.search(r"/X[._]", path):
                continue
            ours = top in FOLDERS or (page.parent / top).is_dir() and page.parent != ROOT
            if ours and not (ROOT / path).exists() and not (page.parent / path).exists():
                wrong.append("%s names `%s`, which is not there" % (page.relative_to(ROOT), path))
    return wrong


class Links(unittest.TestCase):
    def test_links_lead_somewhere(self):
        found = pages()
        self.assertGreater(len(found), len(FOLDERS))
        self.assertEqual([w for page in found for w in wrong_links(page, page.read_text(encoding="utf-8"))], [])

    def test_paths_in_back_quotes_are_there(self):
        self.assertEqual([w for page in pages() for w in wrong_paths(page, page.read_text(encoding="utf-8"))], [])

    def test_every_folder_has_a_page_that_the_readme_leads_to(self):
        targets = [m.group(1) for m in LINK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))]
        for folder in FOLDERS:
            self.assertTrue((ROOT / folder / "README.md").is_file(), folder)
            self.assertIn(folder + "/README.md", targets)

    def test_comments_name_pages_that_are_there(self):
        wrong = []
        for path in tracked():
            if path.suffix not in SOURCES or path == pathlib.Path(__file__).resolve():
                continue
            for name in PAGE_IN_CODE.findall(path.read_text(encoding="utf-8")):
                if not (ROOT / name).is_file() and not (path.parent / name).is_file():
                    wrong.append("%s names %s, which is not there" % (path.relative_to(ROOT), name))
        self.assertEqual(wrong, [])

    def test_a_lost_file_is_found(self):
        page = ROOT / "model" / "README.md"
        text = ("[a](nothing.md) [b](../README.md#no-such-heading) `model/nothing.cc:12` `model/decoder.{h,nothing}` `model/nothing/` "
                "[c](https://a.b/c) [d](../README.md) `tests/run.sh quick` `step-N/` `build/release/pesc` `ops/X_test.cc`\n    [e](in/code.md)\n")
        self.assertEqual([w.split(" ")[3].rstrip(",") for w in wrong_links(page, text)], ["nothing.md", "../README.md#no-such-heading"])
        self.assertEqual(len(wrong_paths(page, text)), 3)


if __name__ == "__main__":
    unittest.main()
