"""``cawa-fast doctor data``: what is wrong with a tree of images and labels, and what is in it."""
