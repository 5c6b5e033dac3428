"""An index in parts: shards, what is measured over all of them, and their files. Who runs them is not known here."""
