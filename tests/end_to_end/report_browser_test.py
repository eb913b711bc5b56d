"""The page of `pesc report` in a real browser, at the width of a desktop and of a phone, light and dark, of one run, of two and of a million
steps; and the event files as TensorBoard's own reader reads them. The screenshots stay in build/report-screenshots or $PESC_SCREENSHOTS.

It needs chromium-headless-shell (Debian: apt-get install chromium-headless-shell). TensorBoard comes from PyPI into a virtual
environment outside of the tree, once.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import browser
import harness
import made_run
from report_test import Report as SmallRun

VENV = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "pesc", "tensorboard-2.21.0")
# Prints what the reader of TensorBoard has of a folder: steps of scalars, histograms and texts by tag.
READER = """
import json, sys
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util
found = event_accumulator.EventAccumulator(sys.argv[1], size_guidance={k: 0 for k in ("scalars", "histograms", "tensors")})
found.Reload()
tags = found.Tags()
print(json.dumps({"scalars": {t: [[e.step, e.value] for e in found.Scalars(t)] for t in tags["scalars"]},
                  "histograms": {t: [[e.step, e.histogram_value.bucket] for e in found.Histograms(t)] for t in tags["histograms"]},
                  "plugins": {t: found.SummaryMetadata(t).plugin_data.plugin_name for t in tags["tensors"]},
                  "texts": {t: [[e.step, [s.decode() for s in tensor_util.make_ndarray(e.tensor_proto).tolist()]] for e in found.Tensors(t)]
                            for t in tags["tensors"]}}))
"""


def tensorboard_python():
    if not os.path.exists(os.path.join(VENV, "complete")):
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([os.path.join(VENV, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "tensorboard==2.21.0",
                        "setuptools<81"], check=True)
        open(os.path.join(VENV, "complete"), "w").close()
    return os.path.join(VENV, "bin", "python")


class InABrowser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if browser.find() is None:
            raise unittest.SkipTest("there is no chromium-headless-shell; apt-get install chromium-headless-shell")
        cls.folder = tempfile.mkdtemp(prefix="pesc-report-browser-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.pictures = os.environ.get("PESC_SCREENSHOTS") or os.path.join(harness.SOURCE, "build", "report-screenshots")
        os.makedirs(cls.pictures, exist_ok=True)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def page(self, name, *runs):
        out = self.path(name + ".html")
        result = harness.pesc(0, "report", *[w for run in runs for w in ("--run", run)], "--out", out, seconds=120)
        self.assertEqual(result.code, 0, str(result))
        return out

    def look(self, name, page, seconds=3):
        with_page = browser.Browser()
        self.addCleanup(with_page.close)
        for width, height, kind in ((1280, 900, "desktop"), (390, 844, "phone")):
            for scheme in ("light", "dark"):
                took = with_page.load(page, width, height, scheme)
                self.assertLess(took, seconds)
                self.assertEqual(with_page.complaints(), [])
                self.assertEqual([u for u in with_page.requests() if not u.startswith(("file://", "data:"))], [])
                self.assertGreater(with_page.evaluate("document.querySelectorAll('svg path.curve').length"), 5)
                # Nothing is wider than the screen, and the colours are those of the scheme.
                self.assertLessEqual(with_page.evaluate("document.documentElement.scrollWidth"), width)
                dark = with_page.evaluate("getComputedStyle(document.body).backgroundColor")
                self.assertEqual(dark, "rgb(13, 13, 13)" if scheme == "dark" else "rgb(249, 249, 247)")
                with_page.screenshot(os.path.join(self.pictures, "%s-%s-%s.png" % (name, kind, scheme)))
        return with_page

    def test_one_run(self):
        made_run.make(self.path("one"), 3000, restart=1500, spike=700)
        page = self.look("one", self.page("one", self.path("one")))
        # The pointer over a chart, the scale, the slider, and a fold.
        page.load(self.path("one.html"), 1280, 900, "light")
        text = page.evaluate("""(() => {
            const plot = document.querySelector('.plot'), box = plot.getBoundingClientRect();
            plot.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + 200, clientY: box.top + 50}));
            return document.getElementById('tip').textContent; })()""")
        self.assertRegex(text, r"^steps? [\d,]+")
        self.assertTrue(page.evaluate("""(() => {
            document.querySelector('.switch').click();
            const slider = document.querySelector('.slider input');
            slider.value = 0;
            slider.dispatchEvent(new Event('input'));
            document.querySelectorAll('details').forEach(d => { d.open = true; });
            return document.querySelector('.slider').textContent.includes('1 to'); })()"""))
        # The spike of one step is drawn: the band of the gradient norm goes up to it.
        self.assertTrue(page.evaluate("JSON.parse(document.getElementById('data').textContent).runs[0].curves.grad_norm.high.includes(1000)"))
        self.assertEqual(page.complaints(), [])

    def test_two_runs(self):
        made_run.make(self.path("first"), 800)
        made_run.make(self.path("second"), 600, seed=2)
        page = self.look("two", self.page("two", self.path("first"), self.path("second")))
        before = page.evaluate("document.querySelectorAll('svg path.curve').length")
        page.evaluate("document.querySelector('.chip').click()")
        self.assertLess(page.evaluate("document.querySelectorAll('svg path.curve').length"), before)
        self.assertEqual(page.complaints(), [])

    def test_a_million_steps(self):
        made_run.make(self.path("million"), 1000000, restart=600000, spike=123456)
        begin = time.monotonic()
        page = self.page("million", self.path("million"))
        took = time.monotonic() - begin
        print("%.1f s, %.2f MB" % (took, os.path.getsize(page) / 1e6), file=sys.stderr)
        self.assertLess(took, 60)
        self.assertLess(os.path.getsize(page), 5e6)
        self.look("million", page)


class InTensorboard(SmallRun):
    """TensorBoard's reader on a run that was killed in a write, and went on."""

    def read(self, part):
        out = subprocess.run([tensorboard_python(), "-c", READER, self.path("run", "tensorboard", part)], check=True,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        return json.loads(out)

    def test_what_its_reader_reads(self):
        self.pesc("train", steps=4)
        (name,) = os.listdir(self.path("run", "tensorboard", "train"))
        torn = self.path("run", "tensorboard", "train", name)
        os.truncate(torn, os.path.getsize(torn) - 7)
        self.assertEqual([s for s, _ in self.read("train")["scalars"]["loss"]], [1, 2, 3, 4][:len(self.read("train")["scalars"]["loss"])])
        self.pesc("train", steps=6)
        self.pesc("eval", "--base")
        self.pesc("eval")
        train = self.read("train")
        steps = {r["step"]: r for r in harness.measured(self.path("run")) if r.get("kind") == "step"}
        for tag, key in (("loss", "loss"), ("aux_loss", "aux_loss"), ("grad_norm", "grad_norm"), ("learning_rate", "lr"),
                         ("speed/tokens_per_second", "tokens_per_second"), ("memory/bytes", "memory_bytes")):
            self.assertEqual([s for s, _ in train["scalars"][tag]], [1, 2, 3, 4, 5, 6])
            for step, value in train["scalars"][tag]:
                self.assertAlmostEqual(value, steps[step][key], delta=1e-6 * abs(steps[step][key]))
        self.assertEqual([s for s, _ in train["scalars"]["eval/loss"]], [2, 4, 6])
        self.assertEqual([s for s, _ in train["histograms"]["experts/layer_1"]], [1, 2, 4, 6])
        for step, buckets in train["histograms"]["experts/layer_1"]:
            self.assertEqual([round(b / 100, 9) for b in buckets if b], [round(s, 9) for s in steps[step]["expert_share"][1] if s])
        answers = self.read("eval")
        self.assertEqual(answers["plugins"]["answers/a"], "text")
        self.assertEqual([s for s, _ in answers["texts"]["answers/a"]], [0, 6])
        self.assertEqual([s for s, _ in answers["scalars"]["eval/exact_match"]], [0, 6])


for _name in [n for n in dir(SmallRun) if n.startswith("test_")]:  # they are report_test.py's
    setattr(InTensorboard, _name, None)
del SmallRun

if __name__ == "__main__":
    harness.main()
