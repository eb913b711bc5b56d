"""What a model folder computes in transformers, for transformers_test.py, which runs this with the Python of a virtual
environment that has it: in_transformers.py JOBS.json

JOBS.json has "prompts", lists of token ids, and "jobs", each with "folder", and perhaps "adapter" (a folder of PEFT), "own_adapter" (a
folder that PEFT is to write an adapter of random values to, and to compute with), "body" (true: AutoModel's under the head), "trust" (default
true), "greedy" (how many tokens; default 0), "logits" (default true) and "dtype" (default float32). To standard output goes a JSON
object with "transformers", the version, and "results", an object for each job: "logits", the file with the float32 logits of all
positions of all prompts, one after the other; "answers", the greedy continuations as ids; "unexpected", what the folder has too much or
too little of; "float32", the parameters of that type; or "error", the refusal.
"""

import json
import sys

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM


def loaded(job):
    model, keys = AutoModelForCausalLM.from_pretrained(job["folder"], trust_remote_code=job.get("trust", True), output_loading_info=True,
                                                       torch_dtype=getattr(torch, job.get("dtype", "float32")))
    unexpected = sorted(str(key) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in keys[name])
    if job.get("body"):
        body, keys = AutoModel.from_pretrained(job["folder"], trust_remote_code=job.get("trust", True), output_loading_info=True,
                                               torch_dtype=torch.float32)
        assert type(body).__name__.startswith("Pesc"), type(body)
        unexpected += sorted(map(str, keys["missing_keys"]))  # the head is what it has too much of
        setattr(model, model.base_model_prefix, body)
    if job.get("own_adapter"):
        from peft import LoraConfig, get_peft_model
        torch.manual_seed(7)
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, task_type="CAUSAL_LM", target_modules=[
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(job["own_adapter"])
    if job.get("adapter"):
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, job["adapter"])
        # What the base lacks the adapter has to bring.
        brought = {name.replace("base_model.model.", "", 1).replace("modules_to_save.default.", "")
                   for name in model.state_dict() if ".modules_to_save." in name}
        unexpected = [name for name in unexpected if name not in brought]
    return model.eval(), unexpected


def run(job, prompts, logits_file):
    try:
        model, unexpected = loaded(job)
    except Exception as error:  # the refusal is the outcome
        return {"error": "%s: %s" % (type(error).__name__, error)}
    result = {"logits": logits_file, "answers": [], "unexpected": unexpected,
              "float32": [name for name, p in model.named_parameters() if p.dtype == torch.float32]}
    with open(logits_file, "wb") as out, torch.no_grad():
        for ids in prompts:
            batch = torch.tensor([ids])
            if job.get("logits", True):
                out.write(model(batch).logits[0].float().contiguous().numpy().tobytes())
            if job.get("greedy"):
                answer = model.generate(input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=job["greedy"])
                result["answers"].append(answer[0, len(ids):].tolist())
    return result


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with open(sys.argv[1], encoding="utf-8") as file:
        work = json.load(file)
    results = [run(job, work["prompts"], "%s.%d.logits" % (sys.argv[1], i)) for i, job in enumerate(work["jobs"])]
    json.dump({"transformers": transformers.__version__, "results": results}, sys.stdout)


if __name__ == "__main__":
    main()
