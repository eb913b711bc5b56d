"""cluster/cmake/Cuda.cmake with an nvcc that is not there, does not run, is too old, or cannot compile: AUTO goes on with the
CPU and says why, ON ends and says why. Python's standard library and cmake alone; no nvcc of the machine's is run.

Usage: cuda_cmake_test.py CMAKE SOURCE_DIR GENERATOR
"""

import os
import stat
import subprocess
import sys
import tempfile
import unittest

CMAKE, SOURCE, GENERATOR = sys.argv[1:4]
# As the tree's own CMakeLists.txt comes to it. HIDE: no program is found, in the folders that Cuda.cmake names either.
PROJECT = """cmake_minimum_required(VERSION 3.25)
project(tried LANGUAGES NONE)
set(PESC_CUDA AUTO CACHE STRING "")
if(HIDE)
  set(CMAKE_FIND_ROOT_PATH ${CMAKE_CURRENT_SOURCE_DIR}/nothing)
  set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM ONLY)
endif()
include(%s/cluster/cmake/Cuda.cmake)
message(STATUS "cuda: ${PESC_HAS_CUDA} nccl: ${PESC_HAS_NCCL} cudnn: ${PESC_HAS_CUDNN}")
"""
SAYS = """#!/bin/sh
[ "$1" = --version ] || { echo "fake nvcc: no"; exit 1; }
echo "Cuda compilation tools, release %s, V%s.0"
"""
# name: the nvcc, and what must be said of it
FAKES = {"dead": ("#!/bin/sh\nexit 127\n", "it does not run"),
         "mute": ("#!/bin/sh\necho hello\n", "it does not run"),
         "old": (SAYS % ("12.4", "12.4"), "it is version 12.4, and 13.0 or newer is needed"),
         "broken": (SAYS % ("13.0", "13.0"), "it cannot compile a small program")}


class CudaCmake(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="pesc-cuda-cmake-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        with open(os.path.join(self.folder, "CMakeLists.txt"), "w", encoding="utf-8") as file:
            file.write(PROJECT % SOURCE)

    def nvcc(self, name, text):
        path = os.path.join(self.folder, name, "nvcc")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)
        return path

    def configure(self, *flags, build="build", path=None):
        """(exit code, what cmake says with every run of white space one space)"""
        env = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_HOME", "CUDA_PATH")}
        if path:
            env["PATH"] = os.path.dirname(path) + os.pathsep + env["PATH"]
        done = subprocess.run([CMAKE, "-G", GENERATOR, "-S", self.folder, "-B", os.path.join(self.folder, build), *flags], env=env,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
        return done.returncode, " ".join(done.stdout.split())

    def on_the_cpu(self, result, *words):
        code, said = result
        self.assertEqual(code, 0, said)
        self.assertIn("cuda: OFF nccl: OFF cudnn: OFF", said)
        for word in words:
            self.assertIn(word, said)
        return said

    def stopped(self, result, *words):
        code, said = result
        self.assertNotEqual(code, 0, said)
        self.assertIn("CMake Error", said)
        self.assertNotIn("cuda: O", said)
        for word in words:
            self.assertIn(word, said)

    def test_none(self):
        said = self.on_the_cpu(self.configure("-DHIDE=ON"), "no nvcc, so no CUDA; the device is the CPU")
        self.assertNotIn("Warning", said)
        self.stopped(self.configure("-DHIDE=ON", "-DPESC_CUDA=ON", build="on"), "PESC_CUDA=ON, but there is no nvcc",
                     "-DCMAKE_CUDA_COMPILER=/path/to/nvcc")

    def test_refused_by_the_user(self):
        for _, (text, _) in FAKES.items():
            said = self.on_the_cpu(self.configure("-DPESC_CUDA=OFF", path=self.nvcc("bin", text)), "CUDA is off")
            self.assertNotIn("Warning", said)

    def test_one_that_does_not_do(self):
        for name, (text, why) in FAKES.items():
            with self.subTest(name):
                nvcc = self.nvcc(name, text)
                told = ("CMake Warning", nvcc, why, "the device is the CPU", "-DPESC_CUDA=OFF")
                self.on_the_cpu(self.configure(build=name + "-found", path=nvcc), *told)
                self.on_the_cpu(self.configure("-DCMAKE_CUDA_COMPILER=" + nvcc, "-DHIDE=ON", build=name + "-given"), *told)
                self.stopped(self.configure("-DPESC_CUDA=ON", build=name + "-on", path=nvcc), "PESC_CUDA=ON", nvcc, why)

    def test_a_build_folder_keeps_its_device(self):
        old = self.nvcc("old", FAKES["old"][0])
        self.on_the_cpu(self.configure(path=old), FAKES["old"][1])
        said = self.on_the_cpu(self.configure(path=self.nvcc("broken", FAKES["broken"][0])), old + " was refused",
                               "-DCMAKE_CUDA_COMPILER=/path/to/nvcc tries again")
        self.assertNotIn("Warning", said)
        dead = self.nvcc("dead", FAKES["dead"][0])
        self.on_the_cpu(self.configure("-DCMAKE_CUDA_COMPILER=" + dead), "CMake Warning", dead, FAKES["dead"][1])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
