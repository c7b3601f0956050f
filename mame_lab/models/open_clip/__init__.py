"""open_clip's image towers with a zero-shot head: SigLIP, SigLIP2, Perception Encoder, EVA-02-CLIP, MobileCLIP-B.

A tower is timm's own transformer, so merging in it is that of the timm family; only its head is made here.
"""

from mame_lab.models.open_clip.loading import OpenClip

FAMILY = OpenClip()
