"""hf_fst: Learning from Future, look-ahead teachers for self-training in semantic segmentation."""
