"""The commands of `hf-fst`, a file each: a function whose signature is what it takes and whose docstring is its help."""
