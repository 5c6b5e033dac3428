"""The ways into existing models: torch functions, layers, transformers, torch.compile."""
