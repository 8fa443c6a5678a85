"""What is measured: kernels, decoding, the quality of decoders, training."""
