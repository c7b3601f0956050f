"""How a transformers classifier is made, and which weights it gets: a folder's, a file's, the hub's, or random."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import ModelOutput

from mame_lab.errors import MameLabError
from mame_lab.models import tensor_file
from mame_lab.models.base import Family
from mame_lab.models.hub import in_one_line, no_retries_offline
from mame_lab.models.settings import ModelSettings
from mame_lab.models.transformers.preprocessing import preprocessing_of
from mame_lab.models.transformers.support import ARCHITECTURES, SUPPORTED, architecture_of, backbone_of, check
from mame_lab.models.weights import check_fit, read_weights


class Loading(Family):
    """The part of the family that loads models."""

    def load(self, settings: ModelSettings) -> PreTrainedModel:
        """See `Family.load`. Called with a tensor, the classifier gives logits as a tensor.

        Weights without a head make a backbone. Where there is a config.json, `model.args` come on top of what it says;
        elsewhere they are all, `model_type` among them.
        """
        source = _source(settings)
        if source is None and settings.weights is None:
            return self.build(settings)
        state = None if source else read_weights(str(settings.weights))
        if state is not None and settings.num_classes is None:
            settings = replace(settings, num_classes=len(state.get("classifier.weight", ())))
        origin = f"model.weights={settings.weights}" if settings.weights else f"model.name={settings.name}"
        model, found = _read(settings, source, state, origin)
        architecture, size = architecture_of(model), backbone_of(model).config.image_size
        if settings.img_size not in (None, size) and not architecture.any_size:
            raise MameLabError(
                f"model.img_size={settings.img_size} does not fit {origin}, whose position embedding is for {size} px: "
                f"leave it out"
            )
        headless = () if model.num_labels else ("classifier.",)
        ignored = architecture.ignored_tensors + headless
        misfits = {
            "has other shapes in": [name for name, *_ in found["mismatched_keys"] if not name.startswith(headless)],
            "lacks": [key for key in found["missing_keys"] if not key.startswith(headless)],
            "has unknown": [key for key in found["unexpected_keys"] if not key.startswith(ignored)],
        }
        check_fit(origin, {kind: sorted(keys) for kind, keys in misfits.items()})
        return _finished(model, settings)

    def build(self, settings: ModelSettings) -> PreTrainedModel:
        """See `Family.build`."""
        source = _source(settings)
        try:
            with _fetching(source):
                config = _config(settings, source)
        except OSError:
            config = _config(settings, None)
        classifier, any_size = _classifier_of(config)
        if settings.img_size is not None and not any_size:
            getattr(config, "vision_config", config).image_size = settings.img_size
        headless = _with_head(config)
        try:
            model = classifier(config)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MameLabError(f"model.name={settings.name} rejects {settings.args}: {in_one_line(error)}") from error
        if headless:
            _give_head(model, 0)
        return _finished(model, settings)

    def load_weights(self, model: Any, state: dict[str, Tensor], origin: str, head_of_file: bool = True) -> None:
        """See `Family.load_weights`. The tensors have the names that the model has."""
        if head_of_file:
            _give_head(model, len(state["classifier.weight"]) if "classifier.weight" in state else 0)
        elif model.num_labels == 0:
            state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
        try:
            mismatch = model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise MameLabError(
                f"{origin} does not fit the model, choose the one it was made for: {in_one_line(error)}"
            ) from error
        check_fit(origin, {"lacks": mismatch.missing_keys, "has unknown": mismatch.unexpected_keys})

    def match_classes(self, model: Any, classes: int) -> bool:
        """See `Family.match_classes`."""
        fits = model.num_labels == classes
        if not fits:
            _give_head(model, classes)
        return not fits

    def data_config(self, model: Any) -> dict[str, Any]:
        """See `Family.data_config`."""
        return dict(model.preprocessing)


def _read(settings: ModelSettings, source: str | None, state: dict[str, Tensor] | None, origin: str) -> Any:
    """The model with the weights of `source`, or of `state`, and which of them fit."""
    try:
        with _fetching(source):
            config = _config(settings, source)
            headless = _with_head(config)
            model, found = _classifier_of(config)[0].from_pretrained(
                source,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except MameLabError:
        raise
    except Exception as error:
        if settings.weights is not None and source is not None:
            tensor_file.check_folder(source, "model.weights")
        raise MameLabError(
            f"the weights of {origin} cannot be read or fetched ({in_one_line(error)}): give a local folder or file "
            f"with model.weights=FOLDER, or take random weights with model.pretrained=false"
        ) from error
    if headless or (settings.num_classes is None and "classifier.weight" in found["missing_keys"]):
        _give_head(model, 0)
    return model, found


def _source(settings: ModelSettings) -> str | None:
    """The folder, or the repository of the hub, that holds configuration and weights."""
    if settings.weights is not None:
        return settings.weights if Path(settings.weights).is_dir() else None
    return settings.name if settings.pretrained else None


def _config(settings: ModelSettings, source: str | None) -> PreTrainedConfig:
    """That of config.json with `model.args` on top, though its classes remain; without a source, these alone."""
    args = settings.args
    if source is None and "model_type" not in args:
        raise MameLabError(
            f"model.name={settings.name} has no config.json here: give model.weights=FOLDER, or in model.args what it "
            f"says, model_type among it"
        )
    asked: dict[str, Any] = {} if settings.num_classes is None else {"num_labels": settings.num_classes}
    on_top = {key: value for key, value in args.items() if key not in ("model_type", "num_labels")} | asked
    try:
        if source is None:
            config = AutoConfig.for_model(**args | asked)
        else:
            config = AutoConfig.from_pretrained(source, **on_top)
    except (ValueError, TypeError) as error:
        raise MameLabError(f"model.name={settings.name} rejects {args}: {in_one_line(error)}") from error
    unknown = [key for key in args if not hasattr(type(config)(), key)]
    if unknown:
        raise MameLabError(f"model.args.{unknown[0]} is not known to transformers' {type(config).__name__}")
    return config


def _classifier_of(config: PreTrainedConfig) -> tuple[type[Any], bool]:
    """The class of a classifier with this configuration, and whether it takes images of any size."""
    for architecture in ARCHITECTURES:
        if architecture.classifier and type(config) is architecture.classifier[0].config_class:
            return architecture.classifier[0], architecture.any_size
    raise MameLabError(f"model.args.model_type={config.model_type} is not supported: choose from {SUPPORTED}")


def _with_head(config: PreTrainedConfig) -> bool:
    """Give the configuration a class if it has none, as not every model can be made so. Returns whether it had none."""
    headless = not config.num_labels
    config.num_labels = config.num_labels or 1
    return headless


def _give_head(model: Any, classes: int) -> None:
    width = architecture_of(model).width * backbone_of(model).config.hidden_size
    model.classifier = nn.Linear(width, classes) if classes else nn.Identity()
    model.classifier.to(model.device, model.dtype)
    model._init_weights(model.classifier)
    model.num_labels = model.config.num_labels = classes


def _finished(model: Any, settings: ModelSettings) -> PreTrainedModel:
    check(model)
    source, published = _source(settings), architecture_of(model).preprocessing
    with _fetching(source):
        model.preprocessing = preprocessing_of(backbone_of(model).config, published, source, settings.img_size)
    model.register_forward_hook(_logits)
    return model


def _logits(model: PreTrainedModel, inputs: tuple, output: ModelOutput) -> Tensor:
    return output.logits


@contextmanager
def _fetching(source: str | None) -> Iterator[None]:
    """No reports, for what does not fit is an error here; and no retries where the hub does not answer."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    local = source is None or Path(source).is_dir()
    logging.set_verbosity_error()
    if local:
        logging.disable_progress_bar()
    try:
        with nullcontext() if local else no_retries_offline():
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
