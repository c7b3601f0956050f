"""What images are generated from: prompts, seeds, and the settings of a text-to-image pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mame_lab.data.paths import refuse_empty
from mame_lab.data.text_files import read_lines
from mame_lab.errors import MameLabError

SHIPPED = Path(__file__).with_name("prompts.txt")


class Request(NamedTuple):
    """One image to generate."""

    prompt: str
    seed: int


@dataclass
class Prompts:
    """Every prompt with every seed is one image.

    Args:
        name: a key of `mame_lab.data.DATASETS`.
        file: a text file, a prompt a line; a line that begins with # is a comment. None: eight that ship.
        count: the first so many prompts of it; None: all.
        seeds: of the noise that an image starts from.
        steps: denoising steps.
        guidance: scale of classifier-free guidance; 1 or less is none.
        negative: what the unguided half is told instead of nothing.
        height, width: of the image in pixels. None: the pipeline's own.
        metrics: judgements by other networks, whose weights are fetched: of lpips and clip_score. One whose weights
            are not at hand is left out, with a warning.
        reference: a folder of real images, to measure the FID against (over a few thousand images; fewer are no FID).
    """

    name: str = "prompts"
    file: str | None = None
    count: int | None = 4
    seeds: list[int] = field(default_factory=lambda: [0])
    steps: int = 50
    guidance: float = 7.5
    negative: str = ""
    height: int | None = None
    width: int | None = None
    metrics: list[str] = field(default_factory=lambda: ["lpips", "clip_score"])
    reference: str | None = None

    def __post_init__(self) -> None:
        refuse_empty(file=self.file, reference=self.reference)
        for key in ("count", "steps", "height", "width"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise MameLabError(f"dataset.{key}={getattr(self, key)} is not positive: set it to 1 or more")
        if not self.seeds:
            raise MameLabError("dataset.seeds=[] gives no image: give one seed or more, such as [0]")
        if self.reference is not None and not Path(self.reference).expanduser().is_dir():
            raise MameLabError(f"dataset.reference={self.reference} is no folder: give one of real images, or null")
        if unknown := set(self.metrics) - {"lpips", "clip_score"}:
            raise MameLabError(f"dataset.metrics={sorted(unknown)} is not known: choose from lpips, clip_score")

    def requests(self) -> list[Request]:
        """The images to generate.

        Raises:
            MameLabError: the file cannot be read or holds no prompt.
        """
        lines = read_lines(Path(self.file or SHIPPED).expanduser(), f"dataset.file={self.file}")
        prompts = [prompt for line in lines if (prompt := line.strip()) and not prompt.startswith("#")][: self.count]
        if not prompts:
            raise MameLabError(f"dataset.file={self.file} holds no prompt: write one a line")
        return [Request(prompt, seed) for prompt in prompts for seed in self.seeds]

    def options(self) -> dict[str, Any]:
        """What a diffusers pipeline is called with besides the prompt and the noise."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "negative_prompt": self.negative,
            "height": self.height,
            "width": self.width,
        }
