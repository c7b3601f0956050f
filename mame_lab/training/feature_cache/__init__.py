"""The frozen part of a model, computed once for every sample and cached on disk."""
