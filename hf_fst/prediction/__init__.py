"""Working with a trained model: predictions as files, pseudo-labels in bulk, ONNX, and a page to try it on."""
