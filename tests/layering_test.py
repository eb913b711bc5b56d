"""The rules of the source tree, read from the sources (Python's standard library only).

launcher -> runtime -> model -> parallel -> ops: an #include points right or stays. Inside of a top folder, folders
include each other in one direction only: runtime, runtime/config, runtime/recovery and so on have no cycle, nor have
the operations of ops and the parts of parallel (rmsnorm and router, say). Flags and the environment are read by
launcher alone (MPI's own start-up settings aside); protobuf, JSON, files and logs are known to runtime and launcher
alone. The flags stand in one table, launcher/flags.cc, with the verbs that read them; they stay few: growth goes into
the experiment's schema. A class is implemented in files that have its header's name. A source file of more than 400
lines is warned of, one of more than 600 is an error; so it is in tests and configs, in C++ and Python.

Usage: layering_test.py SOURCE_DIR [TEST...]
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

LAYERS = ["launcher", "runtime", "model", "parallel", "ops"]
MAX_FLAGS = 41
WARN_LINES = 400
MAX_LINES = 600
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
WITH_PYTHON = SUFFIXES | {".py"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
ROOT = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ".").resolve()


def sources(*folders, suffixes=SUFFIXES):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes:
                yield path


def name(path):
    return str(path.relative_to(ROOT))


def without_comments(text):
    # String literals are kept whole, so that a // in one does not begin a comment.
    pattern = r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/'
    keep = lambda m: m.group() if m.group()[0] == '"' else re.sub(r"[^\n]", " ", m.group())
    return re.sub(pattern, keep, text, flags=re.DOTALL)


def includes(path):
    return [(m.group(1), m.group(2)) for m in INCLUDE.finditer(path.read_text(encoding="utf-8"))]


def top_of(path):
    return path.split("/")[0]


def folder_of(path):
    return path.rpartition("/")[0]


def group_of(path):
    """What a file is a part of: ops/router for ops/router.h, ops/router_kernels.cuh and ops/router_cuda.cc. The files of
    a group have the name of its header, and after an underscore what they hold."""
    stem = path.rpartition(".")[0]
    folder, _, words = stem.rpartition("/")
    words = words.split("_")
    for n in range(1, len(words)):
        shorter = folder + "/" + "_".join(words[:n])
        if (ROOT / (shorter + ".h")).is_file():
            return shorter
    return stem


def include_graph(part_of, tops):
    """{part: {included part: an include that says so}} within each of the top folders."""
    graph = {}
    for path in sources(*tops):
        for quote, target in includes(path):
            if quote == '"' and top_of(target) == top_of(name(path)):
                part, other = part_of(name(path)), part_of(target)
                if part != other:
                    graph.setdefault(part, {}).setdefault(other, f"{name(path)} includes {target}")
    return graph


def cycles(graph):
    """One cycle for every part that is on one, as the includes that make it."""
    found = []
    on_cycles = set()
    for start in sorted(graph):
        if start in on_cycles:
            continue
        came_from = {}
        border = [start]
        while border and start not in came_from:
            part = border.pop(0)
            for other in sorted(graph.get(part, {})):
                if other not in came_from:
                    came_from[other] = part
                    border.append(other)
        if start not in came_from:
            continue
        way = []
        part = start
        while not way or part != start:
            on_cycles.add(part)
            way.insert(0, graph[came_from[part]][part])
            part = came_from[part]
        found.append("; ".join(way))
    return found


class Layering(unittest.TestCase):
    def test_there_are_sources_to_read(self):
        for layer in LAYERS:
            self.assertGreater(len(list(sources(layer))), 3, layer)

    def test_includes_point_right(self):
        wrong = []
        for rank, layer in enumerate(LAYERS):
            allowed = set(LAYERS[rank:]) | ({"configs"} if rank <= 1 else set())
            for path in sources(layer):
                for quote, target in includes(path):
                    top = target.split("/")[0]
                    ours = top in LAYERS or top in ("configs", "tests")
                    if ours and top not in allowed:
                        wrong.append(f"{name(path)} includes {target}")
                    if quote == '"' and top not in allowed:
                        wrong.append(f'{name(path)} includes "{target}", which is not a path of a folder it may use')
                    if quote == '"' and ours and not top == "configs" and not (ROOT / target).is_file():
                        wrong.append(f"{name(path)} includes {target}, which is not there")
        self.assertEqual(wrong, [])

    def test_folders_include_each_other_in_one_direction(self):
        self.assertEqual(cycles(include_graph(folder_of, LAYERS)), [])

    def test_groups_of_files_include_each_other_in_one_direction(self):
        graph = include_graph(group_of, ["ops", "parallel"])
        # The table of all operations of a GPU: each operation looks its own up there.
        graph.pop("ops/cuda_ops", None)
        self.assertEqual(cycles(graph), [])

    def test_classes_are_implemented_under_their_name(self):
        declared = {}
        for path in sources(*LAYERS):
            for m in re.finditer(r"^ *(?:class|struct) (\w+)(?: final)?\s*(?::[^;{]*)?\{", path.read_text(encoding="utf-8"), re.M):
                declared.setdefault(m.group(1), []).append(path)
        wrong = set()
        for path in sources(*LAYERS):
            if path.suffix not in {".cc", ".cu"}:
                continue
            # A definition begins at the start of a line: "Type Class::member(" or "Class::Class(".
            for m in re.finditer(r"^(?! )(?:[\w:<>,&*\[\] ]+ )?[&*]?(\w+)::(?:~?\w+|operator\W+)\(", path.read_text(encoding="utf-8"), re.M):
                homes = declared.get(m.group(1), [])
                fits = [h for h in homes if h == path or h.parent == path.parent and (path.stem + "_").startswith(h.stem + "_")]
                if homes and not fits:
                    wrong.add(f"{name(path)} implements {m.group(1)} of {name(homes[0])}")
        self.assertEqual(sorted(wrong), [])

    def test_flags_are_launchers(self):
        wrong = []
        for path in sources(*LAYERS[1:]):
            for _, target in includes(path):
                if target.startswith("gflags/"):
                    wrong.append(f"{name(path)} includes {target}")
            if re.search(r"\b(DEFINE|DECLARE)_(bool|int32|int64|uint64|double|string)\s*\(|\bFLAGS_",
                         without_comments(path.read_text(encoding="utf-8"))):
                wrong.append(f"{name(path)} has flags")
        self.assertEqual(wrong, [])

    def test_the_environment_is_launchers(self):
        # MPI takes its settings from the environment before MPI_Init: how many ranks share the host, whether and why
        # mpirun has bound them, and two defaults of ours. Nothing else below launcher looks.
        allowed = {("parallel/mpi_session.cc", setting) for setting in
                   ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_MCA_mpi_yield_when_idle", "OMPI_MCA_btl_vader_eager_limit")}
        allowed |= {("parallel/host_cores.cc", setting) for setting in
                    ("OMPI_MCA_orte_bound_at_launch", "OMPI_MCA_hwloc_base_binding_policy", "OMPI_MCA_hwloc_base_cpu_list",
                     "OMPI_MCA_orte_rankfile", "OMPI_MCA_rmaps_base_mapping_policy")}
        # Likewise NCCL, before its first call.
        allowed |= {("parallel/nccl_communicator.cc", setting) for setting in
                    ("NCCL_ALGO", "NCCL_PROTO", "NCCL_NVLS_ENABLE", "NCCL_MIN_CTAS", "NCCL_MAX_CTAS", "NCCL_HOSTID",
                     "NCCL_IB_DISABLE")}
        # What the terminal can show. Ranks ask it as the launcher does.
        allowed |= {("runtime/terminal/terminal.cc", setting) for setting in ("TERM", "NO_COLOR")}
        # All of NCCL's are written down in checkpoints.
        allowed.add(("parallel/gpu_world.cc", ""))
        wrong = []
        for path in sources(*LAYERS[1:]):
            text = without_comments(path.read_text(encoding="utf-8"))
            for m in re.finditer(r"\b(?:secure_)?(?:getenv|setenv|putenv|unsetenv)\s*\(\s*([^,)]*)|\benviron\b", text):
                setting = (m.group(1) or "").strip().strip('"')
                if (name(path), setting) not in allowed:
                    wrong.append(f"{name(path)}: {m.group()}")
        self.assertEqual(wrong, [])

    def test_files_and_formats_are_runtimes(self):
        headers = re.compile(r"^(google/protobuf/|nlohmann/|glog/|sentencepiece|configs/|xxhash|simdjson|fstream$|filesystem$|"
                             r"fcntl\.h$|dirent\.h$|sys/stat\.h$)|\.pb\.h$")
        calls = re.compile(r"\b(?:fopen|freopen|std::[io]?fstream)\b")
        wrong = []
        for path in sources("model", "parallel", "ops"):
            wrong += [f"{name(path)} includes {t}" for _, t in includes(path) if headers.search(t)]
            if calls.search(without_comments(path.read_text(encoding="utf-8"))):
                wrong.append(f"{name(path)} opens files")
        self.assertEqual(wrong, [])

    def test_ops_and_model_know_no_mpi(self):
        for layer in ("ops", "model"):
            for path in sources(layer):
                self.assertNotIn("mpi.h", [t for _, t in includes(path)], name(path))
        for path in sources("ops"):
            self.assertNotRegex(without_comments(path.read_text(encoding="utf-8")), r"\bMPI_|\bCommunicator\b", name(path))

    def test_flags_stand_in_one_table(self):
        rows = re.findall(r'\bFlag\{"(\w+)", "([^"]*)"', (ROOT / "launcher/flags.cc").read_text(encoding="utf-8"))
        names = [flag for flag, _ in rows]
        self.assertGreater(len(names), 10, "the table was not found")
        self.assertLessEqual(len(names), MAX_FLAGS, "the command line grows: is it not a field of the experiment?")
        self.assertEqual(len(names), len(set(names)), "a flag stands there twice")
        verbs = set(re.findall(r'\bVerb\{\s*\.name = "(\w+)"', (ROOT / "launcher/verbs.cc").read_text(encoding="utf-8")))
        self.assertGreater(len(verbs), 10, "the table of verbs was not found")
        for flag, readers in rows:
            self.assertTrue(readers, "nothing reads --" + flag)
            self.assertLessEqual(set(readers.split()), verbs, flag)
        # Each is read: its member of CommandLine is used outside of the table.
        used = "".join(without_comments(p.read_text(encoding="utf-8")) for p in sources("launcher")
                       if name(p) not in ("launcher/flags.cc", "launcher/command_line.h"))
        for member in re.findall(r"&C::(\w+)", (ROOT / "launcher/flags.cc").read_text(encoding="utf-8")):
            self.assertRegex(used, r"\b(command|train|c)\.%s\b" % member)
        for path in sources(*LAYERS):
            self.assertNotRegex(without_comments(path.read_text(encoding="utf-8")),
                                r"\bDEFINE_(bool|int32|int64|uint32|uint64|double|string)\b", name(path))

    def test_files_are_short(self):
        long = []
        for path in sources(*LAYERS, "tests", "configs", suffixes=WITH_PYTHON):
            lines = path.read_text(encoding="utf-8").count("\n")
            if lines > MAX_LINES:
                long.append(f"{name(path)} has {lines} lines; {MAX_LINES} is the most: split it by meaning")
            elif lines > WARN_LINES:
                print(f"warning: {name(path)} has {lines} lines; does it hold one thing?", file=sys.stderr)
        self.assertEqual(long, [])

    def test_headers_are_included_once(self):
        for path in sources(*LAYERS):
            if path.suffix == ".h":
                self.assertIn("#pragma once", path.read_text(encoding="utf-8"), name(path))


class TheTestItself(unittest.TestCase):
    """The rules above on trees made for the purpose: they fail where they must, and only there."""

    def run_on(self, test, files):
        with tempfile.TemporaryDirectory() as folder:
            for path, text in files.items():
                file = pathlib.Path(folder, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            done = subprocess.run([sys.executable, "-B", __file__, folder, "Layering." + test], capture_output=True, text=True)
        self.assertIn(done.returncode, (0, 1), done.stderr)
        self.assertIn("Ran 1 test", done.stderr)
        return done.returncode == 0, done.stderr

    def test_a_cycle_between_folders_fails(self):
        test = "test_folders_include_each_other_in_one_direction"
        tree = {"runtime/job.cc": '#include "runtime/job.h"\n#include "runtime/config/experiment.h"\n',
                "runtime/job.h": "#pragma once\n",
                "runtime/config/experiment.h": '#include "runtime/recovery/fault.h"\n#include "model/config.h"\n',
                "runtime/recovery/fault.h": "#include <string>\n",
                "runtime/recovery/watch.h": "#pragma once\n",
                "model/config.h": "#pragma once\n"}
        passed, said = self.run_on(test, tree)
        self.assertTrue(passed, said)
        for path, text, missing in [
                ("runtime/recovery/watch.h", '#include "runtime/config/experiment.h"\n', "runtime/recovery/watch.h includes runtime/config/experiment.h"),
                ("runtime/recovery/fault.h", '  #  include "runtime/job.h"\n', "runtime/recovery/fault.h includes runtime/job.h")]:
            passed, said = self.run_on(test, {**tree, path: text})
            self.assertFalse(passed, path)
            self.assertIn(missing, said)
            self.assertIn("runtime/config/experiment.h includes runtime/recovery/fault.h", said)

    def test_a_cycle_between_operations_fails(self):
        test = "test_groups_of_files_include_each_other_in_one_direction"
        tree = {"ops/norm.h": "#pragma once\n",
                "ops/norm.cu": '#include "ops/norm_kernels.cuh"\n#include "ops/cuda_ops.h"\n',
                "ops/norm_kernels.cuh": '#include "ops/norm.h"\n',
                "ops/router.h": "#pragma once\n",
                "ops/router.cc": '#include "ops/router.h"\n#include "ops/norm.h"\n#include "ops/cuda_ops.h"\n',
                "ops/cuda_ops.h": '#include "ops/norm.h"\n#include "ops/router.h"\n'}
        passed, said = self.run_on(test, tree)
        self.assertTrue(passed, said)
        passed, said = self.run_on(test, {**tree, "ops/norm_kernels.cuh": '#include "ops/router.h"\n'})
        self.assertFalse(passed)
        self.assertIn("ops/norm_kernels.cuh includes ops/router.h", said)
        self.assertIn("ops/router.cc includes ops/norm.h", said)

    def test_a_class_under_another_name_fails(self):
        test = "test_classes_are_implemented_under_their_name"
        tree = {"runtime/trainer.h": "class Trainer {\n  int step();\n};\n",
                "runtime/trainer_saves.cc": "int Trainer::step() {\n  return Saves::count();\n}\n",
                "runtime/saves.h": "struct Saves {\n  static int count();\n};\n",
                "runtime/saves.cc": "int Saves::count() {\n  return 1;\n}\n"}
        passed, said = self.run_on(test, tree)
        self.assertTrue(passed, said)
        passed, said = self.run_on(test, {**tree, "runtime/stepping.cc": "int Trainer::step() {\n"})
        self.assertFalse(passed)
        self.assertIn("runtime/stepping.cc implements Trainer of runtime/trainer.h", said)

    def test_long_files(self):
        for lines, passes, warns in [(400, True, False), (401, True, True), (600, True, True), (601, False, False)]:
            passed, said = self.run_on("test_files_are_short", {"ops/a.h": "//\n" * lines})
            self.assertEqual(passed, passes, lines)
            self.assertEqual(f"warning: ops/a.h has {lines} lines" in said, warns, lines)
        for path, passes in [("tests/faults/a.py", False), ("tests/ops/a.cc", False), ("configs/a/a.py", False), ("tests/a.json", True)]:
            passed, said = self.run_on("test_files_are_short", {path: "#\n" * 601})
            self.assertEqual(passed, passes, path)


if __name__ == "__main__":
    unittest.main()
