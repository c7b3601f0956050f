"""Token merging as tensor mathematics: it knows no model."""

from mame_lab.merging.mame import MaMe
from mame_lab.merging.method import Method

METHODS: dict[str, type[Method]] = {"mame": MaMe}
