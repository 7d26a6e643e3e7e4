"""The frozen, quantized base model: file formats, the decoder, the model cache."""
