"""Data, weights and folders of strangers."""

import os
import shutil
import struct
import time

import bad_input_test
from rig import RANKS, STEPS, gtest, harness, line

FOLDERS = ("test_files_of_the_folder_that_are_none", "test_experiment_that_is_a_fifo")
MEMORY = 1 << 30  # bytes of its own that a program may take to refuse a file; CUDA's libraries map more than that of theirs


@line("poisoned data line (bad UTF-8, bad JSON, NUL, 100 MB line)", "written into the training rows",
      "O3 with file and line, or skipped on every rank alike")
def hostile_rows(rig, row, log):
    with open(os.path.join(rig.data, "train.jsonl"), "rb") as file:
        good = file.readlines()
    bad = {"utf8": b'{"corpus": "caf\xe9"}', "json": b'{"corpus": "a', "nul": b'{"corpus": "a\\u0000b"}',
           "large": b'{"corpus": "' + b"x" * 100_000_000 + b'"}'}
    for name, line in bad.items():
        path = rig.path("bad-%s.jsonl" % name)
        with open(path, "wb") as file:
            file.writelines([good[0], line + b"\n", *good[1:]])
        fields = {"data.train[0].path": path, "train__max_steps": 3}
        began = time.monotonic()
        result = harness.pesc(RANKS, "train", *rig.flags("bad-" + name, **fields))
        rig.assert_refused(result, harness.DATA, path + ":2")
        row.add(detected=time.monotonic() - began)
        # Left out: the same rows as without the line, on both ranks, so the same weights.
        result = harness.pesc(RANKS, "train", *rig.flags("skip-" + name, data__on_bad_row="SKIP", **fields))
        assert result.code == 0, str(result)
        weights = rig.weights("skip-" + name, 3)
        assert len(weights) == RANKS and weights == rig.weights("skip-utf8", 3)
        row.add()
        os.remove(path)


def hostile_weights(good):
    """{what: bytes of a model.safetensors} of a good one's."""
    (size,) = struct.unpack("<Q", good[:8])
    header, data = good[8:8 + size], good[8 + size:]

    def of(text):
        return struct.pack("<Q", len(text)) + text + data

    first = header[:header.index(b"}") + 1]
    return {"header of length 0": struct.pack("<Q", 0) + data,
            "header of 2^63": struct.pack("<Q", 1 << 63) + header + data,
            "header beyond the file": struct.pack("<Q", len(good)) + header + data,
            "duplicate key": of(first + b"," + first[1:] + header[header.index(b"}") + 1:]),
            "shape that overflows": of(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,4]}}'),
            "overlap": of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],'
                          b'"data_offsets":[4,12]}}'),
            "nothing but brackets": of(b"[" * 1_000_000)}


@line("hostile safetensors (header length 0, 2^63, beyond the file; overlap, gap, overflow, duplicate key)",
      "as the base of `pesc eval`; safetensors_test.cc; manifest_test.cc; fuzz_safetensors (libFuzzer, ASan, 5 s and 512 MB an "
      "input) in tests/run.sh", "O3 in 1 s, in 1 GiB of memory")
def hostile_safetensors(rig, row, log):
    # O3 is of one file; RefusesHostileFiles alone has sixty, so ten seconds for a case are the stricter bound.
    passed = gtest("runtime_test", "Safetensors.RefusesHostileFiles:Safetensors.EveryCutOfAGoodFileIsRefused:"
                   "Safetensors.MessagesTameNames:SafetensorsFile.OpensRegularFilesOnly", seconds_each=10, memory=MEMORY)
    passed += gtest("runtime_test", "ManifestTest.HostileOnesAreRefused:"
                    "ManifestTest.CutOrGarbledBytesAreRefused", seconds_each=1, memory=MEMORY)
    row.notes.append("%d cases of safetensors_test.cc and manifest_test.cc" % passed)
    with open(os.path.join(harness.BASE, "model.safetensors"), "rb") as file:
        good = file.read()

    def refused(name, *words, **fields):
        began = time.monotonic()
        result = harness.pesc(0, "eval", "--base", *rig.experiment("never", **fields), prefix=("prlimit", "--data=%d" % MEMORY))
        rig.assert_refused(result, harness.DATA if words[0] != "no-such" else harness.USAGE, *words)
        return time.monotonic() - began

    started = min(refused("nothing", "no-such", model__path=rig.path("no-such")) for _ in range(3))
    for what, content in hostile_weights(good).items():
        folder = rig.path("hostile-" + what.replace(" ", "-").replace("^", ""))
        shutil.copytree(harness.BASE, folder)
        with open(os.path.join(folder, "model.safetensors"), "wb") as file:
            file.write(content)
        took = refused(what, folder, "model.safetensors", model__path=folder)
        assert took < started + 1, "%s: refused after %.1f s; a path that does not exist after %.1f s" % (what, took, started)
        row.add(detected=took)


@line("hostile config, tokenizer, index (`../`, absolute path, symlink out of the folder, FIFO)",
      "as the model of `pesc train`, FIFOs on four ranks, links and paths on one, as the experiment on both (bad_input_test.py: "
      "%s); the tokenizer: tokenizer_test.cc; hf_folder_test.cc, config_json_test.cc, filesystem_test.cc" % ", ".join(FOLDERS), "O3, refused before it is opened")
def hostile_folder(rig, row, log):
    bad_input_test.BadInput.setUpClass()
    try:
        for name in FOLDERS:
            bad_input_test.BadInput(name).debug()
    finally:
        bad_input_test.BadInput.doClassCleanups()
    # Three files, each a FIFO, a link out of the folder and an absolute one; and an experiment that is a FIFO.
    row.add(times=3 * 3 + 1)
    passed = (gtest("runtime_test", "HfFolder.RefusesHostileIndexes:HfFolder.RefusesFilesThatAreNone:"
                        "HfFolder.LinksOfTheHubCacheAreFollowed", seconds_each=1, memory=MEMORY)
            + gtest("runtime_test", "ConfigJson.RefusesBrokenText:ConfigJson.RefusalsNameFileAndKey",
                    seconds_each=1, memory=MEMORY)
            + gtest("runtime_test", "SentencePiece.OtherFilesAreRefused:SentencePiece.EveryTruncation*")
            + gtest("runtime_test", "PosixTest.LinksAndFifosAreNotOpened"))
    row.notes.append("%d cases of the other tests" % passed)


@line("other training rows than those of the checkpoint", "one row changed, one more, one less, two exchanged, in the file where it "
      "stands", "O3 64, never started again, nothing touched; O1 with the rows put back")
def other_rows(rig, row, log):
    run, path = "other-rows", os.path.join(rig.data, "train.jsonl")
    shutil.copytree(rig.path("plain"), rig.path(run))
    shutil.rmtree(rig.path(run, "step-%d" % STEPS))
    before = {name: digest for name, digest in harness.digests(rig.path(run)).items() if name.startswith("step-")}
    with open(path, "rb") as file:
        good = file.readlines()
    try:
        for rows in ([good[0].replace(b"output\": \"", b"output\": \"So: ")] + good[1:], good + good[:1], good[1:],
                     [good[1], good[0]] + good[2:]):
            assert rows != good
            with open(path, "wb") as file:
                file.writelines(rows)
            began = time.monotonic()
            result = rig.finish(rig.start(run))
            rig.assert_refused(result, harness.USAGE, "data.train[0].path", path, "not started again")
            row.add(detected=time.monotonic() - began)
            rig.assert_nothing_left(run)
            assert before == {name: digest for name, digest in harness.digests(rig.path(run)).items()
                              if name.startswith("step-")}, "the checkpoints have changed"
    finally:
        with open(path, "wb") as file:
            file.writelines(good)
    rig.launch(run)
    rig.assert_as_if_nothing_happened(run)
