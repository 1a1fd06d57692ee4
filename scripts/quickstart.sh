#!/usr/bin/env bash
# From nothing to a trained model: install into .venv, train on generated scenes, evaluate, predict and export.
# `--smoke` does the same with a handful of steps, so that the tests can keep this script honest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh tensorboard
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
# On x86 processors without AVX-512 TensorFlow leaves oneDNN off, with which a training step took two thirds of the time.
export TF_ENABLE_ONEDNN_OPTS="${TF_ENABLE_ONEDNN_OPTS:-1}"
output=runs/quickstart
recipe=(--config configs/shapes/panoptic/maskformer_resnet18.yaml)
if [ "${1:-}" = "--smoke" ]; then
    output=runs/quickstart_smoke # the full run would take its model for a trained one
    recipe+=(--set training.steps=4 training.evaluate_every=4 training.checkpoint_every=2 data.train.count=16
        data.val.count=4 data.batch_size=4)
fi
output="${QUICKSTART_OUTPUT:-$output}"
python=.venv/bin/python
echo "Training on generated scenes; the run's folder is $output"
if [ -f "$output/model.keras" ]; then
    echo "$output/model.keras is there already: training is skipped. Delete $output to train anew."
else
    "$python" scripts/train.py "${recipe[@]}" --output "$output" --resume
fi
"$python" scripts/evaluate.py "${recipe[@]}" --weights "$output" --output "$output/evaluation" \
    > "$output/evaluation.txt"
"$python" scripts/draw_samples.py "${recipe[@]}" --split val --count 4 --output "$output/samples"
"$python" scripts/predict.py --weights "$output" --input "$output/samples" --output "$output/predictions" --task panoptic
"$python" scripts/export.py --weights "$output" --output "$output/saved_model" --task panoptic
grep -E "^(panoptic/PQ|semantic/mIoU) " "$output/evaluation.txt"
echo "Contact sheet (image, truth, prediction): $output/evaluation/predictions.png"
echo "SavedModel (images or files in, panoptic map and segment table out): $output/saved_model"
echo "Weights for scripts/predict.py: $output/model.keras"
