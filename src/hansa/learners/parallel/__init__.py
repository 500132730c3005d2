"""PyTorch modules trained by a gang: data, fully sharded, tensor and pipeline parallel, all of them PyTorch's own."""
