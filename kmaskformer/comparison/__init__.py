"""The paper's claim, run again: mask classification against per-pixel classification, and its ablations."""
