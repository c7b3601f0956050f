"""Token merging as tensor mathematics, and the methods by name."""

from mame_lab.merging.baselines import Drop, ToMe, ToMeSD
from mame_lab.merging.mame import MaMe
from mame_lab.merging.method import Method
from mame_lab.merging.ward import Ward

METHODS: dict[str, type[Method]] = {"ward": Ward, "paper": MaMe, "tome": ToMe, "tomesd": ToMeSD, "drop": Drop}
