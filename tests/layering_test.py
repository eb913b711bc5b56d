"""The rules of the source tree, read from the sources (Python's standard library only).

launcher -> runtime -> model -> parallel -> ops: an #include points right or stays. Flags and the environment are read
by launcher alone (MPI's own start-up settings aside); protobuf, JSON, files and logs are known to runtime and
launcher alone. The flags stand in one table, launcher/flags.cc, with the verbs that read them; they stay few: growth
goes into the experiment's schema. No source file has more than 400 lines.

Usage: layering_test.py SOURCE_DIR
"""

import pathlib
import re
import sys
import unittest

LAYERS = ["launcher", "runtime", "model", "parallel", "ops"]
MAX_FLAGS = 27
MAX_LINES = 400
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
ROOT = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ".").resolve()


def sources(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES:
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
        headers = re.compile(r"^(google/protobuf/|nlohmann/|glog/|sentencepiece|configs/|xxhash|fstream$|filesystem$|"
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
        main = (ROOT / "launcher/main.cc").read_text(encoding="utf-8")
        verbs = set(re.findall(r'command\.verb == "(\w+)"', main)) - {"help"} | {"launch"}
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
        for path in sources(*LAYERS):
            lines = path.read_text(encoding="utf-8").count("\n")
            if lines > MAX_LINES:
                long.append(f"{name(path)} has {lines} lines; {MAX_LINES} is the most: split it by meaning")
        self.assertEqual(long, [])

    def test_headers_are_included_once(self):
        for path in sources(*LAYERS):
            if path.suffix == ".h":
                self.assertIn("#pragma once", path.read_text(encoding="utf-8"), name(path))


if __name__ == "__main__":
    unittest.main()
