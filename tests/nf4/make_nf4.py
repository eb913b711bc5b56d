"""Reference values of bitsandbytes' NF4 (blocks of 64, double quantisation), written beside this script as nf4.safetensors.

    python make_nf4.py    # torch 2.15.0, bitsandbytes 0.50.2, safetensors 0.8.0, on the CPU

For each case: `NAME.weight` (the input), `NAME.packed` (U8, two codes a byte, the first in the high half), `NAME.absmax` (U8 codes), `NAME.nested_absmax`
(F32), `NAME.nested_code` (F32 [256]), `NAME.offset` (F32 [1]), `NAME.dequantised` (the input's type). `code` is the table of NF4 values, F32 [16].
"""
import os, torch, bitsandbytes.functional as bf
from safetensors.torch import save_file

torch.manual_seed(7)
cases = {
    "bf16": (torch.randn(96, 256) * 0.02).bfloat16(),
    "f32": torch.randn(64, 192) * 0.05,
    "odd": (torch.randn(33, 65) * 0.02).bfloat16(),              # the last block is not full
    "many": (torch.randn(160, 256) * torch.rand(160, 1)).bfloat16(),  # more than one nested block, uneven scales
    "outliers": torch.where(torch.rand(64, 128) < 0.01, torch.randn(64, 128) * 3, torch.randn(64, 128) * 0.01).bfloat16(),
    "zeros": torch.cat((torch.zeros(2, 64), torch.randn(2, 64))).bfloat16(),  # blocks of zeros alone
}
out = {}
for name, w in cases.items():
    packed, s = bf.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
    out |= {f"{name}.weight": w, f"{name}.packed": packed.flatten(), f"{name}.absmax": s.absmax, f"{name}.nested_absmax": s.state2.absmax,
            f"{name}.nested_code": s.state2.code.clone(), f"{name}.offset": s.offset.reshape(1), f"{name}.dequantised": bf.dequantize_4bit(packed, s)}
    out["code"] = s.code.clone()
save_file({k: v.contiguous() for k, v in out.items()}, os.path.join(os.path.dirname(os.path.abspath(__file__)), "nf4.safetensors"))
for k, v in out.items():
    print(k, v.dtype, tuple(v.shape), v.flatten()[:4].tolist())
