BLOCK: int  # queries that share a linear form
