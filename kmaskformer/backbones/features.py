"""What every backbone returns: four feature maps, by name and stride."""

from __future__ import annotations

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
"""Pixels of the image per pixel of each feature map, in either direction."""

FEATURES = tuple(STRIDES)
