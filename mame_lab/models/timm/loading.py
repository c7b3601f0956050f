"""How a timm model is made, and which weights it gets: a local file's, the published ones, or random."""

import difflib
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import timm
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from mame_lab.errors import MameLabError
from mame_lab.models.base import Family
from mame_lab.models.hub import in_one_line, no_retries_offline
from mame_lab.models.settings import ModelSettings
from mame_lab.models.timm.support import architecture_of, check
from mame_lab.models.weights import check_fit, read_weights


class Loading(Family):
    """The part of the family that loads models."""

    def load(self, settings: ModelSettings) -> nn.Module:
        """See `Family.load`."""
        if settings.weights is not None:
            model = self.build(settings)
            origin = f"model.weights={settings.weights}"
            self.load_weights(model, read_weights(settings.weights), origin, head_of_file=settings.num_classes is None)
            return model
        return _create(settings, fetch=settings.pretrained)

    def build(self, settings: ModelSettings) -> nn.Module:
        """See `Family.build`."""
        return _create(settings, fetch=False)

    def load_weights(self, model: Any, state: dict[str, Tensor], origin: str, head_of_file: bool = True) -> None:
        """Load all tensors into the model, the position embedding resampled to its image size.

        timm resamples it with antialiasing, and the original DINOv2 without: for a ViT-S/14 trained at 518 px and run
        at 224 px that alone gives class tokens a cosine of 0.999 with the original's, and patch tokens one of 0.998.

        The tensors have their names in timm's layout or another that timm knows. See `Family.load_weights`.
        """
        try:
            state = import_module(architecture_of(model).transformer[0].__module__).checkpoint_filter_fn(state, model)
            if head_of_file:
                model.reset_classifier(len(state["head.weight"]) if "head.weight" in state else 0)
            elif model.num_classes == 0:
                state = {key: value for key, value in state.items() if not key.startswith("head.")}
            mismatch = model.load_state_dict(state, strict=False)
        except (RuntimeError, KeyError, ValueError) as error:
            raise MameLabError(
                f"{origin} does not fit the model, choose the one it was made for: {in_one_line(error)}"
            ) from error
        check_fit(origin, {"lacks": mismatch.missing_keys, "has unknown": mismatch.unexpected_keys})

    def data_config(self, model: Any) -> dict[str, Any]:
        """See `Family.data_config`."""
        config = resolve_model_data_config(model)
        size: Any = model.patch_embed.img_size or config["input_size"][1:]
        config["size"] = tuple(size)
        del config["input_size"]
        return config


def _create(settings: ModelSettings, fetch: bool) -> nn.Module:
    """With random weights, or the published ones if `fetch`."""
    architecture = settings.name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(["vit_*", "deit*", "eva*"]), n=4)
        raise MameLabError(f"model.name={settings.name} is not a timm model; near matches: {', '.join(near) or 'none'}")
    options: dict[str, Any] = {"num_classes": settings.num_classes, "img_size": settings.img_size}
    options = {key: value for key, value in options.items() if value is not None} | settings.args
    try:
        with no_retries_offline() if fetch else nullcontext():
            model = timm.create_model(settings.name, pretrained=fetch, **options)
    except Exception as error:
        if fetch and not isinstance(error, TypeError):
            raise MameLabError(
                f"the pretrained weights of model.name={settings.name} cannot be fetched ({in_one_line(error)}): "
                f"give a local file with model.weights=FILE, or take random weights with model.pretrained=false"
            ) from error
        raise MameLabError(f"model.name={settings.name} rejects {options}: {in_one_line(error)}") from error
    check(model)
    if options.get("in_chans", 3) != 3 or not model.global_pool:
        raise MameLabError(f"model.name={settings.name} with {options} takes no RGB image or gives no feature of it")
    return model
