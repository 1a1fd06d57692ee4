"""Name map between this package's weights and Hugging Face's `MaskFormerForInstanceSegmentation`.

The names are those on disk. Newer versions of transformers use others in memory (`o_proj` for `out_proj`, `mlp.fc1` for
`fc1` or `intermediate.dense`), which are understood too.
"""

from __future__ import annotations

import re

from kmaskformer.checkpoints.loading import NameMap, Source

PIXEL_LEVEL = "model.pixel_level_module"
TRANSFORMER = "model.transformer_module"

# Bookkeeping, the class weights of the loss, and the norm after Swin's last stage, which only image classifiers use.
IGNORED = re.compile(
    r"(relative_position_index|position_ids|num_batches_tracked|criterion\.empty_weight"
    r"|pixel_level_module\.encoder\.model\.layernorm\.(weight|bias))$"
)

_BACKBONE = (
    (r"^backbone/stem/conv1/", "backbone/embedder/embedder/conv/"),
    (r"^backbone/res(\d)/(\d+)/", lambda m: f"backbone/encoder/stages/{int(m[1]) - 2}/layers/{m[2]}/"),
    (r"/layers/(\d+)/conv(\d)/", lambda m: f"/layers/{m[1]}/layer/{int(m[2]) - 1}/conv/"),
    (r"/shortcut/", "/shortcut/conv/"),
    (r"^backbone/(.*)/conv/norm/", r"backbone/\1/normalization/"),
    (r"^backbone/(.*)/conv/", r"backbone/\1/convolution/"),
    (r"^backbone/patch_embed/proj/", "backbone/embeddings/patch_embeddings/projection/"),
    (r"^backbone/patch_embed/norm/", "backbone/embeddings/norm/"),
    (r"^backbone/layers_(\d+)/", r"backbone/encoder/layers/\1/"),
    (r"/blocks_(\d+)/", r"/blocks/\1/"),
    (r"/blocks/(\d+)/norm1/", r"/blocks/\1/layernorm_before/"),
    (r"/blocks/(\d+)/norm2/", r"/blocks/\1/layernorm_after/"),
    (r"/attn/proj/", "/attention/output/dense/"),
    (r"/attn/", "/attention/self/"),
    (r"/blocks/(\d+)/mlp/fc1/", r"/blocks/\1/intermediate/dense/"),
    (r"/blocks/(\d+)/mlp/fc2/", r"/blocks/\1/output/dense/"),
)
_PARTS = (
    *_BACKBONE,
    (r"^backbone/norm(\d)/", f"{PIXEL_LEVEL}/encoder/hidden_states_norms/\\1/"),
    (r"^backbone/(?=embeddings/|encoder/layers/)", f"{PIXEL_LEVEL}/encoder/model/"),
    (r"^backbone/", f"{PIXEL_LEVEL}/encoder/"),
    (r"^pixel_decoder/mask_features/", f"{PIXEL_LEVEL}/decoder/mask_projection/"),
    (r"^pixel_decoder/layer_4/norm/", f"{PIXEL_LEVEL}/decoder/fpn/stem/1/"),
    (r"^pixel_decoder/layer_4/", f"{PIXEL_LEVEL}/decoder/fpn/stem/0/"),
    (r"^pixel_decoder/(layer|adapter)_(\d)/(norm/)?", lambda m: _fpn_layer(m[1], int(m[2]), bool(m[3]))),
    (r"^transformer_decoder/query_embedding$", f"{TRANSFORMER}/queries_embedder/weight"),
    (r"^transformer_decoder/input_projection/", f"{TRANSFORMER}/input_projection/"),
    (r"^transformer_decoder/decoder/norm/", f"{TRANSFORMER}/decoder/layernorm/"),
    (r"^transformer_decoder/decoder/layer_(\d+)/", f"{TRANSFORMER}/decoder/layers/\\1/"),
    (r"/self_attention/", "/self_attn/"),
    (r"/cross_attention/", "/encoder_attn/"),
    (r"/(query|key|value)_projection/", lambda m: f"/{m[1][0]}_proj/"),
    (r"/output_projection/", "/out_proj/"),
    (r"/decoder/layers/(\d+)/linear", r"/decoder/layers/\1/fc"),
    (r"/decoder/layers/(\d+)/norm1/", r"/decoder/layers/\1/self_attn_layer_norm/"),
    (r"/decoder/layers/(\d+)/norm2/", r"/decoder/layers/\1/encoder_attn_layer_norm/"),
    (r"/decoder/layers/(\d+)/norm3/", r"/decoder/layers/\1/final_layer_norm/"),
    (r"^class_head/", "class_predictor/"),
    (r"^mask_head/linear_(\d)/", r"mask_embedder/\1/0/"),
)
_LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "scale": "weight",
    "beta": "bias",
    "offset": "bias",
    "mean": "running_mean",
    "moving_mean": "running_mean",
    "variance": "running_var",
    "moving_variance": "running_var",
}
_IN_MEMORY = (
    (r"\.o_proj\.", ".out_proj."),
    (r"(transformer_module\.decoder\.layers\.\d+)\.mlp\.", r"\1."),
    (r"\.attention\.out_proj\.", ".attention.output.dense."),
    (r"\.attention\.([qkv])_proj\.", lambda m: f".attention.self.{_QKV[m[1]]}."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
)
_QKV = {"q": "query", "k": "key", "v": "value"}


def huggingface_source(path: str) -> Source:
    """Names under which Hugging Face keeps a weight.

    Args:
        path: Path of the weight within the model, such as `backbone/res2/0/conv1/kernel`.
    """
    return _source(path, _PARTS)


def huggingface_backbone_source(path: str) -> Source:
    """Names of a backbone's weight in `microsoft/resnet-50`, `microsoft/swin-tiny-patch4-window7-224` and the like."""
    source = _source(path, _BACKBONE)
    return Source(tuple(key.removeprefix("backbone.") for key in source.keys))


def canonical_name(name: str) -> str:
    """The name on disk of a parameter that is given by its name on disk or in memory."""
    for pattern, replacement in _IN_MEMORY:
        name = re.sub(pattern, replacement, name)
    return name


def _source(path: str, parts: tuple) -> Source:
    for pattern, replacement in parts:
        path = re.sub(pattern, replacement, path)
    *parents, leaf = path.split("/")
    key = ".".join([*parents, _LEAVES.get(leaf, leaf)])
    if ".attention.self.qkv." in key:
        return Source(tuple(key.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")))
    return Source((key,))


def _fpn_layer(kind: str, index: int, is_norm: bool) -> str:
    part = "block" if kind == "layer" else "proj"
    return f"{PIXEL_LEVEL}/decoder/fpn/layers/{3 - index}/{part}/{int(is_norm)}/"


HUGGINGFACE_MAP = NameMap("Hugging Face MaskFormer", huggingface_source, canonical_name, IGNORED)
