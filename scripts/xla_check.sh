#!/usr/bin/env bash
# Trains each family a few steps on XLA's CPU device, in an environment of its own below the given folder.
#   scripts/xla_check.sh FOLDER
# Not part of the tests: torch 2.9.0 and torch-xla 2.9.0 from PyPI need the CUDA wheels beside them, about 6 GB in all. What it
# shows: the training steps compile and run under torch_xla with fixed shapes. What it cannot show: several TPU cores.
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
FOLDER=${1:?usage: scripts/xla_check.sh FOLDER (about 8 GB free)}
ENVIRONMENT=$FOLDER/environment
RUNS=$FOLDER/runs
if [ -e "$RUNS" ]; then
  echo "$RUNS exists; remove it or give another folder." >&2
  exit 2
fi

if [ ! -x "$ENVIRONMENT/bin/python" ]; then
  python3 -m venv "$ENVIRONMENT"
  "$ENVIRONMENT/bin/pip" install torch==2.9.0 torch-xla==2.9.0
  "$ENVIRONMENT/bin/pip" install "$ROOT[train]"
fi

export PJRT_DEVICE=CPU OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
cd "$FOLDER"
# adamw_torch_fused, the default, does not run on XLA; the last, smaller batch would be compiled once more
COMMON=(data.max_bytes=200000 data.sequence_length=64 train.max_steps=4 train.per_device_train_batch_size=4
  train.logging_steps=1 train.optim=adamw_torch train.dataloader_drop_last=true train.save_strategy=no evaluate.skip=true)
for RECIPE in monarc_tiny nano_ebm_shakespeare m2_bert_tiny; do
  "$ENVIRONMENT/bin/python" -m hf_elm train "$RECIPE" "output_dir=$RUNS/$RECIPE" "${COMMON[@]}"
done
"$ENVIRONMENT/bin/python" - <<'PYTHON'
import json
import math
import pathlib

import torch_xla

print("torch_xla", torch_xla.__version__, "on", torch_xla.device())
for path in sorted(pathlib.Path("runs").glob("*/metrics.jsonl")):
    losses = [line["loss"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line]
    assert len(losses) == 4 and all(map(math.isfinite, losses)), (path, losses)
    print(path.parent.name, [round(loss, 5) for loss in losses])
PYTHON
