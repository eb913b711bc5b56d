#!/usr/bin/env python3
"""Prints a Python that has numpy: this one, or that of a virtual environment in the cache, which is made once.

    python_with_numpy.py [--assets DIR]
"""

import argparse
import os
import shutil
import subprocess
import sys

from wheels import NO_WHEEL, cache

NUMPY = "2.3.5"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--assets", help="folder with the wheel of numpy")
    assets = parser.parse_args().assets
    try:
        import numpy  # noqa: F401
        print(sys.executable)
        return
    except ImportError:
        pass
    folder = os.path.join(cache(), "numpy-%s-python-%d.%d" % (NUMPY, *sys.version_info[:2]))
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(os.path.join(folder, "complete")):
        shutil.rmtree(folder, ignore_errors=True)
        source = ["--no-index", "--find-links", assets, "numpy"] if assets else ["numpy==" + NUMPY]
        for command in ([sys.executable, "-m", "venv", folder], [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"] + source):
            if subprocess.run(command, stdout=sys.stderr).returncode != 0:
                print("python_with_numpy.py: python3 has no numpy, and none could be installed%s; install it: "
                      "apt-get install python3-numpy" % (" from " + assets if assets else ""), file=sys.stderr)
                sys.exit(NO_WHEEL)
        open(os.path.join(folder, "complete"), "w").close()
    print(python)


if __name__ == "__main__":
    main()
