"""What transformers' models expect of their images and videos."""

from collections.abc import Iterable
from typing import Any

from transformers import AutoImageProcessor, PreTrainedConfig

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by PIL's numbers


def preprocessing_of(
    config: PreTrainedConfig, published: dict[str, Any], source: str | None, img_size: int | None
) -> dict[str, Any]:
    """The arguments of `data.preprocessing.Preprocessing`.

    Args:
        config: of the backbone.
        published: what the published models of its type expect: "size" is that of the model.
        source: a folder or a repository of the hub with a preprocessor_config.json, which goes before `published`.
        img_size: in pixels, instead of the size that the preprocessing has.
    """
    found = None if source is None else _stored(source)
    if found is None:
        found = published | {"size": sides(config.image_size)}
    if img_size is not None:
        found["size"] = (img_size, img_size)
    return found | ({"frames": config.num_frames} if hasattr(config, "num_frames") else {})


def sides(size: int | Iterable[int]) -> tuple[int, ...]:
    """Height and width, of which a configuration may give one where they are equal."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _stored(source: str) -> dict[str, Any] | None:
    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        return None
    resized = processor.size
    squash = resized.shortest_edge is None
    height, width = (resized.height, resized.width) if squash else (resized.shortest_edge,) * 2
    crop = processor.crop_size if processor.do_center_crop else None
    size = (crop.height, crop.width) if crop else (height, width)
    return {
        "size": size,
        "mean": tuple(processor.image_mean),
        "std": tuple(processor.image_std),
        "interpolation": INTERPOLATIONS[int(processor.resample)],
        "crop_pct": size[0] / height,
        "crop_mode": "squash" if squash else "center",
    }
