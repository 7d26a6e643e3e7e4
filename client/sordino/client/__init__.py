"""What runs on a device: the quantized base, LoRA, private training, the data."""
