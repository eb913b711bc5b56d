#include "launcher/verbs.h"

#include <algorithm>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "runtime/config/unknown_names.h"

namespace pesc {
namespace {

constexpr std::array kVerbs{
    Verb{
        .name = "train",
        .arguments = "--config FILE [flags]",
        .summary = "tunes on the ranks that mpirun or srun started; resumes by itself",
        .about =
            "Tunes the model of the experiment on one rank, or under mpirun on several. It goes on from the "
            "newest "
            "checkpoint of run_dir that verifies. SIGTERM and SIGUSR1 save at the next step and end with 75. "
            "`pesc launch` starts it again after a fault; `pesc plan` says before whether it fits.",
        .examples = {{{"pesc train --config my.textproto", "one rank; start it again to resume"},
                      {"mpirun -n 4 pesc train --config my.textproto --set parallel.ep=4",
                       "four ranks that divide the experts"},
                      {"pesc train --config my.textproto --show_rows 3 --set train.max_steps=20",
                       "a short run that first shows three rows with their learned part"}}},
        .exit_codes = "0 64 65 70 74 75 76",
        .run = run_train},
    Verb{.name = "launch",
         .arguments = "-n N [--hostfile FILE] -- train --config FILE [flags of train]",
         .summary = "starts N ranks of train under mpirun, watches them, restarts after a fault",
         .about =
             "Holds the lock of the run directory, starts mpirun and watches the exit and the heartbeats of "
             "the "
             "ranks. After a fault it ends what is left, reports and starts all ranks again from the newest "
             "checkpoint, at most recovery.max_restarts times without a new one. In a Slurm job -n may be "
             "left "
             "out: it is then the number of tasks.",
         .examples = {{{"pesc launch -n 8 -- train --config my.textproto --set parallel.ep=8",
                        "eight ranks on this host"},
                       {"pesc launch -n 16 --hostfile hosts -- train --config my.textproto",
                        "two hosts; a line of the file: node1 slots=8"},
                       {"pesc launch -- train --config my.textproto",
                        "in a Slurm job: a rank for each task"}}},
         .exit_codes = "0 64 65 70 74 75 76"},
    Verb{.name = "eval",
         .arguments = "--config FILE [flags]",
         .summary = "loss, exact match of the generated answer and experts used, per dataset tag",
         .about = "Evaluates the newest checkpoint of run_dir, on any layout of ranks, on the rows of "
                  "data.eval or of "
                  "data.validation_fraction. Answers are generated with the settings of `generate`.",
         .examples = {{{"pesc eval --config my.textproto", "the newest checkpoint"},
                       {"pesc eval --config my.textproto --base --samples 5",
                        "the dense model before tuning, with five answers to read"},
                       {"mpirun -n 8 pesc eval --config my.textproto --checkpoint best --out eval.json",
                        "the best checkpoint on eight ranks; figures for a program"}}},
         .exit_codes = "0 64 65 70 74 76",
         .run = run_eval},
    Verb{
        .name = "generate",
        .arguments = "--config FILE (--prompt TEXT | --prompts FILE | --chat) [flags]",
        .summary = "answers a prompt or the rows of a file, or holds a conversation",
        .about =
            "Answers from the base and a checkpoint with a KV cache, on any layout of ranks. The "
            "answer to --prompt "
            "streams to standard output; those to --prompts are JSON Lines in the order of the rows. With "
            "--chat each line of standard input is answered behind all that was said before. "
            "Length and "
            "sampling are the fields of `generate` in the experiment.",
        .examples = {{{"pesc generate --config my.textproto --prompt \"What is a bee?\"", "one question"},
                      {"pesc generate --config my.textproto --prompts rows.jsonl > answers.jsonl",
                       "the last question of each row"},
                      {"pesc generate --config my.textproto --chat --system \"Be brief.\"", "a conversation"},
                      {"pesc generate --config my.textproto --base --prompt \"Count to 5.\" --set "
                       "generate.temperature=0.7",
                       "the dense model, sampled"}}},
        .exit_codes = "0 64 65 70 74 76",
        .run = run_generate},
    Verb{.name = "export",
         .arguments = "--config FILE --out FOLDER [flags]",
         .summary = "the tuned model as a folder that transformers, PEFT or the published code loads",
         .about = "Writes a checkpoint of any layout for other programs, on one rank and without a GPU, in "
                  "slices of at "
                  "most 64 MiB. The folder must not be there; it appears when all of it is written.",
         .examples = {{{"pesc export --config my.textproto --out exported",
                        "for transformers; a PESC model loads with trust_remote_code=True"},
                       {"pesc export --config my.textproto --checkpoint best --format PEFT --out adapter",
                        "the best checkpoint as an adapter folder"},
                       {"pesc export --config my.textproto --dtype F32 --out exported-f32", "in 32 bits"},
                       {"pesc export --config my.textproto --merge_into DEQUANTISED --out exported",
                        "of a run on quantised weights"}}},
         .exit_codes = "0 64 65 70 74",
         .run = run_export},
    Verb{
        .name = "report",
        .arguments = "--run DIR [--run DIR ...] --out FILE",
        .summary = "one page of HTML of a run, or of several side by side",
        .about =
            "Reads what a run wrote into its directory, without a model or a GPU, also while it trains: "
            "curves, experts "
            "by layer and tag, evaluations, answers, time, restarts and the resolved configuration. The page "
            "loads nothing from anywhere. FILE must not be there.",
        .examples = {{{"pesc report --run runs/my-model --out report.html", "the page of a run"},
                      {"pesc report --run runs/pesc --run runs/lora --out compare.html",
                       "two runs side by side"}}},
        .exit_codes = "0 64 65 70 74",
        .run = run_report},
    Verb{.name = "plan",
         .arguments = "--config FILE [flags]",
         .summary = "memory and time of a run, and whether it fits, without the device",
         .about =
             "Says before anything starts, without the device or the files of the model, what each rank "
             "needs: memory "
             "by arena, FLOP, bytes exchanged, the time of a step at stated rates, and what to change "
             "where it does "
             "not fit. With parallel.device CUDA it assumes an H200 unless --gpu names another. With "
             "--hosts it compares all layouts of a cluster, with links inside and between hosts, and says "
             "how often to save.",
         .examples =
             {{{"pesc plan --config my.textproto --ranks 8", "eight ranks of the experiment"},
               {"pesc plan --config my.textproto --shape 13B --gpu A100-80 --ranks 8",
                "another model on other GPUs"},
               {"pesc plan --config my.textproto --hosts 16 --gpus_per_host 8 --network_gbit_per_gpu 400",
                "the best layout of 128 GPUs, its goodput, and how often to save"},
               {"pesc plan --config my.textproto --ranks 4 --out plan.json", "figures for a program"}}},
         .exit_codes = "0 64 65 70 74 76",
         .run = run_plan},
    Verb{
        .name = "bench",
        .arguments = "--config FILE [flags]",
        .summary = "times the training step against the speed of light",
        .about = "Times the training step with random weights on the rows of the experiment, or with "
                 "--shape on random "
                 "rows, packed as data.packing says. The speed of light is the time that the FLOP of a step "
                 "take at the "
                 "GEMM rate measured on the same ranks. With several ranks it also says what the collectives "
                 "send and how long they take, beside the library's own. --scaling does this for up to 20 "
                 "layouts of 1 to 8 ranks, each under an mpirun of its own, and goes on from --out.",
        .examples =
            {{{"pesc bench --config configs/experiments/bench-7b.textproto --steps 10", "ten steps"},
              {"mpirun -n 8 pesc bench --config my.textproto --shape 7B --set parallel.ep=8",
               "eight ranks, a model of another shape"},
              {"pesc bench --config my.textproto --shape 7B --shortest 100 --out bench.json",
               "rows of 100 tokens to data.max_seq_length"},
              {"pesc bench --config configs/experiments/bench-scaling.textproto --scaling --out scaling.json",
               "how it scales over the GPUs of this host"}}},
        .exit_codes = "0 64 65 70 74 76",
        .run = run_bench},
    Verb{.name = "inspect",
         .arguments = "--checkpoint DIR [flags]",
         .summary = "what a checkpoint holds; checks every byte; compares two",
         .about =
             "Prints step, layout, versions and tensors of a step-N folder. A run directory as DIR: all its "
             "checkpoints, checked. One rank, no --config.",
         .examples = {{{"pesc inspect --checkpoint runs/my-model/step-100", "what it holds"},
                       {"pesc inspect --checkpoint runs/my-model",
                        "all checkpoints of a run, every byte checked"},
                       {"pesc inspect --checkpoint a/step-100 --against b/step-100",
                        "tensor by tensor, also across layouts"}}},
         .exit_codes = "0 1 64 65 70 74",
         .when_one = "the two checkpoints differ",
         .run = run_inspect},
    Verb{.name = "tokenize",
         .arguments = "--model FOLDER [flags] < LINES",
         .summary = "what a tokenizer and its chat template make of texts and rows",
         .about =
             "Reads lines of standard input, each a JSON string or a training row, and writes a line of JSON "
             "for each: "
             "the token ids, and of a row also its text and which tokens are learned. One rank, no --config.",
         .examples = {{{"echo '\"Hello there\"' | pesc tokenize --model models/Llama-2-7b-hf",
                        "the ids of a text"},
                       {"head -3 data/train.jsonl | pesc tokenize --model models/Llama-2-7b-hf --show",
                        "rows as text, the learned part marked"}}},
         .exit_codes = "0 64 65 70 74",
         .run = run_tokenize},
    Verb{
        .name = "doctor",
        .arguments = "[--dir FOLDER] [--json]",
        .summary = "what this machine has, what pesc can do on it, and what is missing for what",
        .about = "Looks at MPI, GPUs, the CUDA libraries, cores and quota, memory, shared memory, limits, "
                 "clock, network "
                 "and Slurm, and says which kinds of training can run here and how to get what the others "
                 "lack. What "
                 "may hang or crash is asked in a child process with a time limit. No --config.",
        .examples = {{{"pesc doctor", "this machine"},
                      {"pesc doctor --dir runs", "and the folder of the runs: room, speed, locks"},
                      {"ssh node2 $PWD/build/release/pesc doctor --json", "another machine, for a program"}}},
        .exit_codes = "0 1 64 70 74",
        .when_one = "training cannot run here, not even on the CPU on one rank",
        .run_alone = run_doctor},
    Verb{.name = "completion",
         .arguments = "bash",
         .summary = "prints the script with which bash completes verbs, flags and fields",
         .about = "The script knows the verbs, the flags of each, the values of those that have few, and for "
                  "--set the "
                  "fields of an experiment with the values of enums, as they were when this pesc was built.",
         .examples = {{{"source <(pesc completion bash)", "for this shell"},
                       {"pesc completion bash > ~/.local/share/bash-completion/completions/pesc",
                        "for every shell from now on, where bash-completion is installed"}}},
         .exit_codes = "0 64 70 74",
         .run_alone = run_completion},
    Verb{.name = "help",
         .arguments = "[VERB]",
         .summary = "this list, or what one verb does, its flags and examples",
         .about = "The same as `pesc --help` and `pesc VERB --help`.",
         .examples = {{{"pesc help", "the verbs"},
                       {"pesc help eval", "one verb; the same as pesc eval --help"}}},
         .exit_codes = "0 64 74",
         .run_alone = run_help},
};

}  // namespace

std::span<const Verb> verbs() {
  return kVerbs;
}

const Verb* find_verb(std::string_view name) {
  const auto found = std::ranges::find(kVerbs, name, &Verb::name);
  return found == kVerbs.end() ? nullptr : &*found;
}

const Verb& known_verb(const std::string& name) {
  if (const Verb* verb = find_verb(name)) return *verb;
  if (name == "chat")
    throw UsageError("unknown verb 'chat'; a conversation is held with `pesc generate --chat`");
  std::vector<std::string> names;
  for (const Verb& verb : kVerbs) names.emplace_back(verb.name);
  throw UsageError(str_cat("unknown verb '", name, "'; did you mean '", nearest_name(name, names),
                           "'? `pesc help` lists them"));
}

std::string_view exit_code_meaning(const Verb& verb, int code) {
  if (code == 1) return verb.when_one;
  switch (static_cast<ExitCode>(code)) {
    case ExitCode::kOk:
      return "done";
    case ExitCode::kUsage:
      return "bad usage or configuration";
    case ExitCode::kData:
      return "bad input data: model files, tokenizer, rows, checkpoints";
    case ExitCode::kInternal:
      return "internal error, a broken invariant";
    case ExitCode::kIo:
      return "input/output failure: full disk, unreadable, unwritable";
    case ExitCode::kPreempted:
      return "stopped by a signal after saving: start it again";
    case ExitCode::kHang:
      return "hang: a bounded wait ended";
  }
  return "";
}

}  // namespace pesc
