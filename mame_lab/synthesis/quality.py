"""How near generated images are to others of the same prompt and seed, and how sharp they are.

B images, 3HW: RGB from 0 to 1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from mame_lab.data.folders import ImageFiles, LeftOut, images_below
from mame_lab.errors import MameLabError
from mame_lab.models.hub import no_retries_offline

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

LUMA = (0.299, 0.587, 0.114)
CLIP = "openai/clip-vit-base-patch16"


def likeness(images_B3HW: Tensor, originals_B3HW: Tensor) -> dict[str, float]:
    """Means over the images of PSNR (dB; equal images count as 100) and SSIM (Wang et al. 2004) against originals."""
    psnr_B = peak_signal_noise_ratio(images_B3HW, originals_B3HW, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(images_B3HW, originals_B3HW, data_range=1.0)
    assert isinstance(psnr_B, Tensor)
    assert isinstance(ssim, Tensor)
    return {"psnr_db": psnr_B.clamp(max=100).mean().item(), "ssim": ssim.item()}


def high_frequency_energy(images_B3HW: Tensor) -> float:
    """Share of a luminance's spectral power, its mean left out, that lies above half the Nyquist frequency; mean."""
    luma_BHW = (images_B3HW.double() * torch.tensor(LUMA).view(3, 1, 1)).sum(1)
    power_BHW = torch.fft.fft2(luma_BHW - luma_BHW.mean((1, 2), keepdim=True)).abs().square()
    row_H, column_W = (torch.fft.fftfreq(side).abs() for side in luma_BHW.shape[1:])
    high_HW = torch.maximum(row_H[:, None], column_W) > 0.25
    total_B = power_BHW.sum((1, 2)).clamp(min=torch.finfo(torch.double).tiny)
    return (power_BHW[:, high_HW].sum(1) / total_B).mean().item()


class ImageMetrics:
    """Metrics that are networks: those of `names` whose weights are at hand; a warning names the others."""

    def __init__(self, names: Sequence[str]) -> None:
        makers = {"lpips": _lpips, "clip_score": _clip_score}
        self.metrics = {name: metric for name in names if (metric := _made(name, makers[name])) is not None}

    def __call__(self, images_B3HW: Tensor, originals_B3HW: Tensor, prompts: Sequence[str]) -> dict[str, float]:
        """LPIPS from the originals and the CLIP score with the prompts, as far as they are at hand."""
        scores = {}
        if "lpips" in self.metrics and images_B3HW is not originals_B3HW:
            scores["lpips"] = float(self.metrics["lpips"](images_B3HW, originals_B3HW))
        if "clip_score" in self.metrics:
            scores["clip_score"] = float(self.metrics["clip_score"]((images_B3HW * 255).byte(), list(prompts)))
        return scores


def fid(images_B3HW: Tensor, folder: str) -> float | None:
    """The Frechet inception distance (Heusel et al. 2017) from the images in a folder; None where its weights lack."""
    root, left_out = Path(folder).expanduser(), LeftOut()
    reference = ImageFiles([(path, 0) for path in images_below(root, left_out)], [])
    left_out.announce("dataset.reference", root)
    if len(reference) < 2:
        raise MameLabError(f"dataset.reference={folder} holds {len(reference)} images: give a folder of real images")
    metric = _made("fid", _fid)
    if metric is None:
        return None
    for real, images in ((True, (_pixels(image) for image, _ in reference)), (False, images_B3HW.split(1))):
        for image_13HW in images:
            metric.update(image_13HW, real=real)
    return float(metric.compute())


def _made(name: str, make: Any) -> Any:
    try:
        with no_retries_offline():
            return make()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("%s is left out, its network cannot be had: %s", name, reason)
        return None


def _lpips() -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity("alex", normalize=True)


def _clip_score() -> Any:
    from torchmetrics.multimodal.clip_score import CLIPScore

    return CLIPScore(CLIP)


def _fid() -> Any:
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(normalize=True)


def _pixels(image: Image) -> Tensor:
    """RGB from 0 to 1, as a batch of one."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(image)[None].float() / 255
