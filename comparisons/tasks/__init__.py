"""What becomes of models' answers when `dci_attention` or a rival takes the place of exact attention."""
