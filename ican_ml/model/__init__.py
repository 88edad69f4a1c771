"""The network: embeddings, transformer blocks, fusion, treatment queries, heads (torch only)."""
