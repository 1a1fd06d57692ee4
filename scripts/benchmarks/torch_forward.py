"""Run by another Python, with torch and transformers: one forward pass for each line that comes in.

Weights are random. ResNet means ResNet-50 and Swin means Swin-T; prints the seconds of each pass.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig, SwinConfig


def main() -> None:
    setting = json.loads(sys.argv[1])
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = {"resnet": ResNetConfig, "swin": SwinConfig}[setting["backbone"]](out_features=stages)
    config = MaskFormerConfig(backbone_config=backbone, num_labels=setting["num_classes"], use_auxiliary_loss=False)
    model = MaskFormerForInstanceSegmentation(config).eval()
    height, width = (-(-side // 32) * 32 for side in setting["size"])
    pixels = torch.zeros(1, 3, height, width)
    with torch.inference_mode():
        for _ in sys.stdin:
            start = time.perf_counter()
            model(pixel_values=pixels)
            print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
