"""Small real open_clip models of random weights, and a tokenizer made here: zero-shot without a network."""

import json
from pathlib import Path

import open_clip
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEXT = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
TOWER = {"timm_model_name": "test_vit", "image_size": 160}  # 6 blocks of 64 channels, patches of 16 px
SIGLIP = {
    "embed_dim": 64,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": TOWER | {"timm_pool": "map", "timm_proj": "none"},
    "text_cfg": TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}
# With CLIP's own tokenizer, and the projection outside or inside of the timm model.
CLIP = {
    "embed_dim": 48,
    "vision_cfg": TOWER | {"timm_pool": "token", "timm_proj": "linear"},
    "text_cfg": TEXT | {"vocab_size": 49408},
}
PERCEPTION = CLIP | {"custom_text": True, "vision_cfg": TOWER | {"timm_pool": "map", "timm_proj": None}}
MODELS = {"tiny-siglip": SIGLIP, "tiny-clip": CLIP, "tiny-perception": PERCEPTION}


def register(folder: Path) -> Path:
    """Make the models known to open_clip. Returns the folder of the tokenizer that tiny-siglip names as its own."""
    letters = ["<pad>", "<unk>", *" _abcdefghijklmnopqrstuvwxyz0123456789"]
    made = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(letters)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(folder / "tokenizer")
    for name, config in MODELS.items():
        own = {"hf_tokenizer_name": str(folder / "tokenizer")} if name == "tiny-siglip" else {}
        (folder / f"{name}.json").write_text(json.dumps(config | {"text_cfg": config["text_cfg"] | own}))
    open_clip.add_model_config(folder)
    return folder / "tokenizer"
