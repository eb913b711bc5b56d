"""What lm-evaluation-harness makes of a model folder, for lm_eval_test.py, which runs this with the Python of a virtual environment that
has it: in_lm_eval.py FOLDER TASKS TASK...

TASKS is a folder of task files. To standard output goes a JSON object with "lm_eval", the version, and of each task "exact_match" and
"answers", the texts that were compared.
"""

import json
import sys

import lm_eval
import torch
from lm_eval.tasks import TaskManager


def main():
    folder, tasks, *names = sys.argv[1:]
    torch.set_num_threads(1)
    done = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": folder, "trust_remote_code": True, "dtype": "float32"}, tasks=names,
        task_manager=TaskManager(include_path=tasks, include_defaults=False), apply_chat_template=True, batch_size=8, device="cpu",
        bootstrap_iters=0, log_samples=True)
    report = {"lm_eval": lm_eval.__version__}
    for name in names:
        samples = sorted(done["samples"][name], key=lambda sample: sample["doc_id"])
        report[name] = {"exact_match": next(value for key, value in done["results"][name].items() if key.startswith("exact_match,")),
                        "answers": [sample["filtered_resps"][0] for sample in samples]}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
