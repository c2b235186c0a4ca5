"""Put the encoders and the policy of a reference run into the package: `make ship`, after `make reproduce`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = Path(sys.argv[1])


def main() -> None:
    """Copy the released files; the policy names the shipped encoders instead of copies of its own."""
    encoders, policy = ROOT / "tokenizers" / "weights", ROOT / "gr_model" / "weights" / "reference"
    policy.mkdir(parents=True, exist_ok=True)
    for kind, stem in (("tokenizer", "vqgan"), ("text", "text")):
        for suffix in (".json", ".safetensors"):
            shutil.copyfile(RUN / kind / (stem + suffix), encoders / (stem + suffix))
    shutil.copyfile(RUN / "finetune" / "model.safetensors", policy / "model.safetensors")
    record = json.loads((RUN / "finetune" / "config.json").read_text())
    record["provenance"] |= {"tokenizer_source": "small", "text_source": "small"}
    (policy / "config.json").write_text(json.dumps(record, indent=1) + "\n")


main()
