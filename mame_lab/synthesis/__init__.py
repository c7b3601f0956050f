"""Images of a text-to-image pipeline with and without merging: their speed, their likeness, and a contact sheet."""
