#!/bin/bash
# The three large stages as jobs of a Ray cluster whose machines have gr2 and see the same folders.
#   RAY_API_SERVER_ADDRESS=http://head:8265 SOURCE=/data/ssv2 OUT=/data/gr2 examples/cluster/ray_jobs.sh
# Needs pip install 'ray[default]'. Each job resumes when it is submitted again.
set -euo pipefail
workers=${WORKERS:-64}
gpus=${GPUS:-8}
parts=${PARTS:-4}

# All stages of the data spread over the whole cluster by themselves.
spread="--executor ray --num-workers $workers"
ray job submit -- bash -c "
  gr2 data shards --source $SOURCE --out $OUT/shards $spread &&
  gr2 data curate --shards $OUT/shards --out $OUT/curated $spread &&
  gr2 data tokens --shards $OUT/curated --out $OUT/tokens $spread ${TOKENS_OPTIONS:-}"

# Training takes the GPUs of one machine; for several, SLURM or torchrun starts it (train.sbatch).
ray job submit ${GPUS:+--entrypoint-num-gpus $gpus} -- \
  gr2 pretrain --tokens "$OUT/tokens" --out "$OUT/pretrain" --devices "$gpus" ${TRAIN_OPTIONS:-}

# Evaluation in parts, side by side; then they become one result, for which nothing runs again.
if [ -n "${POLICY:-}" ]; then
  evaluate="gr2 benchmark calvin --policy $POLICY --num-workers ${CPUS:-16} ${EVALUATE_OPTIONS:-}"
  for part in $(seq "$parts"); do
    ray job submit --entrypoint-num-cpus "${CPUS:-16}" -- $evaluate --shard "$part/$parts" --out "$OUT/calvin/part-$part" &
  done
  wait
  mkdir -p "$OUT/calvin/all"
  cat "$OUT"/calvin/part-*/episodes.jsonl > "$OUT/calvin/all/episodes.jsonl"
  $evaluate --out "$OUT/calvin/all"
fi
