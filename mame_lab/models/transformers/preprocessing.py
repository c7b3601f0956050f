"""What transformers' models expect of their images and videos."""

from typing import Any

from transformers import AutoImageProcessor, PreTrainedConfig

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# Of the published models; "size" is that of the model.
PUBLISHED = {
    "vit": {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"},
    "dinov2": IMAGENET | {"interpolation": "bicubic", "crop_pct": 224 / 256, "crop_mode": "center"},
    "videomae": IMAGENET | {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"},
}
PUBLISHED["dinov2_with_registers"] = PUBLISHED["dinov2"]
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by PIL's numbers


def preprocessing_of(config: PreTrainedConfig, source: str | None, img_size: int | None) -> dict[str, Any]:
    """The arguments of `data.preprocessing.Preprocessing`.

    Args:
        config: of the model.
        source: a folder or a repository of the hub with a preprocessor_config.json; where there is none, the model is
            taken to expect what the published ones of its type do.
        img_size: in pixels, instead of the size that the preprocessing has.
    """
    found = None if source is None else _published(source)
    if found is None:
        size = config.image_size
        found = PUBLISHED[config.model_type] | {"size": (size, size) if isinstance(size, int) else tuple(size)}
    if img_size is not None:
        found["size"] = (img_size, img_size)
    return found | ({"frames": config.num_frames} if hasattr(config, "num_frames") else {})


def _published(source: str) -> dict[str, Any] | None:
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
