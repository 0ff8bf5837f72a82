"""Define the parts of a multimodal model that training can freeze."""

from __future__ import annotations

PARTS = {
    "vision": r"^model\.(visual\.(?!(deepstack_)?merger)|vision_tower\.)",
    "audio": r"^model\.audio_tower\.(?!proj\.)",
    "projector": r"^model\.(visual\.(deepstack_)?merger|multi_modal_projector\.|audio_tower\.proj\.)",
    "language": r"^(model\.(language_model\.)?(embed_tokens|layers|norm)\.|lm_head\.)",
}
"""Maps each part of a model that can be frozen to a regular expression for its parameter names in all supported
architectures. These are Qwen2-VL, 2.5-VL, 3-VL, 2.5-Omni, InternVL, Qwen and Llama. Every parameter matches exactly one
of the expressions."""
