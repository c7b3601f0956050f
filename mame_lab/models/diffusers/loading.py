"""How a pipeline is made: from a hub, from a local folder, or with random weights and a tokenizer of single bytes."""

import warnings
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.auto_pipeline import AutoPipelineForText2Image
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.tokenization_clip import pre_tokenizers

from mame_lab.errors import MameLabError
from mame_lab.models import tensor_file
from mame_lab.models.diffusers.support import transformers_of, unet_of
from mame_lab.models.hub import in_one_line, no_retries_offline
from mame_lab.models.settings import ModelSettings

PARTS = ("unet", "vae", "text_encoder", "scheduler")


def load(settings: ModelSettings) -> Any:
    """The pipeline that the settings describe.

    Raises:
        MameLabError: it cannot be fetched or read, or its random form is not described.
        UnsupportedModelError: its U-Net cannot be merged.
    """
    for key in ("num_classes", "img_size"):
        if getattr(settings, key) is not None:
            raise MameLabError(f"model.{key}={getattr(settings, key)} is not for a pipeline: leave it out")
    if settings.weights is not None:
        pipe = _read(settings.weights, f"model.weights={settings.weights}", local=True)
    elif settings.pretrained:
        pipe = _read(settings.name, f"model.name={settings.name}", local=False)
    else:
        pipe = build(settings)
    transformers_of(unet_of(pipe))
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None  # It blackens images, perhaps those of one arm alone.
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build(settings: ModelSettings) -> StableDiffusionPipeline:
    """A pipeline of diffusers' own classes with random weights, of the sizes in `model.args`.

    Its tokenizer knows single bytes and no words: any prompt becomes a sequence of them.
    """
    if set(settings.args) != set(PARTS):
        raise MameLabError(
            f"model.name={settings.name} with model.pretrained=false needs model.args.{', '.join(PARTS)}: choose "
            f"model=sd21 or model=sd_mini, which have them, or give a local pipeline with model.weights=FOLDER"
        )
    tokenizer = byte_tokenizer()
    ends: dict[str, Any] = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(**settings.args["unet"]).eval(),
        "vae": AutoencoderKL(**settings.args["vae"]).eval(),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**settings.args["text_encoder"], **ends)).eval(),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(**settings.args["scheduler"]),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def byte_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer without a merge of two bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: index for index, word in enumerate(words)}, [], model_max_length=77)


def _read(source: str, said: str, local: bool) -> DiffusionPipeline:
    if local and not Path(source).is_dir():
        raise MameLabError(f"{said} is no folder: give one that diffusers' save_pretrained wrote")
    if local and not (Path(source) / "model_index.json").is_file():
        raise MameLabError(f"{said} holds no pipeline: give a folder that diffusers' save_pretrained wrote")
    try:
        with no_retries_offline(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Of an argument that diffusers hands to the hub.
            return AutoPipelineForText2Image.from_pretrained(source, local_files_only=local)
    except Exception as error:
        if local:
            tensor_file.check_folder(source, "model.weights")
        raise MameLabError(
            f"{said} cannot be loaded ({in_one_line(error)}): give a local pipeline with model.weights=FOLDER, or take "
            f"random weights with model=sd_mini or model=sd21 model.pretrained=false"
        ) from error
