"""The training of a run: what trains, from which batches, and how it resumes."""
