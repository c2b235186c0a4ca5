"""Put the encoders and the policy of a reference run into the package: `make ship`, after `make reproduce`.

Encoders that the run did not train stay as they are. The policy's weights are stored in bfloat16, statistics in full.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gr2.gr_model.model.release import load_release

ROOT = Path(__file__).parents[1]
RUN = Path(sys.argv[1])


def main() -> None:
    """Copy the released files; the policy names the shipped encoders instead of copies of its own."""
    encoders, policy = ROOT / "tokenizers" / "weights", ROOT / "gr_model" / "weights" / "reference"
    policy.mkdir(parents=True, exist_ok=True)
    for kind, stem in (("tokenizer", "vqgan"), ("text", "text")):
        for suffix in (".json", ".safetensors"):
            if (RUN / kind).is_dir():
                shutil.copyfile(RUN / kind / (stem + suffix), encoders / (stem + suffix))
    trained = {name for name, _ in load_release(RUN / "finetune").model.named_parameters()}
    tensors = load_file(RUN / "finetune" / "model.safetensors")
    smaller = {name: tensor.to(torch.bfloat16) if name in trained else tensor for name, tensor in tensors.items()}
    save_file(smaller, policy / "model.safetensors")
    record = json.loads((RUN / "finetune" / "config.json").read_text())
    record["sha256"] = hashlib.sha256((policy / "model.safetensors").read_bytes()).hexdigest()
    record["provenance"] |= {"tokenizer_source": "small", "text_source": "small"}
    (policy / "config.json").write_text(json.dumps(record, indent=1) + "\n")


main()
