"""How published systems do it, written here in plain PyTorch and named after them."""
