"""Video encoder, text encoder and the dual encoder that holds both."""
