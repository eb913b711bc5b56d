"""`pesc plan`: every preset can be planned without its files, and what is planned is what a run takes."""

import glob
import json
import os
import re
import tempfile

import harness
from harness import BASE, QUICKSTART, SOURCE

EXPERIMENTS = os.path.join(SOURCE, "configs", "experiments")
# preset: shape, ranks
PRESETS = {"camelidae-8x7b": ("llama-2-7b", 8), "camelidae-8x13b": ("llama-2-13b", 8), "camelidae-8x34b": ("yi-34b", 8),
           "qwen2idae-16x14b": ("qwen1.5-14b", 8), "sparsetral-16x7b": ("mistral-7b-instruct-v0.2", 8),
           "llama-3.1-8x8b": ("llama-3.1-8b", 8), "qwen3-8x8b": ("qwen3-8b", 8), "qwen3-8x32b": ("qwen3-32b", 8),
           "mistral-nemo-8x12b": ("mistral-nemo-12b", 8), "phi-4-8x14b": ("phi-4", 8)}


class PlanTest(harness.EndToEnd):
    train_rows = 10

    def plan(self, config, *flags, code=0):
        out = self.path("plan.json")
        result = harness.pesc(0, "plan", "--config", config, "--out", out, *flags, seconds=60)
        self.assertEqual(result.code, code, str(result))
        with open(out, encoding="utf-8") as file:
            return json.load(file), result

    def test_every_preset(self):
        found = {os.path.basename(p)[:-len(".textproto")] for p in glob.glob(os.path.join(EXPERIMENTS, "*.textproto"))}
        # The benches are planned against what they take, and the second quick start is run whole by real_model_test.
        self.assertEqual(found - {n for n in found if n.startswith("bench-")} - {"real-model"}, set(PRESETS))
        for name, (shape, ranks) in PRESETS.items():
            with self.subTest(name):
                config = os.path.join(EXPERIMENTS, name + ".textproto")
                j, result = self.plan(config, "--shape", shape, "--ranks", ranks)
                # Llama-2-7B has 6.74G weights, and so on: the name says it.
                billions = {"llama-2-7b": 6.738, "llama-2-13b": 13.016, "yi-34b": 34.389, "qwen1.5-14b": 14.167,
                            "mistral-7b-instruct-v0.2": 7.242, "llama-3.1-8b": 8.030, "qwen3-8b": 8.191, "qwen3-32b": 32.762,
                            "mistral-nemo-12b": 12.248, "phi-4": 14.660}[shape]
                self.assertAlmostEqual(j["frozen_parameters"] / 1e9, billions, places=2)
                self.assertEqual(j["tokens_per_step"], 128 * (4096 if name.startswith("sparsetral") else 2048))
                self.assertGreater(j["exchanged_bytes_per_token"], 0)
                self.assertGreater(j["step_seconds"], 0.2)
                # It fits on the GPUs that it is for, H200, and says so.
                gib = [bytes / 2**30 for bytes in (j["device_bytes"] + j["overhead_bytes"] + j["connection_bytes"],
                                                    j["rates"]["device_memory"])]
                print("%s: %.1f of %.1f GiB" % (name, *gib))
                self.assertIs(j["fits"], True)
                self.assertEqual(gib[1], 139)
                self.assertLessEqual(gib[0], gib[1])
                self.assertGreater(gib[0], 2 * j["frozen_parameters"] / 2**30)  # the whole base in BF16, tp = 1
                self.assertIn("fits: %.1f of 139.0 GiB" % gib[0], result.out)
                # And that it takes them for granted.
                for said in (result.out, j["machine"]):
                    self.assertIn("assuming one H200-141; name another with --gpu", said)
                self.assertEqual((j["gpu"], j["assumed"]), ("H200-141", True))
                self.assertNotIn("DOES NOT FIT", result.out)
                # MFU is of the data sheet, which no GEMM reaches.
                self.assertAlmostEqual(j["mfu"] / j["sol_fraction"], j["rates"]["gemm"] / j["rates"]["peak"], places=9)
                for word in ("activations", "token exchange", "of the speed of light, MFU %.2f" % j["mfu"]):
                    self.assertIn(word, result.out)
                # The command that its comment names is this one.
                with open(config, encoding="utf-8") as file:
                    self.assertIn("--shape %s --ranks %d" % (shape, ranks), file.read())

    def test_what_is_planned_is_what_a_run_takes(self):
        shape = ("--shape", os.path.join(BASE, "config.json"))
        cases = ((1, 1, 1, 1, "NONE"), (2, 1, 2, 1, "NONE"), (2, 1, 2, 2, "NONE"), (4, 2, 4, 1, "NONE"), (4, 2, 4, 2, "NONE"),
                (4, 4, 1, 1, "NONE"), (1, 1, 1, 1, "SELECTIVE"), (4, 2, 4, 2, "SELECTIVE"), (4, 2, 4, 1, "FULL"),
                (4, 2, 4, 2, "FULL"), (2, 1, 2, 1, "NONE", "WEIGHTS"), (4, 2, 4, 1, "SELECTIVE", "WEIGHTS"),
                (4, 2, 2, 1, "FULL", "WEIGHTS"))
        for ranks, tp, ep, chunks, recompute, *exchange in cases[::6] if harness.SAMPLE else cases:
            with self.subTest(ranks=ranks, tp=tp, ep=ep, chunks=chunks, recompute=recompute, exchange=exchange):
                layout = harness.sets(parallel__tp=tp, parallel__ep=ep, parallel__dispatch_chunks=chunks, parallel__num_threads=1,
                                      train__global_batch_size=16, train__gradient_accumulation_steps=2, train__recompute_granularity=recompute)
                if exchange:
                    layout += harness.sets(parallel__expert_exchange=exchange[0])
                j, _ = self.plan(QUICKSTART, *shape, *layout, "--ranks", ranks)
                result = harness.pesc(ranks, "bench", "--config", QUICKSTART, *shape, *layout, "--steps", 3, "--out",
                                      self.path("bench.json"))
                self.assertEqual(result.code, 0, str(result))
                with open(self.path("bench.json"), encoding="utf-8") as file:
                    bench = json.load(file)
                self.assertEqual([r["recompute_granularity"] for r in (bench, j)], [recompute, recompute])
                self.assertEqual(bench["compute_dtype"], "F32")
                self.assertEqual([r.get("expert_exchange") for r in (bench, j)], 2 * [(exchange or ["TOKENS"])[0] if ep > 1 else None])
                self.assertEqual(bench["arena_bytes_rank0"], j["device_bytes"])
                # Full rows both times: the share printed is the FLOP planned over the time and rate measured.
                share = j["flops_per_step"] / bench["step_seconds_median"] / bench["gemm_flops_per_second"]
                self.assertAlmostEqual(bench["sol_fraction_median"] / share, 1, places=6)
                self.assertNotIn("mfu_median", bench)  # of a CPU no peak is known
                self.assertNotIn("mfu", j)
                sent = sum(p["sent_bytes"] for p in j["phases"])
                print("%d ranks, tp %d, ep %d, %d chunks, %s: %.3f MB planned, %.3f MB sent" %
                      (ranks, tp, ep, chunks, recompute, sent / 1e6, bench["bytes_sent_rank0_median"] / 1e6))
                if ranks == 1:
                    self.assertEqual((sent, bench["bytes_sent_rank0_median"]), (0, 0))
                else:
                    self.assertAlmostEqual(bench["bytes_sent_rank0_median"] / sent, 1, delta=0.15)

    @harness.whole
    def test_quantised_weights_are_made_tensor_by_tensor(self):
        """What a bench holds while it makes random weights is the quantised ones and a few tensors; and the bytes a weight are
        planned."""
        with tempfile.NamedTemporaryFile("w", suffix=".textproto") as shape:
            shape.write("family: LLAMA vocab_size: 256 hidden_size: 1024 intermediate_size: 4096 num_hidden_layers: 10 "
                        "num_attention_heads: 8 max_position_embeddings: 256\n")
            shape.flush()
            weights = 10 * 1024 * (4 * 1024 + 3 * 4096)
            tensor = 4 * 1024 * 4096  # the largest, in float32
            for held, each in (("NF4", 0.52), ("FP8", 1)):
                with self.subTest(held):
                    flags = ("--config", QUICKSTART, "--shape", shape.name, *harness.sets(
                        train__frozen_dtype=held, train__global_batch_size=1, train__gradient_accumulation_steps=1,
                        data__max_seq_length=16, parallel__tp=1, parallel__ep=1, parallel__num_threads=2))
                    j, _ = self.plan(*flags[1:])
                    result = harness.pesc(0, "bench", *flags, "--steps", 1, "--out", self.path("bench.json"))
                    self.assertEqual(result.code, 0, str(result))
                    with open(self.path("bench.json"), encoding="utf-8") as file:
                        bench = json.load(file)
                    peak, planned = bench["load_host_peak_bytes_rank0"], j["device_bytes"] + j["overhead_bytes"]
                    print("%s: %.0f MB at most while loading, %.0f planned for all, %.0f in float32" %
                          (held, peak / 1e6, planned / 1e6, 4 * weights / 1e6))
                    self.assertEqual(bench["frozen_dtype"], held)
                    self.assertEqual(bench["frozen_bytes_per_weight"], j["frozen_bytes_per_weight"])
                    self.assertAlmostEqual(bench["frozen_bytes_per_weight"], each, delta=0.01)
                    self.assertIn("%.3f bytes a weight" % bench["frozen_bytes_per_weight"], result.out)
                    self.assertLess(planned + 5 * tensor, 4 * weights)  # else this would show nothing
                    self.assertLess(peak, planned + 5 * tensor)
                    # Float32 is multiplied: one rate.
                    self.assertNotIn("fp8_gemm_flops_per_second", bench)

    @harness.whole
    def test_bench_of_uneven_rows(self):
        """Rows of --shortest to max_seq_length tokens, packed or not, the same ones on any layout."""
        shape = ("--shape", os.path.join(BASE, "config.json"))
        sizes = harness.sets(train__global_batch_size=16, train__gradient_accumulation_steps=2, data__max_seq_length=128,
                             parallel__tp=1, parallel__ep=1,
                             parallel__num_threads=1)
        tokens = {}
        for ranks, shortest, *packing in ((1, None), (1, 5), (2, 5), (1, 128), (1, 5, "BEST_FIT"), (2, 5, "BEST_FIT")):
            with self.subTest(ranks=ranks, shortest=shortest, packing=packing):
                packs = harness.sets(data__packing=packing[0]) if packing else ()
                result = harness.pesc(ranks, "bench", "--config", QUICKSTART, *shape, *sizes, *packs, "--steps", 1,
                                      *(("--shortest", shortest) if shortest else ()), "--out", self.path("bench.json"))
                self.assertEqual(result.code, 0, str(result))
                with open(self.path("bench.json"), encoding="utf-8") as file:
                    bench = json.load(file)
                tokens[(ranks, shortest, *packing)] = round(bench["tokens_per_second_median"] * bench["step_seconds_median"])
        print(tokens)
        self.assertEqual(tokens[1, None], 16 * 128)
        self.assertEqual(tokens[1, 128], 16 * 128)
        self.assertEqual(tokens[2, 5], tokens[1, 5])
        self.assertTrue(16 * 5 < tokens[1, 5] < 16 * 128, tokens)
        self.assertTrue(0.9 * 16 * 128 < tokens[1, 5, "BEST_FIT"] <= 16 * 128, tokens)
        self.assertEqual(tokens[2, 5, "BEST_FIT"], tokens[1, 5, "BEST_FIT"])
        config = ("--config", QUICKSTART)
        for words, flags in (("from 1 to data.max_seq_length = 128 tokens", (*config, *shape, "--shortest", 129)),
                             ("'0' is less than 1", (*config, *shape, "--shortest", 0)),
                             ("'-1' is less than 1", (*config, *shape, "--shortest", -1)),
                             ("data.train gives rows", (*self.experiment("run"), "--shortest", 5))):
            result = harness.pesc(2, "bench", *flags, *sizes)
            self.assertEqual(result.code, 64, str(result))
            self.assertIn(words, str(result))

    @harness.whole
    def test_recompute_of_7b_on_one_gpu(self):
        """The bars on memory, with what stands beside the arenas; the GEMMs of SELECTIVE are those of NONE."""
        config = os.path.join(EXPERIMENTS, "bench-7b.textproto")
        plans, gib = {}, {}
        for recompute in ("NONE", "SELECTIVE", "FULL"):
            plans[recompute], _ = self.plan(config, "--set", "train.recompute_granularity=" + recompute)
            gib[recompute] = sum(plans[recompute][k] for k in ("device_bytes", "overhead_bytes", "connection_bytes")) / 2**30
        print(" ".join("%s %.2f GiB, %.0f ms" % (r, gib[r], 1e3 * plans[r]["step_seconds"]) for r in gib))
        self.assertLessEqual(gib["NONE"], 72)
        self.assertLessEqual(gib["SELECTIVE"], 64)
        self.assertGreaterEqual(gib["NONE"] - gib["SELECTIVE"], 7.3)
        # One layer's tensors and 32 inputs of 128 MiB in place of 32 layers' tensors.
        self.assertLessEqual(gib["FULL"], 28)
        gemm, seconds = ({r: pick(p) for r, p in plans.items()} for pick in (
            lambda p: {phase["name"]: phase["flops"] for phase in p["phases"]}["GEMM"], lambda p: p["step_seconds"]))
        self.assertEqual(gemm["SELECTIVE"], gemm["NONE"])
        self.assertAlmostEqual(gemm["FULL"] / gemm["NONE"], 1.5 - 0.5 / 32, places=6)
        self.assertLess(seconds["NONE"], seconds["SELECTIVE"])
        self.assertLess(seconds["SELECTIVE"], 1.06 * seconds["NONE"])
        self.assertLess(seconds["SELECTIVE"], seconds["FULL"])
        # The SOL fraction counts what the mathematics needs, whatever is computed twice.
        self.assertEqual(len({p["flops_per_step"] for p in plans.values()}), 1)
        # What does not fit names the first policy that does.
        for room, recompute, named in ((66, "NONE", "SELECTIVE"), (40, "NONE", "FULL"), (40, "SELECTIVE", "FULL"), (20, "NONE",
                                                                                                                    None)):
            j, _ = self.plan(config, "--device_gib", room, "--set", "train.recompute_granularity=" + recompute)
            self.assertFalse(j["fits"])
            found = [c for c in j.get("would_fit", []) if c.startswith("train.recompute_granularity")]
            want = ["train.recompute_granularity: %s needs %.1f GiB" % (named, gib[named])] if named else []
            self.assertEqual(found, want)

    def test_scratch_of_the_attention(self):
        """A GPU's attention is cuDNN's, and its scratch is planned by a pesc without CUDA too; one that has CUDA but not cuDNN
        computes attention itself."""
        config = os.path.join(EXPERIMENTS, "bench-7b.textproto")
        scratch = {}
        for rows in (1, 2, 8):
            j, _ = self.plan(config, *harness.sets(train__global_batch_size=rows))
            scratch[rows] = j["arenas"]["scratch"]
        # Of one row, 32 heads of 128: the scores' gradients in bf16, and rows' sums and dq in float32.
        row = 32 * (2048 * 2048 * 2 + 2048 * (128 + 2) * 4)
        print("scratch %s; a row's %d bytes" % (scratch, row))
        if os.environ.get("PESC_OWN_ATTENTION"):
            self.assertLess(scratch[2], row)  # what other operations take
            return
        self.assertEqual(scratch[2] - scratch[1], row)
        # 1120 MiB hold three rows and no more are in work at once; 32 MiB stand beside them.
        self.assertAlmostEqual(scratch[8] / 2**20, 1120 + 32, delta=1)

    def test_what_does_not_fit(self):
        config = os.path.join(EXPERIMENTS, "camelidae-8x7b.textproto")
        j, result = self.plan(config, "--shape", "7B", "--ranks", 8, "--device_gib", 60)
        self.assertFalse(j["fits"])
        self.assertIn("DOES NOT FIT", result.out)
        (micro,) = [c for c in j["would_fit"] if c.startswith("train.gradient_accumulation_steps: ")]
        steps = re.match(r"train.gradient_accumulation_steps: (\d+) needs", micro).group(1)
        j, result = self.plan(config, "--shape", "7B", "--ranks", 8, "--device_gib", 60, "--set",
                              "train.gradient_accumulation_steps=" + steps)
        self.assertTrue(j["fits"])
        self.assertNotIn("DOES NOT FIT", result.out)

    def test_hosts(self):
        """Layouts of a cluster from 8 to 4096 GPUs, and what the flags change."""
        config = os.path.join(EXPERIMENTS, "camelidae-8x7b.textproto")
        best = {}
        for hosts in (1, 512) if harness.SAMPLE else (1, 16, 512):
            # Four rows a GPU.
            batch = harness.sets(train__global_batch_size=32 * hosts, train__gradient_accumulation_steps=1)
            j, result = self.plan(config, "--shape", "7B", *batch, "--hosts", hosts, "--gpus_per_host", 8,
                                  "--network_gbit_per_gpu", 400)
            self.assertEqual((j["ranks"], j["hosts"], j["network"]), (8 * hosts, hosts, 50e9))
            self.assertEqual({l["tp"] for l in j["layouts"]} | {r["tp"] for r in j["refused"]}, {1, 2, 4, 8})
            useful = [l["useful_tokens_per_second"] for l in j["layouts"]]
            self.assertEqual(useful, sorted(useful, reverse=True))
            best[hosts] = j["layouts"][0]
            for layout in j["layouts"]:
                self.assertEqual(layout["dp"] * layout["tp"], 8 * hosts)
                self.assertAlmostEqual(layout["step_seconds"], layout["compute_seconds"] +
                                       sum(c["exposed_seconds"] for c in layout["collectives"]), places=9)
                self.assertAlmostEqual(layout["mtbf_seconds"], 3600 * 50000 / (8 * hosts), places=3)
                self.assertTrue(0.9 < layout["goodput"] < 1, layout)
            name = "dp %(dp)d, tp %(tp)d, ep %(ep)d" % best[hosts]
            self.assertIn("the best: %s; its step is " % name, result.out)
            self.assertIn("checkpoint.save_steps: %d, every " % best[hosts]["save_steps"], result.out)
            self.assertIn("with parallel.overlap_comm: true the best is ", result.out)
        self.assertGreater(best[1]["goodput"], best[512]["goodput"])
        # The plan of one host, with its layout, and links inside of it alone.
        j, _ = self.plan(config, "--shape", "7B", "--ranks", 8, *harness.sets(
            train__global_batch_size=32, train__gradient_accumulation_steps=1, parallel__tp=best[1]["tp"], parallel__ep=best[1]["ep"]))
        self.assertAlmostEqual(best[1]["step_seconds"] / j["step_seconds"], 1, delta=0.03)  # it has no latencies
        self.assertEqual(best[1]["needed_bytes"], j["device_bytes"] + j["overhead_bytes"] + j["connection_bytes"])
        # A slower network, or GPUs that fail more often.
        two = (config, "--shape", "7B", *harness.sets(train__global_batch_size=64, train__gradient_accumulation_steps=1), "--hosts", 2)
        usual, slow = (self.plan(*two, "--network_gbit_per_gpu", n)[0]["layouts"][0] for n in (400, 10))
        self.assertGreater(slow["step_seconds"], 1.2 * usual["step_seconds"])
        frail = self.plan(*two, "--gpu_mtbf_hours", 10)[0]["layouts"][0]
        self.assertLess(frail["goodput"], usual["goodput"])
        self.assertLess(self.plan(*two, "--gpu_mtbf_hours", 10, "--storage_gbs", 0.1)[0]["layouts"][0]["goodput"], frail["goodput"])
        # Nothing fits, and wrong usage.
        j, result = self.plan(*two, "--device_gib", 10)
        self.assertEqual(j["layouts"], [])
        self.assertIn("NO LAYOUT FITS", result.out)
        for words, flags in (("--hosts is for hosts with GPUs", ("--set", "parallel.device=CPU")),
                             ("--hosts and --ranks exclude each other", ("--ranks", 4)),
                             ("'0' is less than 1", ("--gpus_per_host", 0)), ("is not above 0", ("--network_gbit_per_gpu", 0))):
            self.assert_refused(harness.pesc(0, "plan", "--config", *two, *flags), 64, words)
        self.assert_refused(harness.pesc(0, "plan", "--config", *two[:3], "--storage_gbs", 2), 64,
                            "--storage_gbs has no effect without --hosts")
        # What train would refuse of some layouts, whatever parallel.ep says.
        chunks = harness.sets(parallel__expert_exchange="WEIGHTS", parallel__dispatch_chunks=2)
        for ep in (1, 8):
            self.assert_refused(harness.pesc(0, "plan", "--config", *two, *chunks, "--set", "parallel.ep=%d" % ep), 64,
                                "parallel.dispatch_chunks is 2", "parallel.expert_exchange is WEIGHTS")

    def test_a_setting_without_effect_is_said(self):
        config = os.path.join(EXPERIMENTS, "camelidae-8x7b.textproto")
        _, result = self.plan(config, "--shape", "7B", "--ranks", 8, "--set", "train.eval_steps=5", "--set", "data.eval=[]")
        self.assertIn("train.eval_steps has no effect without files in data.eval", result.err)
        _, result = self.plan(config, "--shape", "7B", "--ranks", 8)
        self.assertNotIn("no effect", result.err)

    def test_the_machine_is_named(self):
        config = os.path.join(EXPERIMENTS, "camelidae-8x7b.textproto")
        shape = ("--shape", "7B", "--ranks", 8)
        seconds = {}
        for gpu, gib in (("A100-40", 39.4), ("a100-80", 79.2), ("H100-80", 79.6), ("H200-141", 139), ("B200-180", 178)):
            with self.subTest(gpu=gpu):
                j, result = self.plan(config, *shape, "--gpu", gpu)
                self.assertEqual((j["gpu"], j["assumed"], j["machine"]), (gpu.upper(), False, "each rank: one " + gpu.upper()))
                self.assertAlmostEqual(j["rates"]["device_memory"] / 2**30, gib)
                self.assertEqual(j["fits"], gib > 100)  # 95 GiB
                self.assertEqual("would_fit" in j, gib < 100)
                self.assertIn(j["machine"], result.out)
                self.assertNotIn("assuming", result.out)
                seconds[gpu] = j["step_seconds"]
        self.assertGreater(seconds["a100-80"], 2 * seconds["H200-141"])
        self.assertGreater(seconds["H200-141"], seconds["B200-180"])
        # Of a GPU that is taken for granted, what flags say is said.
        j, result = self.plan(config, *shape, "--device_gib", 60)
        self.assertIn("assuming one H200-141, but for --device_gib 60; name another with --gpu", result.out)
        self.assertTrue(j["assumed"])
        figures = ("--device_gib", 60, "--gemm_tflops", 100, "--memory_gbs", 1000, "--link_gbs", 50)
        j, result = self.plan(config, *shape, *figures)
        self.assertFalse(j["assumed"])
        self.assertNotIn("gpu", j)
        self.assertIn("a GPU of the figures given, --gemm_tflops 100, --memory_gbs 1000, --link_gbs 50, --device_gib 60", result.out)

    def test_frozen_formats_on_gpus_with_and_without_fp8(self):
        config = os.path.join(EXPERIMENTS, "bench-7b.textproto")
        held = ("--set", "train.frozen_dtype=FP8")
        computed = (*held, "--set", "train.compute_dtype=FP8")
        for gpu in ("A100-80", "B200-180"):
            self.assert_refused(harness.pesc(0, "plan", "--config", config, *computed, "--gpu", gpu), 64, "train.compute_dtype is FP8",
                                "H100, H200", "they do not run on the " + gpu, "set it to BF16")
            j, result = self.plan(config, *held, "--gpu", gpu)  # AUTO: BF16
            self.assertEqual((j["fp8_flops_per_step"], j["rates"]["fp8_gemm"]), (0, 0))
            self.assertNotIn("FP8 GEMMs", result.out)
        seconds = {}
        for name, flags in (("bf16", ()), ("fp8", held), ("fp8, said", computed)):
            j, result = self.plan(config, *flags, "--gpu", "H100-80")
            seconds[name] = j["step_seconds"]
            self.assertEqual("FP8 GEMMs" in result.out, name != "bf16")
            self.assertEqual(j["fp8_flops_per_step"] > 0.8 * j["flops_per_step"], name != "bf16")
            self.assertLess(j["sol_fraction"], 1)
        self.assertEqual(seconds["fp8"], seconds["fp8, said"])
        self.assertLess(seconds["fp8"], 0.8 * seconds["bf16"])
        # What does not fit: FP8 where the GPU multiplies it.
        for gpu, named in (("H100-80", "FP8"), ("A100-80", "NF4")):
            j, result = self.plan(config, "--gpu", gpu, "--device_gib", 68)
            (change,) = [c for c in j["would_fit"] if c.startswith("train.frozen_dtype: ")]
            self.assertIn("train.frozen_dtype: %s needs" % named, change)
            self.assertIn("changes the mathematics", change)
            self.assertIn(change, result.out)

    @harness.whole
    def test_the_host_of_a_cpu(self):
        """All ranks share its memory, and that is said."""
        shape = ("--shape", os.path.join(BASE, "config.json"))
        j, result = self.plan(QUICKSTART, *shape, "--ranks", 4, "--set", "parallel.num_threads=1")
        self.assertIs(j["fits"], True)
        self.assertGreater(j["host_memory"], 2**28)
        for words in ("assuming all ranks on this host", "--device_gib", "of this host for 4 ranks"):
            self.assertIn(words, result.out)
        j, result = self.plan(QUICKSTART, *shape, "--ranks", 4, "--device_gib", 0.3)
        self.assertIs(j["fits"], False)
        self.assertNotIn("this host", result.out)
        self.assertIn("assuming one CPU thread", result.out)
        self.assertTrue([c for c in j["would_fit"] if "gradient_accumulation_steps" in c and "aux loss" in c], j["would_fit"])

    def test_rates_are_the_users(self):
        config = os.path.join(EXPERIMENTS, "camelidae-8x7b.textproto")
        fast, _ = self.plan(config, "--shape", "7B", "--ranks", 8, "--gemm_tflops", 1000)
        slow, _ = self.plan(config, "--shape", "7B", "--ranks", 8, "--gemm_tflops", 500)
        gemm = [{p["name"]: p["seconds"] for p in j["phases"]}["GEMM"] for j in (fast, slow)]
        self.assertAlmostEqual(gemm[1] / gemm[0], 2)

    def test_refusals(self):
        config = os.path.join(EXPERIMENTS, "camelidae-8x7b.textproto")
        for code, words, arguments in (
                (64, ["llama-2-7", "'llama-2-7b'"], ("--shape", "llama-2-7")),
                (64, ["parallel.ep", "8"], ("--shape", "7B", "--ranks", 4)),
                (64, ["model.path", "Llama-2-7b-hf"], ()),
                (64, ["data.max_seq_length", "4096"], ("--shape", "7B", "--ranks", 8, "--set", "data.max_seq_length=8192"))):
            with self.subTest(words):
                self.assert_refused(harness.pesc(0, "plan", "--config", config, *arguments), code, *words)
        self.assert_refused(harness.pesc(2, "plan", "--config", config, "--shape", "7B"), 64, "one rank")
        self.assert_refused(harness.pesc(0, "plan", "--config", config, "--shape", "7B", "--ranks", 8, "--gpu", "RTX4090"), 64,
                            "'RTX4090'", "A100-40, A100-80, H100-80, H200-141, B200-180", "--device_gib")
        self.assert_refused(harness.pesc(0, "plan", "--config", QUICKSTART, "--shape", BASE, "--ranks", 4, "--gpu", "H100-80"), 64, "CPU",
                            "parallel.device=CUDA")
        self.assert_refused(harness.pesc(0, "plan", "--config", config, "--shape", "7B", "--ranks", 8, "--device_gib", -1), 64,
                            "--device_gib", "is not above 0")
        self.assert_refused(harness.pesc(0, "train", "--config", QUICKSTART, "--shape", "7B"), 64, "--shape")
        with tempfile.NamedTemporaryFile("w", suffix=".textproto") as file:
            file.write("family: LLAMA\nvocab_size: 10 hiden_size: 4\n")
            file.flush()
            self.assert_refused(harness.pesc(0, "plan", "--config", config, "--shape", file.name), 64,
                                file.name + ":2", "hidden_size")


if __name__ == "__main__":
    harness.main()
