"""Explanations of Vision Transformers: captured attention, its flow, smoothing, streamed kernels."""
