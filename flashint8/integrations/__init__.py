"""Other libraries: flashint8.integrations.transformers."""
