"""What an epoch costs with adaptive weights and without, with this library and with plain PyTorch."""
