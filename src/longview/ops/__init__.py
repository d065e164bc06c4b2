"""Numerics on tensors. Each op has a dense reference, a fast path and a dispatcher that validates."""
