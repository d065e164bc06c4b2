"""Data sets of labelled images, and batches of them."""
