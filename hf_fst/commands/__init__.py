"""The commands of `hf-fst`, a file each: `add(commands)` says how one is called, the rest is what it does."""
