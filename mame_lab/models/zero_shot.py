"""A head that knows its classes by their names: logits are the likeness of an image's feature to each class's text.

B batch, C channels, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ZeroShotHead(nn.Module):
    """The head of a contrastive image-text model. Only the projection trains; all else comes from the text side.

    Args:
        projection: from the pooled tokens to where the texts are.
        scale: what the cosine of image and text is multiplied by, with one element.
        bias: what is then added, with one element.
    """

    text_KC: Tensor  # one unit vector a class
    scale: Tensor
    bias: Tensor

    def __init__(self, projection: nn.Module, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.projection = projection
        self.register_buffer("text_KC", torch.empty(0, 0))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @property
    def out_features(self) -> int:
        return len(self.text_KC)

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.scale * (F.normalize(self.projection(x_BC), dim=-1) @ self.text_KC.T) + self.bias
