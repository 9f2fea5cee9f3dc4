"""The metric module for `evaluate`: `evaluate.load(hf_fst.evaluation.MEAN_IOU)`."""
