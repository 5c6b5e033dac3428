"""Other people's models whose weights come inside packages, each in its own domain with its own metric."""
